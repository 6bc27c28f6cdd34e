"""Any images with a table: a CSV with one row a case, or one npz whose arrays are the columns.

A CSV names files relative to itself. In an npz, images (and masks) are arrays with one entry a case:
``images`` (n, height, width), ``labels`` (n,), ``patient`` (n,) ...
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from pathlib import Path

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_simulation import FolderDataset
from simulation.datasets.fetch import ARCHIVES, fetch, fetch_archive
from simulation.datasets.files import cache_folder
from simulation.datasets.source import (
    SourceCase,
    array_names,
    array_shape,
    cells_as_text,
    label_keys,
    labels_as_text,
    read_array,
)

# A column that says true or false is read as "is a test case".
SPLITS = {
    **dict.fromkeys(("train", "training", "0", "false"), "train"),
    **dict.fromkeys(("validation", "val", "valid"), "validation"),
    **dict.fromkeys(("test", "testing", "1", "true"), "test"),
}

Table = dict[str, list[str]]


def cases(job: Job, dataset: FolderDataset, data_dir: Path | None) -> list[SourceCase]:
    """One case a row of the table, under the names that `columns` of the job gives to the table's columns.

    Needed are the image columns, the label and the patient of ``job.data``; `case` and `split` are used where they
    are; all others come along as they are. ``split: ""`` in `columns` leaves the table's own split aside.

    Raises:
        BadInput: no table, a column that is not there, no patient in a row, a patient in two official splits.
    """
    path = _find(dataset, data_dir)
    read = _read_npz if path.suffix == ".npz" else _read_csv
    table = read(path, job, dataset.columns)
    count = len(table[job.data.patient])
    unnamed = [row for row, patient in enumerate(table[job.data.patient]) if not patient]
    if unnamed:
        raise BadInput(
            f"{path}: column `{job.data.patient}` is empty in {len(unnamed)} rows, first in row {unnamed[0] + 1}; "
            "every case needs its patient"
        )
    names = table.get("case") or [f"row-{row:06d}" for row in range(1, count + 1)]
    splits = _splits(path, table, job.data.patient) if "split" in table else [""] * count
    labels = table[job.data.label]
    keys = label_keys(labels) if job.task.label == "class" else [""] * count
    used = {*job.data.images, job.data.label, job.data.patient, "case", "split"}
    others = [column for column in table if column not in used]
    return [
        SourceCase(
            id=names[row],
            patient=table[job.data.patient][row],
            images=tuple(table[column][row] for column in job.data.images),
            label=labels[row],
            split=splits[row],
            label_key=keys[row],
            columns={column: table[column][row] for column in others},
        )
        for row in range(count)
    ]


def _find(dataset: FolderDataset, data_dir: Path | None) -> Path:
    if data_dir is not None:
        candidates = [data_dir / dataset.table, data_dir / Path(dataset.table).name]
    elif dataset.url is None:
        candidates = [Path(dataset.table).absolute()]
    elif dataset.sha256 is None:
        raise BadInput(f"{dataset.url} is fetched only with a known hash: give its `sha256` in the job")
    else:
        folder = cache_folder("datasets", dataset.sha256[:16])
        if dataset.url.split("?")[0].endswith(ARCHIVES):
            candidates = [fetch_archive(dataset.url, f"sha256:{dataset.sha256}", folder) / dataset.table]
        else:
            name = Path(dataset.table).name
            candidates = [fetch(dataset.url, f"sha256:{dataset.sha256}", folder / name)]
    for path in candidates:
        if path.is_file():
            return path
    hint = "" if data_dir else "; name the folder that it is in with --data-dir"
    raise BadInput(
        f"there is no table {dataset.table!r}: looked for {' and '.join(dict.fromkeys(map(str, candidates)))}{hint}"
    )


def _columns(path: Path, job: Job, found: list[str], renamed: dict[str, str]) -> dict[str, str]:
    """Manifest column: table column, for every column that is needed, renamed or simply there."""
    needed = {column: column for column in (*job.file_columns(), job.data.label, job.data.patient)}
    wanted = {column: name for column, name in (needed | renamed).items() if name}
    for column, name in wanted.items():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            raise BadInput(
                f"{path} has no column {name!r}, needed as `{column}`; it has {', '.join(found)}"
                + (f" (did you mean {near[0]!r}?)" if near else "")
                + "; name the right one under simulation.dataset.columns"
            )
    taken = {*wanted, *wanted.values(), *renamed}
    return wanted | {name: name for name in found if name not in taken}


def _read_csv(path: Path, job: Job, renamed: dict[str, str]) -> Table:
    """Cells by manifest column; references to files made absolute."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read as a CSV: {error}") from None
    columns = _columns(path, job, list(reader.fieldnames or []), renamed)
    files = set(job.file_columns())
    table = {}
    for column, name in columns.items():
        cells = [(row[name] or "").strip() for row in rows]
        # A cell may also be a row of an npz, "scans.npz::images[17]": the path is what stands first either way.
        table[column] = [str(path.parent / cell) if cell else "" for cell in cells] if column in files else cells
    return table


def _read_npz(path: Path, job: Job, renamed: dict[str, str]) -> Table:
    """Cells by manifest column; images and masks become references, the pixels stay on disk."""
    columns = _columns(path, job, array_names(path), renamed)
    files = set(job.file_columns())
    needed = {*files, job.data.label, job.data.patient, *renamed}
    shapes = {column: array_shape(path, name) for column, name in columns.items()}
    count = _rows(shapes[job.data.patient])
    table = {}
    for column, name in columns.items():
        rows = _rows(shapes[column])
        if column in needed and rows != count:
            raise BadInput(f"{path}: array {name!r} has {rows} rows, but {columns[job.data.patient]!r} has {count}")
        if column in files:
            table[column] = [f"{path}::{name}[{row}]" for row in range(count)]
        elif column == job.data.label:
            table[column] = labels_as_text(read_array(path, name))
        elif shapes[column] == (count,):  # anything else is no column: other pixels, names of classes
            table[column] = cells_as_text(read_array(path, name))
    return table


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 0


def _splits(path: Path, table: Table, patient_column: str) -> list[str]:
    """The official split of every row, checked against the rule that a patient is in one split only."""
    unknown = Counter(cell for cell in table["split"] if cell.lower() not in SPLITS)
    if unknown:
        raise BadInput(
            f"{path}: column `split` says {unknown.most_common(1)[0][0]!r} in {unknown.total()} rows; expected train, "
            "validation or test, or true for a test case"
        )
    splits = [SPLITS[cell.lower()] for cell in table["split"]]
    seen: dict[str, set[str]] = {}
    for patient, split in zip(table[patient_column], splits, strict=True):
        seen.setdefault(patient, set()).add(split)
    torn = [patient for patient, where in seen.items() if len(where) > 1]
    if torn:
        raise BadInput(
            f"{path}: the split of the table has {len(torn)} patients in two splits (first {torn[0]!r}), so a model "
            'would be tested on patients it was trained on; leave it out with `split: ""` in simulation.dataset.columns'
        )
    return splits
