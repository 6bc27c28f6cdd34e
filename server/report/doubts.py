"""Why a run should not be believed as it stands: what its own record speaks against it, gravest first.

Every doubt is a sentence with its numbers and one that says what to do. A grave one means that the answer may be wrong;
any other, that it holds for less than it seems to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import mean

from server.report import doubts_about_cases, outliers
from server.report.answer import HARMED, HELPED, calls, told
from server.report.doubt import PLACES_NAMED, Doubt, Row
from server.report.models import LOCAL, by_hospital
from server.report.participation import steps_by_site
from shared_models.page import fixed, listed, plural

RISE = 1.25
"""A loss that ends this many times above its lowest value has risen."""
GROWTH = 3.0
"""Update norms that end this many times above those of the beginning have grown, where training should calm down."""
UNEQUAL_STEPS = 1.10
"""Where one model was trained for this many times the steps of another, their difference is one of training too."""
STILL_LEARNING = 0.005
"""Gain of the last quarter of the rounds, as a share of the value, that says that training had not ended."""
KEPT_AT_HOME = {"heads": "its head", "normalisation": "its normalisation"}
"""By key of `federation.share`: what of a model that is judged may stay at each hospital."""
ROUNDS_TO_JUDGE = 3
"""With fewer rounds, nothing can be said of how training went."""


def doubts(report: Row) -> list[Row]:
    """Every doubt about the run, the grave ones first; `report` is report.json but for this list."""
    found = [doubt for check in CHECKS for doubt in check(report)]
    return [asdict(doubt) for doubt in sorted(found, key=lambda doubt: not doubt.grave)]


def diverged(report: Row) -> Iterator[Doubt]:
    """Losses that are no numbers, a loss that rises, updates that grow."""
    remedy = "Lower training.optimizer.learning_rate or take fewer local steps, and run it again."
    if suspects := outliers.named(report["stood_out"]):
        remedy = f"Look at {listed(suspects)} first, whose updates stood out: one such hospital can do this to all."
    undefined: dict[str, list[int]] = {}
    for row in report["rounds"]:
        for site, loss in row["loss_by_site"].items():
            if loss is None:
                undefined.setdefault(site, []).append(row["round"])
    for site, numbers in undefined.items():
        text = f"The training loss of {site} was not a number in {plural(len(numbers), 'round')}, first in round"
        yield Doubt("loss_undefined", True, f"{text} {numbers[0]}: training diverged.", remedy)
    losses = [(row["loss"], row["round"]) for row in report["rounds"] if row["loss"] is not None]
    improves = _improves_to_the_end(report)
    # The losses of networks that are trained against each other rise and fall by design. Hospitals of one class learn
    # it at once, and lose more again as the model learns the others.
    judges = report["task"] in ("segmentation", "classification", "anomaly") and not improves
    if len(losses) >= ROUNDS_TO_JUDGE and judges:
        (lowest, place), first, last = min(losses), losses[0][0], losses[-1][0]
        if last > RISE * lowest and last - lowest > 0.25 * (first - lowest):
            text = f"The training loss rose from {fixed(lowest, 3)} in round {place} to {fixed(last, 3)} at the end"
            yield Doubt("loss_rising", True, f"{text}: training diverged.", remedy)
    norms = [row["update_norm"] for row in report["rounds"] if row["update_norm"] is not None]
    third = len(norms) // 3
    # An adaptive server optimiser takes longer and longer steps while the model still gets better.
    if third >= 2 and mean(norms[-third:]) > GROWTH * mean(norms[:third]) > 0 and not improves:
        began, ended = fixed(mean(norms[:third]), 2), fixed(mean(norms[-third:]), 2)
        text = f"The norm of the global update grew from {began} to {ended} (means of {third} rounds)."
        yield Doubt("update_growing", False, text, remedy)


def out_of_line(report: Row) -> Iterator[Doubt]:
    """Hospitals whose updates are unlike the others'."""
    for sentence in outliers.sentences(report["stood_out"]):
        yield Doubt("update_out_of_line", True, sentence, outliers.remedy(report["run"]))


def worse_than_local(report: Row) -> Iterator[Doubt]:
    """Hospitals that would have done better alone."""
    found = calls(report, "federated-local", report["headline_metric"])
    if found[HARMED]:
        text = (
            f"Federated training is worse than local training at {listed(found[HARMED])} ({len(found[HARMED])} of "
            f"{plural(told(found), 'hospital')} harmed, {len(found[HELPED])} helped)."
        )
        remedy = "Let hospitals keep what is best for them (--compare fine_tuned)"
        if others := report["run"]["alternatives"]["algorithm"]:
            remedy += f", or try another algorithm ({', '.join(others)})"
        yield Doubt("worse_than_local", False, text, f"{remedy}.")


def misled_choice(report: Row) -> Iterator[Doubt]:
    """Hospitals that keep a model which is worse, on test patients, than the federated one."""
    metric = report["headline_metric"]
    if harmed := calls(report, "kept-federated", metric)[HARMED]:
        info, rows = report["metrics"][metric], report["differences"]["kept-federated"]
        where = [f"{site} ({fixed(rows[site][metric]['value'], info['digits'], signed=True)})" for site in harmed]
        text = (
            f"On {report['split']} patients, the model that is kept is worse than the federated one at {listed(where)}"
        )
        remedy = (
            "The choice was made on few validation patients, or on masks or labels that are not those of the "
            f"{report['split']} patients: see what each hospital keeps."
        )
        yield Doubt("kept_worse", False, f"{text} in {info['label']}.", remedy)


