"""Flower's `Grid` with hospitals as the job's simulation has them: away, slow, faulty. The server sees only replies.

Train messages alone are concerned; every hospital is asked for its data, and judged, as ever.

A deadline counts on a simulated clock. Hospitals that share a machine wait for each other, and a slow one is not really
slow: whether a reply is late is reckoned from its measured seconds, and the deadline is not waited out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.participation import content_bytes, quorum
from server.report.clock import seconds_at
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_participation import Participation
from shared_models.seeds import derive_seed
from shared_models.weights import from_record, to_record
from simulation.faulty import tampered

NOT_SENT = ""
"""In place of a message id: the hospital is not connected."""


def check_participation(job: Job, hospitals: Sequence[str]) -> None:
    """Whether every round can have the updates that it needs, by who has joined and not left.

    Raises:
        BadInput: a round has too few hospitals however they answer, so that the run would stop there, and again
            whenever it is resumed.
    """
    if problem := _too_few(job, hospitals):
        raise BadInput(problem)


def no_leave_one_out(job: Job, hospitals: Sequence[str]) -> str | None:
    """Why a federation without one of the hospitals would stop, as `check_participation` has it; None if none would."""
    for name in hospitals:
        if problem := _too_few(job, [other for other in hospitals if other != name]):
            return f"the federation without {name} would stop: {problem}"
    return None


def _too_few(job: Job, hospitals: Sequence[str]) -> str | None:
    """The first round with fewer hospitals than it needs updates, and what would help; None where there is none."""
    habits = job.simulation.participation if job.simulation else {}
    needed = quorum(job, min(len(hospitals), job.federation.sites_per_round or len(hospitals)))
    changes = {1, *(number for habit in habits.values() for number in (habit.joins, habit.leaves) if number)}
    for number in sorted(number for number in changes if number <= job.federation.rounds):
        there = [name for name in hospitals if _is_member(habits.get(name, Participation()), number)]
        if len(there) < needed:
            how = job.federation.aggregation
            who = f"by simulation.participation, {len(there)} of {len(hospitals)} hospitals are there in round {number}"
            if len(there) == len(hospitals):
                who = f"there are {len(hospitals)} hospitals"
            remedy = f"set federation.quorum to at most {len(there)}"
            if not there:
                remedy = "let some of them join earlier or leave later"
            elif how.fewest > len(there):
                remedy = f"{how.name} takes no fewer than {how.fewest}: have more hospitals, or another aggregation"
            return f"{who}, and a round needs {needed} updates; {remedy}"
    return None


def _is_member(habits: Participation, number: int) -> bool:
    return habits.joins <= number and (habits.leaves is None or number < habits.leaves)


@dataclass(frozen=True)
class _Asked:
    """A train message on its way: to whom, for which round, and what it holds."""

    site: str
    number: int
    content: RecordDict


class UnreliableGrid(Grid):
    """A grid around the engine's."""

    def __init__(self, grid: Grid, job: Job, sites: Path) -> None:
        """Nobody has said who they are yet.

        Args:
            grid: of the engine.
            sites: the run's folder with a folder for every hospital.
        """
        self._grid, self._job, self._sites = grid, job, sites
        self._names: dict[int, str] = {}  # node -> hospital, as it introduced itself
        self._training: dict[str, _Asked] = {}  # by message id
        self._attempts: Counter[tuple[object, ...]] = Counter()
        self._late: set[str] = set()  # ids of messages whose replies came, and are not passed on
        self._now = 0.0

    def clock(self) -> float:
        """Simulated seconds: they stand still while anybody trains, and pass a deadline when only the late are left."""
        if self._late and not self._training:
            self._late.clear()
            self._now += (self._job.federation.deadline_seconds or 0.0) * 1.001  # past it, whatever is rounded
        return self._now

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages but to hospitals that are away; theirs get no id, as Flower has it for nodes that are gone."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that are there and in time, those of faulty hospitals tampered with."""
        for message_id in message_ids:
            if message_id not in self._late:
                yield from self._pull(message_id)

    def wait_for_reply(self, seconds: float) -> None:
        """Returns when the engine has a reply, if it knows, or when the time is over."""
        getattr(self._grid, "wait_for_reply", time.sleep)(seconds)

    def _push(self, message: Message) -> str:
        # Without the deadline as its time to live, which counts on the world's clock.
        node, kind, content = message.metadata.dst_node_id, message.metadata.message_type, message.content
        site = self._names.get(node)
        trains = kind == MessageType.TRAIN and site is not None
        instruction = content.config_records.get("instruction") if trains else None
        if site is None or instruction is None:
            return self._sent(Message(content=content, dst_node_id=node, message_type=kind))
        if not self._is_there(site, instruction):
            return NOT_SENT
        message_id = self._sent(Message(content=content, dst_node_id=node, message_type=kind))
        self._training[message_id] = _Asked(site, _round(instruction), content)
        return message_id

    def _pull(self, message_id: str) -> Iterator[Message]:
        for reply in self._grid.pull_messages([message_id]):
            asked = self._training.pop(message_id, None)
            if asked is None:
                self._note_name(reply)
            elif self._is_late(asked, reply):
                self._late.add(message_id)
                return
            else:
                self._tamper(asked, reply)
            yield reply

    def _sent(self, message: Message) -> str:
        return next(iter(self._grid.push_messages([message])), NOT_SENT)

    def _note_name(self, reply: Message) -> None:
        record = reply.content.config_records.get("prepared") if reply.has_content() else None
        if record is not None:
            self._names[reply.metadata.src_node_id] = str(record["site"])

    def _is_there(self, site: str, instruction: ConfigRecord) -> bool:
        habits, number = self._habits(site), _round(instruction)
        if not _is_member(habits, number):
            return False
        # The same instruction comes again when its round is tried again, also after the run was stopped and resumed.
        same = (site, *sorted((key, str(value)) for key, value in instruction.items() if key != "job"))
        seed = derive_seed(self._job.seed, "answers", site, number, self._attempts[same])
        self._attempts[same] += 1
        return bool(np.random.default_rng(seed).random() < habits.answers)

    def _habits(self, site: str) -> Participation:
        assert self._job.simulation is not None, "a run folder is made from a job with a simulation"
        return self._job.simulation.participation.get(site, Participation())

    def _is_late(self, asked: _Asked, reply: Message) -> bool:
        deadline = self._job.federation.deadline_seconds
        numbers = reply.content.metric_records.get("numbers") if reply.has_content() else None
        if deadline is None or numbers is None:
            return False
        down, up, compute = content_bytes(asked.content), content_bytes(reply.content), numbers["seconds"]
        assert isinstance(compute, float)
        return seconds_at(self._job, asked.site, compute, down, up) > deadline

    def _tamper(self, asked: _Asked, reply: Message) -> None:
        if reply.has_content() and "weights" in reply.content.array_records:
            honest = from_record(reply.content.array_records["weights"])
            sent = from_record(asked.content.array_records["weights"])
            folder = self._sites / asked.site
            without = asked.content.config_records["instruction"].get("without")  # a federation of its own
            if isinstance(without, str):
                folder /= f"without-{without}"
            update = tampered(self._job, asked.site, asked.number, sent, honest, folder)
            if update is not honest:
                reply.content["weights"] = to_record(update)

    # --- what stays the engine's ---

    def set_run(self, run: Run) -> None:
        """As the engine's."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the engine's."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the engine's."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the engine's."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Not here: the server takes replies one at a time."""
        raise NotImplementedError("messages are pushed and pulled one at a time, see server.participation.ask")


def _round(instruction: ConfigRecord) -> int:
    number = instruction["round"]
    assert isinstance(number, int)
    return number
