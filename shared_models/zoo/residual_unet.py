"""The residual U-Net, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.job import Normalisation
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import problem_of_a_u

if TYPE_CHECKING:
    from torch import nn


class ResidualUNet(Entry):
    """MONAI's SegResNet (arguments as in MONAI), section 2 of the paper without its autoencoder branch.

    A deep encoder and a light decoder of pre-activation residual blocks; skip connections are added, not concatenated.
    Small by default, as hospitals' data sets are: the paper has init_filters 32.
    """

    family: ClassVar[str] = "U-Net"
    size_rule: ClassVar[str] = "multiples of 8"
    normalisation: ClassVar[Normalisation] = "group"
    heads: ClassVar[tuple[str, ...]] = ("conv_final.2",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Myronenko 2018, 3D MRI brain tumor segmentation using autoencoder regularization"

    init_filters: int = Field(16, ge=1, description="Width of the first level; it doubles with every level.")
    blocks_down: list[PositiveInt] = Field([1, 2, 2, 4], min_length=2, description="Residual blocks of every level.")
    blocks_up: list[PositiveInt] = Field([1, 1, 1], min_length=1, description="One fewer than blocks_down.")

    def problem(self, shape: Shape) -> str | None:
        steps = len(self.blocks_down) - 1
        if len(self.blocks_up) != steps:
            return f"{steps + 1} blocks_down need {steps} blocks_up, found {len(self.blocks_up)}"
        return problem_of_a_u(shape, [2**steps] * shape.spatial_dims)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import SegResNet

        return SegResNet(
            spatial_dims=shape.spatial_dims,
            init_filters=self.init_filters,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            blocks_down=tuple(self.blocks_down),
            blocks_up=tuple(self.blocks_up),
            norm="batch",  # replaced in any case, and it takes any number of channels
            act="relu",  # MONAI's default works in place: without a norm it would change what the block adds
        )

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [*network.get_submodule("down_layers").children(), *network.get_submodule("up_layers").children()]
