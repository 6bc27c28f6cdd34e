"""Residual networks for classification, 2D and 3D."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shared_models.job import Normalisation
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import too_few_voxels

if TYPE_CHECKING:
    from torch import nn


def residual_blocks(network: nn.Module) -> list[nn.Module]:
    """Of the four stages of a MONAI ResNet or SENet."""
    return [block for stage in range(1, 5) for block in network.get_submodule(f"layer{stage}").children()]


class _Residual(Entry):
    family: ClassVar[str] = "ResNet"
    size_rule: ClassVar[str] = "at least 16"
    normalisation: ClassVar[Normalisation] = "group"
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})

    def problem(self, shape: Shape) -> str | None:
        if min(shape.crop) < 16:
            return "every axis needs at least 16 voxels"
        return too_few_voxels(shape, [self._deepest(size) for size in shape.crop])

    def _deepest(self, size: int) -> int:
        """Voxels of the deepest feature maps along an axis of so many."""
        raise NotImplementedError

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return residual_blocks(network)


class ResNet18(_Residual):
    """MONAI's ResNet-18, table 1 of the paper (arguments as in MONAI)."""

    paper: ClassVar[str] = "He et al. 2016, Deep residual learning for image recognition"
    heads: ClassVar[tuple[str, ...]] = ("fc",)
    depth: ClassVar[int] = 18

    conv1_t_size: int = Field(3, ge=1, description="Kernel of the first convolution, odd; 7 for large images.")
    conv1_t_stride: int = Field(1, ge=1)
    no_max_pool: bool = Field(False, description="Leave out the pooling behind the first convolution.")
    widen_factor: float = Field(1.0, gt=0, description="Of all widths; below 1 for small data sets, in 3D above all.")

    def problem(self, shape: Shape) -> str | None:
        if self.conv1_t_size % 2 == 0:
            return f"conv1_t_size must be odd, found {self.conv1_t_size}"
        if self.widen_factor < 1 / 64:
            return f"widen_factor {self.widen_factor} leaves nothing of 64 channels"
        return super().problem(shape)

    def _deepest(self, size: int) -> int:
        return ceil(size / (self.conv1_t_stride * (1 if self.no_max_pool else 2) * 8))

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks import nets

        constructor: Any = getattr(nets, f"resnet{self.depth}")
        network: nn.Module = constructor(
            spatial_dims=shape.spatial_dims,
            n_input_channels=shape.channels,
            num_classes=shape.outputs,
            conv1_t_size=self.conv1_t_size,
            conv1_t_stride=self.conv1_t_stride,
            no_max_pool=self.no_max_pool,
            widen_factor=self.widen_factor,
        )
        return network


class ResNet34(ResNet18):
    """MONAI's ResNet-34."""

    depth: ClassVar[int] = 34


class ResNet50(ResNet18):
    """MONAI's ResNet-50."""

    depth: ClassVar[int] = 50


class ResNet101(ResNet18):
    """MONAI's ResNet-101."""

    depth: ClassVar[int] = 101


class SEResNet50(_Residual):
    """MONAI's SEResNet50: a ResNet-50 whose blocks weigh their channels, section 3.3 of the paper."""

    paper: ClassVar[str] = "Hu et al. 2018, Squeeze-and-excitation networks"
    heads: ClassVar[tuple[str, ...]] = ("last_linear",)

    def _deepest(self, size: int) -> int:
        return ceil(ceil(size / 2) // 2 / 8)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import SEResNet50 as MonaiSEResNet50

        return MonaiSEResNet50(spatial_dims=shape.spatial_dims, in_channels=shape.channels, num_classes=shape.outputs)
