"""Swin UNETR: a shifted-window transformer as the encoder of a U-Net, 3D and 2D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import too_few_voxels

if TYPE_CHECKING:
    from torch import nn


class SwinUnetr(Entry):
    """MONAI's SwinUNETR (arguments as in MONAI), small by default."""

    family: ClassVar[str] = "transformer"
    size_rule: ClassVar[str] = "multiples of 32, one axis at least 64"
    heads: ClassVar[tuple[str, ...]] = ("out",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Hatamizadeh et al. 2022, Swin UNETR"

    feature_size: int = Field(12, ge=12, multiple_of=12, description="Width of the first stage; 48 in the paper.")
    depths: list[PositiveInt] = Field([2, 2, 2, 2], min_length=4, max_length=4)
    num_heads: list[PositiveInt] = Field([3, 6, 12, 24], min_length=4, max_length=4)
    window_size: int = Field(4, ge=2, description="Side of an attention window; 7 in the paper, much slower in 3D.")
    drop_rate: float = Field(0.0, ge=0, lt=1)
    dropout_path_rate: float = Field(0.0, ge=0, lt=1)
    use_v2: bool = Field(False, description="A residual convolution before every stage.")

    def problem(self, shape: Shape) -> str | None:
        if any(size % 32 for size in shape.crop):
            return "every axis must be a multiple of 32, as the image is halved five times"
        return problem_of_swin_heads(self.feature_size, self.num_heads) or too_few_voxels(
            shape, [size // 32 for size in shape.crop]
        )

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import SwinUNETR

        return SwinUNETR(
            in_channels=shape.channels,
            out_channels=shape.outputs,
            feature_size=self.feature_size,
            depths=self.depths,
            num_heads=self.num_heads,
            window_size=self.window_size,
            drop_rate=self.drop_rate,
            dropout_path_rate=self.dropout_path_rate,
            use_v2=self.use_v2,
            spatial_dims=shape.spatial_dims,
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        from monai.networks.nets.swin_unetr import BasicLayer

        stages = [module for module in network.modules() if isinstance(module, BasicLayer)]
        return stages + [block for name, block in network.named_children() if name.startswith(("encoder", "decoder"))]


def problem_of_swin_heads(width: int, num_heads: list[int]) -> str | None:
    """Why the stages of a Swin transformer, each twice as wide as the one before, cannot have so many heads."""
    for stage, heads in enumerate(num_heads):
        if (width * 2**stage) % heads:
            return f"stage {stage + 1} is {width * 2**stage} wide, which num_heads {heads} does not divide"
    return None
