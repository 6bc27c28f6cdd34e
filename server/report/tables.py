"""What the page shows as tables, arranged from the content of report.json."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def hospitals(report: Row) -> list[str]:
    """The hospitals that were evaluated, in the run's order of sites."""
    found = {name for by_hospital in report["models"].values() for name in by_hospital if name != "all"}
    return [site for site in report["run"]["sites"] if site in found] + sorted(found - set(report["run"]["sites"]))


def comparison(report: Row, metric: str) -> list[Row]:
    """One row for every hospital and one for all together: each model's numbers, the differences and the verdict.

    A hospital's local model is its own. All hospitals together have no single local model; the difference in their
    row is the mean over the hospitals.
    """
    rows = []
    for hospital in [*hospitals(report), "all"]:
        entries: Row = {
            "local": report["models"].get(f"local:{hospital}", {}).get(hospital, {}).get(metric),
            "pooled": report["models"].get("pooled", {}).get(hospital, {}).get(metric),
            "federated": report["models"].get("federated", {}).get(hospital, {}).get(metric),
        }
        for other in ("federated-local", "federated-pooled"):
            entries[other] = report["differences"].get(other, {}).get(hospital, {}).get(metric)
        call = report["verdicts"].get("federated-local", {}).get(hospital, {}).get(metric)
        n = next((entry["n"] for entry in entries.values() if entry and entry.get("n") is not None), None)
        name = "All hospitals" if hospital == "all" else hospital
        rows.append({"hospital": hospital, "name": name, "n": n, "verdict": call, **entries})
    return rows


def everywhere(report: Row, metric: str) -> list[Row]:
    """Every model at every hospital: how a model does away from home."""
    places = [*hospitals(report), "all"]
    return [
        {"model": model, "values": [by_hospital.get(place, {}).get(metric) for place in places]}
        for model, by_hospital in report["models"].items()
    ]


def left_out_rows(report: Row) -> list[Row]:
    """Every entry of the participation that was neither used nor simply not drawn."""
    return [entry for entry in report["participation"] if entry["status"] not in ("used", "not_drawn")]


def summary_metrics(report: Row) -> list[str]:
    """The metrics that get a table of their own: the headline one first, then those that their task marks so."""
    first = report["headline_metric"]
    marked = [name for name, info in report["metrics"].items() if info["headline"] and name != first]
    return [first, *marked] if first else []


def federated_details(report: Row) -> list[Row]:
    """The federated model's other metrics, such as those of a single class: one row each, all hospitals last."""
    shown = summary_metrics(report)
    federated = report["models"].get("federated", {})
    places = [*hospitals(report), "all"]
    return [
        {
            "label": info["label"],
            "digits": info["digits"],
            "values": [federated.get(place, {}).get(name) for place in places],
        }
        for name, info in report["metrics"].items()
        if name not in shown and any(name in rows for rows in federated.values())
    ]


def baseline_seconds(report: Row) -> dict[str, float]:
    """Seconds of the baselines, the local ones together."""
    seconds = report["cost"]["seconds"]["baselines"]
    local = [value for model, value in seconds.items() if model.startswith("local:")]
    rows = {f"Baseline {model}": value for model, value in seconds.items() if not model.startswith("local:")}
    if local:
        rows[f"Local baselines of {len(local)} hospital{'s' if len(local) > 1 else ''}"] = sum(local)
    return rows
