"""A coordinator that asks a real hospital: its federation, its key, and messages as they arrive at the worker."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import make_client_app
from client.config import SiteConfig
from client.hospital import Hospital
from client.ledger import read_ledger, verify_ledger
from client.policy import Policy
from deploy import provision
from shared_models.enrolment import make_request, write
from shared_models.keys import canonical_json, key_fingerprint, load_private, new_site_key, public_line, sign
from shared_models.orders import SCHEMA, Order, sign_order
from shared_models.supervision import rotating_log
from shared_models.weights import to_record
from tests.client.door import ASKED, JOB, WEIGHTS

FLOWER_RUN = 77
METRICS = ["auroc", "average_precision", "balanced_accuracy", "accuracy", "calibration_error", "brier"]


class Coordinator:
    """A federation of one hospital, which is called `here`."""

    def __init__(self, folder: Path) -> None:
        self.home, self.site_key = folder / "coordinator", new_site_key()
        provision.init(self.home, "lab", "127.0.0.1:443", None)
        write(folder / "request.json", make_request("here", self.site_key))
        self.kit = provision.admit(self.home, folder / "request.json")
        self.key = load_private(self.home / "job-signing.key", None)

    def order(self, kind: str, job: Any = JOB, **changes: Any) -> Order:
        """A good order for a question, but for the changes."""
        fields = next(fields for name, fields in ASKED.values() if name == kind)
        now = time.time()
        good = Order(
            federation="lab",
            run="squares-20260101-000000",
            flower_run=FLOWER_RUN,
            site="here",
            question=kind,
            job_hash=job.fingerprint(),
            version="0.1.0",
            nonce=secrets.token_hex(16),
            issued=now,
            expires=now + 60,
            fields=fields,
        )
        return replace(good, **changes)

    def forged(self, order: Order) -> tuple[str, str]:
        """Signed with the coordinator's own key, whatever is in it."""
        values = {**asdict(order), "schema": SCHEMA, "signer": key_fingerprint(public_line(self.key))}
        text = canonical_json(values)
        return text, sign(self.key, text.encode())


class Here:
    """The hospital, with six training, two validation and four test patients."""

    def __init__(self, folder: Path, coordinator: Coordinator, **policy: Any) -> None:
        self.coordinator, self.data = coordinator, folder / "data"
        self.data.mkdir()
        images = np.random.default_rng(0).integers(0, 255, (12, 16, 16), dtype=np.uint8)
        np.savez(self.data / "data.npz", images=images)
        splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4
        rows = [f"JaneDoe{i},data.npz::images[{i}],{i % 2},{split}" for i, split in enumerate(splits)]
        (self.data / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
        (folder / "work").mkdir()
        allowed = {
            "coordinators": [key_fingerprint(public_line(coordinator.key))],
            "tasks": ["classification"],
            "models": ["cnn"],
            "algorithms": ["fedavg"],
            "max_rounds": 2,
            "max_local_steps": 100,
            "max_hours_per_day": 1,
            "min_patients": 2,
            "metrics": METRICS,
            "local_baseline": True,
            "approve": "automatic",
        }
        self.config = SiteConfig(
            site="here",
            kit=folder / "kit.json",
            key=folder / "site.key",
            manifest=self.data / "manifest.csv",
            data_root=self.data,
            work=folder / "work",
            policy=Policy.model_validate({**allowed, **policy}),
        )
        self.start()

    def start(self) -> None:
        """A new worker of the same hospital."""
        log = rotating_log(self.config.work / "logs" / "worker.log")
        self.hospital = Hospital(self.config, self.coordinator.kit, self.coordinator.site_key, log)
        self.app = make_client_app(self.hospital)

    def message(self, kind: str, by: Order | tuple[str, str] | None = None, job: Any = JOB, **changes: Any) -> Message:
        """A message as the coordinator's grid makes it.

        Args:
            by: the order, or its text and signature; a good one if there is none.
            changes: entries of the instruction that are not as ordered; None takes one out.
        """
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, FLOWER_RUN, 1
        order = by or self.coordinator.order(kind, job)
        fields = order.fields if isinstance(order, Order) else next(f for k, f in ASKED.values() if k == kind)
        text, signature = sign_order(order, self.coordinator.key) if isinstance(order, Order) else order
        values = {"job": job.canonical_json(), **fields, "order": text, "signature": signature, **changes}
        content = RecordDict({"instruction": ConfigRecord({k: v for k, v in values.items() if v is not None})})
        if kind != "query.prepare":
            content["weights"] = to_record(WEIGHTS)
        return Message(content, 1, kind)

    def ask(self, kind: str, *arguments: Any, **named: Any) -> RecordDict:
        """What the hospital answers."""
        return self.app(self.message(kind, *arguments, **named), Context(FLOWER_RUN, 1, {}, RecordDict(), {})).content

    def lines(self, kind: str = "") -> list[dict[str, Any]]:
        """The lines of the ledger of one kind, once the ledger was found to be whole."""
        path = self.config.work / "ledger.jsonl"
        if not path.exists():
            return []
        assert verify_ledger(path, public_line(self.coordinator.site_key)).faults == []
        return [line for line in read_ledger(path) if kind in ("", line["kind"])]

    def log(self) -> str:
        return (self.config.work / "logs" / "worker.log").read_text()


def hash_of(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
