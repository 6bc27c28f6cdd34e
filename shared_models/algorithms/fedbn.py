"""FedBN: Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization", algorithm 1.

Federated averaging of all but the normalisation layers: their scale, shift and running statistics stay at each site.
`federation.share`, which the name fills in, says for every tensor whether it travels; there is nothing else to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from shared_models.algorithms.algorithm import Algorithm


class FedBN(Algorithm):
    """Normalisation layers stay at home (Li et al. 2021)."""

    stays_at_home: ClassVar[Mapping[str, str]] = {"normalisation": "nothing"}

    name: Literal["fedbn"] = "fedbn"
