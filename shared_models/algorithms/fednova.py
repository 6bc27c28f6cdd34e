"""FedNova: Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization".

With unequal numbers of local steps, plain averaging minimises a sum in which sites with more steps count more. Here a
site's update is divided by aₖ, the length of its path in units of one step (eq. 6), and the mean is multiplied by the
mean of aₖ (eq. 11): w ← w + (Σ pₖ aₖ) Σ pₖ (wₖ − w) / aₖ.

aₖ = τ for plain SGD, and [τ − ρ (1 − ρ^τ) / (1 − ρ)] / (1 − ρ) with momentum ρ. Adam's steps are counted as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from shared_models.algorithms.algorithm import Algorithm, Gathered, Sent, Shape, Weights

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.job import Job
    from shared_models.weights import TensorInfo

LENGTH = "path_length"


class FedNova(Algorithm):
    """Updates divided by the local steps behind them (Wang et al. 2020)."""

    name: Literal["fednova"] = "fednova"

    def extra(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """aₖ, whose mean the server needs."""
        return {LENGTH: ()}

    def begin(self, local: LocalRound) -> None:
        """Keeps the model as it came."""
        _ = local.start

    def contribution(self, local: LocalRound) -> Contribution:
        """w + (wₖ − w) / aₖ where it is trained, and aₖ."""
        from shared_models.algorithms.local_round import Contribution

        length = np.array(path_length(local.steps, local.job.training.optimizer.momentum), np.float32)
        weights = local.weights()
        for name, start in local.start.items():
            before = start.to("cpu").float().numpy()
            weights[name] = before + (weights[name] - before) / length
        return Contribution(weights, self.weight(local), extra={LENGTH: length})

    def misfit(self, job: Job, sent: Sent) -> str | None:
        """The server multiplies by aₖ, and knows it: of the steps that the job asks for, float16 may leave some out."""
        most = job.training.steps(sent.cases)
        if not 1 <= sent.steps <= most:
            return f"it took {sent.steps} local steps, where the job and its {sent.cases} cases make {most}"
        found, expected = float(sent.extra[LENGTH]), path_length(sent.steps, job.training.optimizer.momentum)
        if math.isclose(found, expected, rel_tol=1e-6):
            return None
        return f"its {LENGTH} is {found:g}, where {sent.steps} local steps make {expected:g}"

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """w + mean(aₖ) · (mean − w) where it is trained; running statistics take the mean as it is."""
        target, _ = super().combine(current, state, gathered)
        length = gathered.mean[LENGTH]
        for name in gathered.trainable:
            target[name] = current[name] + length * (target[name] - current[name])
        return target, state


def path_length(steps: int, momentum: float) -> float:
    """‖aₖ‖₁ of so many steps of SGD with a momentum (eq. 6 and its examples)."""
    if not momentum:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
