"""Before and between the rounds: every site says who it is and whether it can do the job.

In a simulation all sites are there, each is asked once, and the run begins when all have answered. Real hospitals come
late, leave and come back: whoever is connected and not yet ready is asked, and nobody who is ready waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from pydantic import AfterValidator, Field, ValidationError

from server.admission import fault_of, shown
from server.deployed_grid import DeployedGrid
from server.events import EventLog
from server.participation import LONGEST_POLL, SHORTEST_POLL, Site, instruction
from shared_models.errors import RunStopped
from shared_models.faults import UNREADABLE
from shared_models.job import Job
from shared_models.page import natural
from shared_models.section import Section
from shared_models.tasks import task_of

ASK_AGAIN_SECONDS = 15.0
"""A site whose answer was `not yet` is asked again after this long."""

NOT_YET = ("waiting", "closed", "stopping")
"""Faults that pass by themselves: the job waits for approval, the hospital is closed, its daemon is being stopped."""


Count = Annotated[int, Field(ge=0, lt=2**40)]
Split = Literal["train", "validation", "test"]
Words = Annotated[str, Field(max_length=1000), AfterValidator(lambda text: shown(text, 1000))]


class Prepared(Section):
    """What a site says of its data: counts, and why cases were set aside."""

    cases: dict[Split, Count] = Field(min_length=3)
    patients: dict[Split, Count] = Field(min_length=3)
    classes: dict[Words, dict[Words, Count]]
    quarantined: Annotated[dict[Words, Words], Field(max_length=100_000)]
    duplicates: Count
    warnings: Annotated[list[Words], Field(max_length=1000)]


class Introduction:
    """Who is ready for a run.

    Attributes:
        ready: the sites that can do the job, by name.
        refused: those that cannot, or were not heard of, with the reason.
    """

    def __init__(self, grid: Grid, job: Job, events: EventLog, wait_seconds: float | None = None) -> None:
        """Nothing is asked yet.

        Args:
            wait_seconds: how long to wait for sites that are not connected or not ready; None waits for the answers
                of those that are there, and for nobody else.
        """
        self.ready: dict[str, Site] = {}
        self._grid, self._job, self._events, self._wait_seconds = grid, job, events, wait_seconds
        self._content = RecordDict({"instruction": instruction(job)})
        self._asked: dict[str, tuple[int, str | None, float]] = {}  # message id -> node, its site and when
        self._answered: dict[int, float] = {}  # node -> when it may be asked again
        self.refused: dict[str, str] = {}
        self._not_yet: dict[str, str] = {}  # site -> why it will be asked again

    def begin(self) -> None:
        """Asks everybody and waits for the answers.

        Raises:
            RunStopped: no site is ready.
        """
        began, pause = time.monotonic(), SHORTEST_POLL
        wait = getattr(self._grid, "wait_for_reply", time.sleep)
        self.ask()
        while self._asked or self._is_worth_waiting(began):
            if self.hear():
                pause = SHORTEST_POLL
                continue
            pause = min(pause * 1.5, LONGEST_POLL)
            wait(pause)
            if self._wait_seconds is not None:
                self.ask()
        for name in sorted(self._missing() - self.refused.keys()):
            self._refuse(name, self._not_yet.get(name, "it was not connected when the rounds began"))
        if not self.ready:
            raise RunStopped("no site is ready: see the reasons above, mend the manifests and start again")

    def gather(self, needed: int) -> None:
        """Lets newcomers introduce themselves, and waits until as many ready sites are connected as a round needs.

        Raises:
            RunStopped: they were not in the time that the run waits for sites.
        """
        if self._wait_seconds is None:
            return
        began, said = time.monotonic(), None
        while True:
            self.ask()
            self.hear()
            nodes = self._nodes()
            connected = sum(site.node in nodes for site in self.ready.values())
            if connected >= needed:
                return
            away = sorted((name for name, site in self.ready.items() if site.node not in nodes), key=natural)
            if away != said:
                self._events.emit("waiting_for_sites", connected=connected, needed=needed, away=away)
                said = away
            if time.monotonic() - began > self._wait_seconds:
                raise RunStopped(
                    f"{connected} of {len(self.ready)} sites are connected and {needed} are needed; "
                    f"{', '.join(away)} did not come back within {self._wait_seconds:g} s. Everything up to the last "
                    "whole round is kept: resume the run when they are back"
                )
            time.sleep(LONGEST_POLL)

    def ask(self) -> None:
        """Asks the nodes that are connected, not ready, and were not asked just now."""
        now, nodes = time.monotonic(), self._nodes()
        for node, name in nodes.items():  # a site that was removed and admitted again has another node
            if name in self.ready and self.ready[name].node != node:
                self.ready[name] = replace(self.ready[name], node=node)
        ready, asked = {site.node for site in self.ready.values()}, {node for node, *_ in self._asked.values()}
        self._answered = {node: when for node, when in self._answered.items() if node in nodes}
        for node in nodes.keys() - ready - asked:
            if now < self._answered.get(node, now):
                continue
            message = Message(content=self._content, dst_node_id=node, message_type=f"{MessageType.QUERY}.prepare")
            for message_id in self._grid.push_messages([message]):
                if message_id:
                    self._asked[message_id] = node, nodes[node], now

    def hear(self) -> bool:
        """Takes the answers that have come; whether there were any."""
        heard = False
        for message_id in list(self._asked):
            for message in self._grid.pull_messages([message_id]):
                node, name, when = self._asked.pop(message_id)
                self._take(node, name, message, time.monotonic() - when)
                heard = True
        return heard

    def _nodes(self) -> Mapping[int, str | None]:
        """The nodes that are connected, with their names where the grid knows them."""
        if isinstance(self._grid, DeployedGrid):
            return self._grid.site_names()
        return dict.fromkeys(self._grid.get_node_ids())

    def _missing(self) -> set[str]:
        """Sites that the run is for, and that have not been heard of."""
        expected = self._grid.expected_sites() if isinstance(self._grid, DeployedGrid) else set()
        return expected - self.ready.keys()

    def _is_worth_waiting(self, began: float) -> bool:
        if self._wait_seconds is None or time.monotonic() - began >= self._wait_seconds:
            return False
        return bool(self._missing() - self.refused.keys())

    def _take(self, node: int, known: str | None, message: Message, seconds: float) -> None:
        fault = fault_of(message)
        record = message.content.config_records.get("prepared") if message.has_content() else None
        # The registry's name where there is one, as it was when the site was asked: a site does not choose who it is,
        # not even by going away before its answer is read.
        name = known or (str(record["site"]) if record else f"node {node}")
        lost = self._wait_seconds is not None and message.has_error() and fault != UNREADABLE
        passes = bool(fault) and (lost or _code(message) in NOT_YET)
        self._answered[node] = time.monotonic() + (ASK_AGAIN_SECONDS if passes else float("inf"))
        if fault and passes:
            if self._not_yet.get(name) != fault:
                self._not_yet[name] = fault
                self._events.emit("site_waiting", site=name, reason=fault)
            return
        if fault or record is None or name in self.ready:
            self._refuse(name, fault or "its answer was not understood, or its name is taken")
            return
        try:
            summary = Prepared.model_validate_json(str(record["summary"]), strict=True)
        except (ValidationError, KeyError):
            self._refuse(name, "its answer was not understood")
            return
        self.ready[name] = Site(name, node, _usable(summary, self._job))
        self.refused.pop(name, None)
        self._not_yet.pop(name, None)
        # A simulated site has this very version, and no policy.
        deployed = {"version": shown(str(record["version"]), 100)} if "version" in record else {}
        self._events.emit("site_ready", site=name, seconds=round(seconds, 3), **deployed, **summary.model_dump())

    def _refuse(self, name: str, reason: str) -> None:
        self.refused[name] = reason
        self._not_yet.pop(name, None)
        self._events.emit("site_refused", site=name, reason=reason)


def _usable(summary: Prepared, job: Job) -> dict[str, int]:
    """Cases by split, without training cases of the classes that the task does not train on."""
    task, training = task_of(job), summary.classes.get("train", {})
    left_out = sum(count for name, count in training.items() if not task.trains_on(name))
    return {split: max(count - left_out * (split == "train"), 0) for split, count in summary.cases.items()}


def _code(message: Message) -> str | None:
    fault = message.content.get("fault") if message.has_content() else None
    return str(fault.get("code")) if isinstance(fault, ConfigRecord) else None
