"""The round, top to bottom: draw, ask, admit and fold each update as it arrives, step, validate, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from server import optimizers
from server.admission import Rejected, SiteFault, Update, admit
from server.aggregation import RunningSum
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog
from server.judgement import validate
from server.participation import Reply, Site, ask, draw, instruction, quorum
from shared_models.algorithms import algorithm_of
from shared_models.errors import RunStopped
from shared_models.job import Job
from shared_models.weights import TensorInfo, Weights, fingerprint, to_record


def run_rounds(
    grid: Grid,
    sites: Mapping[str, Site],
    job: Job,
    tensors: list[TensorInfo],
    state: RunState,
    store: CheckpointStore,
    events: EventLog,
) -> RunState:
    """All rounds from the state's next one to the last.

    Raises:
        RunStopped: a round stayed below its quorum after every retry; what was done so far is kept.
    """
    while state.round < job.federation.rounds:
        state = one_round(grid, sites, job, tensors, state, events)
        if _is_due(job, state.round):
            validate(grid, sites, job, state, events)
        store.save(state, events.size())
    return state


def one_round(
    grid: Grid, sites: Mapping[str, Site], job: Job, tensors: list[TensorInfo], state: RunState, events: EventLog
) -> RunState:
    """One round, tried again while it stays below the quorum."""
    number, began = state.round + 1, time.monotonic()
    shapes = {t.name: t.shape for t in tensors if t.travels}
    record = to_record(state.weights)
    for attempt in range(job.federation.retries + 1):
        drawn = draw(job, list(sites), number, attempt)
        events.emit("round_started", round=number, attempt=attempt, sites=drawn)
        content = RecordDict({"instruction": instruction(job, round=number), "weights": record})
        total, loss = RunningSum(), 0.0
        # The largest first: where sites share a machine, the round ends sooner.
        drawn.sort(key=lambda name: -sites[name].cases["train"])
        requests = {name: (sites[name].node, content) for name in drawn}
        for reply in ask(grid, requests, MessageType.TRAIN, job.federation.deadline_seconds):
            update = _admitted(reply, shapes, number, attempt, events)
            if update:
                total.add(update.tensors, update.weight)
                loss += update.loss * update.weight
        needed = quorum(job, len(drawn))
        if total.sites >= needed:
            break
        reason = f"{total.sites} of {len(drawn)} sites gave an update, {needed} are needed"
        events.emit("round_retried", round=number, attempt=attempt, reason=reason)
    else:
        raise RunStopped(
            f"round {number} stayed below its quorum after {attempt + 1} attempts: {reason}; "
            "everything up to the round before it is kept: mend the sites, then continue with --resume"
        )

    target = algorithm_of(job).combine(total.take_mean())
    trainable = [t.name for t in tensors if t.travels and t.trainable]
    weights, moments = optimizers.step(
        job.federation.algorithm.server_optimizer, trainable, state.weights, target, state.moments
    )
    done = RunState(weights, moments, number, fingerprint(weights), state.best_round, state.best_value)
    events.emit(
        "round_finished",
        round=number,
        fingerprint=done.fingerprint,
        loss=loss / total.weight,
        update_norm=_distance(weights, state.weights),
        sites_used=total.sites,
        seconds=round(time.monotonic() - began, 3),
    )
    return done


def _admitted(
    reply: Reply, shapes: Mapping[str, tuple[int, ...]], number: int, attempt: int, events: EventLog
) -> Update | None:
    """The update in a reply if it is fit to be summed; either way, what became of it goes on record."""
    update, status, reason = None, "used", None
    try:
        if reply.message is None:
            raise TimeoutError("no reply before the deadline")
        update = admit(reply.message, shapes)
    except TimeoutError as error:
        status, reason = "late", str(error)
    except SiteFault as error:
        status, reason = "failed", str(error)
    except Rejected as error:
        status, reason = "rejected", str(error)
    events.emit(
        "site_replied",
        round=number,
        attempt=attempt,
        site=reply.site,
        status=status,
        reason=reason,
        cases=update.cases if update else 0,
        skipped=update.skipped if update else 0,
        steps=update.steps if update else 0,
        loss=update.loss if update else None,
        seconds=round(update.seconds if update else reply.seconds, 3),
        bytes_down=reply.bytes_down,
        bytes_up=reply.bytes_up,
    )
    return update


def _is_due(job: Job, number: int) -> bool:
    every = job.evaluation.every
    return number == job.federation.rounds or (every > 0 and number % every == 0)


def _distance(a: Weights, b: Weights) -> float:
    """The Euclidean distance of two models."""
    differences = (np.ravel(a[name] - b[name]) for name in a)
    return float(np.sqrt(sum(float(np.dot(d, d)) for d in differences)))
