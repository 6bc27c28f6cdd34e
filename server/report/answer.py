"""Does federation help, whom, by how much: sentences made from the numbers, and what a reader must be warned of."""

from __future__ import annotations

from typing import Any

from server.judgement import counted, undefined_alike
from server.report.kinds import FEW_PATIENTS, shortage
from server.report.models import LOCAL, by_hospital, name_of
from shared_models.page import fixed, interval_text, listed, plural

Row = dict[str, Any]

HELPED, HARMED, UNCLEAR, UNDEFINED = "helped", "harmed", "no clear difference", "undefined"
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
    """The hospital where `model` does worst on `metric`, of those that are `counted`: its name and numbers, and of how
    many; None where nothing is defined."""
    rows = {
        hospital: metrics.get(metric, {})
        for hospital, metrics in by_hospital(report, model).items()
        if hospital != "all"
    }
    among = counted(rows)
    if not among:
        return None
    pick = min if report["metrics"][metric]["larger_is_better"] else max
    name = pick(among, key=lambda hospital: rows[hospital]["value"])
    return {"hospital": name, "metric": metric, **rows[name], "hospitals": len(among), "of": len(rows)}


def so_many(row: Row) -> str:
    """`2 of 5 hospitals`: over which `row` was taken; `5 hospitals` over all, or where a run tells of no others."""
    if _over_all(row):
        return plural(row["hospitals"], "hospital")
    return f"{row['hospitals']} of {plural(row['of'], 'hospital')}"


def _having(row: Row) -> str:
    """What the hospitals have that `server.judgement.counted` counts."""
    return "a value" if row.get("low") is None else "an interval"


def comparisons(report: Row) -> list[str]:
    """Whether federation helps, against each hospital alone and all data in one place; and what the hospitals keep."""
    metric = report["headline_metric"]
    if metric is None or "federated" not in report["models"]:
        return ["This run holds no evaluation on held-out patients, so it cannot say whether federation helps."]
    against = [text for text in (_against_local(report, metric), _against_pooled(report, metric)) if text]
    if not against:
        against.append("No local or pooled baseline was evaluated, so this run cannot say whether federation helps.")
    return against + _kept(report)


def levels(report: Row) -> list[str]:
    """How good the federated model is: over all hospitals, where it is worst, and how far the hospitals lie apart."""
    metric = report["headline_metric"]
    if metric is None or "federated" not in report["models"]:
        return []
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
        among = "It does worst" if _over_all(worst) else f"Of the {so_many(worst)} with {_having(worst)}, it does worst"
        sentences.append(
            f"{among} at {worst['hospital']}: {label} {fixed(worst['value'], digits)} "
            f"({interval_text(worst, digits)}, {_cases(worst)})."
        )
    spread = report["spread"].get("federated", {}).get(metric)
    if spread and spread["range"]["value"] is not None:
        sentences.append(
            f"Best and worst of {so_many(spread)} lie {fixed(spread['range']['value'], digits)} apart "
            f"({interval_text(spread['range'], digits)}); their standard deviation is "
            f"{fixed(spread['deviation']['value'], digits)}."
        )
    return sentences


def calls(report: Row, comparison: str, metric: str) -> dict[str, list[str]]:
    """Verdict -> the hospitals that it is passed on, of one comparison such as `federated-local`."""
    found: dict[str, list[str]] = {HELPED: [], HARMED: [], UNCLEAR: [], UNDEFINED: []}
    for hospital, by_metric in report["verdicts"].get(comparison, {}).items():
        if hospital != "all" and metric in by_metric:
            found[by_metric[metric]].append(hospital)
    return found


def told(found: dict[str, list[str]]) -> int:
    """Of how many hospitals `calls` could tell anything."""
    return len(found[HELPED]) + len(found[HARMED]) + len(found[UNCLEAR])


def kept_count(report: Row) -> dict[str, list[str]]:
    """Model -> the hospitals that keep it, by the do-no-harm gate; most hospitals first."""
    return _by_model(report["choices"])


def _by_model(choices: Row) -> dict[str, list[str]]:
    kept: dict[str, list[str]] = {}
    for hospital, choice in choices.items():
        kept.setdefault(LOCAL if choice["kept"].startswith(LOCAL) else choice["kept"], []).append(hospital)
    return dict(sorted(kept.items(), key=lambda entry: -len(entry[1])))


def _kept(report: Row) -> list[str]:
    answer = []
    without = [hospital for hospital, choice in report["choices"].items() if not could_choose(choice)]
    chosen = {hospital: choice for hospital, choice in report["choices"].items() if hospital not in without}
    if chosen:
        (first, there), *others = _by_model(chosen).items()
        hospitals = plural(len(chosen), "hospital")
        verb = "keeps" if len(there) == 1 else "keep"
        text = f"By their own validation patients, {len(there)} of {hospitals} {verb} {_noun(first, there)}"
        more = [f"{len(names)} {_noun(model, names)} ({listed(names)})" for model, names in others]
        answer.append(f"{text}, {listed(more)}." if more else f"{text}.")
    if without:
        hospitals = plural(len(report["choices"]), "hospital")
        text = f"{len(without)} of {hospitals} had no choice but the federated model ({listed(without)})"
        answer.append(f"{text}: see what each hospital keeps.")
    return answer


def could_choose(choice: Row) -> bool:
    """Whether a hospital had a choice; an older run does not say why one without any value had none."""
    return not choice.get("why") and any(value is not None for value in choice["validation"].values())


def _noun(model: str, hospitals: list[str]) -> str:
    noun = name_of(model).noun
    return noun.replace("its ", "their ") if len(hospitals) > 1 else noun


