"""What this hospital allows. Everything is denied that the policy does not name, and a job cannot widen it.

A refusal says which rule, what was asked, what is allowed and what would pass. Its texts may go to the coordinator:
they hold numbers and names that were checked, never data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Literal

from pydantic import Field, field_validator

from shared_models.comparisons import VARIANTS
from shared_models.errors import ConsiliumError
from shared_models.job import Job
from shared_models.section import Section

QUESTIONS: dict[str, tuple[str, ...]] = {
    "query.prepare": (),
    "query.statistics": (),
    "train": ("round", "best_used", "last_used", "algorithm_since"),
    "train.alone": ("steps",),
    "evaluate": ("model", "split", "replicates", "round", "last_used", "variant"),
}
"""Every question that a coordinator may ask, with the fields of its order."""

_SPLITS = ("train", "validation", "test")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Protections(Section):
    """What a job has to do to the updates of this hospital. No job can offer any yet: requiring one refuses all."""

    clip: float | None = Field(None, gt=0, allow_inf_nan=False, description="Largest L2 norm of an update.")
    noise: float | None = Field(None, gt=0, allow_inf_nan=False, description="Least noise multiplier.")
    secure_aggregation: bool = Field(False, description="The coordinator sees sums over sites only.")


class Policy(Section):
    """The rules of one hospital; an empty list or a zero allows nothing."""

    coordinators: list[str] = Field(default_factory=list, description="Fingerprints of job-signing keys.")
    tasks: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)
    algorithms: list[str] = Field(default_factory=list)
    max_rounds: int = Field(0, ge=0)
    max_local_steps: int = Field(0, ge=0, description="Optimiser steps in one round.")
    max_hours_per_day: float = Field(0, ge=0, le=24, allow_inf_nan=False, description="Hours of computing.")
    min_patients: int = Field(10, ge=1, description="The least patients that a training or a metric may rest on.")
    metrics: list[str] = Field(default_factory=list, description="A name stands for its values by class, too.")
    local_baseline: bool = Field(False, description="May a model trained on this site alone leave?")
    statistics: bool = Field(False, description="May sums over this site's training images go into a plan?")
    protections: Protections = Protections()
    opening_hours: str | None = Field(None, description="Local time, such as 20:00-06:00; null is always.")
    approve: Literal["automatic", "ask"] = "ask"

    @field_validator("coordinators")
    @classmethod
    def _fingerprints(cls, values: list[str]) -> list[str]:
        for value in values:
            if not _FINGERPRINT.fullmatch(value):
                raise ValueError(
                    f"expected fingerprints such as SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU, found {value!r}"
                )
        return values

    @field_validator("tasks", "models", "algorithms", "metrics")
    @classmethod
    def _names(cls, values: list[str]) -> list[str]:
        for value in values:
            if not _NAME.fullmatch(value):
                raise ValueError(f"expected names of letters, digits, '_', '-' and '.', found {value!r}")
        return values

    @field_validator("opening_hours")
    @classmethod
    def _two_times(cls, value: str | None) -> str | None:
        if value is None:
            return None
        match = _HOURS.fullmatch(value)
        if not match or match[1] + match[2] == match[3] + match[4]:
            raise ValueError(
                f"expected two different times such as 20:00-06:00, found {value!r}; leave it out for always"
            )
        return value


@dataclass(frozen=True)
class Refusal:
    """One rule that says no; every text is short and made by us."""

    rule: str
    """Such as policy.max_rounds."""
    asked: str
    allowed: str
    remedy: str
    """What would pass."""

    def __str__(self) -> str:
        return f"{self.rule}: asked {self.asked}, allowed {self.allowed}; passes with {self.remedy}"


class Refused(ConsiliumError):
    """The hospital says no; one line per rule."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        super().__init__("\n".join(map(str, refusals)))
        self.refusals = list(refusals)


def steps_per_round(job: Job, train_cases: int) -> int:
    """Optimiser steps of a site with so many training cases in one round of a job."""
    return job.training.steps(train_cases) * job.federation.algorithm.trainings


def judge_coordinator(policy: Policy, fingerprint: str) -> list[Refusal]:
    """May whoever holds the job-signing key with this fingerprint ask anything at all?"""
    if fingerprint in policy.coordinators:
        return []
    asked = fingerprint if _FINGERPRINT.fullmatch(fingerprint) else "another key"
    allowed = f"{len(policy.coordinators)} other keys" if policy.coordinators else "none"
    return [Refusal("policy.coordinators", asked, allowed, "a policy that lists this fingerprint")]


