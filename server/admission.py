"""Is this update fit to be summed? Whatever a site sends is checked here, before it touches the sum."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from server.aggregation import BLOCK
from shared_models.algorithms.algorithm import Sent
from shared_models.errors import BadInput
from shared_models.faults import UNREADABLE, WORKER_DIED, read_fault
from shared_models.job import Job
from shared_models.weights import Weights, from_record, mismatch

_LONGEST_SENTENCE = 2000  # characters
_LONGEST_REASON = 300  # characters, of what is wrong with an update

LARGEST_MOVE = 10.0
"""How far an update may lie from the global model that it began with, in lengths of that model (at least 1).

Honest training moves a model by some hundredths of its length in a round, and by its whole length where it diverges. A
site that means harm can do it within this bound, as within any; what is beyond it is broken, and would be the model.
"""

LARGEST_STATISTIC = 1e12
"""Of what no training steps: running statistics, which follow the scale of the images, and an algorithm's own."""

# Flower's error codes. The reason that comes with one may hold an exception's text with a path or a name in it, so it
# is not shown.
_TRANSPORT = {
    0: "Flower gave no reason",
    1: "its app could not be started",
    2: "its app failed: the site's log says why",
    3: "the message was no longer there when the site asked for it",
    4: "its reply was lost, or did not arrive whole",
    5: "it is not connected, and did not answer in time",
    6: "its app refused the message before it was read",
    7: "Flower could not use the app bundle",
    8: "its worker process died",
}


class Rejected(Exception):
    """An update that is left out, and why: in a short sentence without control characters, whatever the site sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(shown(reason, _LONGEST_REASON))


class SiteFault(Exception):
    """A site that answered that it cannot do its part, in its own sentence."""


@dataclass
class Update:
    """One site's admitted contribution."""

    tensors: Weights
    extra: Weights
    """What the algorithm sends beside the model."""
    weight: int
    cases: int
    skipped: int
    steps: int
    loss: float
    seconds: float
    went_on_from: int
    """Behind this round it had kept at home what it went on with; 0 where it began anew."""


def fault_of(reply: Message) -> str | None:
    """The reason a reply carries no result; None if it does.

    The sentence is made here, from Flower's error code or from the fault code of a hospital; only a virtual hospital of
    a simulation sends one of its own, which is shown without control characters.
    """
    if reply.has_error():
        if reply.error.reason in (WORKER_DIED, UNREADABLE):
            return str(reply.error.reason)
        return _TRANSPORT.get(reply.error.code, "Flower gave an error of an unknown kind")
    fault = reply.content.get("fault")
    if fault is None:
        return None
    if not isinstance(fault, ConfigRecord):
        return "it gave no reason"
    if set(fault) != {"sentence"}:
        return read_fault(dict(fault))
    return shown(str(fault["sentence"]), _LONGEST_SENTENCE)


