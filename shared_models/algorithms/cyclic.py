"""Cyclic weight transfer: Chang et al. 2018, "Distributed deep learning networks among institutions", section 2.

One model goes from site to site; a round is one visit to each. The sites wait for each other.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from shared_models.algorithms.algorithm import Algorithm


class Cyclic(Algorithm):
    """One model that goes from site to site (Chang et al. 2018)."""

    relays: ClassVar[bool] = True

    name: Literal["cyclic"] = "cyclic"
