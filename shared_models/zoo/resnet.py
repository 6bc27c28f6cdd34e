"""Residual networks for classification, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class ResNet18(Entry):
    """MONAI's ResNet-18 (arguments as in MONAI, besides `norm`, which here reaches every layer)."""

    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    paper: ClassVar[str] = "He et al. 2016, Deep residual learning for image recognition"
    depth: ClassVar[int] = 18

    conv1_t_size: int = Field(3, ge=1, description="Kernel of the first convolution; 7 for large images.")
    conv1_t_stride: int = Field(1, ge=1)
    no_max_pool: bool = Field(False, description="Leave out the pooling behind the first convolution.")
    norm: Literal["batch", "instance", "group"] = Field(
        "group", description="batch averages running statistics that may fit no hospital."
    )

    def problem(self, shape: Shape) -> str | None:
        if min(shape.crop) < 16:
            return "every axis needs at least 16 voxels"
        return None

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks import nets

        from shared_models.zoo.normalisation import replace_batch_norm

        constructor: Any = getattr(nets, f"resnet{self.depth}")
        network: nn.Module = constructor(
            spatial_dims=shape.spatial_dims,
            n_input_channels=shape.channels,
            num_classes=shape.outputs,
            conv1_t_size=self.conv1_t_size,
            conv1_t_stride=self.conv1_t_stride,
            no_max_pool=self.no_max_pool,
        )
        return replace_batch_norm(network, self.norm)


class ResNet34(ResNet18):
    """MONAI's ResNet-34."""

    depth: ClassVar[int] = 34


class ResNet50(ResNet18):
    """MONAI's ResNet-50."""

    depth: ClassVar[int] = 50
