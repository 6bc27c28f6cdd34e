"""Is this update fit to be summed? Whatever a site sends is checked here, before it touches the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from shared_models.errors import BadInput
from shared_models.weights import Weights, from_record, mismatch


class Rejected(Exception):
    """An update that is left out, and why."""


class SiteFault(Exception):
    """A site that answered that it cannot do its part, in its own sentence."""


@dataclass
class Update:
    """One site's admitted contribution."""

    tensors: Weights
    weight: int
    cases: int
    skipped: int
    steps: int
    loss: float
    seconds: float


def fault_of(reply: Message) -> str | None:
    """The reason a reply carries no result: an error of the transport, or the site's own sentence; None if it does."""
    if reply.has_error():
        return reply.error.reason or f"transport error {reply.error.code}"
    fault = reply.content.get("fault")
    if isinstance(fault, ConfigRecord):
        return str(fault.get("sentence", "the site gave no reason"))
    return None


def admit(reply: Message, expected: Mapping[str, tuple[int, ...]]) -> Update:
    """The update in a reply to a train message, checked.

    Args:
        expected: names and shapes of the float32 tensors that travel.

    Raises:
        SiteFault: the site, or the transport, says that there is no update.
        Rejected: names, shapes, dtypes, a number or a value is not what it must be.
    """
    fault = fault_of(reply)
    if fault:
        raise SiteFault(fault)
    record, numbers = reply.content.get("weights"), reply.content.get("numbers")
    if not isinstance(record, ArrayRecord) or not isinstance(numbers, MetricRecord):
        raise Rejected("the reply has no records 'weights' and 'numbers'")
    weight = _count(numbers, "weight")
    if weight < 1:
        raise Rejected(f"its weight is {weight}, expected at least 1")
    return Update(
        tensors=admit_tensors(record, expected),
        weight=weight,
        cases=_count(numbers, "cases"),
        skipped=_count(numbers, "skipped"),
        steps=_count(numbers, "steps"),
        loss=_finite(numbers, "loss"),
        seconds=_finite(numbers, "seconds"),
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
