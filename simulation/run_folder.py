"""The folder of a run: made whole before the first round, read again to resume."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.checkpoint import write_atomically
from server.judgement import POOLED
from server.runs import identity
from shared_models.comparisons import chosen
from shared_models.errors import BadInput, RunStopped
from shared_models.job import Job
from shared_models.job_file import dump_job, load_job, read_job
from simulation.copies import copies
from simulation.datasets import open_dataset
from simulation.datasets.files import cache_folder
from simulation.hospitals import make_split, write_hospitals, write_pooled
from simulation.scanner_picture import draw_scanners
from simulation.shift import scanners_of
from simulation.split_manifest import SplitManifest
from simulation.unreliable import check_participation, no_leave_one_out


@dataclass(frozen=True)
class SimulationRequest:
    """What the command line asks for."""

    job_path: Path | None
    data_dir: Path | None = None
    out: Path | None = None
    engine: str = "inprocess"
    workers: int | None = None
    split: Path | None = None
    compare: tuple[str, ...] = ("local", POOLED)
    resume: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class RunFolder:
    """A run on disk: its job, who has which patient, and how it is run."""

    path: Path
    job: Job
    split: SplitManifest
    settings: dict[str, Any]

    def nodes(self) -> list[dict[str, str]]:
        """One Flower node config a hospital, and one for the pooled data where they are compared."""
        names = [*self.split.hospitals, *([POOLED] if POOLED in self.settings["compare"] else [])]
        return [
            {
                "site": name,
                "manifest": str(self.path / "sites" / name / "manifest.csv"),
                "folder": str(self.path / "sites" / name),
                "cache": str(cache_folder("cases")),
                "device": str(self.settings["device"]),
            }
            for name in names
        ]


def create(request: SimulationRequest) -> RunFolder:
    """Divides the data set and writes the folder of a new run.

    Raises:
        BadInput: the job, the data set, the split file or the output folder is not what it should be.
    """
    if request.job_path is None:
        raise BadInput("a job file is needed, as in: consilium simulate job.yaml")
    job = load_job(request.job_path)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = (request.out or Path("runs") / f"{job.name}-{stamp}").absolute()
    if path.exists():
        raise BadInput(f"{path} exists already and is never overwritten: name another folder, or use --resume {path}")
    device = _device(request.device)
    cases = open_dataset(job, request.data_dir)
    split = SplitManifest.load(request.split) if request.split else make_split(job, request.data_dir, cases)
    split.check_against(cases)
    check_participation(job, list(split.hospitals))
    without_one = no_leave_one_out(job, list(split.hospitals))
    compare, not_compared = chosen(request.compare, job, hospitals=len(split.hospitals), without_one=without_one)
    workers, threads = _workers(request, len(split.hospitals), device)
    settings = {
        **identity(job),
        "split_hash": split.hash,
        "engine": request.engine,
        "workers": workers,
        "threads": threads,
        "device": device,
        "compare": compare,
        "not_compared": not_compared,
        "command": shlex.join(["consilium", *sys.argv[1:]]),
    }
    path.mkdir(parents=True)
    try:
        write_atomically(path / "job.yaml", dump_job(job).encode())
        split.save(path / "split.json")
        manifests = write_hospitals(job, cases, split, path / "sites")
        settings["copies"] = copies(manifests, job)
        if scanners := scanners_of(job, list(split.hospitals)):
            draw_scanners(job, cases, scanners, path / "pictures" / "scanners.png")
        if POOLED in compare:
            write_pooled(manifests, path / "sites")
        # Last: a folder with a run.json is a whole one, and can be resumed.
        write_atomically(path / "run.json", json.dumps(settings, indent=1).encode())
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)  # so that the same command can be given again
        if isinstance(error, RunStopped):
            raise BadInput(f"{path} could not be made ({error.__cause__}); nothing was begun") from error
        raise
    return RunFolder(path, job, split, settings)


def reopen(path: Path) -> RunFolder:
    """Reads the folder of a run that was stopped or killed.

    Raises:
        BadInput: it is not a run, or its job or split was changed.
    """
    path = path.absolute()
    if not (path / "run.json").is_file():
        raise BadInput(f"{path} is not a run that can be resumed: it has no run.json; start it again in a new folder")
    try:
        settings = json.loads((path / "run.json").read_text())
        expected_job, expected_split = settings["job_hash"], settings["split_hash"]
    except (ValueError, KeyError) as error:
        raise BadInput(f"{path / 'run.json'} is damaged ({error}); start a new run") from None
    job, split = read_job(path / "job.yaml"), SplitManifest.load(path / "split.json")
    if job.fingerprint() != expected_job or split.hash != expected_split:
        raise BadInput(f"{path}: job.yaml or split.json was changed after the run began; undo that, or start a new run")
    return RunFolder(path, job, split, settings)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps the folder of a run to this process: two that write it would spoil each other's rounds.

    Raises:
        BadInput: another process works on the run.
    """
    # The file stays: with it gone, one who waits for it and one who makes it anew would both hold the folder.
    with (path / "lock").open("w") as file:
        try:
            # By record, which a forked worker does not hold: a killed run can be resumed before its workers have ended.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise BadInput(f"{path}: another process works on this run; wait for it, or stop it first") from None
        yield


def _device(name: str) -> str:
    import torch

    if name == "auto":
        if _cuda_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not _cuda_available():
        raise BadInput("--device cuda: torch finds no CUDA GPU; use --device cpu, or install a CUDA build of torch")
    if name == "mps" and not torch.backends.mps.is_available():
        raise BadInput("--device mps: torch finds no Apple GPU here; use --device cpu")
    return name


def _cuda_available() -> bool:
    import torch

    # Asks the driver's library instead of starting CUDA, which a forked worker could not start again.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


def _workers(request: SimulationRequest, hospitals: int, device: str) -> tuple[int, int]:
    """Worker processes and torch threads of each: one worker a core or GPU, but not more than hospitals."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if request.workers is not None and request.workers < 1:
        raise BadInput(f"--workers {request.workers}: at least one worker is needed")
    if device == "mps":
        return 1, cores
    import torch

    places = torch.cuda.device_count() if device == "cuda" else cores
    workers = request.workers or min(places, hospitals)
    return workers, max(1, cores // workers)
