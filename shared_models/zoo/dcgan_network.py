"""The networks of DCGAN, by class: Radford et al. 2016, section 3; Mirza & Osindero 2014, section 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch.nn import functional as F

from shared_models.zoo.entry import Shape
from shared_models.zoo.pyramid import decoder, deepest, encoder


class Generator(nn.Module):
    """Makes images out of noise and classes.

    Attributes:
        latent: length of the noise of one image.
    """

    def __init__(self, shape: Shape, latent: int, levels: Sequence[int], bounded: bool) -> None:
        super().__init__()
        self.latent = latent
        self.classes = shape.classes
        self.layers = decoder(shape, latent + shape.classes, levels)
        self.output = nn.Sigmoid() if bounded else nn.Identity()

    def forward(self, noise: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Images (B, C, *crop) from N(0, 1) noise (B, latent) and classes (B,), int64."""
        images: torch.Tensor = self.output(self.layers(torch.cat([noise, _one_hot(classes, self.classes, noise)], 1)))
        return images


class Discriminator(nn.Module):
    """Tells real images of a class from made ones."""

    def __init__(self, shape: Shape, levels: Sequence[int]) -> None:
        super().__init__()
        self.classes = shape.classes
        self.layers = encoder(shape, shape.outputs + shape.classes, levels)
        self.judgement = nn.Linear(levels[-1] * prod(deepest(shape.crop, levels)), 1)

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Logits (B,), positive for real, of images (B, C, *crop) and classes (B,), int64."""
        size = images.shape[2:]
        planes = _one_hot(classes, self.classes, images).unflatten(1, (self.classes, *[1] * len(size)))
        logits: torch.Tensor = self.judgement(self.layers(torch.cat([images, planes.expand(-1, -1, *size)], 1)))
        return logits[:, 0]


def _one_hot(classes: torch.Tensor, count: int, like: torch.Tensor) -> torch.Tensor:
    """(B, count), of the type of another tensor."""
    return F.one_hot(classes, count).to(like.dtype)
