"""What every file of the zoo offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shared_models.job import Normalisation
from shared_models.section import Section

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shape:
    """Input and output of a network: (batch, channels, *crop) in; (batch, outputs[, *crop]) out."""

    spatial_dims: int
    channels: int
    outputs: int
    crop: tuple[int, ...]
    classes: int = 0
    """Classes of the job, for a network that is told the class of what it makes."""
    normalisation: Normalisation = "instance"
    """What its layers will have, which `problem` may depend on; `build` need not care."""


class Entry(Section):
    """A network of the zoo; fields of a subclass are the arguments that a job may set."""

    family: ClassVar[str]
    """The row of the zoo's table, such as U-Net."""
    tasks: ClassVar[frozenset[str]]
    """Of segmentation, classification, paired translation, unpaired translation, synthesis and reconstruction."""
    paper: ClassVar[str]
    spatial_dims: ClassVar[frozenset[int]] = frozenset({2, 3})
    size_rule: ClassVar[str]
    """In words, what data.crop must be with the default arguments; `problem` is what decides."""
    normalisation: ClassVar[Normalisation] = "instance"
    """Where the job does not choose."""
    heads: ClassVar[tuple[str, ...]]
    """Names of the modules that give the outputs: what is personal to a site where heads stay at home."""

    def problem(self, shape: Shape) -> str | None:
        """Why this network cannot take the shape, and what would fit; None when it can."""
        return None

    def build(self, shape: Shape) -> nn.Module:
        """The network, giving logits as one tensor.

        With deep supervision it gives, while it is in training, a list: the main output first.
        """
        raise NotImplementedError

    def checkpointed(self, network: nn.Module) -> Sequence[nn.Module]:
        """The blocks whose activations can be computed again in the backward pass instead of being kept."""
        return []
