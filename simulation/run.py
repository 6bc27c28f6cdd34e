"""`consilium simulate`: from a job to a judged run, in one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid, ServerApp

from client.warm import memory_of
from server import baselines
from server.app import Result, make_server_app
from server.checkpoint import disk_error
from server.events import EventLog
from server.judgement import POOLED
from server.live import LiveDisplay
from server.outcome import finish
from shared_models.errors import ConsiliumError, RunStopped
from simulation import engine
from simulation.illustrate import draw_pictures
from simulation.run_folder import RunFolder, SimulationRequest, create, reopen


def simulate(request: SimulationRequest) -> int:
    """Runs, or resumes, a simulation; returns the exit code: 0 complete, 4 complete but a site was left out.

    Raises:
        BadInput: the job, the data or an argument is not what it should be.
        RunStopped: the run could not go on; it can be resumed.
    """
    began = time.monotonic()
    run = reopen(request.resume) if request.resume else create(request)
    try:
        with LiveDisplay(run.path, run.job.selection_metric()) as live:
            events = EventLog(run.path / "events.jsonl", (live.handle,))
            error = _attempt(run, events)
            exit_code = finish(run.path, events, error, began)
    except OSError as full:
        raise _with_the_way_on(disk_error(Path(full.filename or run.path / "events.jsonl"), full), run) from full
    if error:
        raise _with_the_way_on(error, run)
    return exit_code


def _with_the_way_on(error: ConsiliumError, run: RunFolder) -> ConsiliumError:
    if not isinstance(error, RunStopped):
        return error
    return RunStopped(f"{error}; continue with --resume, as in: consilium simulate --resume {run.path}")


def _attempt(run: RunFolder, events: EventLog) -> ConsiliumError | None:
    """The run itself; what stops it comes back, so that a stopped run still gets its last event and its report."""
    failures: list[BaseException] = []

    def after(grid: Grid, result: Result) -> None:
        baselines.compare(grid, result, run.job, run.settings["compare"], run.path, events)

    app = make_server_app(run.job, run.path, events, after, not_federated=(POOLED,))
    # Before the workers are forked: what is imported and estimated here is shared there.
    memory_of(run.job)
    start = engine.run_on_ray if run.settings["engine"] == "ray" else engine.run_in_processes
    try:
        start(_noting_failures(app, failures), run.nodes(), run.settings["workers"], run.settings["threads"])
        draw_pictures(run, events)
    except ConsiliumError as error:
        return error
    except Exception:
        # Ray raises an error of its own over the one that matters.
        if failures and isinstance(failures[0], ConsiliumError):
            return failures[0]
        raise
    return None


def _noting_failures(app: ServerApp, failures: list[BaseException]) -> ServerApp:
    noting = ServerApp()

    @noting.main()
    def main(grid: Grid, context: Any) -> None:
        try:
            app(grid, context)
        except BaseException as error:
            failures.append(error)
            raise

    return noting
