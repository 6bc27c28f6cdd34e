"""A small plain convolutional network."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class Cnn(Entry):
    """Blocks of convolution, normalisation, ReLU and pooling by 2, then a hidden layer; torch alone, quick to start."""

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    paper: ClassVar[str] = "LeCun et al. 1998, Gradient-based learning applied to document recognition"

    channels: list[int] = Field([32, 64], min_length=1)
    hidden: int = Field(128, ge=1)
    norm: Literal["none", "instance", "group", "batch"] = "none"

    def problem(self, shape: Shape) -> str | None:
        least = 2 ** len(self.channels)
        if min(shape.crop) < least:
            return f"{len(self.channels)} poolings need at least {least} voxels along every axis"
        return None

    def build(self, shape: Shape) -> nn.Module:
        from torch import nn

        from shared_models.zoo.normalisation import replace_batch_norm

        convolution, batch_norm, pooling = {
            2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
            3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
        }[shape.spatial_dims]
        layers: list[nn.Module] = []
        previous = shape.channels
        for width in self.channels:
            layers.append(convolution(previous, width, kernel_size=3, padding=1))
            if self.norm != "none":
                layers.append(batch_norm(width))
            layers += [nn.ReLU(), pooling(2)]
            previous = width
        features = previous * prod(size // 2 ** len(self.channels) for size in shape.crop)
        layers += [nn.Flatten(), nn.Linear(features, self.hidden), nn.ReLU(), nn.Linear(self.hidden, shape.outputs)]
        network = nn.Sequential(*layers)
        return network if self.norm == "none" else replace_batch_norm(network, self.norm)
