"""Why a run should not be believed as it stands: what its own record speaks against it, gravest first.

Every doubt is a sentence with its numbers and one that says what to do. A grave one means that the answer may be wrong;
any other, that it holds for less than it seems to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from server.report import outliers
from server.report.answer import FEW_PATIENTS, HARMED, HELPED, calls, told
from server.report.models import by_hospital, compared_models, name_of
from server.report.participation import last_reason, left_out
from shared_models.page import fixed, listed, natural, plural

Row = dict[str, Any]

RISE = 1.25
"""A loss that ends this many times above its lowest value has risen."""
GROWTH = 3.0
"""Update norms that end this many times above those of the beginning have grown, where training should calm down."""
MANY_SET_ASIDE = 0.10
MANY_COPIES = 0.05
"""A larger share of validation and test cases that are copies, at a hospital or in all, may make numbers wrong."""
PLACES_NAMED = 3
SPLITS = ("test", "validation")
"""Where models are judged, the gravest first."""
STILL_LEARNING = 0.005
"""Gain of the last quarter of the rounds, as a share of the value, that says that training had not ended."""
ROUNDS_TO_JUDGE = 3
"""With fewer rounds, nothing can be said of how training went."""


@dataclass(frozen=True)
class Doubt:
    """One reason; `kind` is a word for scripts."""

    kind: str
    grave: bool
    text: str
    remedy: str


def doubts(report: Row) -> list[Row]:
    """Every doubt about the run, the grave ones first; `report` is report.json but for this list."""
    found = [doubt for check in CHECKS for doubt in check(report)]
    return [asdict(doubt) for doubt in sorted(found, key=lambda doubt: not doubt.grave)]


def diverged(report: Row) -> Iterator[Doubt]:
    """Losses that are no numbers, a loss that rises, updates that grow."""
    remedy = "Lower training.optimizer.learning_rate or take fewer local steps, and run it again."
    undefined: dict[str, list[int]] = {}
    for row in report["rounds"]:
        for site, loss in row["loss_by_site"].items():
            if loss is None:
                undefined.setdefault(site, []).append(row["round"])
    for site, numbers in undefined.items():
        text = f"The training loss of {site} was not a number in {plural(len(numbers), 'round')}, first in round"
        yield Doubt("loss_undefined", True, f"{text} {numbers[0]}: training diverged.", remedy)
    losses = [(row["loss"], row["round"]) for row in report["rounds"] if row["loss"] is not None]
    # The losses of networks that are trained against each other rise and fall by design.
    if len(losses) >= ROUNDS_TO_JUDGE and report["task"] in ("segmentation", "classification", "anomaly"):
        (lowest, place), first, last = min(losses), losses[0][0], losses[-1][0]
        if last > RISE * lowest and last - lowest > 0.25 * (first - lowest):
            text = f"The training loss rose from {fixed(lowest, 3)} in round {place} to {fixed(last, 3)} at the end"
            yield Doubt("loss_rising", True, f"{text}: training diverged.", remedy)
    norms = [row["update_norm"] for row in report["rounds"] if row["update_norm"] is not None]
    third = len(norms) // 3
    learning = report["rounds"] and report["run"]["best_round"] == report["rounds"][-1]["round"]
    # An adaptive server optimiser takes longer and longer steps while the model still gets better.
    if third >= 2 and mean(norms[-third:]) > GROWTH * mean(norms[:third]) > 0 and not learning:
        began, ended = fixed(mean(norms[:third]), 2), fixed(mean(norms[-third:]), 2)
        text = f"The norm of the global update grew from {began} to {ended} (means of {third} rounds)."
        yield Doubt("update_growing", False, text, remedy)


def subsets(report: Row) -> Iterator[Doubt]:
    """Hospitals and cases that the numbers do not cover."""
    judged = by_hospital(report, "federated")
    for site, row in report["sites"].items():
        if row["refused"] or (report["rounds"] and not row["rounds_used"]):
            text = f"{site} took no part: {row['refused'] or 'no round holds an update of it'}"
            why = None if row["refused"] else last_reason(report["participation"], site)
            remedy = "The model has not learnt from it: mend what kept it away, and run it again."
            yield Doubt("hospital_unused", True, f"{text.rstrip('.')}{f' (last: {why})' if why else ''}.", remedy)
        if judged and site not in judged and row["cases"].get(report["split"]):
            have = plural(row["patients"].get(report["split"], 0), f"{report['split']} patient")
            text = f"The {have} of {site} are in no number below: it gave no result for the federated model"
            yield Doubt("hospital_unjudged", True, f"{text}.", "Look at its log, and resume the run.")
        total = row["quarantined"] + sum(row["cases"].values())
        if row["quarantined"] > MANY_SET_ASIDE * total:
            text = f"{row['quarantined']} of {total} cases of {site} were set aside as unusable"
            yield Doubt("many_set_aside", False, f"{text}.", "See the reasons under quarantined cases.")
    places = {model: set(by_hospital(report, model)) - {"all"} for model in compared_models(report)}
    for model, found in places.items():
        if missing := sorted(places.get("federated", set()) - found):
            text = f"{name_of(model).label} was not judged at {listed(missing)}, where the federated model was"
            yield Doubt("judged_elsewhere", False, f"{text}.", "Compare the two hospital by hospital only.")
    for site, sentence in left_out(report["participation"]).items():
        why = last_reason(report["participation"], site)
        yield Doubt("left_out", False, sentence, f"Last reason: {why}." if why else "See who took part.")


def duplicates(report: Row) -> Iterator[Doubt]:
    """Equal images in training and test data of a hospital."""
    found = {site: row["duplicates"] for site, row in report["sites"].items() if row["duplicates"]}
    if found:
        where = listed([f"{site} ({count})" for site, count in found.items()])
        text = f"Images with equal pixels lie in different splits at {where}: models are judged on what they have seen."
        remedy = "Remove the copies, or give them the same patient, and run it again."
        yield Doubt("duplicates", _many(report, found), text, remedy)


def copies(report: Row) -> Iterator[Doubt]:
    """Images of one hospital's training patients among those that another hospital judges with."""
    rows = sorted(
        report["copies"], key=lambda row: (SPLITS.index(row["split"]), -row["cases"], natural(row["hospital"]))
    )
    if not rows:
        return
    by_site: dict[str, int] = {}
    for row in rows:
        by_site[row["hospital"]] = by_site.get(row["hospital"], 0) + row["cases"]
    where = [
        f"{row['cases']} of {_cases_of(report, row)}{row['split']} cases of {row['hospital']} are copies of "
        f"{'training' if row['of_split'] == 'train' else row['of_split']} cases of {row['of']}"
        for row in rows[:PLACES_NAMED]
    ]
    if rest := sum(row["cases"] for row in rows[PLACES_NAMED:]):
        where.append(f"and {rest} more elsewhere")
    text = (
        f"Images with equal pixels lie in different splits of different hospitals: {'; '.join(where)}. A model "
        "of all hospitals is judged, or chosen, by what it has learnt from; a local model is not."
    )
    remedy = "Remove the copies from the data set, and run it again."
    yield Doubt("copies", _many(report, by_site), text, remedy)


