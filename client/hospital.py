"""A real hospital's side of every question: whose order is it, does the hospital allow it, and what of it leaves.

In this order, and a step that says no ends the question: the order's signature and addressee, the coordinator, the
policy, the approval of a person, the work itself, the policy again on how many patients it rested on, the door, the
ledger. Only then is there a reply.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Message, RecordDict
from pydantic import ValidationError

from client.allowed import Allowed, Question, allowed_for
from client.approvals import note_job
from client.config import SiteConfig
from client.data.manifest import SPLITS
from client.egress import Released, Withheld, fault_content, fault_of, release
from client.ledger import Ledger
from client.policy import Refused, judge_coordinator, judge_job, judge_question
from client.site import Site
from client.warm import data_of, forget_data, job_of
from shared_models import faults
from shared_models.enrolment import Kit
from shared_models.errors import BadInput, ConsiliumError
from shared_models.faults import Fault
from shared_models.files import whole_file
from shared_models.flower_runtime import Bundle
from shared_models.job import Job
from shared_models.job_file import check_meaning
from shared_models.keys import PrivateKey, key_fingerprint
from shared_models.orders import BadOrder, Order, check_order, open_order
from shared_models.weights import EVERYTHING, schema
from shared_models.zoo import build

Answer = Callable[[Site, Job, RecordDict], RecordDict]

MESSAGES: dict[Question, str] = {
    "prepare": "query.prepare",
    "statistics": "query.statistics",
    "train": "train",
    "alone": "train.alone",
    "evaluate": "evaluate",
}
"""The type of Flower's message that carries a question."""

PASSING = ("waiting", "closed")
"""Faults that a coordinator waits for the end of, by asking again."""

MANY = 10**9


