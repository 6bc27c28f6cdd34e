"""MOON: Li et al. 2021, "Model-contrastive federated learning", eq. 3 and algorithm 1.

The loss gets μ · −log [exp(sim(z, z_glob) / T) / (exp(sim(z, z_glob) / T) + exp(sim(z, z_prev) / T))]: the features z
of a batch are pulled to those of the model as it came, and away from those of the site's own model of its last round.
Features are what goes into the head, averaged over space where it has any.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from shared_models.algorithms.algorithm import Algorithm

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shared_models.algorithms.local_round import Contribution, LocalRound
    from shared_models.tasks import Batch, Task

PREVIOUS = "previous/"


class Moon(Algorithm):
    """A contrastive loss between the local and the global model's features (Li et al. 2021); three models in memory."""

    name: Literal["moon"] = "moon"
    mu: float = Field(1.0, ge=0, description="Weight of the contrastive loss; 0 is fedavg.")
    temperature: float = Field(0.5, gt=0)

    def begin(self, local: LocalRound) -> None:
        """Copies the model as it came and, from the site's second round on, its own of the last one."""
        from shared_models.weights import load

        if not self.mu or not local.kept:
            return
        previous = copy.deepcopy(local.network)
        load(previous, {name.removeprefix(PREVIOUS): array for name, array in local.kept.items()})
        local.memory["others"] = [copy.deepcopy(local.network), previous]
        for other in local.memory["others"]:
            other.eval().requires_grad_(False)

    def step_loss(self, local: LocalRound, task: Task, batch: Batch, player: str) -> tuple[Tensor, Tensor]:
        """Adds the contrastive loss, which needs two more forward passes."""
        import torch
        import torch.nn.functional as F

        if "others" not in local.memory:
            return super().step_loss(local, task, batch, player)
        with _features(local.network) as caught:
            loss, own = super().step_loss(local, task, batch, player)
        ours, similarities = _pooled(caught[0]), []
        for other in local.memory["others"]:
            with torch.no_grad(), _features(other) as caught:
                other(batch["image"])
            similarities.append(F.cosine_similarity(ours, _pooled(caught[0])) / self.temperature)
        target = torch.zeros(len(ours), dtype=torch.long, device=ours.device)  # the global model is the right one
        return loss + self.mu * F.cross_entropy(torch.stack(similarities, dim=1), target), own

    def contribution(self, local: LocalRound) -> Contribution:
        """The weights; the whole model stays for the next round."""
        from shared_models.algorithms.local_round import Contribution
        from shared_models.weights import travelling

        kept = {PREVIOUS + name: array.copy() for name, array in travelling(local.network).items()}
        return Contribution(local.weights(), self.weight(local), kept=kept)


@contextlib.contextmanager
def _features(network: nn.Module) -> Iterator[list[Tensor]]:
    """Catches what goes into the first head layer of a network while it is called."""
    caught: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])

    head = next(module for module in network.modules() if getattr(module, "is_head", False))
    handle = head.register_forward_pre_hook(note)
    try:
        yield caught
    finally:
        handle.remove()


def _pooled(features: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C) in float32."""
    return features.float().flatten(2).mean(dim=2) if features.ndim > 2 else features.float()
