"""SCAFFOLD: Karimireddy et al. 2020, "Stochastic controlled averaging for federated learning", algorithm 1.

Every local step goes down g − cₖ + c instead of g. cₖ, kept at the site, is its gradient in its last round; c, kept at
the server, is the mean of all cₖ. The new cₖ is the mean of the round's gradients: with plain SGD that is the paper's
option II, cₖ − c + (x − yₖ) / (K η), and it means the same with any other optimiser.

A site sends cₖ⁺ − cₖ, which the server sums like weights: c ← c + |S|/N · mean(cₖ⁺ − cₖ) (eq. 5), where |S|/N is the
share of the weight that answered, so that c stays Σ pₖ cₖ with the weights pₖ of the sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from shared_models.algorithms.algorithm import Algorithm, Gathered, Shape, Weights, trainable_names

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.weights import TensorInfo

CONTROL = "control"


class Scaffold(Algorithm):
    """Control variates against client drift (Karimireddy et al. 2020); twice the traffic."""

    mean_of_kept: ClassVar[bool] = True  # c, of all cₖ

    name: Literal["scaffold"] = "scaffold"

    def extra(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """The change of the site's control variate."""
        return {f"{CONTROL}/{e.name}": e.shape for e in tensors if e.travels and e.trainable}

    def receives(self, tensors: Sequence[TensorInfo]) -> dict[str, Shape]:
        """The server's control variate."""
        return self.extra(tensors)

    def begin(self, local: LocalRound) -> None:
        """Lays out c − cₖ, and the sum of gradients."""
        theirs, ours = local.beside(local.received, CONTROL), local.beside(local.kept, CONTROL)
        local.memory["correction"] = {name: theirs[name] - ours[name] for name in ours}
        local.memory["gradients"] = local.zeros()

    def correct_gradients(self, local: LocalRound) -> None:
        """Notes g, and adds c − cₖ to it."""
        for name, parameter in local.trained.items():
            if parameter.grad is not None:
                local.memory["gradients"][name].add_(parameter.grad)
                parameter.grad.add_(local.memory["correction"][name])

    def contribution(self, local: LocalRound) -> Contribution:
        """Weights, and cₖ⁺ − cₖ; cₖ⁺ stays."""
        from shared_models.algorithms.local_round import Contribution, as_weights

        means = {name: total / max(local.steps, 1) for name, total in local.memory["gradients"].items()}
        kept = as_weights(means, CONTROL)
        change = {name: array - local.kept[name] if name in local.kept else array for name, array in kept.items()}
        return Contribution(local.weights(), self.weight(local), extra=change, kept=kept)

    def initial_state(self, tensors: Sequence[TensorInfo], sites: Sequence[str], weights: Weights) -> Weights:
        """c = 0."""
        return {f"{CONTROL}/{name}": np.zeros_like(weights[name]) for name in trainable_names(tensors)}

    def sends(self, state: Weights) -> Weights:
        """c."""
        return state

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """The mean of the weights, and the next c."""
        target, _ = super().combine(current, state, gathered)
        share = np.float32(gathered.answered)
        return target, {name: c + share * gathered.mean[name] for name, c in state.items()}
