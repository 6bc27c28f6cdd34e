"""Does federation help, whom, by how much: sentences made from the numbers, and what a reader must be warned of."""

from __future__ import annotations

from typing import Any

from shared_models.page import fixed, interval_text, listed

Row = dict[str, Any]

HELPED, HARMED, UNCLEAR, UNDEFINED = "helped", "harmed", "no clear difference", "undefined"
FEW_PATIENTS = 20
WIDE_INTERVAL = 0.10


def verdict(difference: Row | None, larger_is_better: bool) -> str:
    """`helped` if the whole 95 % interval of federated minus other lies on the better side of 0, `harmed` if on the
    worse side, `no clear difference` if it holds 0, `undefined` without an interval."""
    low, high = (difference or {}).get("low"), (difference or {}).get("high")
    if low is None or high is None:
        return UNDEFINED
    if not larger_is_better:
        low, high = -high, -low
    return HELPED if low > 0 else HARMED if high < 0 else UNCLEAR


def verdicts(report: Row) -> dict[str, dict[str, dict[str, str]]]:
    """Comparison -> hospital (and "all") -> metric -> verdict, for every difference there is."""
    metrics = report["metrics"]
    return {
        comparison: {
            hospital: {name: verdict(row, metrics[name]["larger_is_better"]) for name, row in rows.items()}
            for hospital, rows in by_hospital.items()
        }
        for comparison, by_hospital in report["differences"].items()
    }


def worst_hospital(report: Row, model: str, metric: str) -> Row | None:
    """The hospital where `model` does worst on `metric`: its name and numbers, or None where nothing is defined."""
    rows = {
        hospital: metrics[metric]
        for hospital, metrics in report["models"].get(model, {}).items()
        if hospital != "all" and metrics.get(metric, {}).get("value") is not None
    }
    if not rows:
        return None
    pick = min if report["metrics"][metric]["larger_is_better"] else max
    name = pick(rows, key=lambda hospital: rows[hospital]["value"])
    return {"hospital": name, "metric": metric, **rows[name]}


def answer(report: Row) -> list[str]:
    """The sentences at the top of the report; `report` is everything of report.json but the answer itself."""
    metric = report["headline_metric"]
    if metric is None or "federated" not in report["models"]:
        return ["This run holds no evaluation on held-out patients, so it cannot say whether federation helps."]
    against_local = _against_local(report, metric)
    against_pooled = _against_pooled(report, metric)
    sentences = [text for text in (against_local, against_pooled) if text]
    if not sentences:
        sentences.append("No local or pooled baseline was evaluated, so this run cannot say whether federation helps.")
    return sentences + _levels(report, metric)


def _against_local(report: Row, metric: str) -> str | None:
    differences = report["differences"].get("federated-local", {})
    calls: dict[str, list[str]] = {HELPED: [], HARMED: [], UNCLEAR: [], UNDEFINED: []}
    for name in differences:
        if name != "all" and metric in differences[name]:
            calls[report["verdicts"]["federated-local"][name][metric]].append(name)
    if not any(calls.values()):
        return None
    told = len(calls[HELPED]) + len(calls[HARMED]) + len(calls[UNCLEAR])
    hospitals = f"{told} hospital{'' if told == 1 else 's'}"
    if calls[HELPED]:
        text = f"Federated training beats local training at {len(calls[HELPED])} of {hospitals}"
        if calls[HARMED]:
            text += f" and is worse at {len(calls[HARMED])}, {listed(calls[HARMED])}"
    elif calls[HARMED]:
        text = f"Federated training is worse than local training at {len(calls[HARMED])} of {hospitals}"
        text += f", {listed(calls[HARMED])}, and beats it at none"
    elif calls[UNCLEAR]:
        text = f"Federated training shows no clear difference from local training at any of {hospitals}"
    else:
        return "Whether federated training beats local training cannot be told at any hospital."
    text += _over_all(report, metric, calls)
    rest = []
    if calls[UNCLEAR] and (calls[HELPED] or calls[HARMED]):
        rest.append(f"no clear difference at {listed(calls[UNCLEAR])}")
    if calls[UNDEFINED]:
        rest.append(f"it cannot be told at {listed(calls[UNDEFINED])}")
    return f"{text}; {', '.join(rest)}." if rest else f"{text}."


