"""The runs of a coordinator on disk: what was asked for, and where each stands.

A command and the daemon meet only here: a command makes a folder or leaves a request there, the daemon the state.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from server.checkpoint import write_atomically
from shared_models.comparisons import chosen
from shared_models.errors import BadInput, RunStopped
from shared_models.job import Job
from shared_models.job_file import dump_job, load_job, read_job

RUN_SCHEMA = "consilium-run/1"
PACKAGES = ("torch", "monai", "flwr", "numpy")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,120}")

Phase = Literal["queued", "running", "complete", "stopped"]


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        since: Unix time in seconds of the last change of phase.
        reason: one sentence; why it stopped, or what the last attempt died of.
        exit_code: of `consilium coordinator run`, once it is over.
        attempts: processes that have worked on it.
    """

    phase: Phase
    since: float
    reason: str | None = None
    exit_code: int | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name, by which a person calls the run."""
        return self.path.name

    @property
    def waiting_file(self) -> Path:
        """Whom the run is waiting for."""
        return self.path / "waiting.json"

    @property
    def stop_file(self) -> Path:
        """It is there when the run shall stop."""
        return self.path / "stop"

    def settings(self) -> dict[str, Any]:
        """What was asked for.

        Raises:
            BadInput: run.json cannot be read.
        """
        return _read(self.path / "run.json")

    def job(self) -> Job:
        """The job, as it was when the run was made.

        Raises:
            BadInput: it cannot be read, or was changed since.
        """
        job = read_job(self.path / "job.yaml")
        if job.fingerprint() != self.settings().get("job_hash"):
            raise BadInput(f"{self.path / 'job.yaml'} was changed after the run was made; undo that, or make a new run")
        return job

    def state(self) -> State:
        """Where it stands.

        Raises:
            BadInput: state.json cannot be read.
        """
        path = self.path / "state.json"
        try:
            return State(**_read(path))
        except TypeError:
            raise BadInput(f"{path} is not the state of a run; it was changed by something else") from None

    def set_state(self, state: State) -> None:
        """Writes where it stands."""
        write_atomically(self.path / "state.json", json.dumps(asdict(state), indent=1).encode())

    def move(self, phase: Phase, **changes: Any) -> State:
        """Changes the phase, and whatever else is given; returns the new state."""
        state = replace(self.state(), phase=phase, since=time.time(), **changes)
        self.set_state(state)
        return state


def create_run(
    runs: Path, job_path: Path, federation: str, *, sites: Sequence[str], compare: Sequence[str], wait_seconds: float
) -> Run:
    """Makes the folder of a new run and puts it into the queue.

    Args:
        sites: the only sites to ask; all active ones when empty.
        compare: of `shared_models.comparisons.read_comparisons`; local trains each site on its own, if its policy
            allows that.
        wait_seconds: how long sites are waited for.

    Raises:
        BadInput: the job is none that can run, or what it shall be compared with does not fit it.
    """
    job = load_job(job_path)
    comparisons, not_compared = chosen(compare, job, hospitals=None)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"{job.name[:100]}-{stamp}"
    for number in range(2, 100):
        if not (runs / name).exists():
            break
        name = f"{job.name[:100]}-{stamp}-{number}"
    settings = {
        **identity(job),
        "engine": "deployment",
        "federation": federation,
        "sites": sorted(set(sites)),
        "compare": comparisons,
        "not_compared": not_compared,
        "wait_seconds": wait_seconds,
        "command": f"consilium coordinator run {job_path.name}",
    }
    runs.mkdir(exist_ok=True, mode=0o700)
    # Made beside it and renamed, so that the daemon never sees a part.
    hidden = runs / f".{name}.{os.getpid()}"
    try:
        hidden.mkdir(mode=0o700)
        run = Run(hidden)
        write_atomically(hidden / "job.yaml", dump_job(job).encode())
        write_atomically(hidden / "run.json", json.dumps(settings, indent=1).encode())
        run.set_state(State("queued", time.time()))
        hidden.rename(runs / name)
    except (OSError, RunStopped) as error:
        shutil.rmtree(hidden, ignore_errors=True)
        raise BadInput(f"{runs / name} could not be made ({error}); nothing was begun") from error
    return Run(runs / name)


def identity(job: Job) -> dict[str, Any]:
    """What run.json says of every run, simulated or not: which job, when, and what its numbers depend on."""
    return {
        "schema": RUN_SCHEMA,
        "name": job.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "consilium": version("consilium"),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "seed": job.seed,
        "job_hash": job.fingerprint(),
    }


def all_runs(runs: Path) -> list[Run]:
    """Every run, the oldest first."""
    folders = [path for path in runs.glob("*") if path.name[:1] != "." and (path / "run.json").is_file()]
    return sorted(map(Run, folders), key=lambda run: (run.settings().get("created", ""), run.name))


def find_run(runs: Path, name: str) -> Run:
    """The run of this name.

    Raises:
        BadInput: there is none.
    """
    if RUN_NAME.fullmatch(name) and (runs / name / "run.json").is_file():
        return Run(runs / name)
    known = [run.name for run in all_runs(runs)]
    there = f"there are: {', '.join(known[-5:])}" if known else "there is none yet"
    raise BadInput(f"no run {name[:80]!r} in {runs}; {there}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); bring it back from a copy, or make a new run") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a JSON object; bring it back from a copy, or make a new run")
    return content
