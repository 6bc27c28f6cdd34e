"""Swin-Unet: a U of shifted-window transformers without convolutions, 2D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.swin_unetr import problem_of_swin_heads

if TYPE_CHECKING:
    from torch import nn


class SwinUNet(Entry):
    """Cao et al.'s network on MONAI's Swin blocks; embed_dim is 96 in the paper, 48 here."""

    family: ClassVar[str] = "transformer"
    size_rule: ClassVar[str] = "multiples of 32"
    heads: ClassVar[tuple[str, ...]] = ("head",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Cao et al. 2022, Swin-Unet: Unet-like pure transformer for medical image segmentation"
    spatial_dims: ClassVar[frozenset[int]] = frozenset({2})

    patch_size: int = Field(4, ge=1)
    embed_dim: int = Field(48, ge=1, description="Width of the first stage, doubled in every further one.")
    depths: list[PositiveInt] = Field([2, 2, 2, 2], min_length=2, description="Blocks of every stage.")
    num_heads: list[PositiveInt] = Field([3, 6, 12, 24], min_length=2)
    window_size: int = Field(7, ge=2)
    drop_path_rate: float = Field(0.1, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        if len(self.depths) != len(self.num_heads):
            return f"{len(self.depths)} depths need as many num_heads, found {len(self.num_heads)}"
        step = self.patch_size * 2 ** (len(self.depths) - 1)
        if any(size % step for size in shape.crop):
            return f"every axis must be a multiple of {step}: patches of {self.patch_size}, halved behind every stage"
        return problem_of_swin_heads(self.embed_dim, self.num_heads)

    def build(self, shape: Shape) -> nn.Module:
        from shared_models.zoo.swin_unet_network import SwinUNetNetwork

        return SwinUNetNetwork(
            shape.channels,
            shape.outputs,
            self.patch_size,
            self.embed_dim,
            self.depths,
            self.num_heads,
            self.window_size,
            self.drop_path_rate,
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [*network.get_submodule("encoder").children(), *network.get_submodule("decoder").children()]
