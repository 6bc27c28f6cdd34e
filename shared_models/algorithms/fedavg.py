"""Federated averaging: McMahan et al. 2017, "Communication-efficient learning of deep networks", algorithm 1.

w ← Σ nₖ wₖ / Σ nₖ. With a server optimiser the mean is what it steps towards (Reddi et al. 2021).
"""

from __future__ import annotations

from typing import Literal

from shared_models.algorithms.algorithm import Algorithm


class FedAvg(Algorithm):
    """Weights, averaged (McMahan et al. 2017): what `Algorithm` does without a change."""

    name: Literal["fedavg"] = "fedavg"
