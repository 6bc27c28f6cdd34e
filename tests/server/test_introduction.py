"""Before the rounds: a site whose question was lost on the way is asked again, and one that says no is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from server import introduction
from server.events import EventLog, read_events
from server.introduction import Introduction
from shared_models import faults
from shared_models.errors import RunStopped
from shared_models.job import Job

WORKER_DIED = Error(8, "")  # Flower's CLIENT_APP_CRASHED
JOB = Job.model_validate(
    {
        "name": "scripted",
        "task": {"kind": "classification", "classes": ["a", "b"]},
        "data": {"spatial_dims": 2, "crop": [8, 8]},
        "model": {"name": "cnn"},
        "training": {"local_steps": 1},
        "federation": {"rounds": 1},
    }
)


def ready() -> RecordDict:
    counts = {"train": 3, "validation": 3, "test": 3}
    summary = {"cases": counts, "patients": counts, "classes": {}, "quarantined": {}, "duplicates": 0, "warnings": []}
    return RecordDict({"prepared": ConfigRecord({"site": "north", "summary": json.dumps(summary)})})


def no(code: str) -> RecordDict:
    record = ConfigRecord({**faults.fields(code, {})})
    return RecordDict({"fault": record, "prepared": ConfigRecord({"site": "north"})})


class OneSite(Grid):
    """A grid with one node, whose answers are given in turn."""

    def __init__(self, answers: Iterable[RecordDict | Error]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.answers = list(answers)
        self.pending: dict[str, Message] = {}

    run = property(lambda self: None)
    set_run = create_message = send_and_receive = lambda self, *arguments: None

    def get_node_ids(self) -> Iterable[int]:
        return [7]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        name = f"message-{len(self.answers)}"
        (message,) = messages
        self.pending = {name: message}
        return [name]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [Message(self.answers.pop(0), reply_to=self.pending.pop(name)) for name in message_ids]


@pytest.fixture
def meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Introduction, list[Any]]]:
    """Meets one site that gives these answers in turn; returns who is ready, and the events."""
    monkeypatch.setattr(introduction, "ASK_AGAIN_SECONDS", 0.0)

    def go(*answers: RecordDict | Error, needed: int = 1) -> tuple[Introduction, list[Any]]:
        events = EventLog(tmp_path / "events.jsonl")
        met = Introduction(OneSite(answers), JOB, events, wait_seconds=60.0)
        while met._grid.answers:  # type: ignore[attr-defined]
            met.ask()
            met.hear()
        return met, list(read_events(tmp_path / "events.jsonl"))

    return go


def test_training_cases_are_those_that_the_task_trains_on_and_all_are_on_record(tmp_path: Path) -> None:
    """Anomaly detection trains on the first class: that is what a site will count."""
    normal, other = "normal", "tumour"
    task = {"kind": "anomaly", "classes": [normal, other]}
    job = Job.model_validate(JOB.model_dump() | {"task": task, "model": {"name": "vae"}})
    answer = ready()
    summary = json.loads(str(answer["prepared"]["summary"]))
    summary["cases"] = {"train": 100, "validation": 9, "test": 9}
    summary["classes"] = {"train": {normal: 20, other: 80}, "validation": {other: 9}, "test": {other: 9}}
    answer["prepared"]["summary"] = json.dumps(summary)
    met = Introduction(OneSite([answer]), job, EventLog(tmp_path / "events.jsonl"))
    met.begin()
    assert met.ready["north"].cases == {"train": 20, "validation": 9, "test": 9}
    [event] = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "site_ready"]
    assert event["cases"]["train"] == 100


@pytest.mark.parametrize("passing", [WORKER_DIED, Error(5, ""), no("stopping"), no("waiting")])
def test_a_site_that_was_lost_or_not_ready_yet_is_asked_again(meet: Any, passing: RecordDict | Error) -> None:
    met, events = meet(passing, passing, ready())
    assert set(met.ready) == {"north"}
    assert [event["event"] for event in events] == ["site_waiting", "site_ready"]
    assert events[0]["reason"]


def test_a_site_that_says_no_is_not_asked_again(meet: Any) -> None:
    with pytest.raises(RunStopped, match="no site is ready"):
        grid = OneSite([no("manifest"), ready()])
        Introduction(grid, JOB, EventLog(Path("/dev/null")), wait_seconds=0.0).begin()
    assert len(grid.answers) == 1