def judge_job(policy: Policy, job: Job, *, patients: Mapping[str, int], cases: Mapping[str, int]) -> list[Refusal]:
    """Every rule that a job breaks; empty when it may run here.

    Args:
        patients: usable patients at this site by split (train, validation, test).
        cases: usable cases by split.
    """
    return [*_names_refused(policy, job), *_amounts_refused(policy, job, patients, cases), *_unprotected(policy)]


def judge_question(
    policy: Policy,
    job: Job,
    question: str,
    *,
    now: datetime,
    seconds_used_today: float,
    fields: Mapping[str, object],
    patients: Mapping[str, int],
) -> list[Refusal]:
    """Every rule that one question about an allowed job breaks.

    Args:
        question: one of QUESTIONS.
        now: in the hospital's local time.
        seconds_used_today: computing for coordinators since local midnight.
        fields: of the order, such as round.
        patients: usable patients at this site by split; not looked at for query.prepare, which counts them.
    """
    if question not in QUESTIONS:
        return [Refusal("order.question", "an unknown question", _list(list(QUESTIONS)), "one of these")]
    found = [*_time_refused(policy, now, seconds_used_today), *_fields_refused(policy, job, question, fields)]
    if question == "train.alone" and not policy.local_baseline:
        remedy = "a run without the local baseline or a wider policy"
        found.append(Refusal("policy.local_baseline", "training on this site alone", "no", remedy))
    if question == "query.statistics":
        found += _statistics_refused(policy, job)
    if question in ("train", "train.alone", "query.statistics"):
        found += _too_few(policy, "train", patients)
    elif question == "evaluate" and fields.get("split") in _SPLITS:
        found += _too_few(policy, str(fields["split"]), patients)
        if fields.get("variant") == "temperature" and fields["split"] != "validation":  # it is fitted on these
            found += _too_few(policy, "validation", patients)
    return found


def is_open(opening_hours: str | None, at: time) -> bool:
    """Is a local time within opening hours, the first minute included and the last not?"""
    if opening_hours is None:
        return True
    start, end = (time.fromisoformat(text) for text in opening_hours.split("-"))
    return start <= at < end if start < end else at >= start or at < end


def _names_refused(policy: Policy, job: Job) -> Iterator[Refusal]:
    from shared_models.tasks import task_of  # imports torch, and reading a policy should not

    algorithm = job.federation.algorithm.name
    for rule, asked, allowed, key in (
        ("tasks", job.task.kind, policy.tasks, "task.kind"),
        ("models", job.model.name, policy.models, "model.name"),
        ("algorithms", algorithm, policy.algorithms, "federation.algorithm.name"),
    ):
        if asked not in allowed:
            pass_with = f"{key} as one of {_list(allowed)} or a wider policy" if allowed else "a wider policy"
            name = asked if _NAME.fullmatch(asked) else "a name of another form"
            yield Refusal(f"policy.{rule}", name, _list(allowed), pass_with)
    measured = dict.fromkeys(name.split("/")[0] for name in task_of(job).metric_info())
    if missing := [name for name in measured if name not in policy.metrics]:
        # A task's metrics travel together, as sums: there is no job that sends fewer of them.
        yield Refusal("policy.metrics", _list(missing), _list(policy.metrics), f"a policy with {_list(missing)}")


def _amounts_refused(
    policy: Policy, job: Job, patients: Mapping[str, int], cases: Mapping[str, int]
) -> Iterator[Refusal]:
    rounds, steps = job.federation.rounds, steps_per_round(job, cases.get("train", 0))
    if rounds > policy.max_rounds:
        yield _too_many("policy.max_rounds", rounds, policy.max_rounds, "federation.rounds")
    most = {"training.local_steps": steps, **job.task.steps_to_judge}
    key = max(most, key=most.__getitem__)
    if most[key] > policy.max_local_steps:
        times = job.federation.algorithm.trainings if key == "training.local_steps" else 1
        yield _too_many("policy.max_local_steps", most[key], policy.max_local_steps, key, times)
    yield from _too_few(policy, "train", patients)


