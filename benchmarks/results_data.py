"""The tables that `results.py` needs beside the public data sets as they are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

HOSPITALS = 3
SCARCE, SHARE = "few-labels", 0.05
GROUPS = ("uint8", "float_le4095")


def write_tables(source: Path, folder: Path) -> None:
    """Writes vessels.csv, look.csv and synthesis.npz, and links the other data sets into the folder.

    Args:
        source: the folder with hippocampus/, chase_retina/, nih_cxr/ and pneumoniamnist/.

    Raises:
        FileNotFoundError: a data set is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in {
        "Task04_Hippocampus": source / "hippocampus",
        "nih_cxr_1000x96.npz": source / "nih_cxr" / "nih_cxr_1000x96.npz",
        "pneumoniamnist.npz": source / "pneumoniamnist" / "pneumoniamnist.npz",
    }.items():
        if not target.exists():
            raise FileNotFoundError(f"{target} is not there: name the folder of the data sets with --data")
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target.resolve())
    _vessels(source / "chase_retina", folder / "vessels.csv")
    _look(source / "hippocampus", folder / "look.csv")
    _synthesis(folder / "pneumoniamnist.npz", folder / "synthesis.npz")


def _write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _vessels(source: Path, path: Path) -> None:
    """Both eyes of a child are one patient."""
    images = sorted(source.glob("*_image.jpg"))
    rows = [
        [image.name[:3], image.name[:2], str(image.resolve()), str(image.resolve()).replace("_image.jpg", "_mask.png")]
        for image in images
    ]
    _write(path, ["case", "patient", "image", "label"], rows)


def _look(source: Path, path: Path) -> None:
    with (source / "cases.csv").open(newline="", encoding="utf-8") as file:
        cases = [case for case in csv.DictReader(file) if case["acquisition_group"] in GROUPS]
    rows = [
        [
            case["case"],
            case["case"],
            str((source / case["image"]).resolve()),
            case["acquisition_group"],
            str((source / case["label"]).resolve()),
        ]
        for case in cases
    ]
    _write(path, ["case", "patient", "image", "scale", "mask"], rows)


def _synthesis(source: Path, path: Path) -> None:
    """PneumoniaMNIST dealt out to three hospitals; one keeps 5 % of its training images, and all of the others."""
    draw = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {"image": [], "label": [], "split": [], "hospital": []}
    with np.load(source) as arrays:
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"][:, 0]
            hospital = draw.permutation(np.arange(len(images)) % HOSPITALS)
            kept = np.ones(len(images), dtype=bool)
            if split == "train":
                own = np.flatnonzero(hospital == HOSPITALS - 1)
                kept[own[round(SHARE * len(own)) :]] = False
            names = np.array([f"hospital-{number + 1}" for number in range(HOSPITALS - 1)] + [SCARCE])
            parts["image"].append(images[kept])
            parts["label"].append(labels[kept])
            parts["split"].append(np.full(kept.sum(), split))
            parts["hospital"].append(names[hospital[kept]])
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    np.savez(path, patient=np.arange(len(columns["label"])).astype(str), **columns)
