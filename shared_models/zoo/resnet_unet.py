"""A U-Net with a ResNet as its encoder, 2D and 3D."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from shared_models.job import Normalisation
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.resnet import residual_blocks
from shared_models.zoo.sizes import problem_of_a_u

if TYPE_CHECKING:
    from torch import Tensor, nn


def shortcut(x: Tensor, planes: int, stride: int, spatial_dims: int) -> Tensor:
    """Every stride-th voxel, with zeros as further channels: (B, C, *spatial) -> (B, planes, *spatial / stride).

    Option A of He et al. 2016, section 3.3.
    """
    from torch.nn.functional import pad

    every = [slice(None)] * 2 + [slice(None, None, stride)] * spatial_dims
    return pad(x[tuple(every)], (0, 0) * spatial_dims + (0, planes - x.shape[1]))


class ResNetUNet(Entry):
    """MONAI's FlexibleUNet with a ResNet of the paper's widths (arguments as in MONAI), never pretrained by itself."""

    family: ClassVar[str] = "ResNet"
    size_rule: ClassVar[str] = "multiples of 32"
    normalisation: ClassVar[Normalisation] = "group"
    heads: ClassVar[tuple[str, ...]] = ("segmentation_head",)
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation"})
    paper: ClassVar[str] = "He et al. 2016 (encoder); Ronneberger et al. 2015 (decoder)"

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet18"

    def problem(self, shape: Shape) -> str | None:
        return problem_of_a_u(shape, [32] * shape.spatial_dims)

    def build(self, shape: Shape) -> nn.Module:
        from monai.networks.nets import FlexibleUNet

        network = FlexibleUNet(
            in_channels=shape.channels,
            out_channels=shape.outputs,
            backbone=self.backbone,
            pretrained=False,
            spatial_dims=shape.spatial_dims,
        )
        for block in residual_blocks(network.encoder):
            if isinstance(block.downsample, partial):
                # Of ResNet-18 and 34; MONAI's own gives the same values, and no gradient to what is below.
                block.downsample = partial(shortcut, **block.downsample.keywords)  # type: ignore[assignment]
        return network

    def checkpointed(self, network: nn.Module) -> list[nn.Module]:
        encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder.blocks")
        return [*residual_blocks(encoder), *decoder.children()]
