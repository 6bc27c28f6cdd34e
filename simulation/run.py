"""`consilium simulate`: from a job to a judged run, in one folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
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
from server.planning import make_plan, planned_before
from shared_models.errors import ConsiliumError, RunStopped
from shared_models.job import Job
from simulation import engine
from simulation.illustrate import draw_pictures
from simulation.run_folder import RunFolder, SimulationRequest, create, held, reopen
from simulation.unreliable import UnreliableGrid

REGISTRATION_SECONDS = 60.0
"""How long nodes are waited for. A run never begins without some of its hospitals."""


def simulate(request: SimulationRequest) -> int:
    """Runs, or resumes, a simulation; returns the exit code: 0 complete, 4 complete but a site was left out.

    Raises:
        BadInput: the job, the data or an argument is not what it should be, or another process works on the run.
        RunStopped: the run could not go on; it can be resumed.
    """
    began = time.monotonic()
    run = reopen(request.resume) if request.resume else create(request)
    try:
        with held(run.path), LiveDisplay(run.path, run.job.selection_metric()) as live:
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
    habits = run.job.simulation.participation.values() if run.job.simulation else ()
    # Who is away derives from the seed, so that going on changes nothing where it was they who were missed.
    away = any(habit.answers < 1 for habit in habits)
    again = "; whoever simulation.participation keeps away is away again then" if away else ""
    return RunStopped(f"{error}; continue with --resume, as in: consilium simulate --resume {run.path}{again}")


def _attempt(run: RunFolder, events: EventLog) -> ConsiliumError | None:
    """The run itself; what stops it comes back, so that a stopped run still gets its last event and its report."""
    try:
        run = _planned(run, events)

        def after(grid: Grid, result: Result) -> None:
            settings = run.settings
            for name, patients in run.split.left_out.items():
                text = f"simulation.missing_classes: {len(patients)} patients of {name} take no part in this run"
                events.emit("warning", text=text)
            baselines.compare(grid, result, run.job, settings["compare"], settings["not_compared"], run.path, events)

        app = make_server_app(run.job, run.path, events, after, not_federated=(POOLED,))
        _on_engine(app, run, run.nodes())
        draw_pictures(run, events)
    except ConsiliumError as error:
        return error
    return None


def _planned(run: RunFolder, events: EventLog) -> RunFolder:
    """The run with the job that is planned from its hospitals' statistics, where it asks for them."""
    if run.job.federation.statistics is None:
        return run
    if (job := planned_before(run.path, run.job)) is None:
        made: list[Job] = []
        asking = ServerApp()

        @asking.main()
        def main(grid: Grid, context: Any) -> None:
            made.append(make_plan(run.path, run.job, grid, events))

        _on_engine(asking, run, [node for node in run.nodes() if node["site"] != POOLED])
        job = made[0]
    return replace(run, job=job)


def _on_engine(app: ServerApp, run: RunFolder, nodes: Sequence[dict[str, str]]) -> None:
    """Runs the app with one node a hospital; raises what it raises."""
    failures: list[BaseException] = []
    # Before the workers are forked: what is imported and estimated here is shared there.
    memory_of(run.job)
    start = engine.run_on_ray if run.settings["engine"] == "ray" else engine.run_in_processes
    try:
        start(_as_run(app, run, len(nodes), failures), nodes, run.settings["workers"], run.settings["threads"])
    except ConsiliumError:
        raise
    except Exception:
        # Ray raises an error of its own over the one that matters.
        if failures and isinstance(failures[0], ConsiliumError):
            raise failures[0] from None
        raise


def _as_run(app: ServerApp, run: RunFolder, nodes: int, failures: list[BaseException]) -> ServerApp:
    """The app over a grid of hospitals as the job says they are; what stops it is noted."""
    running = ServerApp()

    @running.main()
    def main(grid: Grid, context: Any) -> None:
        try:
            _wait_for(nodes, grid)
            app(UnreliableGrid(grid, run.job, run.path / "sites"), context)
        except BaseException as error:
            failures.append(error)
            raise

    return running


def _wait_for(nodes: int, grid: Grid) -> None:
    """Flower's Ray runtime starts the app while it registers the nodes, which takes moments."""
    began = time.monotonic()
    while (there := len(list(grid.get_node_ids()))) < nodes:
        if time.monotonic() - began > REGISTRATION_SECONDS:
            raise RunStopped(f"only {there} of {nodes} nodes were there after {REGISTRATION_SECONDS:g} s")
        time.sleep(0.01)
