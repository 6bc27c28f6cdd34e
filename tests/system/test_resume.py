"""Killed at any moment, by hand or by Ctrl-C, a run that is resumed ends as one that nothing disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.processes import (
    JOB,
    ROUNDS,
    WORKERS,
    Done,
    Going,
    Run,
    assert_as_undisturbed,
    consilium,
    has_come,
    is_alive,
    write,
)

pytestmark = pytest.mark.system

MOMENTS = ("training", "aggregation", "checkpointing")


def moment_of(run: Run) -> str:
    """What a killed run was doing, from what it left behind."""
    if any(run.path.glob("checkpoints/.round-*.tmp")):
        return "checkpointing"
    events = run.events()
    last = events[-1]
    if last["event"] == "round_started":
        return "training"
    if last["event"] == "site_replied":
        return "aggregation"
    return "between"


def last_checkpoint(run: Run) -> int:
    return max((int(path.stem[6:]) for path in run.path.glob("checkpoints/round-*.json")), default=0)


def kill_and_watch_the_workers(process: Going) -> None:
    """kill -9 of the main process; its workers are gone soon after."""
    workers = process.workers()
    process.kill()
    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "a worker lives on, 10 s after its parent was killed"
        time.sleep(0.05)


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(
    undisturbed: tuple[Run, Done], xrays: Path, tmp_path: Path, going: Callable[..., Going]
):
    """At least a dozen times kill -9, at least three in each moment of a round, and three behind the rounds."""
    rng, run = random.Random(2026), Run(tmp_path / "run")
    start = ("simulate", write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    resume = ("simulate", "--resume", run.path)
    hit: Counter[str] = Counter()
    process = going(*start)
    while last_checkpoint(run) < ROUNDS - 1 and (sum(hit.values()) < 12 or min(hit[m] for m in MOMENTS) < 3):
        moment = min(MOMENTS, key=lambda name: (hit[name], rng.random()))
        # Sometimes in the round at hand, which has to be done again, and sometimes in the one behind it.
        assert process.wait_until(has_come(run, moment, last_checkpoint(run) + (rng.random() < 0.4)))
        time.sleep(rng.random() * {"training": 0.15, "aggregation": 0.03, "checkpointing": 0.03}[moment])
        kill_and_watch_the_workers(process)
        hit[moment_of(run)] += 1
        process = going(*resume)
    assert sum(hit.values()) >= 12 and min(hit[m] for m in MOMENTS) >= 3, hit

    models = run.path / "models"
    for left in (2, 4):  # models are saved one after the other
        assert process.wait_until(lambda left=left: len(list(models.glob("*.safetensors"))) >= left)
        time.sleep(rng.random() * 0.3)
        kill_and_watch_the_workers(process)
        process = going(*resume)
    assert process.wait_until(lambda: any(run.path.glob("sites/*/evaluations/federated.json")))
    kill_and_watch_the_workers(process)

    done = consilium(*resume)
    assert done.code == 0, done.err
    assert done.err == ""
    assert_as_undisturbed(run, undisturbed[0])
    assert not list(run.path.rglob("*.tmp"))


def test_ctrl_c_ends_in_one_sentence_and_the_run_can_go_on(
    undisturbed: tuple[Run, Done], xrays: Path, tmp_path: Path, going: Callable[..., Going]
):
    run = Run(tmp_path / "run")
    process = going("simulate", write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    assert process.wait_until(has_come(run, "aggregation", 3))
    workers = process.workers()
    os.killpg(process.process.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    done = process.end()
    assert done.code == 130
    assert done.sentence() == f"consilium: interrupted; continue with: consilium simulate --resume {run.path}\n"
    assert not any(map(is_alive, workers))
    resumed = consilium("simulate", "--resume", run.path)
    assert resumed.code == 0, resumed.err
    assert "continues behind round" in resumed.out
    assert_as_undisturbed(run, undisturbed[0])