def _over_all(report: Row, metric: str, calls: dict[str, list[str]]) -> str:
    """The mean difference over the hospitals, which may well contradict those of the single hospitals."""
    overall = report["differences"]["federated-local"].get("all", {}).get(metric)
    if not overall or overall.get("value") is None:
        return ""
    info, call = report["metrics"][metric], report["verdicts"]["federated-local"]["all"][metric]
    change = fixed(overall["value"], info["digits"], signed=True)
    interval = interval_text(overall, info["digits"], signed=True)
    if call in (HELPED, HARMED) and not calls[call]:
        better = "better" if call == HELPED else "worse"
        return f", but on average over the hospitals it is {better} ({info['label']} {change}, {interval})"
    return f" ({info['label']} {change} on average over the hospitals, {interval})"


def _against_pooled(report: Row, metric: str) -> str | None:
    overall = report["differences"].get("federated-pooled", {}).get("all", {}).get(metric)
    if not overall or overall.get("value") is None:
        return None
    info = report["metrics"][metric]
    digits = info["digits"]
    call = report["verdicts"]["federated-pooled"]["all"][metric]
    numbers = f"{fixed(overall['value'], digits, signed=True)}, {interval_text(overall, digits, signed=True)}"
    if call == HELPED:
        return f"It does better than pooled training ({numbers})."
    if call == HARMED:
        return f"It falls short of pooled training ({numbers})."
    return f"It is within {fixed(abs(overall['value']), digits)} of pooled training ({numbers}): no clear difference."


def _levels(report: Row, metric: str) -> list[str]:
    info = report["metrics"][metric]
    label, digits = info["label"], info["digits"]
    overall = report["models"]["federated"].get("all", {}).get(metric, {})
    sentences = []
    if overall.get("value") is not None:
        sentences.append(
            f"The federated model reaches {label} {fixed(overall['value'], digits)} over all hospitals "
            f"({interval_text(overall, digits)}, {_cases(overall)})."
        )
    worst = report["worst_hospital"].get("federated")
    if worst:
        sentences.append(
            f"It does worst at {worst['hospital']}: {label} {fixed(worst['value'], digits)} "
            f"({interval_text(worst, digits)}, {_cases(worst)})."
        )
    return sentences


def _cases(row: Row) -> str:
    return f"n = {row['n']} case{'' if row['n'] == 1 else 's'}" if row.get("n") is not None else "n not on record"


def uncertain(report: Row) -> list[str]:
    """Warnings about how much the numbers can carry: few patients, wide intervals, undefined metrics."""
    metric, split = report["headline_metric"], report["split"]
    digits = report["metrics"][metric]["digits"]
    few, wide = [], []
    for hospital, metrics in report["models"].get("federated", {}).items():
        row = metrics.get(metric, {})
        patients = report["sites"].get(hospital, {}).get("patients", {}).get(split)
        if hospital != "all" and patients is not None and patients < FEW_PATIENTS:
            few.append(f"{hospital} ({patients})")
        elif hospital != "all" and row.get("low") is not None and row["high"] - row["low"] > WIDE_INTERVAL:
            wide.append(f"{hospital} ({fixed(row['low'], digits)} to {fixed(row['high'], digits)})")
    sentences = []
    if few:
        sentences.append(f"Fewer than {FEW_PATIENTS} {split} patients, so little weight: {listed(few)}.")
    if wide and report["metrics"][metric]["larger_is_better"]:  # such metrics are shares: 0.1 is much of their range
        sentences.append(f"Wide intervals of {report['metrics'][metric]['label']}: {listed(wide)}.")
    return sentences + _undefined(report)


def _undefined(report: Row) -> list[str]:
    """Which of the main metrics have no value where, hospitals with the same reason together.

    Of the very first one the coordinator says so itself, in a `warning` event.
    """
    main = [name for name, info in report["metrics"].items() if info["headline"]][1:]
    found: dict[str, tuple[list[str], list[str]]] = {}
    for by_hospital in report["models"].values():
        for hospital, metrics in by_hospital.items():
            for name in main:
                if name in metrics and metrics[name].get("value") is None:
                    why = metrics[name].get("why") or "no reason on record"
                    labels, places = found.setdefault(why, ([], []))
                    labels.append(report["metrics"][name]["label"])
                    places.append("all hospitals together" if hospital == "all" else hospital)
    sentences = []
    for why, (labels, places) in found.items():
        names, where = list(dict.fromkeys(labels)), list(dict.fromkeys(places))
        sentences.append(f"No value of {listed(names)} at {listed(where)} ({why}).")
    return sentences
