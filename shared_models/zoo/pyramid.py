"""Convolutions that halve an image down to a few voxels, and back: the halves of autoencoders and of DCGAN.

After Radford et al. 2016, section 3: strides instead of pooling, kernels of 4, no normalisation next to the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from shared_models.zoo.entry import Shape

if TYPE_CHECKING:
    from torch import nn

SIZE_RULE = "multiples of 4, at least 16"


def problem(shape: Shape) -> str | None:
    """Why an image cannot be halved at least twice and keep 4 voxels along every axis."""
    if min(shape.crop) < 16 or any(size % 4 for size in shape.crop):
        return "every axis must be a multiple of 4 and at least 16"
    return None


def widths(crop: Sequence[int], channels: int) -> list[int]:
    """Of every halving, the first `channels`, then twice as many up to 8 times.

    The image is halved while every axis is even and gets no smaller than 4 voxels.
    """
    halvings = 0
    while all(size % 2 ** (halvings + 1) == 0 and size // 2 ** (halvings + 1) >= 4 for size in crop):
        halvings += 1
    return [channels * min(8, 2**level) for level in range(halvings)]


def deepest(crop: Sequence[int], levels: Sequence[int]) -> list[int]:
    """Size of the image after as many halvings as there are levels."""
    return [size // 2 ** len(levels) for size in crop]


def encoder(shape: Shape, in_channels: int, levels: Sequence[int]) -> nn.Sequential:
    """From images (B, in_channels, *crop) to features (B, levels[-1] · voxels of the deepest map)."""
    from monai.networks.blocks import Convolution
    from torch import nn

    layers: list[nn.Module] = []
    for level, (previous, width) in enumerate(pairwise([in_channels, *levels])):
        layers.append(
            Convolution(
                shape.spatial_dims,
                previous,
                width,
                strides=2,
                kernel_size=4,
                padding=1,
                act=("LEAKYRELU", {"negative_slope": 0.2}),
                norm="INSTANCE" if level else None,
            )
        )
    return nn.Sequential(*layers, nn.Flatten())


def decoder(shape: Shape, inputs: int, levels: Sequence[int]) -> nn.Sequential:
    """From vectors (B, inputs) to images (B, shape.outputs, *crop), unbounded."""
    from monai.networks.blocks import ADN, Convolution
    from torch import nn

    dims, start, first = shape.spatial_dims, deepest(shape.crop, levels), levels[-1]
    layers: list[nn.Module] = [
        nn.Linear(inputs, first * prod(start)),
        nn.Unflatten(1, (first, *start)),
        ADN(in_channels=first, act="RELU", norm="INSTANCE", norm_dim=dims, ordering="NA"),
    ]
    for level, (previous, width) in enumerate(pairwise([*reversed(levels), shape.outputs]), 1):
        layers.append(
            Convolution(
                dims,
                previous,
                width,
                strides=2,
                kernel_size=4,
                padding=1,
                output_padding=0,
                act="RELU",
                is_transposed=True,
                conv_only=level == len(levels),
            )
        )
    return nn.Sequential(*layers)
