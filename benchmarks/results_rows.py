"""What all parts of docs/results.md do with the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def rounded(value: Any) -> Any:
    """A JSON value with its floats to five digits, so that the page's numbers do not change with the last bit."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def failure(run: Path) -> dict[str, str] | None:
    """The row of a run that has no result: its last words; None where it was never begun."""
    log = run.with_suffix(".log")
    if not log.exists():
        return None
    words = log.read_text().strip().splitlines()
    return {"failed": words[-1] if words else "it said nothing"}
