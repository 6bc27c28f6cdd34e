"""Does federation help, whom, by how much: sentences made from the numbers, and what a reader must be warned of."""

from __future__ import annotations

from typing import Any

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


def write(number: float | None, digits: int, signed: bool = False) -> str:
    """A number as text: fixed digits, a true minus sign, an en dash where there is none."""
    if number is None:
        return "\u2013"
    text = f"{number:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "\u2212")


def interval_text(row: Row, digits: int, signed: bool = False) -> str:
    """`95 % interval 0.812 to 0.871`, or what is missing."""
    if row.get("low") is None or row.get("high") is None:
        return "no interval"
    return f"95 % interval {write(row['low'], digits, signed)} to {write(row['high'], digits, signed)}"


def listed(names: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


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
    names = [hospital for hospital in differences if hospital != "all" and metric in differences[hospital]]
    if not names:
        return None
    label, digits = report["metrics"][metric]["label"], report["metrics"][metric]["digits"]
    calls: dict[str, list[str]] = {HELPED: [], HARMED: [], UNCLEAR: [], UNDEFINED: []}
    for name in names:
        calls[report["verdicts"]["federated-local"][name][metric]].append(name)
    n = len(names)
    if calls[HELPED]:
        text = f"Federated training beats local training at {len(calls[HELPED])} of {n} hospitals"
        if calls[HARMED]:
            text += f" and is worse at {len(calls[HARMED])} ({listed(calls[HARMED])})"
    elif calls[HARMED]:
        text = f"Federated training is worse than local training at {len(calls[HARMED])} of {n} hospitals"
        text += f" ({listed(calls[HARMED])}) and beats it at none"
    elif calls[UNCLEAR]:
        text = f"Federated training shows no clear difference from local training at any of {n} hospitals"
    else:
        text = f"Whether federated training beats local training cannot be told at any of {n} hospitals"
    overall = differences.get("all", {}).get(metric)
    if overall and overall.get("value") is not None:
        change = write(overall["value"], digits, signed=True)
        text += f" ({label} {change} over all hospitals, {interval_text(overall, digits, signed=True)})"
    rest = []
    if calls[UNCLEAR] and (calls[HELPED] or calls[HARMED]):
        rest.append(f"no clear difference at {listed(calls[UNCLEAR])}")
    if calls[UNDEFINED] and len(calls[UNDEFINED]) < n:
        rest.append(f"undefined at {listed(calls[UNDEFINED])}")
    return f"{text}; {', '.join(rest)}." if rest else f"{text}."


def _against_pooled(report: Row, metric: str) -> str | None:
    overall = report["differences"].get("federated-pooled", {}).get("all", {}).get(metric)
    if not overall or overall.get("value") is None:
        return None
    info = report["metrics"][metric]
    digits = info["digits"]
    call = report["verdicts"]["federated-pooled"]["all"][metric]
    numbers = f"{write(overall['value'], digits, signed=True)}, {interval_text(overall, digits, signed=True)}"
    distance = write(abs(overall["value"]), digits)
    if call == HELPED:
        return f"It does better than pooled training ({numbers})."
    if call == HARMED:
        return f"It falls {distance} short of pooled training ({numbers})."
    return f"It is within {distance} of pooled training ({numbers}): no clear difference."


def _levels(report: Row, metric: str) -> list[str]:
    info = report["metrics"][metric]
    label, digits = info["label"], info["digits"]
    overall = report["models"]["federated"].get("all", {}).get(metric, {})
    sentences = []
    if overall.get("value") is not None:
        sentences.append(
            f"The federated model reaches {label} {write(overall['value'], digits)} over all hospitals "
            f"({interval_text(overall, digits)}, n = {overall.get('n')})."
        )
    worst = report["worst_hospital"].get("federated")
    if worst:
        sentences.append(
            f"It does worst at {worst['hospital']}: {label} {write(worst['value'], digits)} "
            f"({interval_text(worst, digits)}, n = {worst.get('n')})."
        )
    return sentences


def uncertain(report: Row) -> list[str]:
    """Warnings about how much the numbers can carry: few patients, wide intervals, undefined metrics."""
    metric = report["headline_metric"]
    federated = report["models"].get("federated", {})
    sentences = []
    for hospital, metrics in federated.items():
        if hospital == "all" or metric not in metrics:
            continue
        patients = report["sites"].get(hospital, {}).get("patients", {}).get(report["split"])
        row = metrics[metric]
        if patients is not None and patients < FEW_PATIENTS:
            sentences.append(
                f"{hospital} has only {patients} {report['split']} patients (fewer than {FEW_PATIENTS}): "
                "its numbers carry little weight."
            )
        elif row.get("low") is not None and row["high"] - row["low"] > WIDE_INTERVAL and row["high"] <= 1:
            digits = report["metrics"][metric]["digits"]
            sentences.append(
                f"The interval of {hospital} is wide ({report['metrics'][metric]['label']} "
                f"{write(row['low'], digits)} to {write(row['high'], digits)})."
            )
    return sentences + _undefined(report)


def _undefined(report: Row) -> list[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for by_hospital in report["models"].values():
        for hospital, metrics in by_hospital.items():
            for name, row in metrics.items():
                if row.get("value") is None:
                    labels = found.setdefault((hospital, row.get("why") or "no reason on record"), [])
                    if report["metrics"][name]["label"] not in labels:
                        labels.append(report["metrics"][name]["label"])
    where = {"all": "all hospitals together"}
    return [
        f"{listed(labels)} {'is' if len(labels) == 1 else 'are'} undefined at {where.get(hospital, hospital)}: {why}."
        for (hospital, why), labels in found.items()
    ]
