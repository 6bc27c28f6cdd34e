"""Copies of an image at two hospitals are found when the hospitals are made, and stand at the top of the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared_models.job_file import load_job
from simulation.copies import copies
from simulation.run import simulate
from simulation.run_folder import SimulationRequest

COLUMNS = {name: name for name in ("hospital", "split", "patient")} | {"image": "images", "label": "labels"}
NATURAL = {
    "dataset": {"name": "folder", "table": "squares.npz", "columns": COLUMNS},
    "partition": {"name": "natural", "column": "hospital"},
    "hospitals": None,
}


@pytest.fixture
def copied(squares: Path, tmp_path: Path) -> Path:
    """Hospitals a and b, 27 + 9 + 9 patients each; the test images of b are training images of a."""
    with np.load(squares / "squares.npz") as arrays:
        table = dict(arrays)
    hospital = np.array(["a", "b"])[np.arange(90) // 45]
    split = np.array(["train", "train", "train", "validation", "test"])[np.arange(90) % 5]
    seen, judged = (hospital == "a") & (split == "train"), (hospital == "b") & (split == "test")
    for array in ("images", "labels"):
        table[array][judged] = table[array][seen][: judged.sum()]
    np.savez(tmp_path / "squares.npz", **table, hospital=hospital, split=split)
    return tmp_path


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_test_images_that_another_hospital_trains_with_are_a_grave_doubt(write_job, copied, tmp_path):
    out = tmp_path / "run"
    simulate(SimulationRequest(write_job(simulation=NATURAL, federation={"rounds": 1}), copied, out, compare=()))
    report = report_of(out)
    assert report["copies"] == [{"hospital": "b", "split": "test", "of": "a", "of_split": "train", "cases": 9}]
    doubt = report["doubts"][0]
    assert (doubt["kind"], doubt["grave"]) == ("copies", True)
    assert "9 of 9 test cases of b are copies of training cases of a" in doubt["text"]


def test_images_that_two_scanners_saw_are_not_copies(write_job, copied, tmp_path):
    out = tmp_path / "run"
    noise = {"by_hospital": {"b": [{"kind": "rician_noise"}]}}
    job = write_job(simulation=NATURAL | {"scanners": noise}, federation={"rounds": 1})
    simulate(SimulationRequest(job, copied, out, compare=()))
    assert report_of(out)["copies"] == []


def site(folder: Path, name: str, rows: list[tuple[str, str]]) -> Path:
    """A manifest with (image, split) of a patient each."""
    lines = [f"{name}-{number},{image},small,{split}" for number, (image, split) in enumerate(rows)]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["patient,image,label,split", *lines]))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in "xyz":
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "x.png", tmp_path / "renamed.png")
    for name in ("black.png", "dark.png"):
        Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def found_between(job: Path, folder: Path, one: list[tuple[str, str]], other: list[tuple[str, str]]) -> list[Any]:
    found = copies({"one": site(folder, "one", one), "other": site(folder, "other", other)}, load_job(job))
    return [(row["hospital"], row["split"], row["of"], row["of_split"], row["cases"]) for row in found]


def test_a_file_under_another_name_is_a_copy_of_the_earlier_split(write_job, pictures):
    one, other = [("x.png", "validation"), ("y.png", "train")], [("renamed.png", "train"), ("z.png", "test")]
    assert found_between(write_job(), pictures, one, other) == [("one", "validation", "other", "train", 1)]


def test_copies_in_the_same_split_or_at_the_same_hospital_are_no_leak_between_hospitals(write_job, pictures):
    assert found_between(write_job(), pictures, [("x.png", "train")], [("renamed.png", "train")]) == []
    assert (
        found_between(write_job(), pictures, [("x.png", "train"), ("renamed.png", "test")], [("y.png", "test")]) == []
    )


def test_rows_of_npz_files_of_another_size_are_copies(write_job, pictures):
    images = np.random.default_rng(0).integers(0, 255, (5, 16, 16), dtype=np.uint8)
    np.savez(pictures / "one.npz", images=images)
    np.savez(pictures / "other.npz", images=images[3:])
    one, other = [("one.npz::images[0]", "train"), ("one.npz::images[4]", "train")], [("other.npz::images[1]", "test")]
    assert found_between(write_job(), pictures, one, other) == [("other", "test", "one", "train", 1)]


def test_images_that_no_hospital_uses_are_no_copies(write_job, pictures):
    missing = ("nowhere.png", "test")
    assert found_between(write_job(), pictures, [("black.png", "train")], [("dark.png", "test"), missing]) == []
