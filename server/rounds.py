"""The round, top to bottom: draw, ask, admit and fold each update as it arrives, step, validate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from flwr.serverapp import Grid

from server import optimizers
from server.aggregation import squared_distance
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog
from server.gathering import Attempt, Gatherer
from server.judgement import validate
from server.participation import Site, draw, quorum
from shared_models.algorithms import Gathered
from shared_models.algorithms.algorithm import trainable_names
from shared_models.errors import RunStopped
from shared_models.job import Job
from shared_models.weights import TensorInfo, Weights, fingerprint, from_record, to_record


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
    for trial in range(job.federation.retries + 1):
        # Before every attempt: a round that lost a site is not tried again in vain until the site is back.
        gather(quorum(job, min(len(sites), job.federation.sites_per_round or len(sites))))
        drawn = draw(job, list(sites), number, trial)
        events.emit("round_started", round=number, attempt=trial, sites=drawn)
        members = _announced(job, sites) | state.members
        met = sum(members[name] for name in state.members) / sum(members.values()) if state.members else 1.0
        before = replace(state, algorithm=algorithm.grown(state.algorithm, met))
        attempt = Gatherer(grid, job, tensors, before, events).gather(
            [sites[name] for name in drawn], model, (number, trial)
        )
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
    members |= attempt.weights
    answered = sum(attempt.weights.values()) / sum(members.values())
    gathered = Gathered(attempt.total.take_mean(), answered, trainable, attempt.updates)
    target, algorithm_state = algorithm.combine(state.weights, before.algorithm, gathered)
    weights, moments = optimizers.step(
        job.federation.algorithm.server_optimizer, trainable, state.weights, target, state.moments
    )
    since = state.algorithm_since
    if _begins_anew(job, state, attempt, events):
        algorithm_state, since = algorithm.initial_state(tensors, list(sites), weights), number
    _check_finite(job, number, weights, algorithm_state, *moments.values())
    for name, score in attempt.scores.items():
        if score.why:
            events.emit("stood_out", round=number, site=name, why=score.why, ratio=score.ratio)
    done = replace(
        state,
        weights=weights,
        moments=moments,
        algorithm=algorithm_state,
        algorithm_since=since,
        members=members,
        last_used=state.last_used | dict.fromkeys(attempt.weights, number),
        round=number,
        fingerprint=fingerprint(weights),
    )
    events.emit(
        "round_finished",
        round=number,
        fingerprint=done.fingerprint,
        loss=attempt.loss / attempt.cases,
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


def _begins_anew(job: Job, state: RunState, attempt: Attempt, events: EventLog) -> bool:
    """Names the sites that have lost what they kept at home; whether the server's state still counts some of that.

    Args:
        state: behind the round before.
    """
    algorithm, number, since, anew = job.federation.algorithm, state.round + 1, state.algorithm_since, False
    for site, went_on_from in attempt.went_on_from.items():
        last_used = state.last_used.get(site, 0)
        if went_on_from == last_used:
            continue
        counted = algorithm.mean_of_kept and max(went_on_from, since) != max(last_used, since)
        if algorithm.mean_of_kept and not counted:
            continue  # what it had was to begin anew in any case
        anew = anew or counted
        began = f"went on from round {went_on_from}" if went_on_from else "began anew"
        follows = (
            f"So that all agree, the corrections (control variates) of {algorithm.name} begin anew at the coordinator "
            f"and every site behind round {number}"
            if counted
            else "What the algorithm keeps there is not what it would have been"
        )
        sentence = f"{site} {began} in round {number}: what it kept at home behind round {last_used} is lost. {follows}"
        events.emit("warning", text=f"{sentence}; see that the site's work folder is not deleted")
    return anew


def _check_finite(job: Job, number: int, *groups: Weights) -> None:
    """Raises RunStopped: a round of updates that were each fit to be summed has come to something that is not."""
    # A float64 sum of float32 values cannot overflow: it is finite exactly when every value is.
    if all(math.isfinite(array.sum(dtype=np.float64)) for group in groups for array in group.values()):
        return
    federation = job.federation
    raise RunStopped(
        f"round {number} came to values that are NaN or infinite, by the algorithm {federation.algorithm.name} and the "
        f"aggregation {federation.aggregation.name}: its model is not kept, and what was done before it is. Resume the "
        "run to do the round again; if it ends here again, start a new run with a mended job"
    )


def _is_due(job: Job, number: int) -> bool:
    every = job.evaluation.every
    return number == job.federation.rounds or (every > 0 and number % every == 0)
