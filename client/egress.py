"""The door: the one function through which every reply of a hospital goes.

A reply is not checked and passed on; it is read into plain values, each is held against what this question of this job
may answer, and a new reply is written from them. So nothing can hide beside a value: no record, name, type, header or
text leaves that was not made here. Whatever is not declared stops the whole reply.

What it cannot stop: the values themselves. Trained weights, a loss or a metric sum that are of the right name, shape
and range leave, and can tell something of the patients they were made from; bootstrap replicates whose draws somebody
can repeat tell every patient's own terms, which is why a hospital draws from a secret. Nor does it stop code that runs
in the hospital's own process with intent: it guards against mistakes, and against what a job makes of installed code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, NoReturn

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.allowed import LARGEST_COUNT, RECORDS, Allowed, Shape
from client.data.manifest import SPLITS
from client.data.preflight import warnings_of
from client.policy import Refused
from shared_models import faults, subgroups
from shared_models.errors import BadInput, ConsiliumError
from shared_models.faults import QUARANTINE, Fault
from shared_models.job import Job
from shared_models.orders import BadOrder
from shared_models.statistics import least_patients, problem, table_shapes
from shared_models.tasks import task_of
from shared_models.tasks.sums import GRID
from shared_models.weights import from_record, to_record

_LARGEST_SUM = 2.0**40
_LARGEST_HEADER = 4096  # bytes before the values of a numpy array
_LARGEST_TEXT = 64 * 2**20  # bytes of a JSON text that is read; what leaves is far less


@dataclass(frozen=True)
class Leaving:
    """One tensor that left; the SHA-256 is over its values, C-ordered and little-endian."""

    record: str
    name: str
    dtype: str
    shape: Shape
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Released:
    """A reply that may be sent, and for the ledger everything that is in it."""

    content: RecordDict
    tensors: list[Leaving] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    """Everything that is no tensor, as plain JSON values."""


class Withheld(Fault):
    """A reply that stays here. Its text holds no part of what was found but sizes and counts."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(f"The answer was not sent: {text}.", "withheld", reason=reason)


def release(content: RecordDict, allowed: Allowed) -> Released:
    """A new reply, written from the values of this one.

    Tensors are taken out of `content` one by one, so that a large model is in memory once and not twice.

    Raises:
        Withheld: anything in it is not what the question may answer, or rests on too few patients.
    """
    if "fault" in content:
        return _fault(content, allowed)
    expected = RECORDS[allowed.question] if allowed.job else frozenset()
    if allowed.algorithm:
        expected |= {"algorithm"}
    found = set(content)
    if found != expected:
        missing, extra = ", ".join(sorted(expected - found)) or "none", len(found - expected)
        _withhold("record", f"it has {extra} records that are not for this question; missing: {missing}")
    assert allowed.job is not None
    if allowed.question != "prepare" and allowed.patients < allowed.min_patients:
        _too_few(allowed.patients, allowed.min_patients)
    if allowed.question == "prepare":
        return _prepared(_config(content, "prepared"), allowed, allowed.job)
    if allowed.question == "statistics":
        return _statistics(_arrays(content, "statistics"), allowed, allowed.job)
    if allowed.question == "evaluate":
        return _sums(_arrays(content, "sums"), allowed)
    numbers = _numbers(content["numbers"], allowed)
    curve = _curve(_config(content, "curve"), allowed.job) if allowed.question == "alone" else None
    record, tensors = _tensors(_arrays(content, "weights"), "weights", allowed.tensors, np.dtype("<f4"))
    released = RecordDict({"weights": record, "numbers": MetricRecord({**numbers})})
    if allowed.algorithm:
        beside = _tensors(_arrays(content, "algorithm"), "algorithm", allowed.algorithm, np.dtype("<f4"))
        released["algorithm"] = beside[0]
        tensors += beside[1]
    if curve is None:
        return Released(released, tensors, numbers)
    released["curve"] = ConfigRecord({"json": json.dumps(curve)})
    return Released(released, tensors, {**numbers, "curve": curve})


def fault_of(error: BaseException) -> tuple[str, dict[str, Any]]:
    """What may leave of an exception: a code of `shared_models.faults` and its parameters."""
    if isinstance(error, Fault):
        return error.code, error.parameters
    if isinstance(error, Refused):
        texts = [{key: getattr(r, key) for key in ("rule", "asked", "allowed", "remedy")} for r in error.refusals]
        return "policy", {"refusals": texts[: faults.MOST_REFUSALS]}
    if isinstance(error, BadOrder):
        return "order", {"reason": error.code}
    if isinstance(error, ConsiliumError):
        full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
        return ("disk" if full else "input"), {}
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory", {}
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "disk", {}
    if number is not None and number in errno.errorcode:
        return "system", {"errno": errno.errorcode[number]}
    return "error", {"name": faults.known_error(error)}


def fault_content(site: str, code: str, **parameters: Any) -> RecordDict:
    """A reply that says why there is none; it goes through `release` like every other. Raises BadInput."""
    return RecordDict(
        {"fault": ConfigRecord({**faults.fields(code, parameters)}), "prepared": ConfigRecord({"site": site})}
    )