@dataclass
class Hospital:
    """What one site is, trusts and allows; lives as long as its worker."""

    config: SiteConfig
    kit: Kit
    key: PrivateKey
    log: logging.Logger

    def __post_init__(self) -> None:
        config = self.config
        self.ledger = Ledger(config.work / "ledger.jsonl", self.key, config.site)
        self.version = version("consilium")
        self._used = _Nonces(config.work / "orders.json")
        self._clock = _DayClock(config.work / "hours.json")
        self._bundles: set[int] = set()
        self._passing: tuple[dict[str, Any], str] | None = None
        self._site = Site(
            name=config.site,
            manifest=config.manifest,
            folder=config.work,
            cache=config.work / "cache",
            device=config.device,
            cache_bytes=int(config.cache_gb * 2**30),
            data_root=config.data_root,
            secret=_digest(self.key),
            min_patients=config.policy.min_patients,
        )

    def answer(self, message: Message, question: Question, answer: Answer) -> RecordDict:
        """The content of the reply to one message; whatever happens, it went through the door."""
        order: Order | None = None
        job: Job | None = None
        began = time.monotonic()
        try:
            order = self._order(message, question)
            job = _checked(str(message.content.config_records["instruction"]["job"]))
            patients = self._permission(order, job, question)
            site = replace(self._site, own=self.config.work / "own" / order.run)
            content = answer(site, job, message.content)
            allowed = self._allowed(order, job, question, patients)
            released = release(content, allowed)
            seconds = round(time.monotonic() - began, 3)
            self.ledger.append("answer", **self._facts(order, job, question, patients, released, seconds))
            if question == "evaluate" and (order.fields["model"], order.fields["split"]) == ("federated", "test"):
                self._own_report(order, job)
            return released.content
        except Exception as error:
            return self._refusal(error, order, job, question)
        finally:
            if question != "prepare":
                # A clock that cannot be written is no reason to lose the reply; one that cannot be read refuses all.
                with suppress(OSError, ConsiliumError):
                    self._clock.add(time.monotonic() - began)

    def refuse(self, code: str, **parameters: Any) -> RecordDict:
        """The reply of a site that cannot come to the question at all."""
        allowed = allowed_for(None, "prepare", site=self.config.site, policy=self.config.policy)
        return release(fault_content(self.config.site, code, **parameters), allowed).content

    def note_bundle(self, flower_run: int, bundle: Bundle) -> None:
        """Writes down, once for a run, that the coordinator sent an app bundle and that it was not opened."""
        if flower_run in self._bundles:
            return
        try:
            self.ledger.append("bundle_ignored", flower_run=str(flower_run), sha256=bundle.sha256, bytes=bundle.size)
        except ConsiliumError as error:  # the question still gets its answer, which will be that nothing can leave
            self.log.info("%s", error)
        else:
            self._bundles.add(flower_run)

    # --- may it be done? ---

    def _order(self, message: Message, question: Question) -> Order:
        instruction = message.content.config_records.get("instruction")
        if instruction is None:
            raise BadOrder("unsigned", "the message has no instruction")
        order = open_order(instruction.get("order"), instruction.get("signature"), [self.kit.signing_key])
        fields = {key: value for key, value in instruction.items() if key not in ("job", "order", "signature")}
        check_order(
            order,
            federation=self.kit.federation,
            site=self.config.site,
            question=MESSAGES[question],
            fields=fields,
            job_text=str(instruction.get("job", "")),
            flower_run=message.metadata.run_id,
            version=self.version,
            now=time.time(),
            used=self._used,
        )
        self._used.add(order.nonce, order.expires)
        return order

    def _permission(self, order: Order, job: Job, question: Question) -> dict[str, int]:
        """The usable patients by split, once policy and approval allow the question.

        Raises:
            Refused: the policy does not.
            Fault: it is not approved, or the hospital is closed.
        """
        policy, now = self.config.policy, datetime.now().astimezone()
        _refuse(judge_coordinator(policy, key_fingerprint(self.kit.signing_key)))
        # Before the data are looked at: names and numbers that no number of patients would make right.
        _refuse(judge_job(policy, job, patients=dict.fromkeys(SPLITS, MANY), cases={}))
        fields, spent = order.fields, self._clock.today()
        asked = functools.partial(
            judge_question, policy, job, MESSAGES[question], now=now, seconds_used_today=spent, fields=fields
        )
        refusals = asked(patients=dict.fromkeys(SPLITS, MANY))
        if refusals and all(refusal.rule == "policy.opening_hours" for refusal in refusals):
            raise Fault("outside the opening hours of policy.opening_hours", "closed", hours=policy.opening_hours)
        _refuse(refusals)
        if question == "prepare":
            forget_data()  # a manifest that was mended since is read again
        report = data_of(self._site, job).report
        patients = {split: report.splits[split]["patients"] for split in report.splits}
        cases = {split: report.splits[split]["cases"] for split in report.splits}
        _refuse(judge_job(policy, job, patients=patients, cases=cases))
        _refuse(asked(patients=patients))
        self._approval(order, job, patients, cases)
        return patients

    def _approval(self, order: Order, job: Job, patients: Mapping[str, int], cases: Mapping[str, int]) -> None:
        approval = note_job(
            self.config.work / "jobs",
            job,
            run=order.run,
            federation=order.federation,
            policy=self.config.policy,
            patients=patients,
            cases=cases,
            now=datetime.now(UTC),
        )
        if approval.state == "waiting":
            raise Fault(f"the job {job.name} waits: `consilium site show {approval.job_hash[:12]}`", "waiting")
        if approval.state == "refused":
            raise Fault(f"the job {job.name} was refused here", "refused_by_hospital")
        if approval.state == "withdrawn":
            raise Fault(f"the approval of {job.name} was withdrawn here", "withdrawn")

    # --- what leaves ---

    def _allowed(self, order: Order, job: Job, question: Question, patients: Mapping[str, int]) -> Allowed:
        fields = order.fields
        return allowed_for(
            job,
            question,
            site=self.config.site,
            policy=self.config.policy,
            shapes=_shapes(job.canonical_json(), question) if question in ("train", "alone") else None,
            algorithm=_algorithm_shapes(job.canonical_json()) if question == "train" else None,
            patients=patients,
            categories=data_of(self._site, job).report.categories,
            replicates=int(fields.get("replicates", 0)),
            split=str(fields.get("split", "")),
            model=str(fields.get("model", "")),
        )

    def _facts(
        self,
        order: Order,
        job: Job,
        question: Question,
        patients: Mapping[str, int],
        released: Released,
        seconds: float,
    ) -> dict[str, Any]:
        return {
            **_place(order, question),
            "job": job.name,
            "job_hash": order.job_hash,
            "version": self.version,
            "manifest": hashlib.sha256(self.config.manifest.read_bytes()).hexdigest(),
            "patients": patients.get(str(order.fields.get("split", "train")), 0),
            "seconds": seconds,
            "tensors": [asdict(tensor) for tensor in released.tensors],
            "numbers": released.numbers,
        }

    def _refusal(self, error: Exception, order: Order | None, job: Job | None, question: Question) -> RecordDict:
        """What leaves instead of an answer; the whole story stays in log and ledger."""
        code, parameters = fault_of(error)
        story = str(error) if isinstance(error, ConsiliumError) else type(error).__name__
        self.log.info("%s was not answered: %s", question, story)
        if not isinstance(error, ConsiliumError):
            self.log.info("%s", "".join(traceback.format_exception(error)))
        kind = "fault"
        if isinstance(error, Refused | BadOrder):
            kind = "refused"
        elif isinstance(error, Withheld):
            kind = "withheld"
        place = _place(order, question) if order else {"question": MESSAGES[question]}
        policy = self.config.policy
        try:
            allowed = allowed_for(job, question, site=self.config.site, policy=policy)
            released = release(fault_content(self.config.site, code, **parameters), allowed)
        except BadInput:
            # A refusal whose words are not those of this job, such as one about a job that could not be read.
            code, parameters = "input", {}
            allowed = allowed_for(None, question, site=self.config.site, policy=policy)
            released = release(fault_content(self.config.site, code), allowed)
        if code in PASSING and self._passing == (place, code):
            return released.content  # a job that waits is asked for again and again; the ledger has it once
        self._passing = place, code
        with suppress(ConsiliumError):  # a full disk must not keep the site from saying so
            self.ledger.append(kind, **place, code=code, sentence=story, sent=faults.sentence(code, **parameters))
        return released.content

    def _own_report(self, order: Order, job: Job) -> None:
        """A report that cannot be drawn is no reason to keep a reply back."""
        from client.run_report import write_run_report  # imports matplotlib

        try:
            path = write_run_report(self.config, self.kit, self._site, order.run, job)
            self.log.info("the hospital's own report of run %s: %s", order.run, path)
        except Exception:
            self.log.info("the hospital's own report could not be made: %s", traceback.format_exc())


