"""The U-Net and the attention U-Net, 2D and 3D."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import problem_of_a_u

if TYPE_CHECKING:
    from torch import nn

Width = Annotated[int, Field(ge=2)]


class _Levels(Entry):
    """What both networks are told: the width of every level, and how much smaller the next one is."""

    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    size_rule: ClassVar[str] = "multiples of 16, one axis at least 32"

    channels: list[Width] = Field([16, 32, 64, 128, 256], min_length=2)
    strides: list[PositiveInt] = Field([2, 2, 2, 2], min_length=1, description="One fewer than channels.")
    dropout: float = Field(0.0, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        if len(self.strides) != len(self.channels) - 1:
            return f"{len(self.channels)} channels need {len(self.channels) - 1} strides, found {len(self.strides)}"
        return problem_of_a_u(shape, [prod(self.strides)] * shape.spatial_dims)


class UNet(_Levels):
    """MONAI's UNet (arguments as in MONAI); with residual units by default, 0 makes it plain."""

    family: ClassVar[str] = "U-Net"
    heads: ClassVar[tuple[str, ...]] = ("model.2",)
    paper: ClassVar[str] = "Ronneberger et al. 2015 (2D); Çiçek et al. 2016 (3D); residual units: Kerfoot et al. 2018"

    num_res_units: int = Field(2, ge=0)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import UNet as MonaiUNet

        return MonaiUNet(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            channels=self.channels,
            strides=self.strides,
            num_res_units=self.num_res_units,
            dropout=self.dropout,
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        from monai.networks.layers import SkipConnection

        blocks, level = [], network.get_submodule("model")
        for _ in self.strides:  # every level is (down, the levels below, up)
            down, below, up = level.children()
            assert isinstance(below, SkipConnection)
            blocks += [down, up]
            level = below.submodule
        return [*blocks, level]


class AttentionUNet(_Levels):
    """MONAI's AttentionUnet (arguments as in MONAI): gates weigh what the skip connections carry, section 2."""

    family: ClassVar[str] = "U-Net"
    heads: ClassVar[tuple[str, ...]] = ("model.2",)
    paper: ClassVar[str] = "Oktay et al. 2018, Attention U-Net: learning where to look for the pancreas"

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import AttentionUnet

        return AttentionUnet(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            channels=self.channels,
            strides=self.strides,
            dropout=self.dropout,
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        from monai.networks.nets.attentionunet import AttentionBlock, ConvBlock, UpConv

        return [module for module in network.modules() if isinstance(module, AttentionBlock | ConvBlock | UpConv)]
