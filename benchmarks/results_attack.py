"""One attacker of five: what each aggregation keeps of the model. The last part of docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.results_rows import failure, rounded

STUDY, METRIC, KEPT = "attack", "balanced_accuracy", 0.95
CLEAN = "mean, nobody attacks"
AGGREGATIONS: dict[str, dict[str, Any]] = {
    CLEAN: {"name": "mean"},
    "mean": {"name": "mean"},
    "median": {"name": "median"},
    "trimmed mean": {"name": "trimmed_mean"},
    "Krum": {"name": "krum"},
    "Multi-Krum": {"name": "krum", "keep": 3},
    "geometric median": {"name": "geometric_median"},
    "clipped mean": {"name": "clipped_mean"},
}


def job_of(folder: Path, row: str) -> dict[str, Any]:
    """The job of a row; without the attacker for the clean one."""
    job: dict[str, Any] = yaml.safe_load((folder / f"{STUDY}.yaml").read_text())
    if row == CLEAN:
        del job["simulation"]["faulty"]
    return job | {"federation": {**job["federation"], "aggregation": AGGREGATIONS[row]}}


def folder_of(row: str) -> str:
    """The name of a run's folder."""
    return row.replace(", ", "-").replace(" ", "-")


def collect(runs: Path) -> dict[str, Any]:
    """By row: the score over all patients, whom the report names, or the last words of a run that failed."""
    found: dict[str, Any] = {}
    for row in AGGREGATIONS:
        out = runs / STUDY / folder_of(row)
        if (out / "report.json").exists() and (out / "evaluations.json").exists():
            report = json.loads((out / "report.json").read_text())
            score = report["models"]["federated"]["all"][METRIC]
            named = [doubt["text"] for doubt in report["doubts"] if doubt["kind"] == "update_out_of_line"]
            found[row] = rounded({key: score[key] for key in ("value", "low", "high", "n")}) | {"named": named}
        elif words := failure(out):
            found[row] = words
    return {STUDY: found} if found else {}


def section(numbers: Mapping[str, Any]) -> str:
    """The part of the page."""
    rows = {row: numbers[STUDY][row] for row in AGGREGATIONS}
    clean = rows[CLEAN]["value"]
    lines = [
        "| aggregation | balanced accuracy, all patients | of the clean score | the report says |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"| {name} | {row['failed']} | | |")
            continue
        score = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = {row['n']}"
        lines.append(f"| {name} | {score} | {row['value'] / clean:.0%} | {' '.join(row['named']) or 'nobody'} |")
    robust = {
        name: row["value"] / clean for name, row in rows.items() if "failed" not in row and name not in (CLEAN, "mean")
    }
    lost = [name for name, share in robust.items() if share < KEPT]
    words = (
        f"The mean keeps {rows['mean']['value'] / clean:.0%} of the clean score. " if "value" in rows["mean"] else ""
    )
    words += (
        f"Below {KEPT:.0%} of it: {', '.join(lost)}."
        if lost
        else f"Every robust aggregation keeps at least {KEPT:.0%}."
    )
    return f"""# One attacker of five

PneumoniaMNIST dealt out alike to five hospitals; `hospital-5` sends its update the wrong way round and five times as
long, in every round (`simulation.faulty`). 10 rounds of 20 steps, batches of 32, adamw at 0.003.

{chr(10).join(lines)}

{words}
"""
