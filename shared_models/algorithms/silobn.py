"""SiloBN: Andreux et al. 2020, "Siloed federated learning for multi-centric histopathology datasets", section 3.

Federated averaging of all but the running statistics of normalisation layers; their scale and shift travel.
`federation.share`, which the name fills in, says for every tensor whether it travels; there is nothing else to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from shared_models.algorithms.algorithm import Algorithm


class SiloBN(Algorithm):
    """Running statistics of normalisation layers stay at home (Andreux et al. 2020)."""

    stays_at_home: ClassVar[Mapping[str, str]] = {"normalisation": "no_statistics"}

    name: Literal["silobn"] = "silobn"
