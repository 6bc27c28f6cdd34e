"""For each hospital a federation without it, judged at it: what a hospital may expect that was not there.

Each is a federation as any, with the same job, initial weights and rule for the best round, and a folder of its own in
the run: `leave-one-out/<hospital>/`. A run that was stopped goes on behind the last whole round of the last of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from flwr.app import Message
from flwr.serverapp import Grid

from server.app import Result, best_of, resume
from server.baseline_files import is_finished, keep_baseline, read_note, saved
from server.checkpoint import CheckpointStore
from server.events import EventLog, read_events
from server.initial import initial_network
from server.judgement import Model, collect
from server.rounds import run_rounds
from shared_models.comparisons import VARIANTS, statistics_stay
from shared_models.job import Job
from shared_models.tasks import Sums
from shared_models.weights import schema, travelling

LEAVE_ONE_OUT = "leave-one-out"


def train_without_each(grid: Grid, result: Result, job: Job, run_dir: Path, events: EventLog) -> None:
    """Runs the federations that are not finished, as many rounds each as the job has, and keeps their best models.

    Raises:
        RunStopped: a round stayed below its quorum; what was done so far is kept.
    """
    names = sorted(result.sites)
    if len(names) < 2:
        sentence = f"only {names[0]} took part: there is no federation without it"
        events.emit("warning", text=sentence, left_out=True)
        return
    for number, name in enumerate(names, 1):
        if not is_finished(run_dir, f"{LEAVE_ONE_OUT}:{name}", events):
            rounds = job.federation.rounds
            events.emit("leave_one_out_started", site=name, number=number, federations=len(names), rounds=rounds)
            _train_without(grid, name, result, job, run_dir, events)
        _say_what_was_missing(name, run_dir, events)


def _train_without(grid: Grid, name: str, result: Result, job: Job, run_dir: Path, events: EventLog) -> None:
    folder = run_dir / LEAVE_ONE_OUT / name
    store, inner = CheckpointStore(folder / "checkpoints", job.fingerprint()), EventLog(folder / "events.jsonl")
    network, _ = initial_network(job, run_dir)
    state = resume(store, travelling(network, job.federation.share), inner)
    tensors = schema(network, job.federation.share)
    sites = {other: site for other, site in result.sites.items() if other != name}
    state = run_rounds(within(grid, name), sites, job, tensors, state, store, inner, gather=lambda needed: None)
    inner.close()
    weights, best_round, _ = best_of(state, store)
    note = {"model": f"{LEAVE_ONE_OUT}:{name}", **_learnt(folder / "events.jsonl"), "best_round": best_round}
    keep_baseline(run_dir, job, weights, note, events)


def _say_what_was_missing(name: str, run_dir: Path, events: EventLog) -> None:
    """The updates that were not used are on record in the federation's own events, which the report does not show."""
    path = run_dir / LEAVE_ONE_OUT / name / "events.jsonl"
    replies = [event for event in read_events(path) if event["event"] == "site_replied"]
    missing = sorted({event["site"] for event in replies if event["status"] != "used"})
    if missing:
        text = f"the federation without {name} lacks updates of {', '.join(missing)}: {path} says which, and why"
        events.emit("warning", text=text, left_out=True)


def _learnt(path: Path) -> dict[str, Any]:
    """How the federation was trained: optimiser steps of all hospitals, seconds, validation metrics by round."""
    steps, seconds, curve = 0, 0.0, []
    for event in read_events(path):
        if event["event"] == "site_replied":
            steps += event["steps"]
        elif event["event"] == "round_finished":
            seconds += event["seconds"]
        elif event["event"] == "validated":
            curve.append({"round": event["round"], "metrics": event["metrics"]})
    return {"steps": steps, "seconds": round(seconds, 3), "curve": curve}


def judge_without_each(
    grid: Grid, result: Result, job: Job, adapted: bool, run_dir: Path, events: EventLog
) -> dict[str, dict[str, Sums]]:
    """Test sums at each hospital of the model that never saw it: as it is, and adapted to its own images.

    As it is only where a hospital that took no part has all of it.
    """
    variants = {} if statistics_stay(job) else {LEAVE_ONE_OUT: ""}
    if adapted:
        variants[f"{LEAVE_ONE_OUT}-{VARIANTS['adapted']}"] = "adapted"
    sums: dict[str, dict[str, Sums]] = {name: {} for name in variants}
    for site in sorted(result.sites):
        weights = saved(run_dir, f"{LEAVE_ONE_OUT}:{site}")
        if weights is None:
            continue
        number, at = read_note(run_dir, f"{LEAVE_ONE_OUT}:{site}")["best_round"], {site: result.sites[site]}
        for name, variant in variants.items():
            model = Model(name, weights, number, variant=variant)
            sums[name] |= collect(within(grid, site), at, job, model, "test", job.evaluation.bootstrap, events)
    return sums


def within(grid: Grid, without: str) -> Grid:
    """The same grid, through which every question says that it belongs to the federation without this hospital.

    So a site keeps what stays with it of that federation apart from what it has of the run's own.
    """
    return cast(Grid, _Within(grid, without))


class _Within:
    def __init__(self, grid: Grid, without: str) -> None:
        self._grid, self._without = grid, without

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            message.content.config_records["instruction"]["without"] = self._without
        return self._grid.push_messages(messages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
