"""The generator of CycleGAN: Zhu et al. 2017, section 4 and appendix 7.2, after Johnson et al. 2016."""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from torch import nn

_PAD: dict[int, type[nn.Module]] = {2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}


class ResidualBlock(nn.Module):
    """R_k of appendix 7.2: two 3-wide convolutions with reflection padding, and nothing behind the sum."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        pad = _PAD[spatial_dims]
        self.layers = nn.Sequential(
            pad(1),
            Convolution(spatial_dims, channels, channels, padding=0, act="RELU"),
            pad(1),
            Convolution(spatial_dims, channels, channels, padding=0, act=None),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) to the same shape."""
        result: torch.Tensor = x + self.layers(x)
        return result


def generator(spatial_dims: int, image_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """c7s1-k, d2k, d4k, R4k..., u2k, uk, c7s1 of appendix 7.2, k being `channels`: (B, C, *spatial) to the same shape.

    Every axis must be a multiple of 4.
    """
    pad, dims = _PAD[spatial_dims], spatial_dims
    layers: list[nn.Module] = [
        pad(3),
        Convolution(dims, image_channels, channels, kernel_size=7, padding=0, act="RELU"),
    ]
    for width in (channels, 2 * channels):
        layers.append(Convolution(dims, width, 2 * width, strides=2, act="RELU"))
    layers += [ResidualBlock(dims, 4 * channels) for _ in range(blocks)]
    for width in (4 * channels, 2 * channels):
        layers.append(Convolution(dims, width, width // 2, strides=2, is_transposed=True, act="RELU"))
    layers += [pad(3), Convolution(dims, channels, image_channels, kernel_size=7, padding=0, conv_only=True)]
    return nn.Sequential(*layers)