def untrained_parts(report: Row) -> Iterator[Doubt]:
    """Hospitals that had not trained by the round that is judged, where a part of the model stays at home."""
    run = report["run"]
    at_home = [part for key, part in KEPT_AT_HOME.items() if run["share"][key] != "all"]
    judged_round = run["best_round"] or run["rounds_finished"]
    trained = {e["site"] for e in report["participation"] if e["status"] == "used" and e["round"] <= judged_round}
    untrained = [site for site in by_hospital(report, "federated") if site not in (*trained, "all")]
    if at_home and untrained:
        text = f"The federated model is that of round {judged_round}, and no update of {listed(untrained)} was used by "
        text += f"then: what stays at home of it, {listed(at_home)}, is untrained there."
        remedy = (
            "Do not count its values there: have every hospital train from the first round on, or let that part travel "
            "(federation.share, or another algorithm), and run it again."
        )
        yield Doubt("untrained_part", run["share"]["heads"] != "all", text, remedy)


def learning(report: Row) -> Iterator[Doubt]:
    """A best round at the edge: training had not ended, or was best before it began."""
    rows = [(row["round"], value) for row in report["rounds"] if (value := _selected(report, row)) is not None]
    best, last = report["run"]["best_round"], report["run"]["rounds_finished"]
    if best is None or len(rows) < ROUNDS_TO_JUDGE:
        return
    values, name = dict(rows), report["run"]["selection_metric"]
    label = report["metrics"].get(name, {}).get("label", name)
    if best == 1 < last:
        first, end = fixed(values.get(1), 3), fixed(rows[-1][1], 3)
        text = f"The first round was the best one of {last} (validation {label} {first}, at the end {end}): "
        # A later value may be larger where other hospitals were there: rounds are compared over those of both.
        worse = first != end and rows[-1][1] < values[1]
        text += "the rounds after it made the model worse." if worse else "no later one was better."
        yield Doubt("best_round_first", False, text, "Try another learning rate, or fewer local steps.")
    quarter = max(1, last // 4)
    earlier = [value for number, value in rows if number <= last - quarter]
    if best == last and earlier and best in values:
        gain = values[best] - max(earlier)
        if gain > STILL_LEARNING * abs(values[best]):
            text = f"The last round, {last}, was the best one: validation {label} still rose by {fixed(gain, 3)} in "
            text += "it." if quarter == 1 else f"the last {quarter} rounds."
            yield Doubt("still_learning", False, text, "Train for more rounds: raise federation.rounds.")


def not_validated(report: Row) -> Iterator[Doubt]:
    """A best round that nothing chose."""
    run, rounds = report["run"], report["rounds"]
    if run["best_round"] is not None or not rounds or not report["models"]:
        return
    text, remedy = "No round was validated", "Keep validation patients (evaluation.validation_share), and run it again."
    if any(row["validation"] for row in rounds):
        name = run["selection_metric"]
        text = f"Validation gave no value of {report['metrics'].get(name, {'label': name})['label']} in any round"
        remedy = "Validate on patients of every class, or choose rounds by another metric (evaluation.select)."
    text += f": the last one, {rounds[-1]['round']}, is judged, whether or not it is the best."
    yield Doubt("not_validated", False, text, remedy)


def unequal_steps(report: Row) -> Iterator[Doubt]:
    """Baselines that were trained for longer, or shorter, than the federation."""
    federated = steps_by_site(report["participation"])
    pairs = [("all hospitals together", sum(federated.values()), "pooled", "pooled")]
    pairs += [(site, took, f"{LOCAL}:{site}", "alone") for site, took in federated.items()]
    steps = {model: row["steps"] for model, row in report["baselines"].items()}
    found = [
        f"{who} ({took} federated, {steps[model]} {how})"
        for who, took, model, how in pairs
        if model in steps and max(took, steps[model]) > UNEQUAL_STEPS * min(took, steps[model])
    ]
    if found and report["models"]:
        more = [f"{len(found) - PLACES_NAMED} more"] if len(found) > PLACES_NAMED else []
        where = listed(found[:PLACES_NAMED] + more)
        text = f"Federated and baseline models took different numbers of optimiser steps: {where}. Differences between"
        remedy = (
            "To compare equal steps, set training.local_steps, leave out federation.patience and sites_per_round, and "
            "have every hospital in every round."
        )
        yield Doubt("unequal_steps", False, f"{text} them are not due to sharing alone.", remedy)


def _improves_to_the_end(report: Row) -> bool:
    """Whether the last round is the best one of several that were validated."""
    validated = [row["round"] for row in report["rounds"] if _selected(report, row) is not None]
    return len(validated) > 1 and report["run"]["best_round"] == report["rounds"][-1]["round"]


def _selected(report: Row, row: Row) -> float | None:
    """The validation metric that picks the best round, after one round."""
    value = row["validation"].get(report["run"]["selection_metric"])
    return None if value is None else float(value)


CHECKS: tuple[Callable[[Row], Iterator[Doubt]], ...] = (
    out_of_line,  # the cause stands before what it may have done
    diverged,
    doubts_about_cases.subsets,
    doubts_about_cases.duplicates,
    doubts_about_cases.copies,
    doubts_about_cases.confounded,
    doubts_about_cases.one_class,
    doubts_about_cases.few_patients,
    doubts_about_cases.few_cases,
    worse_than_local,
    misled_choice,
    untrained_parts,
    unequal_steps,
    learning,
    not_validated,
)
