"""Which jobs this hospital has approved: one file a job in ``work/jobs``, named after the job's hash.

The hash is written out in full, because two jobs whose hashes only begin alike can be made on purpose.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from client.policy import Policy
from shared_models.enrolment import Document, Moment, Name, moment, read_document, write
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.keys import canonical_json
from shared_models.statistics import least_patients

State = Literal["waiting", "approved", "refused", "withdrawn"]
Counts = dict[str, Annotated[int, Field(ge=0)]]

BY_POLICY = "policy"
"""Who approves with `approve: automatic`."""

_LARGEST = 2**20  # bytes of a file
_SHORTEST_HASH = 4  # digits by which a job may be named
_BEFORE: dict[State, tuple[State, ...]] = {
    "approved": ("waiting", "refused", "withdrawn"),
    "refused": ("waiting",),
    "withdrawn": ("approved",),
}
"""What a job may be before a person decides so."""


class Approval(Document):
    """A job that was asked of this site, and what the hospital says to it."""

    schema_name: ClassVar[str] = "consilium-approval/1"

    job: dict[str, Any] = Field(description="The resolved job.")
    job_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str = Field(description="The job's.")
    run: str = Field(description="The run that asked last.", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$")
    federation: Name
    state: State
    first_seen: Moment
    decided: Moment | None = None
    by: str = ""
    why: str = ""
    patients: Counts = Field(description="Usable patients here by split.")
    cases: Counts

    @field_validator("by", "why")
    @classmethod
    def _one_line(cls, text: str) -> str:
        if len(text) > 500 or not text.isprintable():
            raise ValueError("expected one line of at most 500 characters")
        return text

    @model_validator(mode="after")
    def _of_one_piece(self) -> Approval:
        if hashlib.sha256(canonical_json(self.job).encode()).hexdigest() != self.job_hash:
            raise ValueError("the job is not the one that its hash stands for")
        if self.job.get("name") != self.name:
            raise ValueError("the name is not the job's")
        return self


def note_job(
    folder: Path,
    job: Job,
    *,
    run: str,
    federation: str,
    policy: Policy,
    patients: Mapping[str, int],
    cases: Mapping[str, int],
    now: datetime,
) -> Approval:
    """What the hospital says to a job that was asked of it; a new one is written down as waiting.

    With `approve: automatic` it is approved at once. What a person has decided stays, and an approval by the policy
    alone ends when the policy says `ask`. An approval is for one federation.

    Args:
        folder: ``work/jobs``.
        patients, cases: usable ones here by split.

    Raises:
        BadInput: the file of this job is damaged.
        OSError: the folder cannot be written to.
    """
    path = folder / f"{job.fingerprint()}.json"
    with _locked(folder):
        known = _read(path) if path.exists() else None
        if known is None or known.federation != federation:
            values: dict[str, Any] = {
                "job": job.model_dump(mode="json"),
                "job_hash": job.fingerprint(),
                "name": job.name,
                "federation": federation,
                "state": "waiting",
                "first_seen": moment(now),
            }
        else:
            values = known.model_dump()
        values |= {"run": run, "patients": dict(patients), "cases": dict(cases)}
        if values["state"] == "waiting" and policy.approve == "automatic":
            values |= {"state": "approved", "decided": moment(now), "by": BY_POLICY}
        elif values["state"] == "approved" and values["by"] == BY_POLICY and policy.approve == "ask":
            values |= {"state": "waiting", "decided": None, "by": ""}
        approval = _approval(values)
        if approval != known:
            if len(json.dumps(approval.content(), indent=2)) > _LARGEST:
                raise BadInput(f"the job {job.fingerprint()[:12]} is larger than any job needs to be; it is not noted")
            write(path, approval)
        return approval


def decide(
    folder: Path,
    which: str,
    state: State,
    *,
    by: str,
    why: str,
    now: datetime,
    record: Callable[[Approval], object],
) -> Approval:
    """Approve, refuse or withdraw a job.

    Args:
        which: the job's name, or the first digits of its hash.
        by: the person who decides.
        why: needed, except to approve; it stays here.
        record: writes the decision into the ledger; called before it takes effect, which it does not if this raises.

    Raises:
        BadInput: there is no such job or more than one, it is not in a state for this, or `by` or `why` is missing.
        OSError: the folder cannot be written to.
    """
    if not by.strip() or by == BY_POLICY:
        raise BadInput(f"a decision needs the name of the person who takes it, found {by!r}; give --by")
    if state != "approved" and not why.strip():
        raise BadInput("a decision against a job needs its reason; give --why")
    with _locked(folder):
        known = find(folder, which)
        if known.state not in _BEFORE.get(state, ()) and (known.state, known.by) != (state, BY_POLICY):
            hint = "; withdraw it instead" if (known.state, state) == ("approved", "refused") else ""
            already = " already" if known.state == state else f", and cannot be {state}"
            raise BadInput(f"the job {known.name} ({known.job_hash[:12]}) is {known.state}{already}{hint}")
        approval = _approval(known.model_dump() | {"state": state, "decided": moment(now), "by": by, "why": why})
        record(approval)
        write(folder / f"{approval.job_hash}.json", approval)
        return approval


def list_jobs(folder: Path) -> list[Approval]:
    """Every job that was asked of this site, the newest last. Raises BadInput that names a damaged file."""
    return sorted((_read(path) for path in folder.glob("*.json")), key=lambda job: (job.first_seen, job.job_hash))


def find(folder: Path, which: str) -> Approval:
    """The one job of this name, or whose hash begins with these digits (at least four).

    Raises:
        BadInput: there is none or more than one, or a file is damaged.
    """
    jobs = list_jobs(folder)
    by_hash = bool(re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_HASH},64}}", which))
    found = [job for job in jobs if job.name == which or (by_hash and job.job_hash.startswith(which))]
    if len(found) == 1:
        return found[0]
    if found:
        choices = ", ".join(f"{job.job_hash[:12]} ({job.state})" for job in found)
        raise BadInput(f"{len(found)} jobs are called {which!r}: {choices}; give the first digits of one's hash")
    raise BadInput(f"there is no job {which!r} here; `consilium site jobs` lists them, by name and hash")


def last_approved(folder: Path, job: Approval) -> Approval | None:
    """The job of the same name and federation, other than this one, that was approved last and still is."""
    others = [
        other
        for other in list_jobs(folder)
        if other.state == "approved"
        and (other.name, other.federation) == (job.name, job.federation)
        and other.job_hash != job.job_hash
    ]
    return max(others, key=lambda other: other.decided or "", default=None)


def job_of(approval: Approval) -> Job:
    """The job itself. Raises BadInput: this version of consilium does not know it."""
    try:
        return Job.model_validate(approval.job, strict=True)
    except ValidationError as error:
        raise BadInput(
            f"the job {approval.name} ({approval.job_hash[:12]}) was written for another version of consilium: "
            f"{len(error.errors())} of its keys are not as expected; it cannot run here"
        ) from None


def difference(job: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs from another job: key path, the value there, the value here; None for a key that is not there."""
    before, after = dict(_leaves(other)), dict(_leaves(job))
    paths = dict.fromkeys([*after, *before])
    # Compared as text, because in Python 1 is True and 1.0, and in a job they differ.
    return [
        (path, before.get(path), after.get(path))
        for path in paths
        if (path in before) != (path in after) or canonical_json(before[path]) != canonical_json(after[path])
    ]


