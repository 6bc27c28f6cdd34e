"""FedPer: Arivazhagan et al. 2019, "Federated learning with personalization layers", algorithms 1 and 2.

Federated averaging of the body; the head (the zoo says which layers that is) stays at each site.
`federation.share`, which the name fills in, says for every tensor whether it travels; there is nothing else to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from shared_models.algorithms.algorithm import Algorithm


class FedPer(Algorithm):
    """The head stays at home (Arivazhagan et al. 2019)."""

    stays_at_home: ClassVar[Mapping[str, str]] = {"heads": "nothing"}

    name: Literal["fedper"] = "fedper"
