"""The network of TransUNet: Chen et al. 2021, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import Convolution, ResidualUnit
from monai.networks.nets import ViT
from monai.networks.nets.basic_unet import TwoConv
from torch import nn
from torch.nn import functional as F


class Decode(nn.Module):
    """One step of the cascaded upsampler (section 3.3): twice the size, the skip connection, two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = TwoConv(2, in_channels + skip_channels, out_channels, act="RELU", norm="INSTANCE", bias=False)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """(B, in_channels, H, W) and the skip (B, skip_channels, 2H, 2W) to (B, out_channels, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        result: torch.Tensor = self.layers(x if skip is None else torch.cat([x, skip], 1))
        return result


class TransUNetNetwork(nn.Module):
    """Convolutions down to 1/16 of the image, a transformer over what they found, convolutions back up.

    Args:
        channels: of the stem and of every further stage; each halves the image.
        units: residual units of every further stage.
        transformer: over patches of one voxel of the last stage's map (section 3.2).
        hidden_size: width of the transformer.
        decoder_channels: of every step back up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        units: Sequence[int],
        transformer: ViT,
        hidden_size: int,
        decoder_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = Convolution(2, in_channels, channels[0], strides=2, kernel_size=7, act="RELU")
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualUnit(2, previous, width, strides=2, act="RELU"),
                *(ResidualUnit(2, width, width, act="RELU") for _ in range(count - 1)),
            )
            for (previous, width), count in zip(pairwise(channels), units, strict=True)
        )
        self.transformer = transformer
        self.bridge = Convolution(2, hidden_size, channels[-1], act="RELU")
        skips = [*reversed(channels[:-1]), 0]
        self.decoder = nn.ModuleList(
            Decode(before, skip, after)
            for (before, after), skip in zip(pairwise([channels[-1], *decoder_channels]), skips, strict=True)
        )
        self.head = nn.Conv2d(decoder_channels[-1], out_channels, kernel_size=3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, H, W) of images (B, in_channels, H, W)."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        deepest = maps.pop()
        tokens, _ = self.transformer(deepest)
        x = self.bridge(tokens.transpose(1, 2).unflatten(2, deepest.shape[2:]))
        for decode, skip in zip(self.decoder, [*reversed(maps), None], strict=True):
            x = decode(x, skip)
        logits: torch.Tensor = self.head(x)
        return logits
