"""Who is in the federation, who is asked in a round, and who answered what."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from shared_models.job import Job
from shared_models.seeds import derive_seed

NOT_CONNECTED = "it was not connected"
SHORTEST_POLL, LONGEST_POLL = 0.002, 1.0  # seconds between two looks for replies


@dataclass(frozen=True)
class Site:
    """A site that is ready: its name, its Flower node and its cases by split, of training those that are trained on."""

    name: str
    node: int
    cases: Mapping[str, int]


@dataclass
class Reply:
    """A site's answer to one message; None when there is none, and then `why` says it."""

    site: str
    message: Message | None
    seconds: float
    bytes_down: int
    bytes_up: int
    why: str = "no reply before the deadline"


def draw(job: Job, names: Sequence[str], round_number: int, attempt: int) -> list[str]:
    """The sites asked in a round: all, or `sites_per_round` at random from the job seed."""
    names, wanted = sorted(names), job.federation.sites_per_round
    if wanted is None or wanted >= len(names):
        return names
    rng = np.random.default_rng(derive_seed(job.seed, "sites", round_number, attempt))
    return sorted(rng.choice(names, size=wanted, replace=False).tolist())


def quorum(job: Job, drawn: int) -> int:
    """The updates that a round needs: the job's quorum, and as many as its aggregation cannot do without."""
    return max(job.federation.quorum or drawn // 2 + 1, job.federation.aggregation.fewest)


def content_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in a message: what a site sends or receives, but for a few hundred bytes of names."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def instruction(job: Job, **fields: Any) -> ConfigRecord:
    """The part of a message that says what to do; the job itself travels with it."""
    return ConfigRecord({"job": job.canonical_json(), **fields})


def ask(
    grid: Grid, requests: Mapping[str, tuple[int, RecordDict]], kind: str, deadline: float | None = None
) -> Iterator[Reply]:
    """Sends every site its message and yields the replies one at a time, as they arrive.

    Args:
        requests: site name -> Flower node id and content.
        deadline: seconds; sites that have not answered by then are yielded last, without a message.
    """
    began = time.monotonic()
    waiting: dict[str, str] = {}
    sizes = {name: content_bytes(content) for name, (_, content) in requests.items()}
    # A grid that knows when a reply has come is waited for; any other is looked at again after a pause.
    wait = getattr(grid, "wait_for_reply", time.sleep)
    # A simulation has a clock of its own: its hospitals share a machine, and would wait for each other in the world's.
    clock = getattr(grid, "clock", time.monotonic)
    started = clock()
    for name, (node, content) in requests.items():
        # One by one, so that a message id belongs to a site: an error reply does not carry the site's node id.
        # With the deadline as its time to live, a reply that nobody waits for any more is not kept for anybody.
        message = Message(content=content, dst_node_id=node, message_type=kind, ttl=deadline)
        ids = list(grid.push_messages([message]))
        if ids and ids[0]:
            waiting[ids[0]] = name
        else:
            yield Reply(name, None, 0.0, 0, 0, NOT_CONNECTED)
    pause = SHORTEST_POLL
    while waiting and (deadline is None or clock() - started < deadline):
        arrived = False
        for message_id in list(waiting):
            for message in grid.pull_messages([message_id]):
                up = content_bytes(message.content) if message.has_content() else 0
                name = waiting.pop(message_id)
                yield Reply(name, message, time.monotonic() - began, sizes[name], up)
                del message  # the caller is done with it; the next may be long in coming
                arrived = True
        pause = SHORTEST_POLL if arrived else min(pause * 1.5, LONGEST_POLL)
        if waiting and not arrived:
            wait(pause)
    for name in waiting.values():
        yield Reply(name, None, time.monotonic() - began, sizes[name], 0)
