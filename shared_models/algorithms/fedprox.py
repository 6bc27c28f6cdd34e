"""FedProx: Li et al. 2020, "Federated optimization in heterogeneous networks", eq. 2.

A site minimises Fₖ(w) + μ/2 ‖w − wᵗ‖²: its gradient has μ (w − wᵗ) added. With μ = 0 it is federated averaging, bit for
bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import LocalRound


class FedProx(Algorithm):
    """A pull towards the model as it came, in every local step (Li et al. 2020)."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(0.01, ge=0, description="Strength of the pull; 0 is fedavg.")

    def begin(self, local: LocalRound) -> None:
        """Keeps the model as it came."""
        if self.mu:
            _ = local.start

    def correct_gradients(self, local: LocalRound) -> None:
        """Adds μ (w − wᵗ)."""
        for name, parameter in local.trained.items():
            if self.mu and parameter.grad is not None:
                parameter.grad.add_(parameter - local.start[name], alpha=self.mu)
