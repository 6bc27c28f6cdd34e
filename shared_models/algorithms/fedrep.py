"""FedRep: Collins et al. 2021, "Exploiting shared representations for personalized federated learning", algorithm 1.

As FedPer, but a round first trains the head with the body as it came, then the body with the new head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from shared_models.algorithms.local_round import LocalRound


class FedRep(Algorithm):
    """The head stays at home, and is trained before the body (Collins et al. 2021)."""

    stays_at_home: ClassVar[Mapping[str, str]] = {"heads": "nothing"}

    name: Literal["fedrep"] = "fedrep"
    head_share: float = Field(0.5, gt=0, lt=1, description="Share of a round's local steps that train the head only.")

    def correct_gradients(self, local: LocalRound) -> None:
        """Drops the gradients of the part that is not trained now; a round of a single step trains both, as FedPer."""
        if local.planned_steps < 2:
            return
        # At least one step for each part, so that a round of two steps trains both.
        head_steps = min(max(round(local.planned_steps * self.head_share), 1), local.planned_steps - 1)
        training_head = local.steps < head_steps
        for name, parameter in local.network.named_parameters():
            if (name in local.trained) == training_head:
                parameter.grad = None
