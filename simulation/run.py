"""`consilium simulate`: from a job to a judged run, in one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid, ServerApp

from server.app import Result, make_server_app
from server.checkpoint import disk_error
from server.events import EventLog, read_events
from server.judgement import POOLED
from server.live import LiveDisplay
from server.report import write_report
from shared_models.errors import ConsiliumError, SitesLeftOut
from shared_models.zoo import build
from simulation import baselines, engine
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
    outcome: dict[str, Any] = {"status": "complete", "reason": None, "exit_code": 0}
    try:
        with LiveDisplay(run.path, run.job.selection_metric()) as live:
            events = EventLog(run.path / "events.jsonl", (live.handle,))
            error = _attempt(run, events)
            if error:
                outcome = {"status": "stopped", "reason": str(error), "exit_code": error.exit_code}
            elif _anybody_left_out(run.path):
                outcome["exit_code"] = SitesLeftOut.exit_code
            events.emit("run_finished", **_totals(run.path), **outcome, seconds=round(time.monotonic() - began, 3))
            events.close()
            write_report(run.path)
    except OSError as full:
        raise disk_error(Path(full.filename or run.path / "events.jsonl"), full) from full
    if error:
        raise error
    return int(outcome["exit_code"])


def _attempt(run: RunFolder, events: EventLog) -> ConsiliumError | None:
    """The run itself; what stops it comes back, so that a stopped run still gets its last event and its report."""
    failures: list[BaseException] = []

    def after(grid: Grid, result: Result) -> None:
        baselines.compare(grid, result, run.job, run.settings["compare"], run.path, events)

    app = make_server_app(run.job, run.path, events, after, not_federated=(POOLED,))
    # Before the workers are forked: what is imported here is shared memory there.
    build(run.job)
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


def _anybody_left_out(path: Path) -> bool:
    """Whether a site was refused, or its update missed a round that counted, or a result is missing."""
    return any(
        event["event"] == "site_refused"
        or event.get("left_out")
        or (event["event"] == "site_replied" and event["status"] != "used")
        for event in read_events(path / "events.jsonl")
    )


def _totals(path: Path) -> dict[str, Any]:
    """Fingerprint, best round and bytes over the whole run, resumed or not, from its event stream."""
    fingerprint, best_round, sent, received = None, None, 0, 0
    for event in read_events(path / "events.jsonl"):
        if event["event"] == "round_finished":
            fingerprint = event["fingerprint"]
        elif event["event"] == "validated" and event["best"]:
            best_round = event["round"]
        elif event["event"] == "site_replied":
            sent, received = sent + event["bytes_up"], received + event["bytes_down"]
    return {"fingerprint": fingerprint, "best_round": best_round, "bytes_sent": sent, "bytes_received": received}
