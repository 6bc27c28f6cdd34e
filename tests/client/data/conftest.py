"""Jobs and manifests over the real data sets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared_models.job import Job

CHEST = {"kind": "classification", "classes": ["normal", "pneumonia"]}
HIPPOCAMPUS = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
RETINA = {"kind": "segmentation", "classes": ["background", "vessel"]}


def make_job(task: dict[str, Any], *, augmentation: Sequence[str] = (), **data: Any) -> Job:
    """A job that differs from the defaults only in how its data are prepared."""
    dims = data.setdefault("spatial_dims", 2)
    data.setdefault("crop", [32] * dims)
    return Job.model_validate(
        {
            "name": "test",
            "task": task,
            "data": data,
            "model": {"name": "unet"},
            "training": {"local_epochs": 1, "augmentation": list(augmentation)},
            "federation": {"rounds": 1},
        }
    )


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (dicts) as tmp_path/manifest.csv."""

    def write(rows: Sequence[dict[str, str]]) -> Path:
        path = tmp_path / "manifest.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


@pytest.fixture
def hippocampus_rows(shared_data: Path) -> list[dict[str, str]]:
    """Eight clean volumes of the three intensity scales: five to train on, one to validate, two to test."""
    folder = shared_data / "hippocampus"
    with (folder / "cases.csv").open() as file:
        table = list(csv.DictReader(file))[:8]
    splits = ["train"] * 5 + ["validation"] + ["test"] * 2
    return [
        {
            "case": row["case"],
            "patient": row["case"],
            "image": str(folder / row["image"]),
            "label": str(folder / row["label"]),
            "split": split,
            "group": row["acquisition_group"],
        }
        for row, split in zip(table, splits, strict=True)
    ]


@pytest.fixture
def retina_rows(shared_data: Path) -> list[dict[str, str]]:
    """Fundus photographs of three children, both eyes."""
    folder = shared_data / "chase_retina"
    splits = {"01": "train", "02": "train", "03": "test"}
    return [
        {
            "case": f"{child}{eye}",
            "patient": child,
            "image": str(folder / f"{child}{eye}_image.jpg"),
            "label": str(folder / f"{child}{eye}_mask.png"),
            "split": split,
        }
        for child, split in splits.items()
        for eye in "LR"
    ]
