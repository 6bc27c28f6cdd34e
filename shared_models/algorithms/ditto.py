"""Ditto: Li et al. 2021, "Ditto: fair and robust federated learning through personalization", algorithm 1.

Beside the global model, which is trained by federated averaging, every site trains a model vₖ of its own with
λ (vₖ − wᵗ) added to its gradient. It begins as wᵗ in the site's first round, and never leaves the site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm
from shared_models.algorithms.fedprox import FedProx

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import LocalRound


class Ditto(Algorithm):
    """Each site trains a model of its own beside the global one, pulled towards it (Li et al. 2021)."""

    trainings: ClassVar[int] = 2

    name: Literal["ditto"] = "ditto"
    pull: float = Field(0.1, ge=0, description="lambda: how strongly; 0 is training alone.")

    def begin(self, local: LocalRound) -> None:
        """Keeps the model as it came, which the personal one is pulled towards."""
        _ = local.start

    def personal(self) -> Algorithm:
        """FedProx's site half, on the site's own model."""
        return FedProx(mu=self.pull)