def _too_many(rule: str, asked: int, allowed: int, key: str, times: int = 1) -> Refusal:
    """A refusal of a number that is `times` what the job has under a key."""
    most = allowed // times
    remedy = f"{key} of at most {most} or a wider policy" if most else "a wider policy"
    return Refusal(rule, str(asked), str(allowed), remedy)


def _too_few(policy: Policy, split: str, patients: Mapping[str, int]) -> Iterator[Refusal]:
    have, least = patients.get(split, 0), policy.min_patients
    if have < least:
        remedy = f"{least} {split} patients here or a wider policy"
        yield Refusal("policy.min_patients", f"{have} {split} patients", f"at least {least}", remedy)


def _unprotected(policy: Policy) -> Iterator[Refusal]:
    required = policy.protections
    for name, wanted in (
        ("clip", f"at most {required.clip:g}" if required.clip else ""),
        ("noise", f"at least {required.noise:g}" if required.noise else ""),
        ("secure_aggregation", "required" if required.secure_aggregation else ""),
    ):
        if wanted:
            yield Refusal(f"policy.protections.{name}", "none", wanted, "a wider policy: no job can offer this yet")


def _statistics_refused(policy: Policy, job: Job) -> Iterator[Refusal]:
    if not policy.statistics:
        remedy = "a run without federation.statistics or a wider policy"
        yield Refusal("policy.statistics", "statistics of training images", "no", remedy)
    if job.federation.statistics is None:
        yield Refusal("order.question", "statistics", "none in this job", "a job with federation.statistics")


def _time_refused(policy: Policy, now: datetime, seconds_used_today: float) -> Iterator[Refusal]:
    if policy.opening_hours and not is_open(policy.opening_hours, now.time()):
        remedy = "asking within these hours, in the hospital's time"
        yield Refusal("policy.opening_hours", f"work at {now:%H:%M}", policy.opening_hours, remedy)
    # Written so that a number of hours that is none (NaN) is refused.
    if not seconds_used_today < policy.max_hours_per_day * 3600:
        used, most = f"work after {seconds_used_today / 3600:.1f} h today", f"{policy.max_hours_per_day:g} h a day"
        remedy = "asking again tomorrow or a wider policy" if policy.max_hours_per_day else "a wider policy"
        yield Refusal("policy.max_hours_per_day", used, most, remedy)


def _fields_refused(policy: Policy, job: Job, question: str, fields: Mapping[str, object]) -> Iterator[Refusal]:
    """Fields that the order lacks, that are too many, or that lead out of the job or the policy."""
    expected = QUESTIONS[question]
    if set(fields) != set(expected):
        yield Refusal("order.fields", f"{len(fields)} fields", _list(expected), "these fields and no other")
    steps, replicates = policy.max_local_steps, job.evaluation.bootstrap
    first = 1 if question == "train" else 0  # judged is also what is of no round, such as a baseline
    rounds = job.federation.rounds
    bounds = {
        "round": (first, rounds),
        "best_used": (0, rounds),
        "last_used": (0, rounds),
        "algorithm_since": (0, rounds),
        "steps": (0, steps),
        "replicates": (0, replicates),
    }
    for key, (low, high) in bounds.items():
        if key in fields and key in expected:
            value, allowed = fields[key], f"{low} to {high}"
            if type(value) is not int:
                yield Refusal(f"order.{key}", "no whole number", allowed, "a number within these")
            elif not low <= value <= high:
                asked = str(value) if abs(value) < 10**9 else "a number out of bounds"
                yield Refusal(f"order.{key}", asked, allowed, "a number within these")
    if "split" in expected and "split" in fields and fields["split"] not in _SPLITS:
        yield Refusal("order.split", "another split", _list(_SPLITS), "one of these")
    if "variant" in expected and "variant" in fields and fields["variant"] not in ("", *VARIANTS):
        yield Refusal("order.variant", "another variant", _list(list(VARIANTS)), "one of these")
    # It becomes part of a file's name at the site.
    if "model" in expected and "model" in fields and not _MODEL.fullmatch(str(fields["model"])):
        yield Refusal("order.model", "a name of another form", "letters, digits, '_', '.', ':', '-'", "such a name")


def _list(names: Sequence[str]) -> str:
    """Names for a sentence, at most eight of them."""
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"
