"""Full disks, made small for the purpose, and checkpoints that a disk has spoiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.processes import JOB, ROUNDS, WORKERS, Done, Run, assert_as_undisturbed, consilium, write

pytestmark = pytest.mark.system


@dataclass(frozen=True)
class SmallDisk:
    """A file system in memory whose size can be changed."""

    path: Path

    def resize(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 12 KB at first; skips where one may not mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_run_that_fills_the_disk_stops_with_a_sentence_and_goes_on_when_there_is_room(
    undisturbed: tuple[Run, Done], xrays: Path, tmp_path: Path, small_disk: SmallDisk
):
    run = Run(small_disk.path / "run")
    start = ("simulate", write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    resume = ("simulate", "--resume", run.path)

    no_folder = consilium(*start)  # not even the manifests fit
    assert no_folder.code == 2
    assert "No space left on device" in no_folder.sentence()
    assert not run.path.exists()

    whole = [undisturbed[0].path / name for name in ("job.yaml", "split.json", "run.json")]
    whole += undisturbed[0].path.glob("sites/*/manifest.csv")
    small_disk.resize(f"{sum(path.stat().st_size // 4096 + 1 for path in whole) * 4 + 8}k")
    no_preflight = consilium(*start)
    assert no_preflight.code == 3
    assert "is full" in no_preflight.sentence() and "continue with --resume" in no_preflight.sentence()

    small_disk.resize("40m")  # room for one checkpoint
    second = consilium(*resume)
    assert second.code == 3
    assert "checkpoints is full; everything up to the last whole round is kept" in second.sentence()
    assert [event["status"] for event in run.events("run_finished")][-1] == "stopped"
    assert "is full" in run.report()["reason"]

    small_disk.resize("400m")
    done = consilium(*resume)
    assert (done.code, done.err) == (0, "")
    assert "continues behind round 1" in done.out
    assert_as_undisturbed(run, undisturbed[0])


def test_a_disk_that_is_full_when_the_rounds_are_done_costs_no_round(
    undisturbed: tuple[Run, Done], small_disk: SmallDisk
):
    """Room for the checkpoints and the federated models, but not for all baselines."""
    small_disk.resize("400m")
    run = Run(small_disk.path / "run")
    shutil.copytree(undisturbed[0].path, run.path)
    shutil.rmtree(run.path / "models")
    (run.path / "evaluations.json").unlink()
    used = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    small_disk.resize(f"{(used + 37_000_000) // 1024}k")

    stopped = consilium("simulate", "--resume", run.path)
    assert stopped.code == 3
    assert "models is full" in stopped.sentence()
    small_disk.resize("400m")
    done = consilium("simulate", "--resume", run.path)
    assert (done.code, done.err) == (0, "")
    assert_as_undisturbed(run, undisturbed[0])


def test_a_full_cache_costs_time_and_nothing_else(
    undisturbed: tuple[Run, Done], xrays: Path, tmp_path: Path, small_disk: SmallDisk
):
    run = Run(tmp_path / "run")
    arguments = (write(tmp_path, JOB), "--data-dir", xrays, "--out", run.path, "--workers", WORKERS)
    done = consilium("simulate", *arguments, "--compare", "none", CONSILIUM_CACHE=str(small_disk.path))
    assert done.code == 0
    assert all("cannot be written" in line and "prepared again" in line for line in done.err.splitlines())
    assert 1 <= done.err.count("\n") <= 1 + WORKERS
    assert run.fingerprint() == undisturbed[0].fingerprint()
    assert run.history() == undisturbed[0].history()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "truncated": ("safetensors", truncate),
    "one bit flipped": ("safetensors", flip),
    "tensors deleted": ("safetensors", Path.unlink),
    "note truncated": ("json", lambda path: path.write_text(path.read_text()[:40])),
    "note deleted": ("json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_behind_a_damaged_checkpoint_the_one_before_it_is_taken(
    undisturbed: tuple[Run, Done], copy_of_undisturbed: Run, damage: str
):
    run, (suffix, spoil) = copy_of_undisturbed, DAMAGE[damage]
    spoil(run.path / "checkpoints" / f"round-{ROUNDS:05d}.{suffix}")
    done = consilium("simulate", "--resume", run.path)
    assert (done.code, done.err) == (0, "")
    assert f"continues behind round {ROUNDS - 1}" in done.out
    warned = [event["text"] for event in run.events("warning")]
    if damage == "note deleted":  # the state of a run killed before it wrote the note, and nothing to warn of
        assert warned == []
    else:
        assert len(warned) == 1 and f"round-{ROUNDS:05d}.safetensors is damaged" in warned[0]
        assert "is damaged" in done.out
    assert run.fingerprint() == undisturbed[0].fingerprint()
    assert run.history() == undisturbed[0].history()
    assert run.evaluations() == undisturbed[0].evaluations()


@pytest.mark.parametrize("damage", ["truncated", "note deleted"])
def test_without_a_whole_checkpoint_nothing_is_begun_anew_and_nothing_is_lost(copy_of_undisturbed: Run, damage: str):
    run, (suffix, spoil) = copy_of_undisturbed, DAMAGE[damage]
    damaged = list(run.path.glob(f"checkpoints/*.{suffix}"))
    for path in damaged:
        spoil(path)
    before, history = run.fingerprint(), run.history()
    done = consilium("simulate", "--resume", run.path)
    assert done.code == 2
    assert f"none of the {len(damaged)} checkpoints in {run.path / 'checkpoints'} can be read" in done.sentence()
    assert run.history() == history
    assert run.evaluations() and Path(run.path / "models" / "federated-last.safetensors").exists()
    assert [event["fingerprint"] for event in run.events("run_finished")] == [before, before]
