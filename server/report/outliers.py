"""Hospitals whose updates stood out from the others', as sentences: `server.outliers` finds them round by round."""

from __future__ import annotations

from typing import Any

from server.report.record import RunRecord
from shared_models.page import fixed, plural

Row = dict[str, Any]

OFTEN = 0.5
"""Share of its rounds that a hospital must point away in, to be named: in one round chance may do it."""


def remedy(run: Row) -> str:
    """What to do about such a hospital; `run` is that of report.json."""
    look = "Look at its data, labels and software. Patients unlike all others' can do this too: see its own row below."
    bounds = "bounds what a single hospital can do to the model."
    if run["aggregation"] != "mean":
        return f"{look} The run's aggregation, {run['aggregation']}, {bounds}"
    others = run["alternatives"]["aggregation"]
    return f"{look} federation.aggregation: {{name: {others[0]}}} {bounds}" if others else look


def stood_out(record: RunRecord, entries: list[Row]) -> dict[str, Row]:
    """`stood_out` of report.json: of every hospital that stood out in a round, in how many and how.

    Args:
        entries: the participation, see `server.report.participation`.
    """
    found: dict[str, Row] = {}
    for event in record.all("stood_out"):
        used = [e for e in entries if e["site"] == event["site"] and e["status"] == "used"]
        row = found.setdefault(event["site"], {"long": 0, "away": 0, "of": len(used), "longest": None})
        row[event["why"]] += 1
        if event["why"] == "long":
            row["longest"] = max(row["longest"] or 0.0, event["ratio"])
    return found


def named(rows: dict[str, Row]) -> list[str]:
    """The hospitals that must be named: too long once, or pointing away in more than half of their rounds."""
    return [site for site, row in rows.items() if row["long"] or row["away"] > OFTEN * row["of"]]


def sentences(rows: dict[str, Row]) -> list[str]:
    """One for every hospital that must be named."""
    texts = []
    for site in named(rows):
        row, how = rows[site], []
        if row["long"]:
            how.append(f"was up to {fixed(row['longest'], 0)} times as long as the median")
        if row["away"]:
            how.append("pointed away from the others'")
        rounds = f"{row['long'] + row['away']} of {plural(row['of'], 'round')}"
        texts.append(f"{site} stood out in {rounds}: its update {' or '.join(how)}.")
    return texts
