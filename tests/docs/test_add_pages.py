"""The pages on adding a model, a task, an algorithm and a data set, done word by word in a copy of the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.docs.pages import ROOT, Block, blocks, copy_of_the_tree, follow, run, yaml_of

DOCS = ROOT / "docs"

JOB = {
    "name": "added",
    "task": {"kind": "classification", "classes": ["none", "mild", "moderate", "severe"]},
    "data": {"spatial_dims": 2, "crop": [32, 32]},
    "model": {"name": "cnn", "arguments": {"channels": [4, 8], "hidden": 8}},
    "training": {"optimizer": {"learning_rate": 0.01}, "batch_size": 8, "local_epochs": 2},
    "federation": {"rounds": 2},
    "evaluation": {"bootstrap": 20},
    "simulation": {
        "dataset": {"name": "folder", "table": "lesions.npz"},
        "partition": {"name": "iid"},
        "hospitals": 2,
    },
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_of_the_tree(tmp_path / "tree")


@pytest.fixture
def lesions(tmp_path: Path) -> Path:
    """A folder with lesions.npz: 80 patients, an image each; the worse the grade, the larger the bright square."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    grades = np.arange(80) % 4
    images = rng.normal(100, 20, size=(80, 32, 32))
    for image, grade in zip(images, grades, strict=True):
        image[4 : 4 + 6 * grade, 4 : 4 + 6 * grade] += 100
    patient = np.array([f"p{number}" for number in range(80)])
    np.savez(folder / "lesions.npz", image=images.clip(0, 255).astype(np.uint8), label=grades, patient=patient)
    return folder


def in_tree(tree: Path, command: str) -> str:
    """Runs a command with the packages of the tree; returns what it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(tree), "CONSILIUM_CACHE": str(tree / "cache")}
    done = run(command, tree, **environment)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", ["adding-a-model", "adding-a-task", "adding-an-algorithm", "adding-a-data-set"])
def test_a_page_can_be_followed(tree, name):
    page = DOCS / f"{name}.md"
    touched = follow(page, tree)
    for arguments in (["check"], ["format", "--check"]):
        command = [str(Path(sys.executable).with_name("ruff")), *arguments, *touched]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    (tree / "job.yaml").write_text(yaml.safe_dump(JOB | yaml.safe_load(yaml_of(page))))
    in_tree(tree, "consilium job check job.yaml")


def simulate(tree: Path, job: dict, data: Path) -> dict:
    """Runs a job of the tree; returns its report."""
    (tree / "job.yaml").write_text(yaml.safe_dump(job))
    in_tree(tree, f"consilium simulate job.yaml --data-dir {data} --out run --compare local --workers 1")
    report: dict = json.loads((tree / "run" / "report.json").read_text())
    assert report["status"] == "complete" and report["answer"]
    return report


@pytest.mark.system
def test_the_page_on_models_adds_a_model(tree, lesions):
    page = DOCS / "adding-a-model.md"
    follow(page, tree)
    report = simulate(tree, JOB | yaml.safe_load(yaml_of(page)), lesions)
    assert report["run"]["model"] == "convmixer"
    tests = "python -m pytest tests/shared_models/zoo/test_every_entry.py -k convmixer"
    assert Block("bash", f"{tests}\n") in blocks(page)
    assert "13 passed" in in_tree(tree, tests)


@pytest.mark.system
def test_the_page_on_tasks_adds_a_task(tree, lesions):
    page = DOCS / "adding-a-task.md"
    follow(page, tree)
    report = simulate(tree, JOB | yaml.safe_load(yaml_of(page)), lesions)
    assert report["task"] == "grading" and report["headline_metric"] == "kappa"
    kappa = report["models"]["federated"]["all"]["kappa"]
    assert kappa["low"] <= kappa["value"] <= kappa["high"] and kappa["n"] == 16


@pytest.mark.system
def test_the_page_on_algorithms_adds_an_algorithm(tree, lesions):
    page = DOCS / "adding-an-algorithm.md"
    plain = simulate(tree, JOB | {"federation": {"rounds": 2}}, lesions)
    (tree / "run").rename(tree / "plain")
    follow(page, tree)
    report = simulate(tree, JOB | yaml.safe_load(yaml_of(page)), lesions)
    assert report["run"]["fingerprint"] != plain["run"]["fingerprint"]
    assert {row["site"] for row in report["participation"] if row["status"] == "used"} == {"hospital-1", "hospital-2"}


@pytest.mark.system
def test_the_page_on_data_sets_adds_a_data_set(tree, tmp_path):
    page = DOCS / "adding-a-data-set.md"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for child in range(1, 11):
        for eye in "LR":
            vessels = rng.random((64, 64)) < 0.1
            Image.fromarray((vessels * 255).astype(np.uint8)).save(photographs / f"{child:02d}{eye}_mask.png")
            colour = np.stack([vessels * 120 + 60, vessels * 60 + 30, rng.integers(0, 40, (64, 64))], axis=-1)
            Image.fromarray(colour.astype(np.uint8)).save(photographs / f"{child:02d}{eye}_image.jpg")
    follow(page, tree)
    report = simulate(tree, yaml.safe_load(yaml_of(page)), photographs)
    assert {name: site["patients"]["train"] for name, site in report["sites"].items()} == {
        "hospital-1": 3,
        "hospital-2": 3,
    }
    assert report["quarantine"] == []


def test_the_page_on_data_sets_reads_the_real_photographs(tree, shared_data):
    follow(DOCS / "adding-a-data-set.md", tree)
    (tree / "job.yaml").write_text(yaml_of(DOCS / "adding-a-data-set.md"))
    printed = in_tree(tree, f"consilium partition job.yaml --data-dir {shared_data / 'chase_retina'} --out split.json")
    assert "14 patients in 2 hospitals" in printed
