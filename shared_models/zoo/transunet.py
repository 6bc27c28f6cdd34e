"""TransUNet: a transformer between the encoder and the decoder of a convolutional U, 2D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import problem_of_a_u
from shared_models.zoo.vit import problem_of_heads

if TYPE_CHECKING:
    from torch import nn


class TransUNet(Entry):
    """Chen et al.'s network on MONAI's blocks, small by default.

    The encoder is a stem and three stages of residual units, down to 1/16 of the image, instead of a pretrained
    ResNet-50.
    """

    family: ClassVar[str] = "transformer"
    size_rule: ClassVar[str] = "multiples of 16, one axis at least 32; the network is made for one size"
    heads: ClassVar[tuple[str, ...]] = ("head",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Chen et al. 2021, TransUNet: Transformers make strong encoders for medical segmentation"
    spatial_dims: ClassVar[frozenset[int]] = frozenset({2})

    channels: list[PositiveInt] = Field(
        [16, 32, 64, 128], min_length=4, max_length=4, description="Of the encoder; 64, 256, 512, 1024 in the paper."
    )
    num_res_units: list[PositiveInt] = Field(
        [1, 1, 1], min_length=3, max_length=3, description="Of each stage behind the stem; 3, 4, 9 in the paper."
    )
    hidden_size: int = Field(192, ge=1, description="768 in the paper, with mlp_dim 3072 and 12 layers and heads.")
    mlp_dim: int = Field(768, ge=1)
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(3, ge=1)
    dropout_rate: float = Field(0.0, ge=0, lt=1, description="Of the transformer.")
    decoder_channels: list[PositiveInt] = Field(
        [64, 32, 16, 16], min_length=4, max_length=4, description="256, 128, 64, 16 in the paper."
    )

    def problem(self, shape: Shape) -> str | None:
        return problem_of_a_u(shape, [16, 16]) or problem_of_heads(self.hidden_size, self.num_heads)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import ViT

        from shared_models.zoo.transunet_network import TransUNetNetwork
        from shared_models.zoo.vit import drop_untrained_norms

        transformer = ViT(
            in_channels=self.channels[-1],
            img_size=[size // 16 for size in shape.crop],
            patch_size=1,
            hidden_size=self.hidden_size,
            mlp_dim=self.mlp_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            dropout_rate=self.dropout_rate,
            spatial_dims=2,
        )
        drop_untrained_norms(transformer)
        return TransUNetNetwork(
            shape.channels,
            shape.outputs,
            self.channels,
            self.num_res_units,
            transformer,
            self.hidden_size,
            self.decoder_channels,
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [
            *network.get_submodule("stages").children(),
            *network.get_submodule("transformer.blocks").children(),
            *network.get_submodule("decoder").children(),
        ]
