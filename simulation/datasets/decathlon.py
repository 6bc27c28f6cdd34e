"""Medical Segmentation Decathlon layout (Antonelli et al. 2022, doi:10.1038/s41467-022-30695-9): any of its tasks.

A task is a folder with dataset.json, imagesTr/ and labelsTr/. A case of several modalities is one 4D NIfTI, whose last
axis is the channel. The collection names no patients: a case is a patient, unless the CSV of `columns` has a column
of patients.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_simulation import DecathlonDataset
from simulation.datasets.fetch import fetch_archive
from simulation.datasets.files import cache_folder
from simulation.datasets.source import SourceCase

URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com"

# MD5 of the public archives.
MD5 = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}


def cases(job: Job, dataset: DecathlonDataset, data_dir: Path | None) -> list[SourceCase]:
    """The labelled cases (`training` in dataset.json; the test images of the challenge have no public labels).

    A task with classes finds them in the column `data.label` of the CSV, and the masks in its mask column. A file that
    is missing is not an error here: preflight quarantines its case with the reason.
    """
    if job.task.label == "image" and job.data.label not in job.data.images:
        raise BadInput(
            "the Decathlon has masks and no target images; give task.how.noise, or read a table with `name: folder`"
        )
    folder = _find(dataset.task, data_dir)
    pairs = _listed(folder / "dataset.json")
    if dataset.unpaired:
        pairs += _unpaired(folder / dataset.unpaired)
    columns = {}
    if dataset.columns:
        columns = _columns(folder / dataset.columns)
        if not any(_case_name(image) in columns for image, _ in pairs):
            raise BadInput(f"{folder / dataset.columns}: no cell of its column `case` is a case of dataset.json")
    result = []
    for image, mask in pairs:
        name = _case_name(image)
        own = columns.get(name, {})
        patient, label, key = own.get(job.data.patient) or name, str(mask), ""
        if job.task.label == "class":
            label = key = own.get(job.data.label, "")
        if job.mask_column:
            own = {**own, job.mask_column: str(mask)}
        result.append(SourceCase(name, patient, (str(image),), label, "", key, own))
    return result


def _find(task: str, data_dir: Path | None) -> Path:
    """The folder of a task: ``data_dir`` itself or inside of it, with or without the TaskNN_ of the public name."""
    if data_dir is None:
        public = next((name for name in MD5 if _short(name) == _short(task)), None)
        if public is None:
            raise BadInput(
                f"the Decathlon has no task {task!r}; it has {', '.join(MD5)}; data of your own in its layout are read "
                "from --data-dir"
            )
        unpacked = fetch_archive(f"{URL}/{public}.tar", f"md5:{MD5[public]}", cache_folder("datasets", public))
        return unpacked / public
    if (data_dir / "dataset.json").is_file():
        return data_dir
    for path in sorted(data_dir.glob("*/dataset.json")):
        if _short(path.parent.name) == _short(task):
            return path.parent
    raise BadInput(
        f"there is no task {task!r} in {data_dir}: neither this folder nor a folder {task!r} in it has a dataset.json; "
        "the public archives are at http://medicaldecathlon.com, or leave --data-dir out to have one fetched"
    )


def _short(task: str) -> str:
    return re.sub(r"^task\d+_", "", task.lower())


def _listed(listing: Path) -> list[tuple[Path, Path]]:
    """Image and label of every entry of `training`."""
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))["training"]
        return [(listing.parent / entry["image"], listing.parent / entry["label"]) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{listing} is no Decathlon listing ({type(error).__name__}: {error}); expected a JSON object whose "
            '`training` is a list of {"image": ..., "label": ...}'
        ) from None


def _unpaired(folder: Path) -> list[tuple[Path, Path]]:
    """Every file of images/ and labels/, each with the path where its partner is, or should be."""
    names = {path.name for kind in ("images", "labels") for path in (folder / kind).glob("*.nii*")}
    if not names:
        raise BadInput(f"{folder} has no NIfTI files in images/ or labels/; leave `unpaired` out of the job")
    return [(folder / "images" / name, folder / "labels" / name) for name in sorted(names)]


def _columns(table: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV by their column `case`."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{table} cannot be read: {error}") from None
    if not rows or "case" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no rows at all"
        raise BadInput(f"{table} needs a column `case` and one row a case; it has {found}")
    return {row["case"]: row for row in rows}


def _case_name(image: Path) -> str:
    return image.name.removesuffix(".gz").removesuffix(".nii")
