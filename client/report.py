"""The hospital's own report of a run: it shows its patients, is made at the hospital and stays there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from client.data.dataset import SiteData
from client.data.preflight import PreflightReport
from client.pictures import best_to_worst, draw_classified, draw_curve
from client.ranked_pictures import RANKINGS, Ranking
from client.synthetic_pictures import draw_synthetic
from client.training import infer_cases, judging_seed
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.job import Job
from shared_models.page import data_uri, digits, environment, fixed, interval_text, listed, plural, size
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import interval, replicate_weights

FEW_PATIENTS = 20
CASES_IN_A_ROW = 6
QUESTIONS = {
    "query.prepare": "What data are there",
    "query.statistics": "Count training images for the preprocessing plan",
    "train": "Train for one round",
    "train.alone": "Train on this hospital's data only",
    "evaluate": "Judge a model",
}


@dataclass(frozen=True, kw_only=True)
class ReportFacts:
    """What the page is made of; everything but `pictures` may still be empty while a run goes on.

    Attributes:
        run: its name at the coordinator.
        version: of the consilium package here.
        answers: the ledger's `answer` lines of this run, as they stand there, oldest first: n, time, question, round,
            patients, seconds, tensors ([{"bytes": ...}, ...]), numbers ({"loss": ...}).
        refusals: its `refused`, `withheld` and `fault` lines: n, time, kind, and sentence, question and round where
            they are known.
        evaluations: "test", what `judge_own` says of the federated model; "validation", of validated rounds
            {"round": n, "metrics": {name: value or None}}. Both may be missing.
        pictures: PNG files of `draw_own_cases`.
    """

    site: str
    federation: str
    run: str
    job: Job
    version: str
    cohort: PreflightReport
    answers: Sequence[Mapping[str, Any]] = ()
    refusals: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    pictures: Sequence[Path] = ()


def judge_own(job: Job, records: Sequence[CaseRecord], site_seed: int) -> dict[str, Any]:
    """A model's metrics on this hospital's cases, with 95 % patient-level bootstrap intervals.

    Args:
        records: what the model did on each case.
        site_seed: `derive_seed(job.seed, "bootstrap", site, split)` gives the very intervals of the coordinator.

    Returns:
        {"patients": n, "cases": n, "bootstrap": replicates, "metrics": {name: label, digits, headline,
        larger_is_better, unit, value, low, high, why, n (cases behind the value)}}.
    """
    task = task_of(job)
    sums = task.sums(records, replicate_weights([r.patient for r in records], job.evaluation.bootstrap, site_seed))
    patients, counts, infos = int(sums["patients"][0]), task.counts(sums), task.metric_info()
    metrics = {}
    for name, values in task.metrics(sums).items():
        row, info = interval(values, patients), infos[name]
        label = f"{info['label']} ({info['unit']})" if info["unit"] else info["label"]
        places = digits(info, [row.value or 0.0])
        metrics[name] = {**info, "label": label, "digits": places, **asdict(row), "n": counts[name]}
    order = [name for name in infos if name in metrics]
    return {
        "patients": patients,
        "cases": len(records),
        "bootstrap": job.evaluation.bootstrap,
        "metrics": {name: metrics[name] for name in order},
    }


def draw_own_cases(
    job: Job, network: nn.Module, data: SiteData, records: Sequence[CaseRecord], folder: Path
) -> list[Path]:
    """Write `cases.png` into a folder: the best, median and worst test case, or those most wrong and most right.

    Classifications are ranked by how far the probabilities are off, other tasks as `RANKINGS` says. Of a synthesis it
    is synthetic images beside the training images that they come nearest to.

    Args:
        network: the model that the records are of, on its device.
        records: of the site's test cases; one of a case that is no longer usable is passed over.

    Returns:
        The files written: none where there is no case to show.

    Raises:
        BadInput: an image has changed since it was checked.
        OSError: the file cannot be written, as on a full disk.
    """
    usable = {case.id for case in data.cases("test")}
    records = [record for record in records if record.case in usable]
    content = None
    if job.task.kind in RANKINGS:
        content = _ranked(job, network, data, records, RANKINGS[job.task.kind])
    elif job.task.kind == "classification":
        content = _classified(job, network, data, records)
    elif job.task.kind == "synthesis":
        content = draw_synthetic(job, network, data.samples("train"), "this hospital", judging_seed(job))
    if content is None:
        return []
    path = folder / "cases.png"
    with whole_file(path) as file:
        file.write(content)
    return [path]


def _ranked(
    job: Job, network: nn.Module, data: SiteData, records: Sequence[CaseRecord], ranking: Ranking
) -> bytes | None:
    scored = [(score, record.case) for record in records if (score := ranking.score(record)) is not None]
    chosen = best_to_worst(sorted(scored, key=lambda row: (-row[0], row[1])))
    if not chosen:
        return None
    samples = _samples(job, network, data, [case for _, case in chosen.values()])
    titles = [f"{title}: {case}, {ranking.text(score)}" for title, (score, case) in chosen.items()]
    return ranking.draw(job, [{**sample, "title": title} for sample, title in zip(samples, titles, strict=True)])


def _classified(job: Job, network: nn.Module, data: SiteData, records: Sequence[CaseRecord]) -> bytes | None:
    ranked = [record.case for record in sorted(records, key=lambda record: (-_error(job, record), record.case))]
    if not ranked:
        return None
    number = min(CASES_IN_A_ROW, len(ranked) // 2)
    rows = {"Most wrong": ranked[:number], "Most right": ranked[::-1][:number]} if number else {"Only": ranked}
    return draw_classified(job, {heading: _samples(job, network, data, cases) for heading, cases in rows.items()})


def _error(job: Job, record: CaseRecord) -> float:
    """Mean squared difference of probability and label: the Brier score of one case."""
    probabilities = np.array(record.values["probabilities"], dtype=float)
    label = np.array(record.values["label"], dtype=float)
    if getattr(job.task, "mode", "") == "single_label":
        label = np.eye(len(probabilities))[int(label[0])]
    return float(((probabilities - label) ** 2).mean())


def _samples(job: Job, network: nn.Module, data: SiteData, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The prepared cases in the order of `ids`, each with the model's probabilities."""
    cases = {case.id: case for case in data.cases("test")}
    inferred = infer_cases(network, data, [cases[name] for name in ids], job, task_of(job))
    return [{**sample, "probabilities": probabilities} for sample, probabilities in inferred]


