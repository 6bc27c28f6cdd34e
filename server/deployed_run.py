"""The process of one run at the coordinator: claims Flower's task, and runs the ServerApp that is installed here.

Started by the daemon, which says on standard input what to run; it ends with a code that says what became of the run.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from server import baselines
from server.app import Result, make_server_app
from server.checkpoint import disk_error
from server.deployed_grid import DeployedGrid, Signer
from server.events import EventLog
from server.outcome import finish
from server.planning import make_plan, planned_before
from server.registry import Registry
from server.runs import Run
from shared_models.errors import ConsiliumError, RunStopped
from shared_models.flower_runtime import RunNotRunning, Runtime, coordinator_task
from shared_models.job import Job

GO_ON = 75
"""EX_TEMPFAIL of sysexits.h: Flower's run was lost, not ours; it goes on from its last checkpoint in a new one."""


@dataclass(frozen=True)
class Assignment:
    """What the daemon says on standard input; never in arguments, which every user of the machine can read."""

    run: str
    federation: str
    registry: str
    address: str
    certificates: str
    token: str
    signing_key: str
    """PEM."""

    def to_bytes(self) -> bytes:
        """As standard input carries it."""
        return json.dumps(asdict(self)).encode()


def main() -> int:
    """Runs what standard input says; returns the exit code."""
    assignment = Assignment(**json.load(sys.stdin))
    signal.signal(signal.SIGTERM, _stop)
    run = Run(Path(assignment.run))
    runtime = Runtime(assignment.address, b"", assignment.certificates.encode())
    try:
        with coordinator_task(runtime, assignment.token) as flower:
            key = load_pem_private_key(assignment.signing_key.encode(), None)
            assert isinstance(key, Ed25519PrivateKey)
            settings, registry = run.settings(), Registry(Path(assignment.registry))

            def grid_of(job: Job) -> DeployedGrid:
                signer = Signer(assignment.federation, run.name, job, settings["consilium"], key)
                return DeployedGrid(flower, registry, signer, run.waiting_file, settings["sites"])

            return _attempt(run, grid_of)
    except ConsiliumError as error:
        print(error, flush=True)
        return error.exit_code
    except (KeyboardInterrupt, RunNotRunning, httpx.HTTPError) as error:
        print(f"Flower's run was lost ({type(error).__name__}); it goes on in a new one", flush=True)
        return GO_ON
    finally:
        run.waiting_file.unlink(missing_ok=True)


def _attempt(run: Run, grid_of: Callable[[Job], DeployedGrid]) -> int:
    began, settings, job = time.monotonic(), run.settings(), run.job()
    events = EventLog(run.path / "events.jsonl")
    error: ConsiliumError | None = None

    def after(grid: Grid, result: Result) -> None:
        compared, not_compared = settings["compare"], settings["not_compared"]
        baselines.compare(grid, result, job, compared, not_compared, run.path, events, share_local=False)

    try:
        try:
            if job.federation.statistics:  # every order is for one job, so the plan has a grid of its own
                before, wait_seconds = planned_before(run.path, job), settings["wait_seconds"]
                job = before or make_plan(run.path, job, grid_of(job), events, wait_seconds)
            app = make_server_app(job, run.path, events, after, wait_seconds=settings["wait_seconds"])
            grid = grid_of(job)
            app(grid, Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={}))
        except ConsiliumError as stopped:
            error = stopped
        return finish(run.path, events, error, began)
    except OSError as full:
        raise disk_error(Path(full.filename or run.path / "events.jsonl"), full) from full


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise RunStopped("stopped on request; everything up to the last whole round is kept: resume it when you like")


if __name__ == "__main__":
    sys.exit(main())
