"""The UNet++, 2D and 3D."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import too_few_voxels

if TYPE_CHECKING:
    from torch import nn


class UNetPlusPlus(Entry):
    """MONAI's BasicUNetPlusPlus (arguments as in MONAI), half as wide by default: nested U-Nets of one to four levels.

    With deep supervision (section 3.2 of the paper) each of the four gives an output; the deepest is the main one.
    """

    family: ClassVar[str] = "U-Net"
    size_rule: ClassVar[str] = "at least 16, one axis at least 32"
    heads: ClassVar[tuple[str, ...]] = ("final_conv_0_1", "final_conv_0_2", "final_conv_0_3", "final_conv_0_4")
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Zhou et al. 2018, UNet++: a nested U-Net architecture for medical image segmentation"

    features: list[PositiveInt] = Field(
        [16, 16, 32, 64, 128, 16], min_length=6, max_length=6, description="Of five levels, then of the last block."
    )
    deep_supervision: bool = False

    def problem(self, shape: Shape) -> str | None:
        if min(shape.crop) < 16:
            return "four poolings need at least 16 voxels along every axis"
        return too_few_voxels(shape, [size // 16 for size in shape.crop])

    def build(self, shape: Shape) -> nn.Module:
        import torch
        from monai.networks.nets import BasicUNetPlusPlus
        from torch import nn

        class MainFirst(BasicUNetPlusPlus):
            """MONAI always returns a list, in evaluation too, with the deepest output last."""

            def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
                outputs: list[torch.Tensor] = super().forward(x)[::-1]
                return outputs if self.training and self.deep_supervision else outputs[0]

        network = MainFirst(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            features=self.features,
            deep_supervision=self.deep_supervision,
        )
        if not self.deep_supervision:
            for head in self.heads[:-1]:
                # Made by MONAI in any case, and their outputs are thrown away: parameters that nobody trains.
                network.set_submodule(head, nn.Identity())
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        return [block for name, block in network.named_children() if name not in self.heads]