def write_report(folder: Path, facts: ReportFacts) -> Path:
    """Write `report.html` into a folder of the hospital; the path is returned. The page needs nothing beside itself.

    Raises:
        BadInput: a picture cannot be read.
        OSError: the page cannot be written, as on a full disk; what was there is as it was.
    """
    test = facts.evaluations.get("test")
    page = (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            facts=facts,
            job=facts.job,
            test=test,
            headline=_headline(facts.job, test),
            sentences=_answer(facts, test),
            warnings=_warnings(facts, test),
            rounds=_rounds(facts),
            refusals=_refusals(facts),
            left=_left(facts.answers),
            lines=_lines(facts.answers),
            metric=_selected(facts.job)["label"],
            curve=_curve(facts),
            pictures=[data_uri("image/png", _read(path)) for path in facts.pictures],
            ranges=_ranges(facts.cohort),
        )
    )
    path = folder / "report.html"
    with whole_file(path) as file:
        file.write(page.encode())
    return path


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: the picture cannot be read ({error.strerror}); draw the cases again") from error


def _selected(job: Job) -> Mapping[str, Any]:
    """Label and direction of the metric that picks the best round."""
    infos = task_of(job).metric_info()
    return infos.get(job.selection_metric()) or next(iter(infos.values()))


def _headline(job: Job, test: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The metric that picks the best round or, where it has no value here, the first main one that has."""
    if not test or not test["cases"]:
        return None
    rows = test["metrics"]
    first = rows.get(job.selection_metric()) or next(iter(rows.values()))
    defined = (row for row in (first, *rows.values()) if row["headline"] and row["value"] is not None)
    return first if first["value"] is not None else next(defined, first)


def _answer(facts: ReportFacts, test: Mapping[str, Any] | None) -> list[str]:
    """The sentences at the top: how good, in which rounds, what left."""
    row = _headline(facts.job, test)
    if test is None or row is None:
        first = "The federated model has not been judged on test patients of this hospital."
    elif row["value"] is None:
        first = f"No metric has a value on this hospital's {_people(test)} ({row['why']})."
    else:
        first = (
            f"On this hospital's own {_people(test)} the federated model reaches {row['label']} "
            f"{fixed(row['value'], row['digits'])} ({interval_text(row, row['digits'])}, "
            f"n = {plural(row['n'], 'case')})."
        )
    trained, planned = _trained(facts.answers), plural(facts.job.federation.rounds, "round")
    second = f"{facts.site} trained in no round of {planned}."
    if trained:
        patients = next(line.get("patients") for line in reversed(facts.answers) if line["question"] == "train")
        on = f", on {plural(patients, 'patient')}" if patients is not None else ""
        second = f"{facts.site} trained in {len(trained)} of {planned} ({_spans(trained)}){on}."
    left = _left(facts.answers)
    third = "Nothing has left this hospital for this run."
    if left:
        total = plural(sum(row["answers"] for row in left), "answer")
        third = (
            f"{total} with {size(sum(row['bytes'] for row in left))} of tensors left this hospital, "
            f"each on record in its ledger (lines {_lines(facts.answers)})."
        )
    return [first, second, third]


def _people(test: Mapping[str, Any]) -> str:
    return plural(test["patients"], "test patient")


def _warnings(facts: ReportFacts, test: Mapping[str, Any] | None) -> list[str]:
    cohort, warnings = facts.cohort, []
    if test and 0 < test["patients"] < FEW_PATIENTS:
        warnings.append(f"Fewer than {FEW_PATIENTS} test patients here: these numbers carry little weight.")
    for row in test["metrics"].values() if test and test["cases"] else ():
        if row["headline"] and row["why"]:
            warnings.append(f"{row['label']}: {row['why']}.")
    trained = _trained(facts.answers)
    last = max([*trained, *(row["round"] for row in _rounds(facts))], default=0)
    missed = sorted(set(range(1, last + 1)) - set(trained))
    if missed:
        warnings.append(f"No training answer of this hospital in {_spans(missed)}.")
    if cohort.quarantined:
        warnings.append(f"{len(cohort.quarantined)} of {plural(cohort.checked, 'case')} were set aside as unfit.")
    return warnings + cohort.warnings


def _trained(answers: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({line["round"] for line in answers if line["question"] == "train"})


def _spans(numbers: Sequence[int]) -> str:
    """`round 4`, `rounds 1 to 3, 5 and 7 to 9`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    texts = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return f"round{'' if len(numbers) == 1 else 's'} {listed(texts)}"


def _rounds(facts: ReportFacts) -> list[dict[str, Any]]:
    """One row for every time that this hospital was asked to train in a round, answered or not."""
    validated = {row["round"]: row["metrics"] for row in facts.evaluations.get("validation", ())}
    selected = facts.job.selection_metric()
    asked = [(line, None) for line in facts.answers] + [(line, _why(line)) for line in facts.refusals]
    rows = []
    for line, why in asked:
        if line.get("question") != "train" or not line.get("round"):
            continue
        numbers = line.get("numbers", {})
        rows.append(
            {
                "n": line["n"],
                "round": line["round"],
                "time": line["time"],
                "patients": line.get("patients"),
                "loss": numbers.get("loss"),
                "seconds": line.get("seconds", numbers.get("seconds")),
                "validation": validated.get(line["round"], {}).get(selected),
                "bytes": _bytes(line),
                "why": why,
            }
        )
    return sorted(rows, key=lambda row: row["n"])


def _why(line: Mapping[str, Any]) -> str:
    return str(line.get("sentence") or f"{line['kind']}, no reason on record")


def _refusals(facts: ReportFacts) -> list[dict[str, Any]]:
    rows = []
    for line in facts.refusals:
        question = line.get("question")
        asked = QUESTIONS.get(question, question) if question else None
        rows.append({**line, "question": asked, "round": line.get("round"), "why": _why(line)})
    return rows


def _bytes(line: Mapping[str, Any]) -> int:
    return sum(tensor["bytes"] for tensor in line.get("tensors", ()))


def _left(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What left, question by question."""
    rows = []
    for question in dict.fromkeys(line["question"] for line in answers):
        lines = [line for line in answers if line["question"] == question]
        rows.append(
            {
                "question": QUESTIONS.get(question, question),
                "answers": len(lines),
                "tensors": sum(len(line.get("tensors", ())) for line in lines),
                "numbers": sum(len(line.get("numbers", {})) for line in lines),
                "bytes": sum(map(_bytes, lines)),
                "lines": _lines(lines),
            }
        )
    return rows


def _lines(answers: Sequence[Mapping[str, Any]]) -> str:
    """`12 to 40`, the range of ledger lines."""
    numbers = [line["n"] for line in answers]
    return f"{min(numbers)} to {max(numbers)}" if len(set(numbers)) > 1 else "".join(map(str, numbers))


def _curve(facts: ReportFacts) -> str | None:
    name = facts.job.selection_metric()
    values = [(row["round"], row["metrics"].get(name)) for row in facts.evaluations.get("validation", ())]
    points = [(number, value) for number, value in values if value is not None]
    if len(points) < 2:
        return None
    label = f"{_selected(facts.job)['label']}, own validation patients"
    return data_uri("image/png", draw_curve(points, facts.job.federation.rounds, label))


def _ranges(cohort: PreflightReport) -> list[tuple[str, str, str]]:
    """Names, lowest and highest of what preflight measured, as text; nothing where no case was usable."""
    if not cohort.shape:
        return []
    rows: list[tuple[str, Sequence[Any]]] = [
        ("Spacing (mm)", cohort.spacing),
        ("Shape (voxels)", cohort.shape),
        ("Intensity", [[value] for value in cohort.intensity]),
        ("Mean of an image", [[value] for value in cohort.image_mean]),
    ]
    texts = [(name, *(" \u00d7 ".join(f"{value:g}" for value in end) for end in ends)) for name, ends in rows]
    return [(name, low, high) for name, low, high in texts]
