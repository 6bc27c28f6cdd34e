"""The U-Net, 2D and 3D."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class UNet(Entry):
    """MONAI's UNet with affine instance norm by default: hospitals differ in scanners (arguments as in MONAI)."""

    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Ronneberger et al. 2015 (2D); Çiçek et al. 2016 (3D); residual units: Kerfoot et al. 2018"

    channels: list[int] = Field([16, 32, 64, 128, 256], min_length=2)
    strides: list[int] = Field([2, 2, 2, 2], min_length=1, description="One fewer than channels.")
    num_res_units: int = Field(2, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["instance", "batch"] = "instance"

    def problem(self, shape: Shape) -> str | None:
        if len(self.strides) != len(self.channels) - 1:
            return f"{len(self.channels)} channels need {len(self.channels) - 1} strides, found {len(self.strides)}"
        step = prod(self.strides)
        if any(size % step for size in shape.crop):
            return f"every axis must be a multiple of {step}, the product of the strides"
        if min(shape.crop) <= step:
            return f"every axis must be larger than {step}, or nothing is left at the bottom of the U"
        return None

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import UNet as MonaiUNet

        norm: Any = ("INSTANCE", {"affine": True}) if self.norm == "instance" else "BATCH"
        return MonaiUNet(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            channels=self.channels,
            strides=self.strides,
            num_res_units=self.num_res_units,
            dropout=self.dropout,
            norm=norm,
        )