def _cases_of(report: Row, row: Row) -> str:
    """How many cases there are in the hospital and split of a row, with a space; none where its data were refused."""
    count = report["sites"].get(row["hospital"], {}).get("cases", {}).get(row["split"])
    return "the " if count is None else f"{count} "


def _many(report: Row, copied: dict[str, int]) -> bool:
    """Whether so many of the cases that hospitals judge with are copies that their numbers may be wrong.

    A hospital of few cases has little weight by itself, and one copy there is no reason to drop the run.
    """
    judged = {site: sum(row["cases"].get(split, 0) for split in SPLITS) for site, row in report["sites"].items()}
    places = [(copied.get(site, 0), cases) for site, cases in judged.items() if cases >= FEW_PATIENTS]
    places.append((sum(copied.values()), sum(judged.values())))
    return any(count > MANY_COPIES * cases for count, cases in places)


def confounded(report: Row) -> Iterator[Doubt]:
    """Classes that one hospital alone has: hospital and label then say the same."""
    if report["task"] not in ("segmentation", "classification") or len(report["sites"]) < 2:
        return
    counts: dict[str, dict[str, int]] = {}
    for site, row in report["sites"].items():
        for by_class in row["classes"].values():
            for name, cases in by_class.items():
                counts.setdefault(name, {}).setdefault(site, 0)
                counts[name][site] += cases
    for name, by_site in list(counts.items())[report["task"] == "segmentation" :]:  # the first one is the background
        have = [site for site, cases in by_site.items() if cases]
        if len(have) == 1 and len(by_site) > 1:
            text = (
                f"Only {have[0]} has cases of '{name}' ({by_site[have[0]]}): label and hospital are confounded, and a "
                "model can score well over all hospitals by telling the hospital."
            )
            remedy = "Read the hospitals' own rows, not the one over all, or divide the class among more hospitals."
            yield Doubt("confounded", True, text, remedy)


