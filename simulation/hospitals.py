"""Virtual hospitals: the division of a data set written as one manifest a hospital, as a real hospital would have."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from client.data.manifest import assign_splits
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_sentences import nearest
from shared_models.subgroups import OTHER, groups_of
from simulation import annotators, flipped_labels, partial_labels
from simulation.datasets import open_dataset
from simulation.datasets.files import new_file
from simulation.datasets.source import SourceCase
from simulation.partition import partition, unassigned
from simulation.rewritten import Redraw, rewrite
from simulation.shift import scanners_of
from simulation.split_manifest import SplitManifest, digest

EXAMPLES = 5  # values of a column that a sentence shows
FEW = 16  # files worth hashing to say which copy of a data set was divided


def make_split(job: Job, data_dir: Path | None, cases: Sequence[SourceCase] | None = None) -> SplitManifest:
    """Divide the job's data set among hospitals, and each hospital's patients among train, validation and test.

    An official split of the data set is kept. One without validation patients gives some of its training patients to
    validation, `evaluation.validation_share` of them; without an official split both shares count.

    Args:
        job: with a `simulation` section.
        data_dir: as `open_dataset`.
        cases: the data set where it was opened already.

    Raises:
        BadInput: the data set cannot be read, or not be divided as the job says.
    """
    assert job.simulation is not None, "open_dataset has refused a job without a simulation"
    cases = open_dataset(job, data_dir) if cases is None else cases
    official = {case.patient: case.split for case in cases}
    _check_official(Counter(official.values()))
    hospitals = {name: _splits(patients, official, job, name) for name, patients in partition(cases, job).items()}
    _check_names(job, hospitals)
    left_out = _left_out(cases, hospitals, job)
    for name, patients in left_out.items():
        hospitals[name] = {patient: split for patient, split in hospitals[name].items() if patient not in patients}
        if "train" not in hospitals[name].values():
            raise BadInput(f"simulation.missing_classes: {name} has no training patient left; name fewer classes")
    dataset = job.simulation.dataset
    return SplitManifest(
        dataset={
            "name": dataset.name,
            "arguments": dataset.model_dump(mode="json", exclude={"name"}),
            "cases": len(cases),
            "patients": len(official),
            # The phantom is made, not published: its file differs from machine to machine, its recipe does not.
            "sources": {} if dataset.name == "phantom" else _sources(cases),
            "cases_sha256": digest(cases),
        },
        partition=job.simulation.partition.model_dump(mode="json"),
        seed=job.seed,
        hospitals=hospitals,
        unassigned=unassigned(cases, job),
        left_out=left_out,
    )


def _left_out(
    cases: Sequence[SourceCase], hospitals: Mapping[str, Mapping[str, str]], job: Job
) -> dict[str, list[str]]:
    """Hospital -> its patients of the classes that it lacks."""
    found = {name: partial_labels.of_missing_classes(cases, own, job, name) for name, own in hospitals.items()}
    return {name: patients for name, patients in found.items() if patients}


def _check_names(job: Job, hospitals: Iterable[str]) -> None:
    assert job.simulation is not None
    for path, sentence in job.simulation.unknown_hospitals(list(hospitals)):
        raise BadInput(f"{'.'.join(path)}: {sentence}")


def _check_subgroups(job: Job, cases: Sequence[SourceCase]) -> None:
    """A misspelt column or category would put every patient into `other`, which says nothing."""
    columns = sorted({name for case in cases for name in case.columns})
    for column in job.evaluation.subgroups:
        if column not in columns:
            there = f"its columns are {', '.join(columns) or 'none'}{nearest(column, columns)}"
            raise BadInput(f"evaluation.subgroups: the data set has no column '{column}'; {there}")
        cells = sorted({case.columns.get(column, "") for case in cases})
        groups = [group for group in groups_of(job) if group.column == column and group.label != OTHER]
        empty = [group for group in groups if not any(group.holds(cell) for cell in cells)]
        untold = {cell.casefold(): cell for cell in cells if not any(group.holds(cell) for group in groups)}
        # A group may well be empty here, but one that looks like another cell of the column is misspelt.
        misspelt = {group.label: nearest(group.label.casefold(), list(untold)) for group in empty if group.category}
        wrong = empty if len(empty) == len(groups) else [group for group in empty if misspelt.get(group.label)]
        if wrong:
            labels, found = ", ".join(group.label for group in wrong), ", ".join(map(repr, cells[:EXAMPLES]))
            more = f" and {len(cells) - EXAMPLES} more" if len(cells) > EXAMPLES else ""
            raise BadInput(f"evaluation.subgroups.{column}: no case is in {labels}; the column has {found}{more}")


def write_hospitals(job: Job, cases: Sequence[SourceCase], split: SplitManifest, folder: Path) -> dict[str, Path]:
    """Write ``folder/<hospital>/manifest.csv`` for every hospital; images are named by absolute path.

    A hospital that has a scanner or an annotator of its own gets its own files too, in ``folder/<hospital>/images``,
    so that a site reads them like any hospital and knows nothing of a simulation. They follow from the job and the
    names of hospitals and cases; the split manifest is of patients only, and can be replayed with other scanners.

    Returns:
        The manifest by name of hospital.

    Raises:
        BadInput: the split manifest was made for other cases than these, or the job names hospitals that it has not,
            a column that the cases lack, or of which no case is in any of the job's groups, or a misspelt category.
    """
    split.check_against(cases)
    _check_names(job, split.hospitals)
    _check_subgroups(job, cases)
    if _left_out(cases, split.hospitals, job):
        raise BadInput(
            "the split manifest was made without simulation.missing_classes as the job has them; make it anew, with "
            "`consilium partition`, or leave missing_classes out"
        )
    written = ["case", job.data.patient, *job.data.images, job.data.label, "split", *partial_labels.columns(job)]
    named = dict.fromkeys(written)
    header = list(named | dict.fromkeys(column for case in cases for column in case.columns))
    scanners = scanners_of(job, list(split.hospitals))
    organs = partial_labels.annotated_by(job, list(split.hospitals))
    paths = {}
    with _progress("Making the hospitals' own images", len(cases)) as advance:
        for name, patients in split.hospitals.items():
            own = [case for case in cases if case.patient in patients]
            own = annotators.with_own_classes(own, patients, job, name)
            own = flipped_labels.with_flipped_classes(own, patients, job, name)
            own = partial_labels.with_missing_cells(own, patients, job, name, organs.get(name))
            scanner, redraws = scanners.get(name), _redraws(job, name, organs.get(name))
            own = rewrite(own, patients, job, scanner, redraws, folder / name / "images", advance)
            rows = [_cells(case, job, patients[case.patient]) for case in own]
            paths[name] = folder / name / "manifest.csv"
            _write_csv(paths[name], [header, *([row.get(column, "") for column in header] for row in rows)])
    return paths


def _redraws(job: Job, hospital: str, organs: Sequence[str] | None) -> list[Redraw]:
    """How the hospital's masks differ from the data set's, step by step; nothing for most hospitals."""
    own = [*annotators.redraws(job, hospital), *flipped_labels.redraws(job, hospital)]
    return [*own, *partial_labels.redraws(job, organs)]


@contextmanager
def _progress(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, for what takes more than a moment; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


def _cells(case: SourceCase, job: Job, split: str) -> dict[str, str]:
    """By column. An image goes before a label: a target that noise makes the source of is in the image's column."""
    images = dict(zip(job.data.images, case.images, strict=True))
    own = {"case": case.id, job.data.patient: case.patient, "split": split}
    return {**case.columns, job.data.label: case.label, **images, **own}


