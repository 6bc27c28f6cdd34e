"""A small plain convolutional network."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.job import Normalisation
from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class Cnn(Entry):
    """Blocks of convolution, normalisation, ReLU and pooling by 2, then a hidden layer; torch alone, quick to start."""

    family: ClassVar[str] = "classic CNN"
    size_rule: ClassVar[str] = "at least 4"
    normalisation: ClassVar[Normalisation] = "none"
    heads: ClassVar[tuple[str, ...]] = ("head",)
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    paper: ClassVar[str] = "LeCun et al. 1998, Gradient-based learning applied to document recognition"

    channels: list[PositiveInt] = Field([32, 64], min_length=1)
    hidden: int = Field(128, ge=1)

    def problem(self, shape: Shape) -> str | None:
        least = 2 ** len(self.channels)
        if min(shape.crop) < least:
            return f"{len(self.channels)} poolings need at least {least} voxels along every axis"
        return None

    def build(self, shape: Shape) -> nn.Module:
        from torch import nn

        convolution, batch_norm, pooling = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
        }[shape.spatial_dims]
        network = nn.Sequential()
        previous = shape.channels
        for number, width in enumerate(self.channels, start=1):
            conv = convolution(previous, width, kernel_size=3, padding=1)
            network.add_module(f"block{number}", nn.Sequential(conv, batch_norm(width), nn.ReLU(), pooling(2)))
            previous = width
        features = previous * prod(size // 2 ** len(self.channels) for size in shape.crop)
        network.add_module("hidden", nn.Sequential(nn.Flatten(), nn.Linear(features, self.hidden), nn.ReLU()))
        network.add_module("head", nn.Linear(self.hidden, shape.outputs))
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [block for name, block in network.named_children() if name.startswith("block")]
