"""What a federated algorithm is: what a site adds to local training, and what the server does with the sum.

An algorithm is a section of the job file, with its parameters as fields, and both halves are its methods. The halves
talk through named float32 tensors only. What a site sends is summed with its weight, so that the server half sees
weighted means and no single update; the few algorithms that need more say so (`relays`, `hands_on`).

Jobs are read where torch is not: the files here import it, and what needs it, inside methods or for types only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator

from shared_models.section import Section

if TYPE_CHECKING:
    from torch import Tensor

    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.job import Job
    from shared_models.tasks import Batch, Task
    from shared_models.weights import TensorInfo

Shape = tuple[int, ...]
Weights = dict[str, NDArray[np.float32]]


class ServerOptimizer(Section):
    """Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2; `none` takes the average as it is."""

    name: Literal["none", "momentum", "adam", "yogi", "adagrad"] = "none"
    learning_rate: float = Field(
        None, gt=0, validate_default=True, description="null: 1.0 of none and momentum, 0.01 of adam, yogi and adagrad."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="beta_1.")
    second_momentum: float = Field(0.99, ge=0, lt=1, description="beta_2 of adam and yogi.")
    adaptivity: float = Field(1e-3, gt=0, description="tau, added to the root of the second moment.")

    @field_validator("learning_rate", mode="before", json_schema_input_type=float | None)
    @classmethod
    def _that_goes_with_the_name(cls, value: Any, info: ValidationInfo) -> Any:
        """An adaptive step goes by the rate more than by the length of the update: 1.0 would be far too long."""
        if value is not None:
            return value
        return 1.0 if info.data.get("name") in ("none", "momentum") else 0.01


@dataclass(frozen=True)
class Gathered:
    """What the updates of one round became."""

    mean: Weights
    """Of the model's tensors and of `Algorithm.extra`, by the sites' weights, or robust, as the job says."""
    answered: float
    """Share of the whole federation's weight that is in it: a mean over all sites moves by this times `mean`."""
    trainable: Collection[str]
    """Names of the tensors that are trained; the others that travel are running statistics."""
    updates: Mapping[str, Weights] = field(default_factory=dict)
    """By site, and only for an algorithm that `hands_on`."""


@dataclass(frozen=True)
class Sent:
    """What is known of one site's update before it is summed."""

    cases: int
    """That the site has trained on."""
    steps: int
    """Optimiser steps behind what it sent."""
    weight: int
    """What the update counts."""
    moved: float
    """How far it lies from the model that the site began with, over all that is trained and travels (L2)."""
    extra: Weights
    """Finite, and of the shapes of `Algorithm.extra`."""
    learning_rate: float
    """Of the local optimiser in the round."""


class Algorithm(Section):
    """One federated algorithm; as it stands, federated averaging. Subclasses change what differs."""

    stays_at_home: ClassVar[Mapping[str, str]] = {}
    """Keys of `federation.share` that the algorithm is a rule about."""
    trainings: ClassVar[int] = 1
    """How often a site goes through its local steps in one round."""
    relays: ClassVar[bool] = False
    """Sites are asked one after the other, each beginning with the model of the one before."""
    hands_on: ClassVar[bool] = False
    """Every site begins with a model of its own, `starts`, and the server half sees every update."""
    weighs_itself: ClassVar[bool] = False
    """A site's weight is its own, and not `federation.weighting`."""
    needs_initial_loss: ClassVar[bool] = False
    """The site measures the loss of the model as it came, which takes a pass over its training cases."""

    mean_of_kept: ClassVar[bool] = False
    """The server's state is the mean, over all sites, of what each keeps: it begins anew where a site has lost that."""

    server_optimizer: ServerOptimizer = ServerOptimizer()

    # --- what is declared, so that the door of a hospital can hold it against what leaves ---

    def extra(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """Names and shapes of what a site sends beside the model's tensors."""
        return {}

    def receives(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """Names and shapes of what a site gets beside the model's tensors: those of `sends`."""
        return {}

    # --- the site half ---

    def begin(self, local: LocalRound) -> None:
        """Called with the model as it came, before the first step."""

    def step_loss(self, local: LocalRound, task: Task, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
        """The loss that one player's step goes down, and the task's own, `Task.step_loss`: float32 scalars.

        The second is reported, so that rounds can be compared whatever an algorithm adds to the first.
        """
        loss = task.step_loss(local.network, batch, player)
        return loss, loss

    def correct_gradients(self, local: LocalRound) -> None:
        """Called without autograd, with the gradients of a step, in place, before the optimiser sees them.

        A parameter whose gradient is None is not stepped.
        """

    def contribution(self, local: LocalRound) -> Contribution:
        """What is sent after the last step: here the weights as trained, to be averaged by cases or alike.

        Weights are sent rather than differences: a weight times a count is exact in float64, so that N identical
        sites average to the identical model, bit for bit.
        """
        from shared_models.algorithms.local_round import Contribution

        return Contribution(local.weights(), self.weight(local))

    def weight(self, local: LocalRound) -> int:
        """`federation.weighting`."""
        return local.cases if local.job.federation.weighting == "cases" else 1

    def personal(self) -> Algorithm | None:
        """The rule by which a site trains a model of its own beside the global one; None where it has none."""
        return None

    # --- the server half ---

    def initial_state(self, tensors: Sequence[TensorInfo], sites: Sequence[str], weights: Weights) -> Weights:
        """The server's tensors of the algorithm before the first round; they are in every checkpoint."""
        return {}

    def sends(self, state: Weights) -> Weights:
        """What of the state goes to every site beside the model."""
        return {}

    def starts(self, state: Weights, site: str) -> Weights | None:
        """The model that a site begins with, where that is not the global one."""
        return None

    def grown(self, state: Weights, share: float) -> Weights:
        """The state when hospitals have come that the federation had not met before, and that keep nothing yet.

        Args:
            share: of the federation's weight, that of those it had met.
        """
        return {name: np.float32(share) * array for name, array in state.items()} if self.mean_of_kept else state

    def misfit(self, job: Job, sent: Sent) -> str | None:
        """Why a site cannot have come to what it sent beside the model, in a short sentence; None where it can."""
        return None

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """From what was gathered to the model that the server optimiser steps towards, and the next state.

        Args:
            current: the global model that the round began with.
        """
        return {name: gathered.mean[name] for name in current}, state


def trainable_names(tensors: Sequence[TensorInfo]) -> list[str]:
    """Names of the tensors that travel and are trained, in the order of the model."""
    return [entry.name for entry in tensors if entry.travels and entry.trainable]