def _place(order: Order, question: Question) -> dict[str, Any]:
    place: dict[str, Any] = {
        "federation": order.federation,
        "run": order.run,
        "flower_run": str(order.flower_run),
        "question": MESSAGES[question],
    }
    return place | {key: order.fields[key] for key in ("round", "model", "split", "variant") if key in order.fields}


def _refuse(refusals: list[Any]) -> None:
    if refusals:
        raise Refused(refusals)


@functools.lru_cache(maxsize=4)
def _checked(job_text: str) -> Job:
    """A signed job, held against everything that a job file is held against.

    Raises:
        BadInput: it is none that could run.
    """
    try:
        job = job_of(job_text)
    except ValidationError as error:
        raise BadInput(f"the job has {error.error_count()} keys that this version does not know or take") from None
    if found := check_meaning(job):
        raise BadInput(f"the job makes no sense: {found[0].sentence}")
    return job


@functools.lru_cache(maxsize=4)
def _shapes(job_text: str, question: Question) -> dict[str, tuple[int, ...]]:
    """The tensors of the job's model that travel; of a baseline all that could."""
    job = job_of(job_text)
    share = job.federation.share if question == "train" else EVERYTHING
    return {entry.name: entry.shape for entry in schema(build(job), share) if entry.travels}


@functools.lru_cache(maxsize=4)
def _algorithm_shapes(job_text: str) -> dict[str, tuple[int, ...]]:
    """The tensors that the job's algorithm sends beside the model's."""
    job = job_of(job_text)
    return job.federation.algorithm.extra(schema(build(job), job.federation.share))


def _digest(key: PrivateKey) -> str:
    """A secret that only the holder of the key can make."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return hashlib.sha256(b"consilium bootstrap " + der).hexdigest()


class _Nonces:
    """The orders that were acted on and have not expired; on disk, so that a restart forgets none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._expires: dict[str, float] = _read(path)

    def __contains__(self, nonce: object) -> bool:
        return nonce in self._expires

    def add(self, nonce: str, expires: float) -> None:
        now = time.time()
        self._expires = {name: when for name, when in self._expires.items() if when > now} | {nonce: expires}
        _write(self._path, self._expires)


class _DayClock:
    """Seconds of work for coordinators since local midnight."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def today(self) -> float:
        return _read(self._path).get(f"{datetime.now():%Y-%m-%d}", 0.0)

    def add(self, seconds: float) -> None:
        _write(self._path, {f"{datetime.now():%Y-%m-%d}": self.today() + seconds})


def _read(path: Path) -> dict[str, float]:
    """Raises BadInput: the file is not as it was left, so that nobody can make it forget by damaging it."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text())
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, AttributeError, TypeError, OSError) as error:
        raise BadInput(f"{path} cannot be read ({error}); look at why, and move it away to go on") from None


def _write(path: Path, values: Mapping[str, float]) -> None:
    with whole_file(path) as file:
        file.write(json.dumps(values).encode())
