"""The V-Net, 3D and 2D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import problem_of_a_u

if TYPE_CHECKING:
    from torch import nn


class VNet(Entry):
    """MONAI's VNet: residual stages of 5x5x5 convolutions; its Dice loss is part of the segmentation task's loss."""

    family: ClassVar[str] = "V-Net"
    size_rule: ClassVar[str] = "multiples of 16, one axis at least 32; 1, 2, 4, 8 or 16 channels"
    heads: ClassVar[tuple[str, ...]] = ("out_tr",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Milletari et al. 2016, V-Net"

    dropout: float = Field(0.0, ge=0, lt=1, description="Of whole feature maps, of the lower levels and all skips.")

    def problem(self, shape: Shape) -> str | None:
        if 16 % shape.channels:
            return f"images are added to 16 feature maps, so data.channels must divide 16; found {shape.channels}"
        return problem_of_a_u(shape, [16] * shape.spatial_dims)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import VNet as MonaiVNet
        from torch import nn

        network = MonaiVNet(spatial_dims=shape.spatial_dims, in_channels=shape.channels, out_channels=shape.outputs)
        dropout = nn.Dropout2d if shape.spatial_dims == 2 else nn.Dropout3d
        for transition in network.children():
            for name, layer in transition.named_children():
                # MONAI has Dropout3d in 2D too, where it drops whole images of the batch, and its arguments do not
                # reach the upper levels.
                if isinstance(layer, nn.Dropout3d):
                    setattr(transition, name, dropout(self.dropout))
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return list(network.children())
