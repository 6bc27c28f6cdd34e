"""Autoencoders, plain and variational, that find anomalies by what they cannot reconstruct, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.job import Normalisation
from shared_models.zoo import pyramid
from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class AutoEncoder(Entry):
    """An image through a short vector and back; the number of layers follows data.crop."""

    family: ClassVar[str] = "autoencoder"
    heads: ClassVar[tuple[str, ...]] = ()
    tasks: ClassVar[frozenset[str]] = frozenset({"reconstruction"})
    paper: ClassVar[str] = "Hinton & Salakhutdinov 2006, Reducing the dimensionality of data with neural networks"
    size_rule: ClassVar[str] = pyramid.SIZE_RULE
    normalisation: ClassVar[Normalisation] = "group"
    variational: ClassVar[bool] = False

    latent: int = Field(64, ge=1, description="Length of the vector that an image is reconstructed from.")
    channels: int = Field(16, ge=1, description="Width next to the image, doubled at every halving.")

    def problem(self, shape: Shape) -> str | None:
        return pyramid.problem(shape)

    def build(self, shape: Shape) -> nn.Module:
        from shared_models.zoo.autoencoder_network import AutoEncoderNetwork

        return AutoEncoderNetwork(shape, self.latent, pyramid.widths(shape.crop, self.channels), self.variational)


class VariationalAutoEncoder(AutoEncoder):
    """The vector is a normal distribution, drawn from in training; its mean is what judges."""

    paper: ClassVar[str] = "Kingma & Welling 2014, Auto-encoding variational Bayes"
    variational: ClassVar[bool] = True
