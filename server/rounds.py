"""The round, top to bottom: draw, ask, admit and fold each update as it arrives, step, validate, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import MessageType, RecordDict
from flwr.serverapp import Grid

from server import optimizers
from server.admission import Rejected, SiteFault, Update, admit, check_move
from server.aggregation import BLOCK, RunningSum
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog
from server.judgement import validate
from server.participation import NOT_CONNECTED, Reply, Site, ask, draw, instruction, quorum
from shared_models.algorithms import algorithm_of
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
    """All rounds from the state's next one to the last.

    Args:
        gather: called before each attempt at a round with the number of sites that it needs; waits for them.

    Raises:
        RunStopped: a round stayed below its quorum after every retry, or `gather` waited in vain; what was done so
            far is kept.
    """
    while state.round < job.federation.rounds:
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
    number, began = state.round + 1, time.monotonic()
    record = to_record(state.weights)
    state.weights = from_record(record)  # views of the record: one copy of the model is held, not two
    for attempt in range(job.federation.retries + 1):
        # Before every attempt: a round that lost a site is not tried again in vain until the site is back.
        gather(quorum(job, min(len(sites), job.federation.sites_per_round or len(sites))))
        drawn = draw(job, list(sites), number, attempt)
        events.emit("round_started", round=number, attempt=attempt, sites=drawn)
        content = RecordDict({"instruction": instruction(job, round=number), "weights": record})
        total, loss = _gather(grid, [sites[name] for name in drawn], content, job, tensors, (number, attempt), events)
        needed = quorum(job, len(drawn))
        if total.sites >= needed:
            break
        reason = f"{total.sites} of {len(drawn)} sites gave an update, {needed} are needed"
        events.emit("round_retried", round=number, attempt=attempt, reason=reason)
    else:
        raise RunStopped(
            f"round {number} stayed below its quorum after {attempt + 1} attempts: {reason}; "
            "everything up to the round before it is kept: mend the sites, then resume the run"
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


def _gather(
    grid: Grid,
    drawn: Sequence[Site],
    content: RecordDict,
    job: Job,
    tensors: list[TensorInfo],
    place: tuple[int, int],
    events: EventLog,
) -> tuple[RunningSum, float]:
    """Asks the sites and folds each update as it arrives: their sum, and the sum of their weighted losses.

    Args:
        place: the round and the attempt, for the record.
    """
    current = from_record(content.array_records["weights"])
    total, loss = RunningSum(), 0.0
    # The largest first: where sites share a machine, the round ends sooner.
    order = sorted(drawn, key=lambda site: -site.cases["train"])
    requests = {site.name: (site.node, content) for site in order}
    for reply in ask(grid, requests, MessageType.TRAIN, job.federation.deadline_seconds):
        update = _admitted(reply, tensors, current, place, events)
        if update:
            total.add(update.tensors, update.weight)
            loss += update.loss * update.weight
        del reply, update  # or a model stays in memory until the next site answers
    return total, loss


def _admitted(
    reply: Reply, tensors: Sequence[TensorInfo], current: Weights, place: tuple[int, int], events: EventLog
) -> Update | None:
    """The update in a reply if it is fit to be summed; either way, what became of it goes on record."""
    update, status, reason = None, "used", None
    try:
        if reply.message is None and reply.why == NOT_CONNECTED:
            raise SiteFault(NOT_CONNECTED)
        if reply.message is None:
            raise TimeoutError(reply.why)
        update = admit(reply.message, {t.name: t.shape for t in tensors if t.travels})
        check_move(update.tensors, current, {t.name for t in tensors if t.trainable})
    except TimeoutError as error:
        status, reason = "late", str(error)
    except SiteFault as error:
        status, reason = "failed", str(error)
    except Rejected as error:
        update, status, reason = None, "rejected", str(error)
    events.emit(
        "site_replied",
        round=place[0],
        attempt=place[1],
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
    """The Euclidean distance of two models, block by block, without a third model in memory."""
    squares = 0.0
    for name in a:
        ours, theirs = a[name].reshape(-1), b[name].reshape(-1)
        for start in range(0, ours.size, BLOCK):
            difference = ours[start : start + BLOCK] - theirs[start : start + BLOCK]
            squares += float(np.dot(difference, difference))
    return math.sqrt(squares)
