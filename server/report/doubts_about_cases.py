"""Doubts about what a model was trained and judged on: hospitals, patients and cases that lack, repeat or mislead."""

from __future__ import annotations

from collections.abc import Iterator

from server.report.doubt import PLACES_NAMED, Doubt, Row
from server.report.kinds import FEW_PATIENTS, kinds_of, only_class
from server.report.models import by_hospital, compared_models, name_of
from server.report.participation import last_reason, left_out
from shared_models.page import listed, natural, plural

MANY_SET_ASIDE = 0.10
MANY_COPIES = 0.05
"""A larger share of validation and test cases that are copies, at a hospital or in all, may make numbers wrong."""
SPLITS = ("test", "validation")
"""Where models are judged, the gravest first."""


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
    """Classes that one hospital alone has to learn from: hospital and label then say the same."""
    if report["task"] not in ("segmentation", "classification") or len(report["sites"]) < 2:
        return
    split, judged = report["split"], _alone(report, report["split"])
    for name, (site, cases) in _alone(report, "train").items():
        have = f"training cases of '{name}' ({cases})"
        if judged.get(name, ("", 0))[0] == site:
            have = f"training and {split} cases of '{name}' ({cases} and {judged[name][1]})"
        text = f"Only {site} has {have}: label and hospital are confounded, and a model can do well on them by telling"
        remedy = "Divide the class among more hospitals, or read the own rows of those that are judged on every class."
        yield Doubt("confounded", True, f"{text} the hospital.", remedy)


def _alone(report: Row, split: str) -> dict[str, tuple[str, int]]:
    """Class -> the one hospital that has cases of it in a split, and how many; hospitals that annotate it count."""
    counts: dict[str, dict[str, int]] = {}
    for site, row in report["sites"].items():
        for name, cases in row["classes"].get(split, {}).items():
            counts.setdefault(name, {})[site] = cases
    names = list(counts)[report["task"] == "segmentation" :]  # the first one is the background
    have = {name: [(site, cases) for site, cases in counts[name].items() if cases] for name in names}
    return {name: found[0] for name, found in have.items() if len(found) == 1 < len(counts[name])}


def one_class(report: Row) -> Iterator[Doubt]:
    """Hospitals whose test cases are all of one class: whoever always says that class is never wrong there."""
    judged, split = by_hospital(report, "federated"), report["split"]
    found = {site: name for site in report["sites"] if site in judged and (name := only_class(report, site))}
    if not found:
        return
    where = listed([f"{site} ({name})" for site, name in found.items()])
    text = f"All {split} cases are of one class at {where}: a model that always says so is never wrong there."
    if grave := found.keys() == set(judged) - {"all"}:
        if len(set(found.values())) > 1:
            text += " No hospital has two: values over all hospitals reward nothing but telling the hospital."
        remedy = "This run cannot say how well classes are told apart: judge at hospitals that have every class."
    else:
        remedy = "Being helped, harmed or worst there says little; read the hospitals that have every class."
    yield Doubt("one_class_judged", grave, text, remedy)


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
    kinds = {site: kinds_of(report, site) for site in counted}
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