def write_pooled(manifests: Mapping[str, Path], folder: Path) -> Path:
    """Write ``folder/pooled/manifest.csv``, all hospitals' manifests as one, for the pooled baseline."""
    header: list[str] = []
    rows: list[list[str]] = []
    for path in manifests.values():
        with path.open(newline="", encoding="utf-8") as file:
            header, *own = csv.reader(file)
        rows += own
    pooled = folder / "pooled" / "manifest.csv"
    _write_csv(pooled, [header, *rows])
    return pooled


def _check_official(counts: Counter[str]) -> None:
    if set(counts) == {""}:
        return
    if "" in counts:
        raise BadInput(f"{counts['']} patients of the data set have no split while others have one; fill it or drop it")
    for split in ("train", "test"):
        if split not in counts:
            raise BadInput(
                f"the data set's own split has no {split} patients (it has {', '.join(sorted(counts))}); correct it, "
                "or leave it out, so that the shares of `evaluation` apply"
            )


def _splits(patients: Sequence[str], official: Mapping[str, str], job: Job, hospital: str) -> dict[str, str]:
    """Patient: split, for the patients of one hospital."""
    if not any(official.values()):
        assigned = assign_splits(patients, job, hospital)
        return {patient: assigned[patient] for patient in patients}
    splits = {patient: official[patient] for patient in patients}
    if "validation" not in official.values():
        training = [patient for patient in patients if splits[patient] == "train"]
        without_test = job.evaluation.model_copy(update={"test_share": 0.0})
        splits |= assign_splits(training, job.model_copy(update={"evaluation": without_test}), hospital)
    return splits


def _sources(cases: Sequence[SourceCase]) -> dict[str, str]:
    """SHA-256 by name of the few npz files that the cases are rows of; many small files are not read just for this."""
    references = {reference for case in cases for reference in (*case.images, case.label)}
    files = sorted({Path(reference.split("::")[0]) for reference in references if "::" in reference})
    result = {}
    for path in files if len(files) <= FEW else []:
        if path.is_file():  # a missing one is preflight's to name
            with path.open("rb") as file:
                result[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with new_file(path) as file:
        file.write(text.getvalue().encode())
