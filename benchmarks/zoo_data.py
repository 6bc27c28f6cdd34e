"""The real images that `zoo.py` trains on: a few of each data set, small, as tables that a job can name."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

CHESTS, RADIOGRAPHS, VOLUMES = 240, 60, 24
GREEN = 1  # vessels stand out most in this channel
SIDE = 192  # of the photographs' middle, at half their resolution


@dataclass(frozen=True)
class Images:
    """What an ability is tried on, and how much of it."""

    table: str
    crop: list[int]
    batch_size: int
    steps: int
    columns: dict[str, str] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    learning_rate: float = 0.001


VOLUME = [32, 32, 32]
SETS = {
    ("segmentation", 2): Images("chase_retina.npz", [96, 96], 4, 6, {"label": "mask"}, ["background", "vessel"]),
    ("segmentation", 3): Images(
        "hippocampus.csv", [32, 64, 32], 2, 3, {"label": "mask"}, ["background", "anterior", "posterior"]
    ),
    ("classification", 2): Images("pneumoniamnist.npz", [32, 32], 16, 6, {"label": "pneumonia"}),
    ("classification", 3): Images("hippocampus.csv", VOLUME, 5, 4, {"label": "larger"}, learning_rate=0.0001),
    ("paired translation", 2): Images("nih_cxr.npz", [64, 64], 4, 6, learning_rate=0.0005),
    ("paired translation", 3): Images("hippocampus.csv", VOLUME, 2, 4, learning_rate=0.0005),
    ("unpaired translation", 2): Images("nih_cxr.npz", [32, 32], 4, 6, {"label": "pneumonia"}, learning_rate=0.0005),
    ("unpaired translation", 3): Images("hippocampus.csv", VOLUME, 2, 4, {"label": "scale"}, learning_rate=0.0005),
    ("synthesis", 2): Images("pneumoniamnist.npz", [32, 32], 16, 12, {"label": "pneumonia"}, learning_rate=0.0005),
    ("synthesis", 3): Images("hippocampus.csv", VOLUME, 4, 12, {"label": "larger"}, learning_rate=0.0005),
    ("reconstruction", 2): Images("pneumoniamnist.npz", [32, 32], 16, 6, {"label": "pneumonia"}),
    ("reconstruction", 3): Images("hippocampus.csv", VOLUME, 4, 6, {"label": "larger"}),
}


def write_data(source: Path, folder: Path) -> None:
    """Writes the tables of `SETS` from the folder of the data sets.

    Raises:
        FileNotFoundError: a data set is not there.
    """
    with np.load(source / "pneumoniamnist" / "pneumoniamnist.npz") as arrays:
        labels = arrays["train_labels"][:, 0]
        rows = _balanced(labels, CHESTS)
        patient = np.arange(CHESTS).astype(str)
        np.savez(
            folder / "pneumoniamnist.npz", image=arrays["train_images"][rows], pneumonia=labels[rows], patient=patient
        )
    with np.load(source / "nih_cxr" / "nih_cxr_1000x96.npz") as arrays:
        rows = _balanced(arrays["labels"], RADIOGRAPHS)
        columns = {"image": arrays["images"], "pneumonia": arrays["labels"], "patient": arrays["patient"].astype(str)}
        np.savez(folder / "nih_cxr.npz", **{name: column[rows] for name, column in columns.items()})
    _write_photographs(source / "chase_retina", folder / "chase_retina.npz")
    _write_volumes(source / "hippocampus", folder / "hippocampus.csv")


def _balanced(labels: np.ndarray, count: int) -> np.ndarray:
    """Rows of the first images of both classes, equally many."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[: count // 2] for label in (0, 1)]))


def _write_photographs(source: Path, target: Path) -> None:
    """The middle of every photograph, and the vessels in it; the two eyes of a child are one patient."""
    paths = sorted(source.glob("*_image.jpg"))
    if not paths:
        raise FileNotFoundError(f"no *_image.jpg in {source}")
    masks = [path.with_name(path.name.replace("_image.jpg", "_mask.png")) for path in paths]
    np.savez(
        target,
        image=np.stack([_middle(np.asarray(Image.open(path))[..., GREEN]) for path in paths]),
        mask=np.stack([_middle(np.asarray(Image.open(path).convert("L")) > 0).astype(np.uint8) for path in masks]),
        patient=np.array([path.name[:2] for path in paths]),
    )


def _middle(picture: np.ndarray) -> np.ndarray:
    half = picture[::2, ::2]
    top, left = ((size - SIDE) // 2 for size in half.shape)
    return half[top : top + SIDE, left : left + SIDE]


def _write_volumes(source: Path, target: Path) -> None:
    """A CSV of volumes of two intensity scales; `larger` says whether a hippocampus is larger than their median."""
    with (source / "cases.csv").open(newline="", encoding="utf-8") as file:
        cases = list(csv.DictReader(file))
    scales = {"uint8": "a", "float_le4095": "b"}
    chosen = [
        case
        for scale in scales
        for case in [case for case in cases if case["acquisition_group"] == scale][: VOLUMES // 2]
    ]
    voxels = {case["case"]: int(case["vox_anterior"]) + int(case["vox_posterior"]) for case in chosen}
    median = np.median(list(voxels.values()))
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["case", "patient", "image", "mask", "larger", "scale"])
        for case in chosen:
            name, image, mask = case["case"], source / case["image"], source / case["label"]
            larger = "b" if voxels[name] > median else "a"
            table.writerow([name, name, image, mask, larger, scales[case["acquisition_group"]]])
