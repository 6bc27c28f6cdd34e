"""Networks that are trained against each other, as one module: they travel, are averaged and are saved together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.utils import normal_init
from torch import nn


class Adversarial(nn.Module):
    """Generators and discriminators, each a child with its name.

    All weights start from N(0, 0.02²), as in the papers of all three GANs of the zoo (Radford et al. 2016, section 4;
    Isola et al. 2017, appendix 6.2; Zhu et al. 2017, appendix 7.1).
    """

    generators: tuple[str, ...]
    discriminators: tuple[str, ...]

    def __init__(self, generators: Mapping[str, nn.Module], discriminators: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.generators = tuple(generators)
        self.discriminators = tuple(discriminators)
        for name, network in {**generators, **discriminators}.items():
            self.add_module(name, network)
        self.apply(normal_init)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the first generator makes: (B, C, *crop) from images of that shape, or from noise and classes."""
        images: torch.Tensor = self.get_submodule(self.generators[0])(*inputs)
        return images
