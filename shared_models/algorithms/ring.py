"""A ring without a merging server, after Warnat-Herresthal et al. 2021, "Swarm learning", and Chang et al. 2018.

As many models as sites are under way. Each round every site trains one of them and hands it on to the next site, so
that all sites work at once and every model sees every site. Their mean is the model that is judged and handed out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from shared_models.algorithms.algorithm import Algorithm, Gathered, Weights

if TYPE_CHECKING:
    from shared_models.weights import TensorInfo


class Ring(Algorithm):
    """As many models as sites, each handed on to the next site every round; they are averaged to be judged."""

    hands_on: ClassVar[bool] = True

    name: Literal["ring"] = "ring"

    def initial_state(self, tensors: Sequence[TensorInfo], sites: Sequence[str], weights: Weights) -> Weights:
        """`<site>/<tensor>`, the model that a site trains next: at first all are the initial one."""
        return {f"{site}/{name}": array for site in sorted(sites) for name, array in weights.items()}

    def starts(self, state: Weights, site: str) -> Weights | None:
        """The model that has come to this site."""
        prefix = f"{site}/"
        return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)} or None

    def combine(self, current: Weights, state: Weights, gathered: Gathered) -> tuple[Weights, Weights]:
        """Hands the models on; one whose site did not answer goes on untrained. The target is their mean.

        A hospital that came to the run late enters the ring with the global model as it trained that.
        """
        sites = sorted({key.partition("/")[0] for key in state} | gathered.updates.keys())
        following: Weights = {}
        for site, successor in zip(sites, [*sites[1:], *sites[:1]], strict=True):
            model = gathered.updates.get(site) or self.starts(state, site) or current
            following |= {f"{successor}/{name}": array for name, array in model.items()}
        mean = {}
        for name in current:
            total = sum(following[f"{site}/{name}"].astype(np.float64) for site in sites)
            mean[name] = np.asarray(total / len(sites), np.float32)
        return mean, following