def one_class(report: Row) -> Iterator[Doubt]:
    """Hospitals whose test cases are all of one class: whoever always says that class is never wrong there."""
    judged, split = by_hospital(report, "federated"), report["split"]
    if report["task"] != "classification":
        return
    found = []
    for site, row in report["sites"].items():
        by_class: dict[str, int] = row["classes"].get(split, {})
        alone = [name for name, count in by_class.items() if count]
        # Where cases may have several findings, one that all of them have is not the only one.
        if site in judged and len(alone) == 1 and by_class[alone[0]] == row["cases"].get(split):
            found.append(f"{site} ({listed(alone)})")
    if found:
        text = (
            f"All {split} cases are of one class at {listed(found)}: a model that always says so is never wrong there."
        )
        remedy = "Being helped, harmed or worst there says little; read the hospitals that have every class."
        yield Doubt("one_class_judged", False, text, remedy)


def few_patients(report: Row) -> Iterator[Doubt]:
    """Numbers that rest on few patients."""
    split, judged = report["split"], by_hospital(report, "federated")
    have = {site: row["patients"].get(split) for site, row in report["sites"].items() if site in judged}
    known = {site: count for site, count in have.items() if count is not None}
    if not known:
        return
    remedy = "Judge on more patients (evaluation.test_share), or read the intervals and not the values."
    if sum(known.values()) < FEW_PATIENTS:
        text = f"All numbers rest on {plural(sum(known.values()), f'{split} patient')} in all"
        yield Doubt("few_patients", True, f"{text}.", remedy)
    elif few := [f"{site} ({count})" for site, count in known.items() if count < FEW_PATIENTS]:
        text = f"Fewer than {FEW_PATIENTS} {split} patients, so little weight: {listed(few)}."
        yield Doubt("few_patients", False, text, remedy)


