"""UNETR: a vision transformer as the encoder of a U-Net, 3D and 2D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.vit import drop_untrained_norms, problem_of_heads

if TYPE_CHECKING:
    from torch import nn


class Unetr(Entry):
    """MONAI's UNETR (arguments as in MONAI): 12 transformer layers over patches of 16; small by default."""

    family: ClassVar[str] = "transformer"
    size_rule: ClassVar[str] = "multiples of 16; the network is made for one size"
    heads: ClassVar[tuple[str, ...]] = ("out",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Hatamizadeh et al. 2022, UNETR: Transformers for 3D medical image segmentation"

    feature_size: int = Field(16, ge=1, description="Width of the convolutions at full resolution.")
    hidden_size: int = Field(96, ge=1, description="768 in the paper, with mlp_dim 3072 and 12 heads.")
    mlp_dim: int = Field(384, ge=1)
    num_heads: int = Field(3, ge=1)
    dropout_rate: float = Field(0.0, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        if any(size % 16 for size in shape.crop):
            return "every axis must be a multiple of 16, the size of a patch"
        return problem_of_heads(self.hidden_size, self.num_heads)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import UNETR

        network = UNETR(
            in_channels=shape.channels,
            out_channels=shape.outputs,
            img_size=shape.crop,
            feature_size=self.feature_size,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_dim,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            spatial_dims=shape.spatial_dims,
        )
        drop_untrained_norms(network)
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [
            *network.get_submodule("vit.blocks").children(),
            *(block for name, block in network.named_children() if name.startswith(("encoder", "decoder"))),
        ]