def shown(text: str, longest: int) -> str:
    """A site's words, cut off, and without what could move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text[:longest])


def admit(
    reply: Message, expected: Mapping[str, tuple[int, ...]], extra: Mapping[str, tuple[int, ...]] | None = None
) -> Update:
    """The update in a reply to a train message, checked.

    Args:
        expected: names and shapes of the float32 tensors that travel.
        extra: of those that the algorithm sends beside them.

    Raises:
        SiteFault: the site, or the transport, says that there is no update.
        Rejected: names, shapes, dtypes, a number or a value is not what it must be.
    """
    fault = fault_of(reply)
    if fault == UNREADABLE:
        raise Rejected(fault)
    if fault:
        raise SiteFault(fault)
    record, numbers = reply.content.get("weights"), reply.content.get("numbers")
    if not isinstance(record, ArrayRecord) or not isinstance(numbers, MetricRecord):
        raise Rejected("the reply has no records 'weights' and 'numbers'")
    beside = reply.content.get("algorithm")
    if extra and not isinstance(beside, ArrayRecord):
        raise Rejected("the reply has no record 'algorithm'")
    weight, cases = _count(numbers, "weight"), _count(numbers, "cases")
    if weight < 1:
        raise Rejected(f"its weight is {weight}, expected at least 1")
    if cases < 1:
        raise Rejected(f"it was trained on {cases} cases, expected at least 1")
    return Update(
        tensors=admit_tensors(record, expected),
        extra=_admit_extra(beside, extra) if extra and isinstance(beside, ArrayRecord) else {},
        weight=weight,
        cases=cases,
        skipped=_count(numbers, "skipped"),
        steps=_count(numbers, "steps"),
        loss=_finite(numbers, "loss"),
        seconds=_finite(numbers, "seconds"),
        went_on_from=_count(numbers, "went_on_from"),
    )


def admit_tensors(record: ArrayRecord, expected: Mapping[str, tuple[int, ...]]) -> Weights:
    """The tensors of a record: exactly the expected names and shapes, float32, finite.

    Raises:
        Rejected: they are not.
    """
    try:
        arrays = from_record(record)
    except BadInput as error:
        raise Rejected(str(error)) from None
    problem = mismatch(expected, {name: array.shape for name, array in arrays.items()})
    if problem:
        raise Rejected(problem)
    tensors: Weights = {}
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise Rejected(f"'{name}' has dtype {array.dtype}, expected float32")
        # A float64 sum of float32 values cannot overflow: it is finite exactly when every value is.
        if not math.isfinite(array.sum(dtype=np.float64)):
            raise Rejected(f"'{name}' has values that are NaN or infinite")
        tensors[name] = array.astype(np.float32, copy=False)
    return tensors


def _admit_extra(record: ArrayRecord, expected: Mapping[str, tuple[int, ...]]) -> Weights:
    tensors = admit_tensors(record, expected)
    for name, tensor in tensors.items():
        largest = float(np.abs(tensor).max(initial=0))
        if largest > LARGEST_STATISTIC:
            raise Rejected(f"'{name}' has values up to {largest:.1e}, expected at most {LARGEST_STATISTIC:g}")
    return tensors


def check_weight(update: Update, cases: int, job: Job) -> None:
    """Whether an update counts as much as the job says, and no more than the site has cases for.

    Args:
        cases: training cases that the site has said to have before the first round.

    Raises:
        Rejected: it claims more.
    """
    if update.cases > cases:
        raise Rejected(f"it was trained on {update.cases} cases, where the site has {cases}")
    expected = update.cases if job.federation.weighting == "cases" else 1
    if update.weight != expected and not job.federation.algorithm.weighs_itself:
        raise Rejected(f"its weight is {update.weight}, expected {expected}")


def check_went_on(update: Update, last_used: int) -> None:
    """Whether what a site kept at home can be of the round that it says; an earlier one is that of a loss.

    Raises:
        Rejected: it is of a round behind which its update has not counted.
    """
    if update.went_on_from > last_used:
        raise Rejected(f"it went on from round {update.went_on_from}, where its last one that counts is {last_used}")


def check_algorithm(update: Update, moved: float, job: Job, number: int) -> None:
    """Whether what an update has beside the model can have come from the job's algorithm.

    Args:
        moved: how far it moves the model, from `check_move`.
        number: of the round.

    Raises:
        Rejected: it cannot.
    """
    rate = job.learning_rate(number)
    sent = Sent(update.cases, update.steps, update.weight, moved, update.extra, rate)
    if problem := job.federation.algorithm.misfit(job, sent):
        raise Rejected(problem)


def check_move(tensors: Weights, current: Weights, trainable: Collection[str]) -> float:
    """Whether an admitted update is a step from the model that it began with, and not the end of it; how long it is.

    Args:
        tensors, current: the update and the global model that it began with, as they travel.
        trainable: names of the tensors that are trained; the others are running statistics.

    Raises:
        Rejected: it is too far away for a training to have made it.
    """
    moved = length = 0.0
    for name, tensor in tensors.items():
        if name not in trainable:
            largest = float(np.abs(tensor).max(initial=0))
            if largest > LARGEST_STATISTIC:
                raise Rejected(f"'{name}' has values up to {largest:.1e}, expected at most {LARGEST_STATISTIC:g}")
            if name.endswith("running_var") and tensor.min(initial=0) < 0:
                raise Rejected(f"'{name}' is a variance and has values below 0")
            continue
        ours, theirs = current[name].reshape(-1), tensor.reshape(-1)
        for start in range(0, ours.size, BLOCK):
            before = ours[start : start + BLOCK].astype(np.float64)
            step = theirs[start : start + BLOCK] - before
            moved += float(np.dot(step, step))
            length += float(np.dot(before, before))
    distance, most = math.sqrt(moved), LARGEST_MOVE * max(math.sqrt(length), 1.0)
    if distance > most:
        raise Rejected(
            f"its training diverged, or the update is broken: it moves the model by {distance:.1e}, where {most:.1e} "
            "is the most that is taken for training; if several sites diverge, lower training.optimizer.learning_rate"
        )
    return distance


def _finite(numbers: MetricRecord, name: str) -> float:
    value = numbers.get(name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Rejected(f"its number '{name}' is {value!r}, expected a finite number")
    return float(value)


def _count(numbers: MetricRecord, name: str) -> int:
    value = numbers.get(name)
    # Above 2**29 a count times a float32 is no longer exact in float64.
    if not isinstance(value, int) or not 0 <= value < 2**29:
        raise Rejected(f"its number '{name}' is {value!r}, expected a count")
    return value