def few_cases(report: Row) -> Iterator[Doubt]:
    """Metrics that rest on few cases where there are many patients: of a class that is ranked, of an organ."""
    split = report["split"]
    counted = [site for site in by_hospital(report, "federated") if report["sites"].get(site, {}).get("classes")]
    kinds = {site: _kinds(report, report["sites"][site]) for site in counted}
    totals: dict[str, int] = {}
    for by_kind in kinds.values():
        for kind, cases in by_kind.items():
            totals[kind] = totals.get(kind, 0) + cases
    rare = {kind: cases for kind, cases in totals.items() if 0 < cases < FEW_PATIENTS}
    places = [
        (cases, site, kind)
        for site, by_kind in kinds.items()
        for kind, cases in by_kind.items()
        # Hospitals, and runs, of few patients are named for that already.
        if 0 < cases < FEW_PATIENTS <= report["sites"][site]["patients"].get(split, 0) and kind not in rare
    ]
    patients = sum(report["sites"][site]["patients"].get(split, 0) for site in counted)
    what = "The Dice of an organ" if report["task"] == "segmentation" else "AUROC"
    remedy = "Judge on more patients (evaluation.test_share), or read the intervals and not the values."
    if rare and patients >= FEW_PATIENTS:
        found = listed([f"{cases} {kind}" for kind, cases in sorted(rare.items(), key=lambda item: item[1])])
        # Of several classes or organs, the main metric is the mean, and the others still count.
        grave = len(totals) == (1 if report["task"] == "segmentation" else 2)
        yield Doubt("few_cases", grave, f"{what} rests on few {split} cases in all: {found}.", remedy)
    if places:
        by_site: dict[str, list[str]] = {}
        for cases, site, kind in sorted(places, key=lambda place: (place[0], natural(place[1])))[:PLACES_NAMED]:
            by_site.setdefault(site, []).append(f"{cases} {kind}")
        where = [f"{site} ({listed(found)})" for site, found in by_site.items()]
        more = [f"{len(places) - PLACES_NAMED} more"] if len(places) > PLACES_NAMED else []
        text = f"{what} rests on fewer than {FEW_PATIENTS} {split} cases of one kind at {listed(where + more)}."
        yield Doubt("few_cases", False, text, remedy)


def _kinds(report: Row, site: Row) -> dict[str, int]:
    """The test cases of a hospital of every kind that a metric of its own rests on.

    Organs; or the classes that are told apart. Where cases have several findings, those without a finding are a kind.
    """
    by_class: dict[str, int] = site["classes"].get(report["split"], {})
    cases = site["cases"].get(report["split"], 0)
    named = {f"'{name}'": count for name, count in by_class.items()}
    if report["task"] == "segmentation":
        return dict(list(named.items())[1:])  # the first one is the background
    if report["task"] == "anomaly" and named:
        normal, *others = named
        return {normal: named[normal], f"not {normal}": sum(named[name] for name in others)}
    if report["task"] == "classification":
        several = sum(by_class.values()) != cases
        return named | ({f"without {name}": cases - count for name, count in named.items()} if several else {})
    return {}


def out_of_line(report: Row) -> Iterator[Doubt]:
    """Hospitals whose updates are unlike the others'."""
    for sentence in outliers.sentences(report["stood_out"]):
        yield Doubt("update_out_of_line", True, sentence, outliers.remedy(report["run"]["aggregation"]))


def worse_than_local(report: Row) -> Iterator[Doubt]:
    """Hospitals that would have done better alone."""
    found = calls(report, "federated-local", report["headline_metric"])
    if found[HARMED]:
        text = (
            f"Federated training is worse than local training at {listed(found[HARMED])} ({len(found[HARMED])} of "
            f"{plural(told(found), 'hospital')} harmed, {len(found[HELPED])} helped)."
        )
        others = [name for name in ("fedbn", "ditto", "fedprox") if name != report["run"]["algorithm"]]
        remedy = "Let hospitals keep what is best for them (fine-tuned, personalised), or try another algorithm"
        yield Doubt("worse_than_local", False, text, f"{remedy} ({', '.join(others)}).")


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


def _selected(report: Row, row: Row) -> float | None:
    """The validation metric that picks the best round, after one round."""
    value = row["validation"].get(report["run"]["selection_metric"])
    return None if value is None else float(value)


CHECKS: tuple[Callable[[Row], Iterator[Doubt]], ...] = (
    diverged,
    subsets,
    duplicates,
    copies,
    confounded,
    out_of_line,
    one_class,
    few_patients,
    few_cases,
    worse_than_local,
    misled_choice,
    learning,
)
