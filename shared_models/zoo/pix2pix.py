"""Pix2Pix: translation of images that have a target, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Shape
from shared_models.zoo.patch_gan import PatchGan
from shared_models.zoo.sizes import too_few_voxels

if TYPE_CHECKING:
    from torch import nn


class Pix2Pix(PatchGan):
    """A U-Net as generator and a discriminator that sees source and target (Isola et al., sections 3.2.1 and 3.2.2).

    The generator has no tanh behind it, as images of a job are not confined to -1..1, and by default no dropout, the
    paper's only noise: the same image is always translated in the same way.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"paired translation"})
    paper: ClassVar[str] = "Isola et al. 2017, Image-to-image translation with conditional adversarial networks"
    size_rule: ClassVar[str] = "multiples of 16, at least 32"

    channels: list[PositiveInt] = Field(
        [32, 64, 128, 256, 256],
        min_length=2,
        description="Width of every level of the generator; the paper has 64, 128, 256 and then 512 down to one pixel.",
    )
    dropout: float = Field(0.0, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        step = 2 ** (len(self.channels) - 1)
        if any(size % step for size in shape.crop):
            return f"every axis must be a multiple of {step}: the image is halved between two of the channels"
        return too_few_voxels(shape, [size // step for size in shape.crop]) or super().problem(shape)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import UNet

        from shared_models.zoo.adversarial import Adversarial

        generator = UNet(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            channels=self.channels,
            strides=[2] * (len(self.channels) - 1),
            act=("LEAKYRELU", {"negative_slope": 0.2}),
            dropout=self.dropout,
        )
        discriminator = self.discriminator(shape, shape.channels + shape.outputs)
        return Adversarial({"generator": generator}, {"discriminator": discriminator})
