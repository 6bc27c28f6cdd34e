"""A generator of images of each class after DCGAN, with its discriminator, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shared_models.job import Normalisation
from shared_models.zoo import pyramid
from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class Dcgan(Entry):
    """The networks of DCGAN, told the class of an image as in Mirza & Osindero 2014, section 3.2.

    The class enters one-hot: beside the noise of the generator, and as constant channels beside the image that the
    discriminator sees. The number of layers follows data.crop.
    """

    family: ClassVar[str] = "GAN"
    heads: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[frozenset[str]] = frozenset({"synthesis"})
    paper: ClassVar[str] = "Radford et al. 2016, DCGAN; by class: Mirza & Osindero 2014, Conditional GANs"
    size_rule: ClassVar[str] = pyramid.SIZE_RULE
    normalisation: ClassVar[Normalisation] = "group"

    latent: int = Field(64, ge=1, description="Length of the noise; 100 in the paper.")
    channels: int = Field(32, ge=1, description="Width next to the image, doubled at every halving; 128 in the paper.")
    output: Literal["sigmoid", "linear"] = Field(
        "sigmoid", description="sigmoid makes images in 0..1, as data.normalisation minmax and percentile do."
    )

    def problem(self, shape: Shape) -> str | None:
        return pyramid.problem(shape)

    def build(self, shape: Shape) -> nn.Module:
        from shared_models.zoo.adversarial import Adversarial
        from shared_models.zoo.dcgan_network import Discriminator, Generator

        levels = pyramid.widths(shape.crop, self.channels)
        return Adversarial(
            {"generator": Generator(shape, self.latent, levels, bounded=self.output == "sigmoid")},
            {"discriminator": Discriminator(shape, levels)},
        )
