"""The vision transformer for classification, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape

if TYPE_CHECKING:
    from torch import nn


class ViT(Entry):
    """MONAI's ViT (arguments as in MONAI); small by default, because hospitals' data sets are."""

    family: ClassVar[str] = "transformer"
    size_rule: ClassVar[str] = "multiples of 4; the network is made for one size"
    heads: ClassVar[tuple[str, ...]] = ("classification_head",)
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    paper: ClassVar[str] = "Dosovitskiy et al. 2021, An image is worth 16x16 words"

    patch_size: int = Field(4, ge=1, description="16 in the paper, for large images.")
    hidden_size: int = Field(192, ge=1, description="768 in the paper's smallest, with mlp_dim 3072.")
    mlp_dim: int = Field(768, ge=1)
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(3, ge=1)
    dropout_rate: float = Field(0.0, ge=0, lt=1)

    def problem(self, shape: Shape) -> str | None:
        if any(size % self.patch_size for size in shape.crop):
            return f"every axis must be a multiple of patch_size {self.patch_size}"
        return problem_of_heads(self.hidden_size, self.num_heads)

    def build(self, shape: Shape) -> nn.Module:
        import torch
        from monai.networks.nets import ViT as MonaiViT

        class LogitsOnly(MonaiViT):
            """MONAI returns (logits, hidden states); every network of the zoo returns logits."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = super().forward(x)[0]
                return logits

        network = LogitsOnly(
            in_channels=shape.channels,
            img_size=shape.crop,
            patch_size=(self.patch_size,) * shape.spatial_dims,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            spatial_dims=shape.spatial_dims,
            classification=True,
            num_classes=shape.outputs,
            post_activation=None,  # MONAI's default squashes the logits with tanh
        )
        drop_untrained_norms(network)
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return list(network.get_submodule("blocks").children())


def problem_of_heads(hidden_size: int, num_heads: int) -> str | None:
    """Why attention cannot be split into so many heads."""
    if hidden_size % num_heads:
        return f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads}"
    return None


def drop_untrained_norms(network: nn.Module) -> None:
    """Removes a layer norm from each of MONAI's transformer blocks, in place.

    MONAI makes it for cross attention, without which it is never used: parameters that nobody trains.
    """
    from monai.networks.blocks import TransformerBlock
    from torch import nn

    for module in network.modules():
        if isinstance(module, TransformerBlock):
            module.norm_cross_attn = nn.Identity()  # type: ignore[assignment]