def _against_local(report: Row, metric: str) -> str | None:
    found = calls(report, "federated-local", metric)
    if not any(found.values()):
        return None
    hospitals = plural(told(found), "hospital")
    if found[HELPED]:
        text = f"Federated training beats local training at {len(found[HELPED])} of {hospitals}"
        if found[HARMED]:
            text += f" and is worse at {len(found[HARMED])}, {listed(found[HARMED])}"
    elif found[HARMED]:
        text = f"Federated training is worse than local training at {len(found[HARMED])} of {hospitals}"
        if found[UNCLEAR]:
            text += f", {listed(found[HARMED])}, and beats it at none"
    elif found[UNCLEAR]:
        text = f"Federated training shows no clear difference from local training at any of {hospitals}"
    else:
        return "Whether federated training beats local training cannot be told at any hospital."
    text += _on_average(report, metric, found)
    rest = []
    if found[UNCLEAR] and (found[HELPED] or found[HARMED]):
        rest.append(f"no clear difference at {listed(found[UNCLEAR])}")
    if found[UNDEFINED]:
        lacks = {site: _lack(report, site, metric) for site in found[UNDEFINED]}
        named = [f"{site} ({lack})" if lack else site for site, lack in lacks.items()]
        rest.append(f"it cannot be told at {listed(named)}")
    return f"{text}; {', '.join(rest)}." if rest else f"{text}."


def _lack(report: Row, site: str, metric: str) -> str | None:
    """What classes a hospital lacks to be told; None where it is patients that it lacks."""
    why = report["differences"]["federated-local"][site][metric].get("why") or ""
    return None if "patient" in why else shortage(report, site)


def _over_all(row: Row) -> bool:
    """Whether every hospital counts in what was taken over the hospitals; so it does where a run tells of no others."""
    return "of" not in row or row["hospitals"] == row["of"]


def _on_average(report: Row, metric: str, found: dict[str, list[str]]) -> str:
    """The mean difference over the hospitals, which may well contradict those of the single hospitals."""
    overall = report["differences"]["federated-local"].get("all", {}).get(metric)
    if not overall or overall.get("value") is None:
        return ""
    info, call = report["metrics"][metric], report["verdicts"]["federated-local"]["all"][metric]
    where = f"on average over {'the hospitals' if _over_all(overall) else so_many(overall)}"
    interval = interval_text(overall, info["digits"], signed=True)
    change = f"{info['label']} difference {fixed(overall['value'], info['digits'], signed=True)}"
    if call in (HELPED, HARMED) and not found[call]:
        return f", but {where} it is {'better' if call == HELPED else 'worse'} ({change}, {interval})"
    return f" ({change} {where}, {interval})"


def _against_pooled(report: Row, metric: str) -> str | None:
    overall = report["differences"].get("federated-pooled", {}).get("all", {}).get(metric)
    if not overall or overall.get("value") is None:
        return None
    info = report["metrics"][metric]
    digits = info["digits"]
    call = report["verdicts"]["federated-pooled"]["all"][metric]
    where = "" if _over_all(overall) else f" on average over {so_many(overall)}"
    change = f"difference {fixed(overall['value'], digits, signed=True)}{where}"
    numbers = f"{change}, {interval_text(overall, digits, signed=True)}"
    if call == HELPED:
        return f"It does better than pooled training ({numbers})."
    if call == HARMED:
        return f"It falls short of pooled training ({numbers})."
    return f"It shows no clear difference from pooled training ({numbers})."


def _cases(row: Row) -> str:
    return f"n = {row['n']} case{'' if row['n'] == 1 else 's'}" if row.get("n") is not None else "n not on record"


def uncertain(report: Row) -> list[str]:
    """Where many patients still leave a wide interval, and which metrics are undefined where."""
    metric, split = report["headline_metric"], report["split"]
    digits = report["metrics"][metric]["digits"]
    wide = []
    for hospital, metrics in report["models"].get("federated", {}).items():
        row = metrics.get(metric, {})
        patients = report["sites"].get(hospital, {}).get("patients", {}).get(split)
        if hospital == "all" or row.get("low") is None or (patients is not None and patients < FEW_PATIENTS):
            continue
        if row["high"] - row["low"] > WIDE_INTERVAL:
            wide.append(f"{hospital} ({fixed(row['low'], digits)} to {fixed(row['high'], digits)})")
    sentences = []
    if wide and report["metrics"][metric]["larger_is_better"]:  # such metrics are shares: 0.1 is much of their range
        sentences.append(f"Wide intervals of {report['metrics'][metric]['label']}: {listed(wide)}.")
    return sentences + _undefined(report)


def _undefined(report: Row) -> list[str]:
    """Which of the main metrics have no value where, hospitals with the same reason together.

    Of the very first one, and of those that lack a value where it does, the coordinator says so itself, in a `warning`
    event.
    """
    main, *others = [name for name, info in report["metrics"].items() if info["headline"]]
    federated = report["models"].get("federated", {})
    alike = [name for name in others if undefined_alike(federated, main, name)]
    said = [(place, rows[main].get("why")) for place, rows in federated.items() if rows[main].get("value") is None]
    found: dict[str, tuple[list[str], list[str]]] = {}
    for judged in report["models"].values():
        for hospital, metrics in judged.items():
            for name in others:
                if name not in metrics or (name in alike and (hospital, metrics[name].get("why")) in said):
                    continue
                if metrics[name].get("value") is None:
                    why = metrics[name].get("why") or "no reason on record"
                    labels, places = found.setdefault(why, ([], []))
                    labels.append(report["metrics"][name]["label"])
                    places.append("all hospitals together" if hospital == "all" else hospital)
    sentences = []
    for why, (labels, places) in found.items():
        names, where = list(dict.fromkeys(labels)), list(dict.fromkeys(places))
        sentences.append(f"No value of {listed(names)} at {listed(where)} ({why}).")
    return sentences
