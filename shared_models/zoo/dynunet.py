"""The network of nnU-Net, 2D and 3D."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.sizes import problem_of_a_u

if TYPE_CHECKING:
    from torch import nn

# The kernels have three voxels: a longer stride would leave voxels out.
Stride = Annotated[int, Field(ge=1, le=3)]


class DynUNet(Entry):
    """MONAI's DynUNet: a U-Net whose strides may differ by axis, for volumes with thick slices.

    Half as wide by default as nnU-Net's, as hospitals' data sets are small.
    """

    family: ClassVar[str] = "U-Net"
    size_rule: ClassVar[str] = "multiples of 16, one axis at least 32"
    heads: ClassVar[tuple[str, ...]] = ("output_block", "deep_supervision_heads")
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "Isensee et al. 2021, nnU-Net"

    filters: list[PositiveInt] = Field([16, 32, 64, 128, 256], min_length=3, description="Width of every level.")
    strides: list[list[Stride]] = Field(
        [[2], [2], [2], [2]],
        description="From each level to the next, one fewer than filters: one number per axis, or one for all.",
    )
    deep_supervision: bool = Field(False, description="Outputs at all but the two lowest resolutions are trained.")

    def problem(self, shape: Shape) -> str | None:
        if len(self.strides) != len(self.filters) - 1:
            return f"{len(self.filters)} filters need {len(self.filters) - 1} strides, found {len(self.strides)}"
        for stride in self.strides:
            if len(stride) not in (1, shape.spatial_dims):
                return f"a stride has 1 or {shape.spatial_dims} numbers, found {stride}"
        return problem_of_a_u(shape, [prod(along) for along in zip(*self._per_axis(shape), strict=True)])

    def _per_axis(self, shape: Shape) -> list[list[int]]:
        return [stride if len(stride) > 1 else stride * shape.spatial_dims for stride in self.strides]

    def build(self, shape: Shape) -> nn.Module:
        import torch
        from monai.networks.nets import DynUNet as MonaiDynUNet
        from torch import nn

        class OwnResolution(MonaiDynUNet):
            """MONAI enlarges all outputs and stacks them; here each has its own resolution, the main one is first."""

            def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
                main: torch.Tensor = self.output_block(self.skip_layers(x))
                deeper = list(self.heads)
                # MONAI's layers leave their outputs in this list: kept, they would hold a step's memory.
                self.heads[:] = [torch.empty(0)] * len(deeper)
                return [main, *deeper] if self.training and self.deep_supervision else main

        network = OwnResolution(
            spatial_dims=shape.spatial_dims,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            kernel_size=[3] * len(self.filters),
            strides=[1, *self._per_axis(shape)],
            upsample_kernel_size=self._per_axis(shape),
            filters=self.filters,
            deep_supervision=self.deep_supervision,
            deep_supr_num=max(1, len(self.filters) - 3),
        )
        if not self.deep_supervision:
            network.deep_supervision_heads = nn.ModuleList()
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        part = network.get_submodule
        return [
            part("input_block"),
            *part("downsamples").children(),
            part("bottleneck"),
            *part("upsamples").children(),
        ]
