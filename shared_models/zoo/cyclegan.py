"""CycleGAN: translation between two domains without pairs, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.zoo.entry import Shape
from shared_models.zoo.patch_gan import PatchGan

if TYPE_CHECKING:
    from torch import nn


class CycleGan(PatchGan):
    """Two residual generators, from domain a to b and back, and a discriminator of each (Zhu et al., section 4).

    The generators have no tanh behind them, as images of a job are not confined to -1..1.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"unpaired translation"})
    paper: ClassVar[str] = "Zhu et al. 2017, Unpaired image-to-image translation using cycle-consistent networks"
    size_rule: ClassVar[str] = "multiples of 4, at least 24"

    channels: int = Field(16, ge=1, description="Of a generator's first layer; 64 in the paper.")
    blocks: int = Field(6, ge=1, description="Residual blocks of a generator; 6 or 9 in the paper.")
    discriminator_channels: int = Field(16, ge=1, description="Of its first layer, doubled in every further one.")

    def problem(self, shape: Shape) -> str | None:
        if any(size % 4 for size in shape.crop):
            return "every axis must be a multiple of 4, as the generators halve the image twice"
        return super().problem(shape)

    def build(self, shape: Shape) -> nn.Module:
        from shared_models.zoo.adversarial import Adversarial
        from shared_models.zoo.cyclegan_network import generator

        arguments = (shape.spatial_dims, shape.channels, self.channels, self.blocks)
        return Adversarial(
            {"generator_ab": generator(*arguments), "generator_ba": generator(*arguments)},
            {name: self.discriminator(shape, shape.channels) for name in ("discriminator_a", "discriminator_b")},
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        from shared_models.zoo.cyclegan_network import ResidualBlock

        return [module for module in network.modules() if isinstance(module, ResidualBlock)]
