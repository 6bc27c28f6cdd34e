"""A site's manifest: a CSV with one row a case, read strictly."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.config import inside
from client.data.readers import file_of
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.seeds import derive_seed

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_CASE, _SPLIT = "case", "split"


@dataclass(frozen=True)
class Case:
    """One row of a manifest.

    ``images`` and a mask or target in ``label`` are paths, absolute or relative to the manifest's folder, or one row
    of an array in an npz file, written ``file.npz::array[17]``.
    """

    id: str
    """Unique in the manifest: the column `case` where there is one, else the row's number, such as row-000017."""
    patient: str
    images: tuple[str, ...]
    """One per entry of job.data.images."""
    label: str
    """A mask or target; or a class by name or index, for multi_label any number joined by ``;``; "" says none."""
    split: str
    """train, validation or test."""
    columns: dict[str, str] = field(default_factory=dict)
    """Every other column, such as scanner, sex or age."""


def files_of(case: Case, job: Job) -> dict[str, str]:
    """What a case names in each column that holds files, see `Job.file_columns`."""
    cells = {**case.columns, job.data.label: case.label, **dict(zip(job.data.images, case.images, strict=True))}
    return {column: cells[column] for column in job.file_columns()}


def read_manifest(path: Path, job: Job, site: str = "", *, root: Path | None = None) -> list[Case]:
    """Read the cases of a site; a manifest without a `split` column is split by patient for this `site`.

    Args:
        root: no image or mask may lie outside this folder, symbolic links followed; None lets them lie anywhere.

    Raises:
        BadInput: naming file, line and column, when the manifest is not what it should be.
    """
    rows = _rows(path, job)
    cases = [_case(path, line, number, row, job) for number, (line, row) in enumerate(rows, start=1)]
    lines = [line for line, _ in rows]
    if root is not None:
        _refuse_outside(path, cases, lines, job, root)
    _refuse_duplicates(path, cases, lines)
    if _SPLIT in rows[0][1]:
        _refuse_torn_patients(path, cases, lines)
        return cases
    splits = assign_splits([case.patient for case in cases], job, site)
    return [replace(case, split=splits[case.patient]) for case in cases]


def assign_splits(patients: Sequence[str], job: Job, site: str) -> dict[str, str]:
    """Give every patient a split: whole patients, the shares of job.evaluation rounded to whole numbers.

    A share above zero gets at least one patient as long as one is left for training. `patients` may repeat; the
    result depends on who they are, not on their order.
    """
    everyone = sorted(set(patients))
    order = np.random.default_rng(derive_seed(job.seed, "split", site)).permutation(len(everyone))
    result = dict.fromkeys(everyone, "train")
    start = 0
    for split, share in (("test", job.evaluation.test_share), ("validation", job.evaluation.validation_share)):
        wanted = max(1, round(share * len(everyone))) if share > 0 else 0
        end = min(start + wanted, len(everyone) - 1)
        for index in order[start:end]:
            result[everyone[index]] = split
        start = max(start, end)
    return result


def _rows(path: Path, job: Job) -> list[tuple[int, dict[str, str]]]:
    """The line number and the cells by column of every row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except OSError as error:
        raise BadInput(f"The manifest {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"The manifest {path} is not UTF-8 text: save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: this is not well-formed CSV ({error}).") from error
    if not lines:
        raise BadInput(f"The manifest {path} is empty: a header line and one row a case are needed.")
    header = lines[0][1]
    _check_header(path, header, job)
    if len(lines) == 1:
        raise BadInput(f"The manifest {path} has a header and no case: one row a case is needed.")
    for line, cells in lines[1:]:
        if len(cells) != len(header):
            raise BadInput(
                f"{path}, line {line}: {len(cells)} cells where the header has {len(header)} columns; "
                "a cell that contains a comma must stand in double quotes."
            )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in lines[1:]]


def _check_header(path: Path, header: list[str], job: Job) -> None:
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise BadInput(f"{path}, line 1: the column '{repeated}' stands there twice; every column needs its own name.")
    for key, name in [
        *(("data.images", name) for name in job.data.images),
        ("data.label", job.data.label),
        ("data.patient", job.data.patient),
        ("data.annotated", job.data.annotated),
        ("task.how.mask", job.mask_column),
    ]:
        if name is not None and name not in header:
            raise BadInput(
                f"{path}, line 1: the column '{name}' ({key} of the job) is missing; {_nearest(name, header)}."
            )


def _nearest(name: str, header: list[str]) -> str:
    if len(header) == 1 and any(sign in header[0] for sign in ";\t"):
        return "the columns seem to be separated by semicolons or tabs, where commas are expected"
    by_lower = {column.lower(): column for column in header}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    there = ", ".join(column or "(no name)" for column in header)
    return f"the nearest is '{by_lower[near[0]]}' (there are: {there})" if near else f"there are: {there}"


def _case(path: Path, line: int, number: int, row: dict[str, str], job: Job) -> Case:
    data = job.data
    patient = row[data.patient]
    if not patient:
        raise BadInput(
            f"{path}, line {line}: the column '{data.patient}' is empty; every case needs its patient, "
            "because splits and intervals go by patient."
        )
    identity = row.get(_CASE, f"row-{number:06d}")
    if not identity:
        raise BadInput(f"{path}, line {line}: the column '{_CASE}' is empty; give the case an id or drop the column.")
    split = row.get(_SPLIT, "train")
    if split not in _SPLIT_NAMES:
        raise BadInput(f"{path}, line {line}: the split '{split}' is unknown; expected train, validation or test.")
    named = {*data.images, data.label, data.patient, _CASE, _SPLIT}
    return Case(
        id=identity,
        patient=patient,
        images=tuple(row[name] for name in data.images),
        label=row[data.label],
        split=_SPLIT_NAMES[split],
        columns={name: cell for name, cell in row.items() if name not in named},
    )


def _refuse_outside(path: Path, cases: list[Case], lines: list[int], job: Job, root: Path) -> None:
    for case, line in zip(cases, lines, strict=True):
        for column, reference in files_of(case, job).items():
            try:
                inside(root, file_of(reference, path.parent))
            except BadInput as error:
                raise BadInput(
                    f"{path}, line {line}, column '{column}': {error}; "
                    "images and masks have to lie in the folder that the site's `data_root` names."
                ) from None


def _refuse_duplicates(path: Path, cases: list[Case], lines: list[int]) -> None:
    first: dict[str, int] = {}
    for case, line in zip(cases, lines, strict=True):
        if case.id in first:
            raise BadInput(
                f"{path}, line {line}: the case '{case.id}' stands already in line {first[case.id]}; "
                "every case needs its own id."
            )
        first[case.id] = line


def _refuse_torn_patients(path: Path, cases: list[Case], lines: list[int]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for case, line in zip(cases, lines, strict=True):
        split, other = first.setdefault(case.patient, (case.split, line))
        if split != case.split:
            raise BadInput(
                f"{path}, line {line}: the patient '{case.patient}' is in {case.split}, but in line {other} in {split};"
                " all cases of a patient belong in one split."
            )
