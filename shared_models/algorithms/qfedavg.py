"""q-FedAvg: Li et al. 2020, "Fair resource allocation in federated learning", algorithm 2.

Sites where the model does badly count more. With Fₖ the loss of the model as it came and L = 1/η, the paper's
Δₖ = L (w − wₖ), w ← w − Σ Fₖ^q Δₖ / Σ hₖ and hₖ = q Fₖ^(q−1) ‖Δₖ‖² + L Fₖ^q give

    w ← w + (mean(wₖ) − w) / (1 + mean(q L ‖w − wₖ‖² / Fₖ))

with means weighted by Fₖ^q: so it is written here, because both means are sums that sites can add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm, Gathered, Sent, Shape, Weights

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.job import Job
    from shared_models.weights import TensorInfo

DAMPING = "damping"
UNIT = 2**16  # the weight of a site with a loss of 1; weights are whole numbers below 2^29

LEAST_LOSS, LARGEST_LOSS = 1e-6, 100.0
"""A loss beyond these counts as the nearer one: zero is that of a site that has nothing to ask for, and without a
largest one, a single site that says so would count thousands of times as much as the others. Of a cross entropy, −log
of the smallest probability that float32 knows is 103, and a larger mean is of a model that has diverged.
"""


class QFedAvg(Algorithm):
    """Sites that do badly count more (Li et al. 2020, q-FedAvg)."""

    weighs_itself: ClassVar[bool] = True
    needs_initial_loss: ClassVar[bool] = True

    name: Literal["qfedavg"] = "qfedavg"
    # With 3, the whole-numbered weights tell losses from 0.025 to 20 apart; with 10 only those from 0.33 to 2.5.
    q: float = Field(1.0, ge=0, le=3, description="How much more; 0 weighs all sites alike.")

    def extra(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """q L ‖w − wₖ‖² / Fₖ."""
        return {DAMPING: ()}

    def begin(self, local: LocalRound) -> None:
        """Keeps the model as it came."""
        _ = local.start

    def weight(self, local: LocalRound) -> int:
        """Fₖ^q in units of 2^-16."""
        return self._weight_at(local.initial_loss)

    def _weight_at(self, loss: float) -> int:
        return int(np.clip(round(min(loss, LARGEST_LOSS) ** self.q * UNIT), 1, 2**29 - 1))

    def contribution(self, local: LocalRound) -> Contribution:
        """The weights, and how much the server's step is damped."""
        from shared_models.algorithms.local_round import Contribution

        square = sum(float((p.detach() - local.start[n]).double().square().sum()) for n, p in local.trained.items())
        damping = np.array(self._damping(square, local.initial_loss, local.learning_rate), np.float32)
        return Contribution(local.weights(), self.weight(local), extra={DAMPING: damping})

    def _damping(self, square: float, loss: float, rate: float) -> float:
        return self.q * square / (rate * min(max(loss, LEAST_LOSS), LARGEST_LOSS))

    def misfit(self, job: Job, sent: Sent) -> str | None:
        """A weight is that of a loss, and damping that of the same loss: too little of it would lengthen the server's
        step without end, too much would stop the model.
        """
        least, heaviest = self._weight_at(0), self._weight_at(LARGEST_LOSS)
        if not least <= sent.weight <= heaviest:
            return f"its weight is {sent.weight}, where losses of 0 to {LARGEST_LOSS:g} make {least} to {heaviest}"
        damping, square, rate = float(sent.extra[DAMPING]), sent.moved**2, sent.learning_rate
        # Of the smallest weight, the loss may be any that is rounded to it.
        loss = ((sent.weight - 0.5) / UNIT) ** (1 / self.q) if self.q and sent.weight > 1 else 0.0
        most = self._damping(square, loss, rate) * (1 + 1e-3)
        return None if 0 <= damping <= most else f"its {DAMPING} is {damping:g}, expected 0 to {most:g}"

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """A damped step to the mean where it is trained; running statistics take the mean as it is."""
        target, _ = super().combine(current, state, gathered)
        damping = np.float32(1) + gathered.mean[DAMPING]
        for name in gathered.trainable:
            target[name] = current[name] + (target[name] - current[name]) / damping
        return target, state
