"""What federation is compared with: each hospital alone, all data pooled, and what is made of these and of it.

A hospital alone and the pooled baseline have the federation's initial weights, number of rounds and rule for the best
round, and one optimiser throughout. A hospital alone takes as many optimiser steps as it takes in a federation that it
is in every round of; the pooled baseline takes as many as all hospitals together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from pydantic import Field

from server.admission import Rejected, admit_tensors, fault_of
from server.app import Result
from server.baseline_files import is_finished, keep_baseline, saved
from server.checkpoint import write_atomically
from server.evenness import evenness
from server.events import EventLog
from server.gate import choose_models, judge_kept
from server.initial import initial_network
from server.judgement import FEDERATED, LOCAL, POOLED, Model, collect, judge, undefined
from server.leave_one_out import judge_without_each, train_without_each
from server.participation import Reply, Site, ask, instruction
from shared_models.comparisons import ENSEMBLE, KEPT, VARIANTS
from shared_models.job import Job
from shared_models.section import Section
from shared_models.tasks import Sums, task_of
from shared_models.weights import to_record, travelling

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
    comparisons: Collection[str],
    not_compared: Mapping[str, str],
    run_dir: Path,
    events: EventLog,
    share_local: bool = True,
) -> None:
    """Trains what the federated model is compared with and is not there yet, and judges all on test patients.

    Args:
        comparisons, not_compared: of `shared_models.comparisons.chosen`.
        share_local: judge a hospital's own model at every hospital; without, at that hospital only, because real
            hospitals get nobody else's model of one hospital's patients.
    """
    if not_compared:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in not_compared.items())
        events.emit("warning", text=f"--compare all is without what does not fit this job: {reasons}")
    train_baselines(grid, result, job, comparisons, run_dir, events)
    if "leave_one_out" in comparisons:
        train_without_each(grid, result, job, run_dir, events)
    began = time.monotonic()
    choices = choose_models(grid, result, job, comparisons, run_dir, events)
    sums: dict[str, dict[str, Sums]] = {}
    for model in _models(result, comparisons, run_dir, events):
        own = model.name.removeprefix(LOCAL)
        at = result.sites if share_local or own == model.name else {own: result.sites[own]}
        sums[model.name] = collect(grid, at, job, model, "test", job.evaluation.bootstrap, events)
    if "leave_one_out" in comparisons:
        sums |= judge_without_each(grid, result, job, "adapted" in comparisons, run_dir, events)
    if choices:
        sums[KEPT] = judge_kept(grid, result, job, choices, run_dir, events)
    if not sums[FEDERATED]:
        sentence = "no hospital has test patients with a result: the models could not be compared"
        events.emit("warning", text=sentence, left_out=True)
        return
    keep_rankings(job, sums)
    judged = {name: by_site for name, by_site in sums.items() if by_site}
    evaluations = judge(job, judged) | evenness(job, judged)
    if choices:
        evaluations["choices"] = choices
    missing = undefined(evaluations)
    if missing:
        events.emit("warning", text=missing)
    write_atomically(run_dir / "evaluations.json", json.dumps(evaluations, indent=1).encode())
    events.emit("judged", models=list(sums), seconds=round(time.monotonic() - began, 3))


def keep_rankings(job: Job, sums: Mapping[str, dict[str, Sums]]) -> None:
    """Gives the temperature-scaled model the rankings of the federated one, which a temperature does not change.

    One that squeezes all probabilities together leaves fewer in bins of their own: what the bins then say of the same
    ranking differs, as if the temperature had done something to it.
    """
    federated = sums[FEDERATED]
    for site, found in sums.get(VARIANTS["temperature"], {}).items():
        if site in federated:
            found |= {name: federated[site][name] for name in task_of(job).ranked_sums}


def _models(result: Result, comparisons: Collection[str], run_dir: Path, events: EventLog) -> Iterator[Model]:
    """What is judged at every hospital, one after the other, so that one model is in memory."""
    yield Model(FEDERATED, result.best, result.best_round, result.best_used)
    singles = [POOLED] if POOLED in comparisons else []
    local = [LOCAL + site for site in sorted(result.sites)] if "local" in comparisons else []
    for name in [*singles, *local]:
        weights = saved(run_dir, name)
        if weights is not None:
            yield Model(name, weights)
    if ENSEMBLE in comparisons:
        members = [weights for name in local if (weights := saved(run_dir, name)) is not None]
        if len(members) < len(local):
            sentence = f"the ensemble has {len(members)} of {len(local)} hospitals' own models: the others are missing"
            events.emit("warning", text=sentence, left_out=True)
        if members:
            yield Model(ENSEMBLE, members, variant=ENSEMBLE)
    for variant, name in VARIANTS.items():
        if variant in comparisons:
            yield Model(name, result.best, result.best_round, result.best_used, variant)


def train_baselines(
    grid: Grid, result: Result, job: Job, comparisons: Collection[str], run_dir: Path, events: EventLog
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
    if POOLED in comparisons:
        if POOLED in result.others:
            wanted[POOLED] = result.others[POOLED], content(steps * len(result.sites))
        else:
            sentence = "there is no pooled baseline: the pooled data were refused, see above"
            events.emit("warning", text=sentence, left_out=True)
    if "local" in comparisons:
        wanted |= {LOCAL + name: (site, content(0)) for name, site in result.sites.items()}
    # The longest first, so that no worker is left with the largest at the end.
    order = sorted(wanted, key=lambda name: -wanted[name][0].cases["train"])
    requests = {n: (wanted[n][0].node, wanted[n][1]) for n in order if not is_finished(run_dir, n, events)}
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
    keep_baseline(run_dir, job, weights, note, events)


def _learnt(content: RecordDict) -> dict[str, Any]:
    """What a site says of the training of a baseline. Raises Rejected where it is not in that form."""
    try:
        values = dict(content.metric_records["numbers"])
        values["curve"] = json.loads(str(content.config_records["curve"]["json"]))
        return _Learnt.model_validate(values).model_dump()
    except (KeyError, ValueError, RecursionError):
        raise Rejected("what the reply says of the training is not in the form of it") from None
