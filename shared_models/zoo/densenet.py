"""Densely connected networks for classification, 2D and 3D."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.job import Normalisation
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import too_few_voxels

if TYPE_CHECKING:
    from torch import nn


class DenseNet121(Entry):
    """MONAI's DenseNet-121, table 1 of the paper (arguments as in MONAI)."""

    family: ClassVar[str] = "DenseNet"
    size_rule: ClassVar[str] = "at least 29"
    normalisation: ClassVar[Normalisation] = "group"
    heads: ClassVar[tuple[str, ...]] = ("class_layers.out",)
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    paper: ClassVar[str] = "Huang et al. 2017, Densely connected convolutional networks"
    layers: ClassVar[tuple[int, ...]] = (6, 12, 24, 16)

    init_features: int = Field(64, ge=1)
    growth_rate: int = Field(32, ge=1, description="Channels that every layer adds, k in the paper.")
    dropout_prob: float = Field(0.0, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        deepest = [ceil(size / 4) // 8 for size in shape.crop]
        if min(deepest) == 0:
            return "every axis needs at least 29 voxels (smaller images are padded to data.crop)"
        return too_few_voxels(shape, deepest)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import DenseNet

        return DenseNet(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            init_features=self.init_features,
            growth_rate=self.growth_rate,
            block_config=self.layers,
            dropout_prob=self.dropout_prob,
            act="relu",  # MONAI's default works in place: without a norm it would change what a layer hands on
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        features = network.get_submodule("features").named_children()
        return [layer for name, block in features if name.startswith("denseblock") for layer in block.children()]


class DenseNet169(DenseNet121):
    """MONAI's DenseNet-169."""

    layers: ClassVar[tuple[int, ...]] = (6, 12, 32, 32)


class DenseNet201(DenseNet121):
    """MONAI's DenseNet-201."""

    layers: ClassVar[tuple[int, ...]] = (6, 12, 48, 32)
