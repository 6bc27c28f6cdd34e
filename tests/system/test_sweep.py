"""Sweeps as whole processes: killed or interrupted in the middle of a run, they go on and end as undisturbed ones."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.processes import Going, Run, consilium, is_alive, write

pytestmark = pytest.mark.system

ROUNDS = 12
JOB: dict[str, Any] = {
    "name": "xrays",
    "seed": 5,
    "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "data": {"spatial_dims": 2, "crop": [28, 28]},
    "model": {"name": "cnn", "arguments": {"channels": [4, 8], "hidden": 64}},
    "training": {"optimizer": {"learning_rate": 0.001}, "batch_size": 10, "local_steps": 2},
    "federation": {"rounds": ROUNDS, "algorithm": {"name": "fedavg"}},
    "evaluation": {"bootstrap": 20, "validation_share": 0.2, "test_share": 0.3},
    "simulation": {
        "dataset": {
            "name": "folder",
            "table": "xrays.npz",
            "columns": {"image": "images", "label": "labels", "patient": "patient"},
        },
        "partition": {"name": "iid"},
        "hospitals": 3,
    },
}
GRID = ("--grid", "algorithm.server_optimizer.name=none,adam,nadam", "--seeds", 2, "--workers", 1)


def cells(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["cells"]
    return found


def in_the_middle_of(folder: Path, number: int) -> Callable[[], bool]:
    """Whether the run of a cell has some rounds behind it, and some before it."""

    def now() -> bool:
        return any(folder.glob(f"runs/{number:03d}-*/checkpoints/round-00003.json"))

    return now


def run_of(folder: Path, number: int) -> Run:
    (found,) = folder.glob(f"runs/{number:03d}-*")
    return Run(found)


@pytest.fixture(scope="module")
def undisturbed(xrays: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    arguments = (write(folder, JOB), *GRID, "--data-dir", xrays, "--out", folder / "s")
    done = consilium("sweep", *arguments, CONSILIUM_CACHE=str(cache))
    assert done.code == 4, done.err  # one of the optimisers does not exist
    return folder / "s"


def test_every_cell_is_an_ordinary_run_with_the_split_of_its_seed(undisturbed: Path):
    assert [row["status"] for row in cells(undisturbed)] == ["complete", "complete", "invalid"] * 2
    settings = [json.loads((run_of(undisturbed, number).path / "run.json").read_text()) for number in (1, 2, 4, 5)]
    splits = [one["split_hash"] for one in settings]
    assert splits[0] == splits[1] != splits[2] == splits[3]
    assert [one["seed"] for one in settings] == [5, 5, 6, 6]
    assert all((run_of(undisturbed, number).path / "report.html").exists() for number in (1, 2, 4, 5))


def test_the_comparison_of_a_sweep_holds_its_methods_and_what_failed(undisturbed: Path):
    found = json.loads((undisturbed / "compare.json").read_text())
    assert [(method["label"], method["seeds"]) for method in found["methods"]] == [
        ("algorithm.server_optimizer.name=none (learning_rate=1.0)", [5, 6]),
        ("algorithm.server_optimizer.name=adam (learning_rate=0.01)", [5, 6]),
    ]
    assert found["tests"][0]["patients"]["n"] > 20
    assert len(found["left_out"]) == 2 and "found 'nadam'" in found["left_out"][0]["why"]
    assert "found &#39;nadam&#39;" in (undisturbed / "compare.html").read_text()


def test_killed_in_the_middle_of_a_run_a_sweep_goes_on(
    undisturbed: Path, xrays: Path, tmp_path: Path, going: Callable[..., Going]
):
    folder = tmp_path / "s"
    command = ("sweep", write(tmp_path, JOB), *GRID, "--data-dir", xrays, "--out", folder)
    process = going(*command)
    assert process.wait_until(in_the_middle_of(folder, 2))
    children = process.workers()
    process.kill()
    deadline = time.monotonic() + 10
    while any(map(is_alive, children)):
        assert time.monotonic() < deadline, "a run lives on, 10 s after its sweep was killed"
        time.sleep(0.05)
    assert [row["status"] for row in cells(folder)][:2] == ["complete", "running"]
    first = (run_of(folder, 1).path / "events.jsonl").read_text()

    resumed = consilium(*command)  # the same command goes on
    assert resumed.code == 4, resumed.err
    assert "1 of them complete already" in resumed.out and "2 of 6" in resumed.out and "\n1 of 6" not in resumed.out
    assert (run_of(folder, 1).path / "events.jsonl").read_text() == first
    assert run_of(folder, 2).events("run_started")[-1]["resumed_from"] >= 3
    for number in (1, 2, 4, 5):
        assert run_of(folder, number).fingerprint() == run_of(undisturbed, number).fingerprint()
    ours, theirs = (json.loads((one / "compare.json").read_text()) for one in (folder, undisturbed))
    assert ours["tests"] == theirs["tests"]


def test_ctrl_c_ends_in_one_sentence_and_the_sweep_can_go_on(xrays: Path, tmp_path: Path, going: Callable[..., Going]):
    folder = tmp_path / "s"
    grid = ("--grid", "rounds=3,12", "--workers", 1)
    process = going("sweep", write(tmp_path, JOB), *grid, "--data-dir", xrays, "--out", folder)
    assert process.wait_until(in_the_middle_of(folder, 2))
    os.killpg(process.process.pid, signal.SIGINT)
    done = process.end()
    assert done.code == 130
    assert done.err == (
        f"consilium: interrupted; 1 of 2 runs are complete; go on with: consilium sweep --resume {folder}\n"
    )
    assert [row["status"] for row in cells(folder)] == ["complete", "waiting"]
    resumed = consilium("sweep", "--resume", folder)
    assert resumed.code == 0, resumed.err
    assert [len(row["failures"]) for row in cells(folder)] == [0, 0]
    assert {method["label"] for method in json.loads((folder / "compare.json").read_text())["methods"]} == {
        "federation.rounds=3",
        "federation.rounds=12",
    }


def test_a_run_that_failed_is_tried_again_and_the_failure_stays_on_record(xrays: Path, tmp_path: Path):
    folder = tmp_path / "s"
    data = tmp_path / "data"
    data.mkdir()
    command = ("sweep", write(tmp_path, JOB), "--grid", "rounds=2,3", "--data-dir", data, "--out", folder)
    failed = consilium(*command)
    assert failed.code == 4 and "No run is complete" in failed.out
    (data / "xrays.npz").symlink_to(xrays / "xrays.npz")
    assert consilium(*command).code == 0
    for row in cells(folder):
        assert row["status"] == "complete" and "xrays.npz" in row["failures"][0]["sentence"]
