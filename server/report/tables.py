"""What the page shows as tables, arranged from the content of report.json."""

from __future__ import annotations

from typing import Any

from server.report.answer import HARMED, HELPED, UNDEFINED, calls, so_many, told
from server.report.kinds import ONE_CLASS, only_class
from server.report.models import LOCAL, by_hospital, compared_models, in_order, is_single_local, name_of
from server.report.participation import steps_by_site
from shared_models.page import natural, plural

Row = dict[str, Any]


def hospitals(report: Row) -> list[str]:
    """The hospitals that were evaluated."""
    found = {name for by_hospital in report["models"].values() for name in by_hospital if name != "all"}
    return sorted(found, key=natural)


def places(report: Row) -> list[Row]:
    """The columns of a table with one for every hospital and one for all: `name`, and the `n` cases to judge on, and
    what stands where it has no value, `absent`."""
    counts = [report["sites"].get(name, {}).get("cases", {}).get(report["split"]) for name in hospitals(report)]
    everybody = None if None in counts else sum(counts)
    columns = [*zip(hospitals(report), counts, strict=True), ("All hospitals", everybody)]
    return [{"name": name, "n": count, "absent": _absent(report, name)} for name, count in columns]


def _absent(report: Row, hospital: str) -> str:
    return ONE_CLASS if only_class(report, hospital) else "\u2013"


def comparison(report: Row, metric: str) -> list[Row]:
    """One row for every hospital and one for all together: each model's numbers, the differences and the verdict.

    A hospital's local model is its own. All hospitals together have no single local model; the difference in their
    row is the mean over the hospitals.
    """
    rows = []
    for hospital, place in zip([*hospitals(report), "all"], places(report), strict=True):
        entries: Row = {
            "local": report["models"].get(f"local:{hospital}", {}).get(hospital, {}).get(metric),
            "pooled": report["models"].get("pooled", {}).get(hospital, {}).get(metric),
            "federated": report["models"].get("federated", {}).get(hospital, {}).get(metric),
        }
        for other in ("federated-local", "federated-pooled"):
            entries[other] = report["differences"].get(other, {}).get(hospital, {}).get(metric)
        call = report["verdicts"].get("federated-local", {}).get(hospital, {}).get(metric)
        n = next((entry["n"] for entry in entries.values() if entry and entry.get("n") is not None), None)
        rows.append({"hospital": hospital, **place, "n": n or place["n"], "verdict": call, **entries})
    return rows


def overview(report: Row, metric: str) -> list[Row]:
    """One row for every model: over all hospitals, at its worst one, how far they lie apart, and what it is worth.

    A difference to `local` is the mean over the hospitals, and so is every difference of a model that is `apart`:
    hospitals have one each. All local models together have no value over all hospitals.
    """
    return [
        {
            "model": model,
            "name": name_of(model),
            "apart": model == LOCAL or model in report["differs_by_hospital"],
            "overall": by_hospital(report, model).get("all", {}).get(metric) if model != LOCAL else None,
            "worst": report["worst_hospital"].get(model),
            "spread": report["spread"].get(model, {}).get(metric),
            "local": report["differences"].get(f"{model}-local", {}).get("all", {}).get(metric),
            "calls": calls(report, f"{model}-local", metric),
            "told": told(calls(report, f"{model}-local", metric)),
            "federated": _less_federated(report, model, metric),
        }
        for model in compared_models(report)
    ]


def _less_federated(report: Row, model: str, metric: str) -> Row | None:
    """A model minus the federated one over all hospitals; what is on record the other way round is turned."""
    differences: dict[str, Row] = report["differences"]
    row: Row | None = differences.get(f"{model}-federated", {}).get("all", {}).get(metric)
    other = differences.get(f"federated-{model}", {}).get("all", {}).get(metric)
    if row or not other or other["value"] is None:
        return row
    turned: Row = other | {"value": -other["value"], "low": None, "high": None}
    if other["low"] is not None and other["high"] is not None:
        turned |= {"low": -other["high"], "high": -other["low"]}
    return turned


def everywhere(report: Row, metric: str) -> list[Row]:
    """Every model at every hospital: each hospital's local one first. `home` are the hospitals whose own it is."""
    places = [*hospitals(report), "all"]
    single = sorted((model for model in report["models"] if is_single_local(model)), key=natural)
    return [
        {
            "model": model,
            "label": name_of(model).label,
            "values": [report["models"][model].get(place, {}).get(metric) for place in places],
            "home": [_is_own(report, model) or model == f"{LOCAL}:{place}" for place in places[:-1]],
        }
        for model in [*single, *in_order(model for model in report["models"] if model not in single)]
    ]


