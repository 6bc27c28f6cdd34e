"""What the two GANs that translate images have in common: their discriminator."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class PatchGan(Entry):
    """A GAN with discriminators that judge patches; with 64 channels and 3 layers those of the papers, of 70 pixels."""

    family: ClassVar[str] = "GAN"
    heads: ClassVar[tuple[str, ...]] = ()

    discriminator_channels: int = Field(32, ge=1, description="Of its first layer, doubled in every further one.")
    discriminator_layers: int = Field(3, ge=1, description="More layers judge larger patches.")

    def problem(self, shape: Shape) -> str | None:
        least = 3 * 2**self.discriminator_layers
        if min(shape.crop) < least:
            return f"{self.discriminator_layers} discriminator_layers need at least {least} voxels along every axis"
        return None

    def discriminator(self, shape: Shape, channels: int) -> nn.Module:
        """Logits (B, 1, *patches) of images with so many channels."""
        from monai.networks.nets import PatchDiscriminator
        from torch import nn

        network = PatchDiscriminator(
            spatial_dims=shape.spatial_dims,
            channels=self.discriminator_channels,
            in_channels=channels,
            num_layers_d=self.discriminator_layers,
        )
        # MONAI's module calls its children in turn and returns what each of them gave; the last one gives the logits.
        return nn.Sequential(OrderedDict(network.named_children()))
