"""What federation is compared with: each hospital alone, and all data pooled.

A baseline has the federation's initial weights, number of rounds and rule for the best round, and one optimiser
throughout. A hospital alone takes as many optimiser steps as it takes in the federation; the pooled baseline takes as
many as all hospitals together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from pydantic import Field

from server.admission import Rejected, admit_tensors, fault_of
from server.app import Result
from server.checkpoint import load_weights, save_weights, write_atomically
from server.events import EventLog
from server.initial import initial_network
from server.judgement import FEDERATED, LOCAL, POOLED, collect, judge, undefined
from server.participation import Reply, Site, ask, instruction
from shared_models.job import Job
from shared_models.section import Section
from shared_models.weights import Weights, fingerprint, to_record, travelling

BASELINES = ("local", POOLED)

_Count = Annotated[int, Field(ge=0, lt=2**40)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Word = Annotated[str, Field(max_length=200)]


class _Point(Section):
    round: _Count
    metrics: dict[_Word, _Number | None] = Field(max_length=1000)


class _Learnt(Section):
    """How a baseline was trained, as its site says; `curve` is its validation metrics round by round."""

    steps: _Count
    seconds: _Number
    best_round: _Count
    curve: list[_Point] = Field(max_length=100_000)


def compare(
    grid: Grid,
    result: Result,
    job: Job,
    baselines: Collection[str],
    run_dir: Path,
    events: EventLog,
    share_local: bool = True,
) -> None:
    """Trains the baselines that are not there yet, judges every model on the hospitals' test patients.

    Args:
        share_local: judge a hospital's own model at every hospital; without, at that hospital only, because real
            hospitals get nobody else's model of one hospital's patients.
    """
    train_baselines(grid, result, job, baselines, run_dir, events)
    names = [FEDERATED]
    names += [POOLED] if POOLED in baselines else []
    names += [LOCAL + site for site in sorted(result.sites)] if "local" in baselines else []
    began, sums = time.monotonic(), {}
    for name in names:
        weights = result.best if name == FEDERATED else _saved(run_dir, name)
        if weights is not None:
            own = name.removeprefix(LOCAL)
            at = result.sites if share_local or own == name else {own: result.sites[own]}
            number = result.best_round if name == FEDERATED else 0  # a baseline is whole: nothing of it is at the sites
            sums[name] = collect(grid, at, job, weights, name, "test", job.evaluation.bootstrap, events, number)
    if not sums[FEDERATED]:
        sentence = "no hospital has test patients with a result: the models could not be compared"
        events.emit("warning", text=sentence, left_out=True)
        return
    evaluations = judge(job, {name: by_site for name, by_site in sums.items() if by_site})
    missing = undefined(evaluations)
    if missing:
        events.emit("warning", text=missing)
    write_atomically(run_dir / "evaluations.json", json.dumps(evaluations, indent=1).encode())
    events.emit("judged", models=list(sums), seconds=round(time.monotonic() - began, 3))


def train_baselines(
    grid: Grid, result: Result, job: Job, baselines: Collection[str], run_dir: Path, events: EventLog
) -> None:
    """Trains the baselines, as many at once as there are workers, and saves each when it is done.

    They are whole models: what stays at a site in the federation is in them.
    """
    initial = travelling(initial_network(job, run_dir)[0])
    record, shapes = to_record(initial), {name: array.shape for name, array in initial.items()}
    steps = job.training.local_steps or 0

    def content(steps: int) -> RecordDict:
        return RecordDict({"instruction": instruction(job, steps=steps), "weights": record})

    wanted: dict[str, tuple[Site, RecordDict]] = {}
    if POOLED in baselines:
        if POOLED in result.others:
            wanted[POOLED] = result.others[POOLED], content(steps * len(result.sites))
        else:
            sentence = "there is no pooled baseline: the pooled data were refused, see above"
            events.emit("warning", text=sentence, left_out=True)
    if "local" in baselines:
        wanted |= {LOCAL + name: (site, content(0)) for name, site in result.sites.items()}
    # The longest first, so that no worker is left with the largest at the end.
    order = sorted(wanted, key=lambda name: -wanted[name][0].cases["train"])
    requests = {n: (wanted[n][0].node, wanted[n][1]) for n in order if not _path(run_dir, n).exists()}
    for name in wanted.keys() - requests.keys():  # finished before the run was resumed
        events.emit("baseline_finished", **json.loads(_path(run_dir, name).with_suffix(".json").read_text()))
    for reply in ask(grid, requests, f"{MessageType.TRAIN}.alone"):
        _keep(reply, shapes, job, run_dir, events)


def _keep(reply: Reply, shapes: Mapping[str, tuple[int, ...]], job: Job, run_dir: Path, events: EventLog) -> None:
    message, name = reply.message, reply.site
    fault = "it did not answer" if message is None else fault_of(message)
    if message is None or fault:
        events.emit("warning", text=f"there is no baseline '{name}': {fault}", left_out=True)
        return
    record = message.content.get("weights")
    try:
        if not isinstance(record, ArrayRecord):
            raise Rejected("the reply has no record 'weights'")
        weights = admit_tensors(record, shapes)
        note = {"model": name, **_learnt(message.content)}
    except Rejected as error:
        events.emit("warning", text=f"there is no baseline '{name}': {error}", left_out=True)
        return
    # The weights last: where they are, the baseline is finished.
    write_atomically(_path(run_dir, name).with_suffix(".json"), json.dumps(note).encode())
    notes = {"job_hash": job.fingerprint(), "round": note["best_round"], "fingerprint": fingerprint(weights)}
    save_weights(_path(run_dir, name), weights, **notes)
    events.emit("baseline_finished", **note)


def _learnt(content: RecordDict) -> dict[str, Any]:
    """What a site says of the training of a baseline. Raises Rejected where it is not in that form."""
    try:
        values = dict(content.metric_records["numbers"])
        values["curve"] = json.loads(str(content.config_records["curve"]["json"]))
        return _Learnt.model_validate(values).model_dump()
    except (KeyError, ValueError, RecursionError):
        raise Rejected("what the reply says of the training is not in the form of it") from None


def _path(run_dir: Path, name: str) -> Path:
    return run_dir / "models" / f"{name.replace(':', '-')}.safetensors"


def _saved(run_dir: Path, name: str) -> Weights | None:
    path = _path(run_dir, name)
    return load_weights(path) if path.exists() else None
