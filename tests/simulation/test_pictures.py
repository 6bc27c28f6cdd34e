"""The picture of a partition, drawn from real files: that every part is there, seen in the pixels."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from client.data.manifest import read_manifest
from client.data.preflight import PreflightReport, preflight
from client.pictures import CLASS_COLOURS, REFERENCE
from shared_models.job import Job
from simulation.pictures import SPLIT_COLOURS, draw_partition
from tests.pixels import share_of


def job(task: dict[str, Any], spatial_dims: int) -> Job:
    return Job.model_validate(
        {
            "name": "pictures",
            "task": task,
            "data": {"spatial_dims": spatial_dims, "crop": [16] * spatial_dims},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


SEGMENTATION = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
CLASSIFICATION = {"kind": "classification", "classes": ["normal", "pneumonia"]}


def hospitals(
    folder: Path, the_job: Job, rows: dict[str, list[tuple[str, str, str]]]
) -> tuple[dict[str, Path], dict[str, PreflightReport]]:
    """Manifests of (patient, image, label) and what preflight says of them."""
    manifests, reports = {}, {}
    for site, cases in rows.items():
        manifest = folder / site / "manifest.csv"
        manifest.parent.mkdir(parents=True)
        with manifest.open("w", newline="") as file:
            csv.writer(file).writerows([("patient", "image", "label"), *cases])
        manifests[site] = manifest
        reports[site] = preflight(read_manifest(manifest, the_job, site), manifest.parent, the_job, site=site)
    return manifests, reports


def classification_rows(folder: Path, name: str, labels: list[int]) -> list[tuple[str, str, str]]:
    """An npz of noise images, one a patient."""
    images = np.random.default_rng(len(labels)).integers(0, 255, (len(labels), 16, 16), dtype=np.uint8)
    np.savez(folder / f"{name}.npz", images=images)
    return [(f"{name}-{i}", f"{folder / name}.npz::images[{i}]", str(label)) for i, label in enumerate(labels)]


def test_the_partition_shows_every_hospital_with_its_classes(tmp_path: Path) -> None:
    the_job = job(CLASSIFICATION, 2)
    rows = {
        "one-class": classification_rows(tmp_path, "a", [0] * 20),
        "mixed": classification_rows(tmp_path, "b", [0, 1, 1] * 8),
    }
    manifests, reports = hospitals(tmp_path, the_job, rows)
    draw_partition(the_job, manifests, reports, tmp_path / "pictures" / "partition.png")
    normal, pneumonia = (share_of(colour, tmp_path / "pictures" / "partition.png") for colour in CLASS_COLOURS[:2])
    assert 1.2 < normal / pneumonia < 2.5  # 28 to 16 cases
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["partition.png"]


def test_the_same_partition_gives_the_same_picture(tmp_path: Path) -> None:
    the_job = job(CLASSIFICATION, 2)
    manifests, reports = hospitals(tmp_path, the_job, {"only": classification_rows(tmp_path, "a", [0, 1] * 10)})
    for name in ("first.png", "second.png"):
        draw_partition(the_job, manifests, reports, tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_many_hospitals_and_a_hospital_of_two_cases_fit(tmp_path: Path) -> None:
    the_job = job(CLASSIFICATION | {"mode": "multi_label"}, 2)
    rows = {f"site-{i:02d}": classification_rows(tmp_path, f"s{i}", [0, 1] * (1 + i)) for i in range(14)}
    rows["site-00"][0] = (*rows["site-00"][0][:2], "normal;pneumonia")
    manifests, reports = hospitals(tmp_path, the_job, rows)
    draw_partition(the_job, manifests, reports, tmp_path / "partition.png")
    width, height = Image.open(tmp_path / "partition.png").size
    assert width < height < 3 * width


def test_the_partition_of_volumes_shows_sizes_and_masks(tmp_path: Path, shared_data: Path) -> None:
    the_job = job(SEGMENTATION, 3)
    with (shared_data / "hippocampus" / "cases.csv").open() as file:
        found = list(csv.DictReader(file))[:12]
    data = shared_data / "hippocampus"
    cases = [(row["case"], str(data / row["image"]), str(data / row["label"])) for row in found]
    broken = ("nobody", str(tmp_path / "missing.nii.gz"), cases[0][2])
    manifests, reports = hospitals(tmp_path, the_job, {"clean": cases[:6], "dirty": [*cases[6:], broken]})
    assert len(reports["dirty"].quarantined) == 1
    draw_partition(the_job, manifests, reports, tmp_path / "partition.png")
    for colour in (*SPLIT_COLOURS.values(), REFERENCE):
        assert share_of(colour, tmp_path / "partition.png") > 0.0005
