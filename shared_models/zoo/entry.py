"""What every file of the zoo offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shared_models.job import Section

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shape:
    """Input and output of a network: (batch, channels, *crop) in; (batch, outputs[, *crop]) out."""

    spatial_dims: int
    channels: int
    outputs: int
    crop: tuple[int, ...]


class Entry(Section):
    """A network of the zoo; fields of a subclass are the arguments that a job may set."""

    tasks: ClassVar[frozenset[str]]
    paper: ClassVar[str]

    def problem(self, shape: Shape) -> str | None:
        """Why this network cannot take the shape, and what would fit; None when it can."""
        return None

    def build(self, shape: Shape) -> nn.Module:
        """The network, giving logits as one tensor."""
        raise NotImplementedError
