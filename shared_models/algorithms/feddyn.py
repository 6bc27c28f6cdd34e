"""FedDyn: Acar et al. 2021, "Federated learning based on dynamic regularization", algorithm 1.

A site minimises Lₖ(θ) − ⟨gₖ, θ⟩ + α/2 ‖θ − θᵗ‖², and then gₖ ← gₖ − α (θₖ − θᵗ): at the end gₖ is the gradient of Lₖ.
The server has h ← h − α |S|/N · mean(θₖ − θᵗ), |S|/N the share of the weight that answered, and θ ← mean(θₖ) − h/α.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm, Gathered, Weights, trainable_names

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.weights import TensorInfo

SLOPE = "slope"  # gₖ at a site, h at the server


class FedDyn(Algorithm):
    """Dynamic regularisation, so that the sites' optima and the federation's agree (Acar et al. 2021)."""

    mean_of_kept: ClassVar[bool] = True  # h, of all gₖ

    name: Literal["feddyn"] = "feddyn"
    alpha: float = Field(0.1, gt=0, description="Strength of the regulariser; too small, and the server overshoots.")

    def begin(self, local: LocalRound) -> None:
        """Keeps the model as it came, and lays out gₖ."""
        _ = local.start
        local.memory["slope"] = local.beside(local.kept, SLOPE)

    def correct_gradients(self, local: LocalRound) -> None:
        """Adds −gₖ + α (θ − θᵗ)."""
        for name, parameter in local.trained.items():
            if parameter.grad is not None:
                parameter.grad.sub_(local.memory["slope"][name])
                parameter.grad.add_(parameter - local.start[name], alpha=self.alpha)

    def contribution(self, local: LocalRound) -> Contribution:
        """The weights; the next gₖ stays."""
        from shared_models.algorithms.local_round import Contribution, as_weights

        slope = local.memory["slope"]
        following = {n: slope[n] - self.alpha * (p.detach() - local.start[n]) for n, p in local.trained.items()}
        return Contribution(local.weights(), self.weight(local), kept=as_weights(following, SLOPE))

    def initial_state(self, tensors: Sequence[TensorInfo], sites: Sequence[str], weights: Weights) -> Weights:
        """h = 0."""
        return {f"{SLOPE}/{name}": np.zeros_like(weights[name]) for name in trainable_names(tensors)}

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """The mean, corrected by h where it is trained; running statistics take the mean as it is."""
        target, _ = super().combine(current, state, gathered)
        step, alpha, following = np.float32(self.alpha * gathered.answered), np.float32(self.alpha), {}
        for name in gathered.trainable:
            h = state[f"{SLOPE}/{name}"] - step * (target[name] - current[name])
            target[name] = (target[name] - h / alpha).astype(np.float32)
            following[f"{SLOPE}/{name}"] = h
        return target, following
