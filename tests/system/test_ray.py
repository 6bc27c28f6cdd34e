"""Flower's own runtime on Ray comes to the same model as the processes of this machine."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.processes import JOB, WORKERS, Done, Run, consilium, write

pytestmark = pytest.mark.system
pytest.importorskip("ray", reason="the extra `ray` is not installed")

HIPPOCAMPUS: dict[str, Any] = {
    "name": "hippocampus",
    "seed": 5,
    "task": {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]},
    "data": {"spatial_dims": 3, "spacing": [1, 1, 1], "crop": [32, 40, 32]},
    "model": {"name": "unet", "arguments": {"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1}},
    "training": {"batch_size": 2, "local_steps": 2, "augmentation": ["affine", "noise"]},
    "federation": {"rounds": 2},
    "evaluation": {"bootstrap": 20},
    "simulation": {
        "dataset": {"name": "decathlon", "task": "small", "columns": "cases.csv"},
        "partition": {"name": "natural", "column": "acquisition_group"},
    },
}


@pytest.fixture
def hippocampus(shared_data: Path, tmp_path: Path) -> Path:
    """A folder with `small`: the first real volumes of each of the three acquisition groups."""
    source, folder = shared_data / "hippocampus", tmp_path / "small"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    with (source / "cases.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    group, case = header.index("acquisition_group"), header.index("case")
    chosen = [row for name in sorted({row[group] for row in rows}) for row in [r for r in rows if r[group] == name][:6]]
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *chosen])
    names = {row[case] for row in chosen}
    description = json.loads((source / "dataset.json").read_text())
    description["training"] = [
        pair for pair in description["training"] if Path(pair["image"]).name.removesuffix(".nii.gz") in names
    ]
    assert len(description["training"]) == len(chosen)
    for pair in description["training"]:
        for key in ("image", "label"):
            (folder / pair[key]).symlink_to((source / pair[key]).resolve())
    (folder / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_ray_trains_the_same_classifier_and_says_no_more(undisturbed: tuple[Run, Done], xrays: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    arguments = (write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    done = consilium("simulate", *arguments, "--compare", "none", "--engine", "ray")
    assert (done.code, done.err) == (0, "")
    assert len(done.out.splitlines()) <= 50
    settings = json.loads((run.path / "run.json").read_text())
    assert settings["engine"] == "ray" and settings["threads"] == 1
    assert run.fingerprint() == undisturbed[0].fingerprint()
    assert run.history() == undisturbed[0].history()


def test_ray_trains_the_same_segmentation(hippocampus: Path, tmp_path: Path):
    runs = {}
    for engine in ("inprocess", "ray"):
        runs[engine] = Run(tmp_path / engine)
        arguments = (write(tmp_path, HIPPOCAMPUS), "--data-dir", hippocampus, "--out", runs[engine].path)
        done = consilium("simulate", *arguments, "--workers", WORKERS, "--compare", "none", "--engine", engine)
        assert (done.code, done.err) == (0, "")
    assert runs["ray"].fingerprint() == runs["inprocess"].fingerprint()
    assert runs["ray"].history() == runs["inprocess"].history()
    assert runs["ray"].evaluations() == runs["inprocess"].evaluations()


def test_a_stopped_run_on_ray_ends_in_one_sentence(xrays: Path, tmp_path: Path):
    broken = JOB | {"training": {"optimizer": {"name": "sgd", "learning_rate": 1e30}, "local_steps": 2}}
    out = tmp_path / "run"
    done = consilium(
        "simulate", write(tmp_path, broken), "--data-dir", xrays, "--out", out, "--workers", WORKERS, "--engine", "ray"
    )
    assert done.code == 3
    assert "round 1 stayed below its quorum" in done.sentence()
