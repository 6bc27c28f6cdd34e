"""What goes wrong in the data, in the job or in a worker: said in one sentence, counted everywhere, and survived."""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.system.processes import (
    JOB,
    ROUNDS,
    WORKERS,
    Done,
    Going,
    Run,
    changed,
    consilium,
    has_come,
    write,
)

pytestmark = pytest.mark.system

FAULTS = {
    "missing": ["b-1.nii.gz", "does not exist"],
    "wrong shape": ["b-2.mask.nii.gz", "8 x 8 x 6", "8 x 8 x 8"],
    "label out of range": ["b-3.mask.nii.gz", "label 7", "0 to 1"],
    "corrupt": ["b-4.nii.gz", "cannot be read as NIfTI"],
}

VOLUMES: dict[str, Any] = {
    "name": "volumes",
    "task": {"kind": "segmentation", "classes": ["background", "organ"]},
    "data": {"spatial_dims": 3, "crop": [8, 8, 8]},
    "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2], "num_res_units": 0}},
    "training": {"batch_size": 4, "local_steps": 1},
    "federation": {"rounds": 2},
    "evaluation": {"bootstrap": 20, "validation_share": 0.2, "test_share": 0.2},
    "simulation": {
        "dataset": {"name": "folder", "table": "cases.csv"},
        "partition": {"name": "natural", "column": "hospital"},
    },
}