def what_leaves(job: Job, policy: Policy, *, tensors: int, megabytes: float) -> list[str]:
    """In words, what would leave the hospital if this job ran; the rest stays.

    Args:
        tensors, megabytes: of the model that travels.
    """
    from shared_models.tasks import task_of  # imports torch
    from shared_models.weights import schema
    from shared_models.zoo import build

    algorithm, share = job.federation.algorithm, job.federation.share
    beside = list(algorithm.extra(schema(build(job), share)))
    metrics = dict.fromkeys(name.split("/")[0] for name in task_of(job).metric_info())
    every, rounds = job.evaluation.every, job.federation.rounds
    often = f"every {every} rounds" if every > 1 else "every round" if every else "after the last round"
    lines = [
        "before the first round: how many patients and cases there are by split and class, and how many were set "
        "aside, with the kind of reason",
        f"in each of {rounds} rounds: the model as trained here, {tensors} tensors, {megabytes:.3g} MB, and the "
        "numbers of cases, of steps and of seconds, and the training loss",
        f"{often}: sums over the validation patients behind {', '.join(metrics)}",
        f"at the end: the same sums over the test patients, and over {job.evaluation.bootstrap} random redraws of them",
    ]
    if beside:
        lines[1] += f"; and what {algorithm.name} needs beside it, {len(beside)} tensors such as {beside[0]}"
    if job.evaluation.subgroups:
        least = max(job.evaluation.subgroup_patients, policy.min_patients)
        lines.append(
            f"at the end: the same sums for groups of test patients, by {', '.join(sorted(job.evaluation.subgroups))} "
            f"of the manifest, none of fewer than {least} patients"
        )
    if job.federation.statistics:
        lines.insert(
            1,
            "then, for the preprocessing plan: how many training patients have which voxel size, image size and "
            f"class, none fewer than {least_patients(job, policy.min_patients)}, and the sum of their histograms of "
            "intensity. The planned job is another job, and is approved by itself",
        )
    if policy.local_baseline:
        lines.append(
            "once, if it is asked for: a model trained on this site's patients alone, and its metrics by round"
        )
    return lines


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key paths with their values; a list is one value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _approval(values: dict[str, Any]) -> Approval:
    """Raises BadInput where a text or a count is none that may be written down."""
    try:
        return Approval.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"a job cannot be written down: {where}: {first['msg']}") from None


def _read(path: Path) -> Approval:
    try:
        approval = read_document(path, Approval, _LARGEST)
        if path.name != f"{approval.job_hash}.json":
            raise BadInput(f"{path}: holds the job {approval.job_hash[:12]}, which its name does not say")
    except BadInput as error:
        raise BadInput(
            f"{error}\n{path} was damaged or edited; move it away, and the job waits for approval when it comes again"
        ) from None
    return approval


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time: the daemon notes jobs while people decide."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
