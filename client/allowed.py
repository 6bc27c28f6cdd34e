"""What the answer to a question of a job may hold: the declaration that `client.egress` holds every reply against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from client.policy import Policy
from shared_models import subgroups
from shared_models.job import Job
from shared_models.tasks import task_of

Question = Literal["prepare", "statistics", "train", "alone", "evaluate"]
Shape = tuple[int, ...]

LARGEST_COUNT = 2**29 - 1
NUMBERS: dict[str, dict[str, tuple[type, float, float]]] = {
    "train": {
        "weight": (int, 1, LARGEST_COUNT),
        "cases": (int, 1, LARGEST_COUNT),
        "skipped": (int, 0, LARGEST_COUNT),
        "steps": (int, 1, LARGEST_COUNT),
        "loss": (float, -1e12, 1e12),
        "seconds": (float, 0, 1e8),
        "went_on_from": (int, 0, LARGEST_COUNT),
    },
    "alone": {"steps": (int, 1, LARGEST_COUNT), "seconds": (float, 0, 1e8), "best_round": (int, 1, LARGEST_COUNT)},
}
RECORDS: dict[Question, frozenset[str]] = {
    "prepare": frozenset({"prepared"}),
    "statistics": frozenset({"statistics"}),
    "train": frozenset({"weights", "numbers"}),
    "alone": frozenset({"weights", "numbers", "curve"}),
    "evaluate": frozenset({"sums"}),
}


@dataclass(frozen=True)
class Allowed:
    """What the answer to one question may hold, beside a fault."""

    question: Question
    site: str
    job: Job | None
    """None while there is no job that the hospital trusts: then nothing but a fault may leave."""
    tensors: Mapping[str, Shape] = field(default_factory=dict)
    """float32, by name, in the order of the model."""
    algorithm: Mapping[str, Shape] = field(default_factory=dict)
    """float32, by name: what the algorithm sends beside the model."""
    sums: Mapping[str, Shape] = field(default_factory=dict)
    """float64, by name: the shape behind the axis of replicates."""
    rows: int = 0
    """Replicates and the data as they are."""
    groups: Mapping[str, Shape] = field(default_factory=dict)
    """float64, by name: the whole shape of sums by group of patients, see `shared_models.subgroups`."""
    numbers: Mapping[str, tuple[type, float, float]] = field(default_factory=dict)
    """By name: int or float, smallest, largest."""
    min_patients: int = 1
    patients: int = 0
    """Patients that the answer rests on."""
    categories: Mapping[str, str] = field(default_factory=dict)
    """Why each case was set aside, as a key of QUARANTINE, by case id."""
    words: frozenset[str] = frozenset()
    """Names that a refusal may hold: those of the job and of the policy."""


def allowed_for(
    job: Job | None,
    question: Question,
    *,
    site: str,
    policy: Policy,
    shapes: Mapping[str, Shape] | None = None,
    algorithm: Mapping[str, Shape] | None = None,
    patients: Mapping[str, int] | None = None,
    categories: Mapping[str, str] | None = None,
    replicates: int = 0,
    split: str = "",
    model: str = "",
) -> Allowed:
    """What a question of a job may answer.

    Args:
        job: None allows nothing but a fault.
        site: the name that the hospital is configured with.
        shapes: of the tensors that travel, by name, in the order of the model; for train and alone.
        algorithm: of the tensors that the algorithm sends beside them; for train.
        patients: usable patients by split.
        categories: of preflight's report, by case id; for prepare. A case that is not in it leaves as "other".
        replicates: that an evaluation was asked for.
        split: that an evaluation was asked for.
        model: that an evaluation was asked for.
    """
    words = _words(policy.model_dump(mode="json"))
    if job is None:
        return Allowed(question, site, None, min_patients=policy.min_patients, words=words)
    words |= _words(job.model_dump(mode="json")) | frozenset(task_of(job).metric_info())
    sums: dict[str, Shape] = {}
    groups: Mapping[str, Shape] = {}
    behind, have = 0, patients or {}
    if question == "evaluate":
        sums = {name: values.shape[1:] for name, values in task_of(job).sums([], np.zeros((1, 0))).items()}
        groups = subgroups.shapes(job, site, model, split, replicates)
        behind = have.get(split, 0)
    elif question in ("train", "statistics"):
        behind = have.get("train", 0)
    elif question == "alone":
        # Its curve rests on the validation patients, where there are any.
        behind = min(have.get("train", 0), have.get("validation", 0) or have.get("train", 0))
    return Allowed(
        question,
        site,
        job,
        tensors=dict(shapes or {}) if question in ("train", "alone") else {},
        algorithm=dict(algorithm or {}) if question == "train" else {},
        sums=sums,
        rows=replicates + 1,
        groups=groups,
        numbers=NUMBERS.get(question, {}),
        min_patients=policy.min_patients,
        patients=behind,
        categories=dict(categories or {}),
        words=words,
    )


def _words(value: Any) -> frozenset[str]:
    """Every text in a job or a policy."""
    if isinstance(value, str):
        return frozenset({value})
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return frozenset(word for child in children for word in _words(child))