def save_volume(path: Path, content: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(content, np.eye(4)), path)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Hospitals a, b and c with 10 volumes each: a is fine, b has four faults, and nothing of c can be read."""
    folder, rng = tmp_path / "volumes", np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for hospital in "abc":
        for number in range(10):
            name = f"{hospital}-{number}"
            mask = np.zeros((8, 8, 8), np.uint8)
            mask[2:6, 2:6, 2:6] = 1
            image = rng.normal(100, 10, mask.shape).astype(np.float32) + 50 * mask
            save_volume(folder / f"{name}.nii.gz", image)
            save_volume(folder / f"{name}.mask.nii.gz", mask)
            rows.append([name, f"p-{name}", f"{name}.nii.gz", f"{name}.mask.nii.gz", hospital])
            if hospital == "c":
                (folder / f"{name}.nii.gz").unlink()
    with (folder / "cases.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "patient", "image", "label", "hospital"], *rows])
    (folder / "b-1.nii.gz").unlink()
    save_volume(folder / "b-2.mask.nii.gz", np.ones((8, 8, 6), np.uint8))
    save_volume(folder / "b-3.mask.nii.gz", np.full((8, 8, 8), 7, np.uint8))
    whole = (folder / "b-4.nii.gz").read_bytes()
    (folder / "b-4.nii.gz").write_bytes(whole[: len(whole) // 2])
    return folder


def test_bad_cases_are_set_aside_and_counted_and_the_run_goes_on(volumes: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    done = consilium("simulate", write(tmp_path, VOLUMES), "--data-dir", volumes, "--out", run.path, "--workers", 1)
    assert (done.code, done.err) == (4, "")  # hospital c takes no part
    (refused,) = run.events("site_refused")
    assert refused["site"] == "c" and "no usable training case: 10 of 10 cases are unfit" in refused["reason"]
    assert "c does not take part" in done.out

    quarantined = {event["site"]: event["quarantined"] for event in run.events("site_ready")}
    assert quarantined["a"] == {} and sorted(quarantined["b"]) == ["b-1", "b-2", "b-3", "b-4"]
    page = (run.path / "report.html").read_text()
    for reason, words in zip(quarantined["b"].values(), FAULTS.values(), strict=True):
        assert all(word in reason for word in words), reason
        assert reason in done.out
    for case in quarantined["b"]:
        assert case in page
    (row,) = [line.split() for line in done.out.splitlines() if line.startswith("b ")][:1]
    assert row[-1] == "4"
    report = run.report()
    assert {entry["case"]: entry["reason"] for entry in report["quarantine"]} == quarantined["b"]
    assert report["run"]["exit_code"] == 4
    assert {event["skipped"] for event in run.events("site_replied") if event["site"] == "b"} == {4}
    assert len(done.out.splitlines()) <= 50


def test_a_site_with_more_bad_cases_than_tolerated_takes_no_part(volumes: Path, tmp_path: Path):
    run = Run(tmp_path / "run")
    job = write(tmp_path, changed(VOLUMES, data={"max_quarantined": 3}))
    done = consilium("simulate", job, "--data-dir", volumes, "--out", run.path, "--workers", 1, "--compare", "none")
    assert (done.code, done.err) == (4, "")
    reasons = {event["site"]: event["reason"] for event in run.events("site_refused")}
    assert sorted(reasons) == ["b", "c"]
    assert "4 unfit of 10 cases, where data.max_quarantined of the job tolerates 3" in reasons["b"]
    assert {event["site"] for event in run.events("site_replied")} == {"a"}


def test_when_no_hospital_is_fit_the_run_says_so(volumes: Path, tmp_path: Path):
    for path in volumes.glob("*.nii.gz"):
        path.write_bytes(b"not a volume")
    done = consilium(
        "simulate", write(tmp_path, VOLUMES), "--data-dir", volumes, "--out", tmp_path / "run", "--workers", 1
    )
    assert done.code == 3
    assert "no site is ready" in done.sentence()
    assert sorted(event["site"] for event in Run(tmp_path / "run").events("site_refused")) == ["a", "b", "c", "pooled"]


def test_site_check_shows_the_same_faults(volumes: Path, tmp_path: Path):
    with (volumes / "cases.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    job = write(tmp_path, {key: value for key, value in VOLUMES.items() if key != "simulation"})

    def check(hospital: str, job: Path = job) -> Done:
        path = volumes / f"{hospital}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *(row for row in rows if row[-1] == hospital)])
        return consilium("site", "check", path, "--job", job, COLUMNS="400")

    fine, faulty, hopeless, empty = (check(name) for name in ("a", "b", "c", "nobody"))
    assert (fine.code, fine.err) == (0, "") and "10 of 10 cases are usable" in fine.out
    assert (faulty.code, faulty.err) == (1, "") and "6 of 10 cases are usable" in faulty.out
    for words in FAULTS.values():
        assert all(word in faulty.out for word in words)
    assert hopeless.code == 2 and "no usable training case" in hopeless.sentence()
    assert empty.code == 2 and "nobody.csv" in empty.sentence()
    strict = check("b", write(volumes, changed(VOLUMES, data={"max_quarantined": 3})))
    assert strict.code == 2 and "tolerates 3" in strict.sentence()


def test_a_hospital_with_one_class_takes_part_and_its_auroc_is_undefined_and_not_wrong(xrays: Path, tmp_path: Path):
    folder, content = tmp_path / "data", dict(np.load(xrays / "xrays.npz"))
    folder.mkdir()
    chosen = np.r_[np.flatnonzero(content["labels"] == 1)[:60], np.flatnonzero(content["labels"] == 0)[:30]]
    hospital = np.where(np.arange(90) < 40, "all-ill", "mixed")
    np.savez(folder / "xrays.npz", hospital=hospital, **{name: array[chosen] for name, array in content.items()})
    run = Run(tmp_path / "run")
    job = JOB | {
        "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}},
        "federation": {"rounds": 2},
        "simulation": {"dataset": JOB["simulation"]["dataset"], "partition": {"name": "natural", "column": "hospital"}},
    }
    done = consilium("simulate", write(tmp_path, job), "--data-dir", folder, "--out", run.path, "--workers", 1)
    assert (done.code, done.err) == (0, "")
    assert "all-ill: Every training case is of one class: pneumonia." in done.out
    auroc = {site: metrics["auroc"] for site, metrics in run.evaluations()["models"]["federated"].items()}
    assert auroc["all-ill"]["value"] is None and auroc["all-ill"]["why"]
    assert 0 <= auroc["mixed"]["value"] <= 1 and 0 <= auroc["all"]["value"] <= 1


def test_a_typo_in_the_job_is_found_before_anything_is_made(xrays: Path, tmp_path: Path):
    job = write(tmp_path, JOB)
    job.write_text(job.read_text().replace("learning_rate: 0.001", "learning_rat: 0.001", 1))
    line = next(n for n, text in enumerate(job.read_text().splitlines(), 1) if "learning_rat:" in text)
    done = consilium("simulate", job, "--data-dir", xrays, "--out", tmp_path / "run")
    assert done.code == 2
    expected = f"{job}:{line}: training.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"
    assert done.sentence() == f"consilium: {expected}\n"
    assert not (tmp_path / "run").exists()


def test_a_worker_killed_in_a_round_costs_one_site_one_round(
    xrays: Path, tmp_path: Path, going: Callable[..., Going], undisturbed: tuple[Run, Done]
):
    run = Run(tmp_path / "run")
    arguments = (write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    process = going("simulate", *arguments, "--compare", "none")
    assert process.wait_until(has_come(run, "training", 2))
    time.sleep(0.02)
    os.kill(process.workers()[0], signal.SIGKILL)
    done = process.end()
    assert (done.code, done.err) == (4, "")
    (lost,) = [event for event in run.events("site_replied") if event["status"] != "used"]
    assert lost["status"] == "failed" and "the worker process died" in lost["reason"]
    finished = {event["round"]: event["sites_used"] for event in run.events("round_finished")}
    assert finished == {number: 3 if number == lost["round"] else 4 for number in range(1, ROUNDS + 1)}
    assert lost["site"] in (run.path / "report.html").read_text()
    assert "the worker process died" in str(run.report()["participation"])


def test_ten_rounds_are_about_a_screen_of_text(undisturbed: tuple[Run, Done]):
    assert undisturbed[1].err == ""
    assert 15 <= len(undisturbed[1].out.splitlines()) <= 50
    assert "\x1b" not in undisturbed[1].out