def _is_own(report: Row, model: str) -> bool:
    """Whether every hospital has one of its own: the federated model, too, where a part of it stays at home."""
    return name_of(model).own or (model == "federated" and model in report["differs_by_hospital"])


def calibration(report: Row) -> dict[str, list[Row]]:
    """Calibration error and Brier score, where the task has them: metric -> each model's numbers at every hospital."""
    places = [*hospitals(report), "all"]
    return {
        metric: [
            {"name": name_of(model), "values": [found.get(place, {}).get(metric) for place in places]}
            for model in compared_models(report)
            if (found := by_hospital(report, model))
        ]
        for metric in ("calibration_error", "brier")
        if metric in report["metrics"]
    }


def choices(report: Row) -> Row | None:
    """What every hospital keeps, and the numbers on validation patients that it chose by; None without a do-no-harm
    gate."""
    found = report["choices"]
    if not found:
        return None
    candidates = in_order(dict.fromkeys(model for choice in found.values() for model in choice["validation"]))
    metrics, headline = report["metrics"], report["headline_metric"]
    return {
        "candidates": [name_of(model) for model in candidates],
        "digits": metrics.get(report["run"]["selection_metric"], metrics[headline])["digits"],
        "rows": [
            {
                "hospital": hospital,
                "n": report["sites"].get(hospital, {}).get("patients", {}).get("validation"),
                "kept": name_of(LOCAL if is_single_local(choice["kept"]) else choice["kept"]),
                "values": [
                    {"value": choice["validation"].get(model), "low": None, "high": None, "n": None}
                    | choice.get("intervals", {}).get(model, {})
                    for model in candidates
                ],
                "chosen": [model == choice["kept"] for model in candidates],
                "why": choice.get("why"),
            }
            for hospital, choice in found.items()
        ],
    }


def subgroups(report: Row, metric: str) -> dict[str, list[Row]]:
    """Column -> a row for every group that has a case somewhere, or may have one."""
    columns: dict[str, list[Row]] = {}
    for row in report["subgroups"]:
        if row["hospitals"] or row["withheld"]:
            numbers = {"federated": row["metrics"].get(metric), "local": row["federated-local"].get(metric)}
            columns.setdefault(row["column"], []).append(row | numbers)
    return columns


def tiles(report: Row) -> list[Row]:
    """The numbers of the first screen: `label`, `value`, and what stands below it."""
    metric = report["headline_metric"]
    if metric is None or "federated" not in report["models"]:
        return []
    info, found = report["metrics"][metric], calls(report, "federated-local", metric)
    rows: list[Row] = []
    if any(found.values()):
        known = {"of": told(found), "untold": len(found[UNDEFINED])}
        rows.append({"label": "Hospitals helped", "count": len(found[HELPED]), "tone": HELPED, **known})
        rows.append({"label": "Hospitals harmed", "count": len(found[HARMED]), "tone": HARMED, **known})
    overall = report["models"]["federated"].get("all", {}).get(metric)
    rows.append({"label": f"{info['label']}, all hospitals", "row": overall, "n": (overall or {}).get("n")})
    if worst := report["worst_hospital"].get("federated"):
        rows.append({"label": f"Worst: {worst['hospital']}", "row": worst, "n": worst.get("n")})
    if spread := report["spread"].get("federated", {}).get(metric):
        rows.append({"label": "Spread, best \u2212 worst", "row": spread["range"], "over": so_many(spread)})
    return rows


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


def steps_taken(report: Row) -> str:
    """Sentences with the optimiser steps of the federation beside those of its baselines."""
    federated = list(steps_by_site(report["participation"]).values())
    steps = {model: row["steps"] for model, row in report["baselines"].items()}
    alone = [count for model, count in steps.items() if is_single_local(model)]
    texts = []
    if alone:
        texts.append(f"Optimiser steps of a hospital: {_range(federated)} federated, {_range(alone)} alone.")
    if "pooled" in steps:
        texts.append(f"Optimiser steps of all hospitals: {sum(federated)} federated, {steps['pooled']} pooled.")
    return " ".join(texts)


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def baseline_seconds(report: Row) -> dict[str, float]:
    """Seconds of the baselines by what they trained, the local ones together."""
    seconds = report["cost"]["seconds"]["baselines"]
    local = [value for model, value in seconds.items() if is_single_local(model)]
    rows = {_trained(model): value for model, value in seconds.items() if not is_single_local(model)}
    if local:
        rows[f"Local training, {plural(len(local), 'hospital')}"] = sum(local)
    return rows


def _trained(model: str) -> str:
    name, _, hospital = model.partition(":")
    return f"Federation without {hospital}" if hospital else f"{name_of(name).label} training"
