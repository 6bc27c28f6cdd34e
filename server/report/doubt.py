"""One reason why a run should not be believed as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

PLACES_NAMED = 3
"""Of places of one kind, so many are named in a sentence."""


@dataclass(frozen=True)
class Doubt:
    """One reason; `kind` is a word for scripts."""

    kind: str
    grave: bool
    text: str
    remedy: str
