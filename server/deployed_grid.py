"""Flower's grid as a coordinator of real hospitals uses it: nodes have the names of the registry, messages are signed.

It also keeps account of whom the run is waiting for, so that `consilium coordinator status` can say it.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.participation import content_bytes
from server.registry import Registry
from shared_models import subgroups
from shared_models.files import whole_file
from shared_models.flower_messages import (
    ROOM,
    Incoming,
    ObjectPullError,
    Unreadable,
    announced_reply,
    incomplete_reply,
    packed,
    reply_of_the_lost,
    unreadable_reply,
)
from shared_models.flower_runtime import HttpGrid, public_line
from shared_models.job import Job
from shared_models.orders import Order, sign_order
from shared_models.tasks import task_of

LOOK_SECONDS = 10.0
"""How often it is looked whether a site that has not answered was away meanwhile."""


LONGEST_ORDER_SECONDS = 12 * 3600.0
"""How long an order without a deadline holds: as long as Flower keeps a message."""


@dataclass(frozen=True)
class Signer:
    """What every order of a run says, and the key that signs it."""

    federation: str
    run: str
    job: Job
    version: str
    key: Ed25519PrivateKey


@dataclass(frozen=True)
class Waiting:
    """A question that a site has not answered yet; times are Unix times in seconds."""

    site: str
    question: str
    round: int | None
    since: float
    until: float | None


class DeployedGrid(Grid):
    """The grid of one Flower run."""

    def __init__(
        self, flower: HttpGrid, registry: Registry, signer: Signer, waiting_file: Path, only: Iterable[str] = ()
    ) -> None:
        """Wraps Flower's own grid.

        Args:
            waiting_file: where it is kept who is being waited for.
            only: the sites of the run; all active ones when there are none.
        """
        self._flower, self._registry, self._signer, self._file = flower, registry, signer, waiting_file
        self._only = frozenset(only)
        self._job_hash = signer.job.fingerprint()
        self._waiting: dict[str, Waiting] = {}
        self._names: dict[int, str] = {}
        self._row_bytes = sum(array.nbytes for array in task_of(signer.job).sums([], np.zeros((1, 0))).values())
        self._largest: dict[str, int] = {}  # message id -> bytes that its reply may have
        self._since: dict[int, str] = {}  # node -> when it came last
        self._sent: dict[str, tuple[int, str]] = {}  # message id -> node, and when that had come
        self._incoming: dict[str, Incoming] = {}  # message id -> its reply, of which a part has come
        self._connected: dict[int, str] = {}
        self._look_at = 0.0
        self._last: dict[str, tuple[Any, Any]] = {}  # record of the last message, as it was given and packed

    def set_run(self, run: object) -> None:
        raise NotImplementedError("the run of a deployed grid is the one that it was made for")

    @property
    def run(self):  # type: ignore[no-untyped-def]
        return self._flower.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def expected_sites(self) -> set[str]:
        """The sites that this run is for: active in the registry, and named if any were named."""
        active = {entry.name for entry in self._registry.entries() if entry.state == "active"}
        return active & self._only if self._only else active

    def site_names(self) -> dict[int, str]:
        """Flower node id -> site, of every expected site that is connected now."""
        expected, found = self.expected_sites(), {}
        for node in self._flower.get_nodes():
            line = public_line(node.public_key)
            entry = self._registry.site_of(line) if line else None
            if entry and entry.name in expected:
                found[node.node_id] = entry.name
            self._since[node.node_id] = node.last_activated_at
        self._names |= found
        return found

    def get_node_ids(self) -> Iterable[int]:
        return list(self.site_names())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        connected = self.site_names()
        ids: list[str] = []
        for message in messages:
            node = message.metadata.dst_node_id
            # Nothing is sent to a node that is not there, or whose site was suspended meanwhile.
            pushed = list(self._flower.push_messages([self._signed(message)])) if node in connected else []
            ids += pushed or [""]
            if pushed and pushed[0]:
                self._note(pushed[0], message)
        self._write()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message_id in message_ids:
            message = self._reply(message_id)
            if message is not None:
                self._forget(message_id)
                found.append(message)
        now = time.time()
        late = [name for name, one in self._waiting.items() if one.until is not None and one.until < now]
        for name in late:
            if name in self._incoming:
                self._incoming[name].drop()
            self._forget(name)
        if found or late:
            self._write()
        return found

    def _reply(self, message_id: str) -> Message | None:
        """The reply to a message, as far as it has come: no site is waited for while it sends."""
        incoming = self._incoming.get(message_id)
        incoming = incoming or announced_reply(self._flower, message_id, self._largest.get(message_id, ROOM))
        if incoming is None:
            return reply_of_the_lost(self._flower, message_id) if self._was_away(message_id) else None
        self._incoming[message_id] = incoming
        try:
            message = incoming.take()
        except Unreadable:
            return unreadable_reply(self._flower, message_id)
        except ObjectPullError:
            return incomplete_reply(self._flower, message_id)
        if message is None and self._is_gone(message_id):
            incoming.drop()
            return incomplete_reply(self._flower, message_id)
        return message

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("replies are taken one at a time, as they arrive")

    def _was_away(self, message_id: str) -> bool:
        """Whether a node has come anew since it was asked: if so, it has forgotten the question.

        Flower says that a node is not there only to who asks while it is not.
        """
        if message_id not in self._sent:
            return False
        self._look()
        node, since = self._sent[message_id]
        return self._since.get(node, since) != since

    def _is_gone(self, message_id: str) -> bool:
        """Whether a node that has begun to answer will not go on: it was away meanwhile, or is."""
        return self._was_away(message_id) or self._sent.get(message_id, (0, ""))[0] not in self._connected

    def _look(self) -> None:
        if time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._connected = self.site_names()

    def _forget(self, message_id: str) -> None:
        for facts in (self._waiting, self._largest, self._sent, self._incoming):
            facts.pop(message_id, None)

    def _signed(self, message: Message) -> Message:
        """The message with an order for its site in the instruction; its arrays are shared, not copied."""
        metadata, signer = message.metadata, self._signer
        plain = message.content.config_records["instruction"]
        now = time.time()
        order = Order(
            federation=signer.federation,
            run=signer.run,
            flower_run=self._flower.run.run_id,
            site=self._names[metadata.dst_node_id],
            question=metadata.message_type,
            job_hash=self._job_hash,
            version=signer.version,
            nonce=secrets.token_hex(16),
            issued=now,
            expires=now + min(metadata.ttl, LONGEST_ORDER_SECONDS),
            fields={key: _plain(value) for key, value in plain.items() if key != "job"},
        )
        text, signature = sign_order(order, signer.key)
        instruction = ConfigRecord({**plain, "order": text, "signature": signature})
        content = RecordDict({**self._packed(message.content), "instruction": instruction})
        return Message(content, metadata.dst_node_id, metadata.message_type, ttl=metadata.ttl)

    def _packed(self, content: RecordDict) -> RecordDict:
        """What goes to several sites in turn, such as the global model, is packed once."""
        new = RecordDict({name: record for name, record in content.items() if not self._was_last(name, record)})
        fresh = packed(new)
        self._last = {
            name: (record, fresh[name]) if name in fresh else self._last[name] for name, record in content.items()
        }
        return RecordDict({name: record for name, (_, record) in self._last.items()})

    def _was_last(self, name: str, record: object) -> bool:
        return name in self._last and self._last[name][0] is record

    def _note(self, message_id: str, message: Message) -> None:
        metadata, now = message.metadata, time.time()
        instruction = message.content.config_records["instruction"]
        # No answer is larger than the model that came with the question, but for the sums of an evaluation.
        self._largest[message_id] = content_bytes(message.content) + self._sum_bytes(message) + ROOM
        self._sent[message_id] = metadata.dst_node_id, self._since[metadata.dst_node_id]
        number = instruction.get("round")
        self._waiting[message_id] = Waiting(
            self._names[metadata.dst_node_id],
            metadata.message_type,
            number if isinstance(number, int) else None,
            now,
            now + metadata.ttl if metadata.ttl < LONGEST_ORDER_SECONDS else None,
        )

    def _sum_bytes(self, message: Message) -> int:
        """The bytes of an evaluation's sums, those by group of patients included; 0 for any other question."""
        instruction = message.content.config_records["instruction"]
        replicates = instruction.get("replicates")
        if not isinstance(replicates, int):
            return 0
        site, model, split = self._names[message.metadata.dst_node_id], str(instruction["model"]), instruction["split"]
        groups = subgroups.shapes(self._signer.job, site, model, str(split), replicates)
        return self._row_bytes * (replicates + 1) + 8 * sum(math.prod(shape) for shape in groups.values())

    def _write(self) -> None:
        with whole_file(self._file) as file:
            file.write(json.dumps([asdict(one) for one in self._waiting.values()]).encode())


def _plain(value: object) -> int | float | str | bool:
    if isinstance(value, int | float | str):
        return value
    raise TypeError(f"an instruction holds numbers and texts, found {type(value).__name__}")