def _withhold(reason: str, text: str) -> NoReturn:
    raise Withheld(reason, text)


def _too_few(patients: int, least: int) -> NoReturn:
    _withhold("few_patients", f"it rests on {patients} patients, where the policy asks for {least}")


def _fault(content: RecordDict, allowed: Allowed) -> Released:
    if not set(content) <= {"fault", "prepared"} or not set(content.get("prepared", {})) <= {"site"}:
        _withhold("record", "it has other records beside a fault")
    try:
        code, parameters = faults.parse(dict(_config(content, "fault")))
        record = faults.fields(code, parameters, allowed.words)
    except BadInput as error:
        _withhold("text", str(error).rstrip("."))
    fresh = RecordDict({"fault": ConfigRecord({**record}), "prepared": ConfigRecord({"site": allowed.site})})
    return Released(fresh, numbers={"fault": code, **parameters})


def _config(content: RecordDict, name: str) -> ConfigRecord:
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        _withhold("record", f"its record '{name}' is of another kind")
    return record


def _arrays(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        _withhold("record", f"its record '{name}' is of another kind")
    return record


def _tensors(
    record: ArrayRecord, record_name: str, expected: Mapping[str, Shape], dtype: np.dtype[Any]
) -> tuple[ArrayRecord, list[Leaving]]:
    """The record written anew: exactly the expected names and shapes, finite values of the dtype."""
    if set(record) != set(expected):
        extra, missing = len(set(record) - set(expected)), len(set(expected) - set(record))
        _withhold("tensor", f"'{record_name}' has {extra} tensors that are not declared and lacks {missing}")
    fresh, leaving = ArrayRecord(), []
    for name, shape in expected.items():
        entry = record.pop(name)
        size = math.prod(shape) * dtype.itemsize
        if len(entry.data) > size + _LARGEST_HEADER:
            _withhold("tensor", f"'{name}' has {len(entry.data)} bytes, where its shape {shape} has {size}")
        try:
            array = from_record(ArrayRecord({name: entry}))[name]
        except Exception:  # numpy's reader raises several kinds; none of their texts is worth the risk
            _withhold("tensor", f"'{name}' cannot be read as a numpy array")
        if array.shape != shape:
            _withhold("tensor", f"'{name}' has {array.ndim} axes and {array.size} values, expected the shape {shape}")
        if array.dtype != dtype:
            _withhold("tensor", f"'{name}' has another type than {dtype.name}")
        if not np.isfinite(array).all():
            _withhold("value", f"'{name}' has values that are NaN or infinite")
        fresh.update(to_record({name: array}))  # with a header of its own
        digest = hashlib.sha256(array.data).hexdigest()
        leaving.append(Leaving(record_name, name, dtype.name, shape, size, digest))
    return fresh, leaving


def _sums(record: ArrayRecord, allowed: Allowed) -> Released:
    expected = {name: (allowed.rows, *shape) for name, shape in allowed.sums.items()} | {**allowed.groups}
    fresh, leaving = _tensors(record, "sums", expected, np.dtype("<f8"))
    values = from_record(fresh)
    for name, array in values.items():  # every term of a sum lies on this grid; finer digits are not of a metric
        if np.abs(array).max() > _LARGEST_SUM or not np.array_equal(array, np.round(array / GRID) * GRID):
            _withhold("value", f"the sum '{name}' has values that no sum over cases has")
    counts = {name: float(values[name][0]) for name in ("cases", "patients")}
    if counts["patients"] < allowed.min_patients:
        _too_few(int(counts["patients"]), allowed.min_patients)
    if allowed.groups:
        _check_groups({name: values[name] for name in allowed.groups}, allowed)
    return Released(RecordDict({"sums": fresh}), leaving, counts)


def _check_groups(sums: Mapping[str, np.ndarray], allowed: Allowed) -> None:
    """Every group is of enough patients, or nothing is told of it."""
    for group, patients in enumerate(sums[f"{subgroups.PREFIX}patients"][0]):
        told = any(array[:, group].any() for array in sums.values())
        if told and patients < allowed.min_patients:
            _too_few(int(patients), allowed.min_patients)


def _statistics(record: ArrayRecord, allowed: Allowed, job: Job) -> Released:
    """The tables of `shared_models.statistics`: whole numbers, and no count of too few patients."""
    fresh, leaving = _tensors(record, "statistics", table_shapes(job), np.dtype("<f8"))
    tables = from_record(fresh)
    if wrong := problem(tables, job, least_patients(job, allowed.min_patients)):
        _withhold("value", wrong)
    counts = {name: float(tables[name][0]) for name in ("patients", "suppressed")}
    if counts["patients"] != allowed.patients:
        _withhold("value", f"it says {counts['patients']:g} training patients, where there are {allowed.patients}")
    return Released(RecordDict({"statistics": fresh}), leaving, counts)


def _numbers(record: object, allowed: Allowed) -> dict[str, int | float]:
    if not isinstance(record, MetricRecord):
        _withhold("record", "its record 'numbers' is of another kind")
    if set(record) != set(allowed.numbers):
        extra, missing = len(set(record) - set(allowed.numbers)), sorted(set(allowed.numbers) - set(record))
        _withhold("number", f"it has {extra} numbers that are not declared; missing: {', '.join(missing) or 'none'}")
    return {name: _number(record[name], name, *bounds) for name, bounds in allowed.numbers.items()}


def _number(value: object, name: str, kind: type, low: float, high: float) -> int | float:
    """A plain int or float; `low <= value` is false for NaN."""
    right_kind = type(value) is int or (kind is float and isinstance(value, float))
    if not right_kind or not isinstance(value, int | float) or not low <= value <= high:
        _withhold("number", f"'{name}' is no {kind.__name__} from {low:g} to {high:g}")
    return kind(value)


def _json(record: ConfigRecord, key: str) -> Any:
    text = record.get(key)
    if not isinstance(text, str) or len(text) > _LARGEST_TEXT:
        _withhold("text", f"its '{key}' is no text of at most {_LARGEST_TEXT} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        _withhold("text", f"its '{key}' is not JSON")


def _curve(record: ConfigRecord, job: Job) -> list[dict[str, Any]]:
    """The validation metrics round by round: [{"round": n, "metrics": {name: value or None}}]."""
    points, names = _json(record, "json"), task_of(job).metric_info().keys()
    if set(record) != {"json"} or not isinstance(points, list) or len(points) > job.federation.rounds:
        _withhold("record", f"its curve is no list of at most {job.federation.rounds} rounds")
    curve: list[dict[str, Any]] = []
    for point in points:
        if not isinstance(point, dict) or set(point) != {"round", "metrics"} or not isinstance(point["metrics"], dict):
            _withhold("record", "a point of its curve is no round with its metrics")
        last = curve[-1]["round"] if curve else 0
        number = _number(point["round"], "round", int, last + 1, job.federation.rounds)
        if set(point["metrics"]) != names:
            _withhold("number", "a point of its curve has other metrics than the task")
        values = [(name, point["metrics"][name]) for name in names]
        metrics = {n: None if v is None else _number(v, n, float, -1e12, 1e12) for n, v in values}
        curve.append({"round": number, "metrics": metrics})
    return curve


def _prepared(record: ConfigRecord, allowed: Allowed, job: Job) -> Released:
    """Counts, and categories of what was set aside. Case ids, sentences and the site's own words stay."""
    if not set(record) <= {"site", "version", "summary"}:
        _withhold("record", "'prepared' has other entries than site, version and summary")
    found = _json(record, "summary")
    keys = {"cases", "patients", "classes", "quarantined", "duplicates", "warnings"}
    if not isinstance(found, dict) or set(found) != keys:
        _withhold("record", f"the summary has other entries than {', '.join(sorted(keys))}")
    cases, patients = (_counts(found[name], SPLITS, name) for name in ("cases", "patients"))
    by_split = found["classes"]
    if not isinstance(by_split, dict) or set(by_split) != set(SPLITS):
        _withhold("number", "'classes' has other splits than train, validation and test")
    classes = {split: _class_counts(by_split[split], job) for split in SPLITS}
    duplicates = int(_number(found["duplicates"], "duplicates", int, 0, LARGEST_COUNT))
    summary = {
        "cases": cases,
        "patients": patients,
        "classes": classes,
        "quarantined": _quarantined(found["quarantined"], allowed.categories),
        "duplicates": duplicates,
        "warnings": warnings_of({"train": {"cases": cases["train"]}}, classes, duplicates, job),
    }
    fresh = ConfigRecord({"site": allowed.site, "version": version("consilium"), "summary": json.dumps(summary)})
    return Released(RecordDict({"prepared": fresh}), numbers=summary)


def _class_counts(value: object, job: Job) -> dict[str, int]:
    """One for every class of the job; with data.annotated, those that no case annotates may be missing."""
    names = job.task.classes
    if job.data.annotated and isinstance(value, dict):
        names = [name for name in names if name in value]
    return _counts(value, names, "classes")


def _counts(value: object, names: Collection[str], what: str) -> dict[str, int]:
    if not isinstance(value, dict) or set(value) != set(names):
        _withhold("number", f"'{what}' has other names than {', '.join(dict.fromkeys(names))}")
    return {name: int(_number(value[name], what, int, 0, LARGEST_COUNT)) for name in dict.fromkeys(names)}


def _quarantined(value: object, categories: Mapping[str, str]) -> dict[str, str]:
    """Numbered instead of named, and in the order of the categories, so that the order of the cases tells nothing."""
    if not isinstance(value, dict):
        _withhold("record", "'quarantined' is no reason by case")
    found = sorted(categories.get(case, "other") for case in value)
    return {f"case-{number}": QUARANTINE[category] for number, category in enumerate(found, start=1)}
