"""The round, top to bottom: draw, ask, admit and fold each update as it arrives, step, validate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from flwr.serverapp import Grid

from server import optimizers
from server.aggregation import squared_distance
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog
from server.gathering import Gatherer
from server.judgement import validate
from server.participation import Site, draw, quorum
from shared_models.algorithms import Gathered
from shared_models.algorithms.algorithm import trainable_names
from shared_models.errors import RunStopped
from shared_models.job import Job
from shared_models.weights import TensorInfo, fingerprint, from_record, to_record


def run_rounds(
    grid: Grid,
    sites: Mapping[str, Site],
    job: Job,
    tensors: list[TensorInfo],
    state: RunState,
    store: CheckpointStore,
    events: EventLog,
    gather: Callable[[int], None],
) -> RunState:
    """All rounds from the state's next one to the last, or until `federation.patience` is at its end.

    Args:
        gather: called before each attempt at a round with the number of sites that it needs; waits for them.

    Raises:
        RunStopped: a round stayed below its quorum after every retry, or `gather` waited in vain; what was done so
            far is kept.
    """
    patience = job.federation.patience
    while state.round < job.federation.rounds:
        if patience and state.without_better >= patience:
            events.emit("stopped_early", round=state.round, patience=patience, best_round=state.best_round)
            break
        state = one_round(grid, sites, job, tensors, state, events, gather)
        if _is_due(job, state.round):
            validate(grid, sites, job, state, events)
        store.save(state, events.size())
    return state


def one_round(
    grid: Grid,
    sites: Mapping[str, Site],
    job: Job,
    tensors: list[TensorInfo],
    state: RunState,
    events: EventLog,
    gather: Callable[[int], None],
) -> RunState:
    """One round, tried again while it stays below the quorum."""
    number, began, algorithm = state.round + 1, time.monotonic(), job.federation.algorithm
    if number == 1:
        state.algorithm = algorithm.initial_state(tensors, list(sites), state.weights)
    model = to_record(state.weights)
    state.weights = from_record(model)  # views of the record: one copy of the model is held, not two
    gatherer = Gatherer(grid, job, tensors, state, events)
    for trial in range(job.federation.retries + 1):
        # Before every attempt: a round that lost a site is not tried again in vain until the site is back.
        gather(quorum(job, min(len(sites), job.federation.sites_per_round or len(sites))))
        drawn = draw(job, list(sites), number, trial)
        events.emit("round_started", round=number, attempt=trial, sites=drawn)
        attempt = gatherer.gather([sites[name] for name in drawn], model, (number, trial))
        needed = quorum(job, len(drawn))
        if len(attempt.weights) >= needed:
            break
        reason = f"{len(attempt.weights)} of {len(drawn)} sites gave an update, {needed} are needed"
        events.emit("round_retried", round=number, attempt=trial, reason=reason)
    else:
        raise RunStopped(
            f"round {number} stayed below its quorum after {trial + 1} attempts: {reason}, and the warnings say why "
            "the others gave none. What was done before it is kept. If the job is the cause, as when training "
            "diverges, start a new run with a mended job; if a site is, mend that and resume the run"
        )

    trainable = trainable_names(tensors)
    members = _announced(job, sites) | state.members | attempt.weights
    everybody = sum(members.values())
    met = sum(members[name] for name in state.members) / everybody if state.members else 1.0
    before = algorithm.grown(state.algorithm, met)
    answered = sum(attempt.weights.values()) / everybody
    gathered = Gathered(attempt.total.take_mean(), answered, trainable, attempt.updates)
    target, algorithm_state = algorithm.combine(state.weights, before, gathered)
    weights, moments = optimizers.step(
        job.federation.algorithm.server_optimizer, trainable, state.weights, target, state.moments
    )
    for name, score in attempt.scores.items():
        if score.why:
            events.emit("stood_out", round=number, site=name, why=score.why, ratio=score.ratio)
    done = replace(
        state,
        weights=weights,
        moments=moments,
        algorithm=algorithm_state,
        members=members,
        last_used=state.last_used | dict.fromkeys(attempt.weights, number),
        round=number,
        fingerprint=fingerprint(weights),
    )
    events.emit(
        "round_finished",
        round=number,
        fingerprint=done.fingerprint,
        loss=attempt.loss / sum(attempt.weights.values()),
        update_norm=math.sqrt(squared_distance(weights, state.weights, list(weights))),
        sites_used=len(attempt.weights),
        seconds=round(time.monotonic() - began, 3),
        aggregation=attempt.total.notes,
    )
    return done


def _announced(job: Job, sites: Mapping[str, Site]) -> dict[str, int]:
    """What every site will count, from the cases that it has said to have."""
    by_cases = job.federation.weighting == "cases"
    return {name: site.cases["train"] if by_cases else 1 for name, site in sites.items()}


def _is_due(job: Job, number: int) -> bool:
    every = job.evaluation.every
    return number == job.federation.rounds or (every > 0 and number % every == 0)
