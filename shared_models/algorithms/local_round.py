"""What a site half has in hand, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from shared_models.algorithms.algorithm import Algorithm
from shared_models.job import Job
from shared_models.weights import Weights, schema, travelling


@dataclass
class LocalRound:
    """One round of local training at one site."""

    network: nn.Module
    job: Job
    algorithm: Algorithm
    received: Weights = field(default_factory=dict)
    """The server's tensors of the algorithm, `Algorithm.sends`."""
    kept: Weights = field(default_factory=dict)
    """The site's own tensors of the algorithm from the last round that its update was used in; {} before its first."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What the algorithm notes in `begin`, to be there in every step; gone with the round."""
    learning_rate: float = 0.0
    """Of this round's local steps."""
    cases: int = 0
    steps: int = 0
    """Optimiser steps done so far."""
    planned_steps: int = 0
    initial_loss: float = 0.0
    """Of the model as it came, on the site's training cases; only for an algorithm with `needs_initial_loss`."""

    @cached_property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained and travel, live: algorithms act on these and on no others."""
        parameters = dict(self.network.named_parameters())
        entries = schema(self.network, self.job.federation.share)
        return {e.name: parameters[e.name] for e in entries if e.travels and e.trainable and e.name in parameters}

    @cached_property
    def start(self) -> dict[str, Tensor]:
        """A copy of `trained`, made when it is first asked for: ask in `begin` for the model as it came."""
        return {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def weights(self) -> Weights:
        """The tensors that travel, as they are now; views of the network's memory where that is on the CPU."""
        return travelling(self.network, self.job.federation.share)

    def zeros(self) -> dict[str, Tensor]:
        """One for every parameter in `trained`."""
        return {name: torch.zeros_like(parameter) for name, parameter in self.trained.items()}

    def beside(self, tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """The tensors named `prefix/<parameter>` on the device of each; zeros for those that are not there."""
        found = self.zeros()
        for name, tensor in found.items():
            if (value := tensors.get(f"{prefix}/{name}")) is not None:
                tensor.copy_(torch.tensor(value))
        return found


def as_weights(tensors: Mapping[str, Tensor], prefix: str) -> Weights:
    """Tensors as they are sent or kept, named `prefix/<name>`."""
    return {f"{prefix}/{name}": tensor.detach().to("cpu", torch.float32).numpy() for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Contribution:
    """What a site sends for one round, and what it keeps."""

    weights: Weights
    """The tensors that travel, by their names in the model."""
    weight: int
    """What everything that is sent is summed with."""
    extra: Weights = field(default_factory=dict)
    """The algorithm's own tensors to be summed, as declared by `Algorithm.extra`."""
    kept: Weights = field(default_factory=dict)
    """Stays at the site: `LocalRound.kept` of its next round."""
