"""Following a run that another process works on: nothing is missed when it goes on behind a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.events import EventLog
from server.following import Tail


def shown(tail: Tail) -> list[str]:
    return [event["event"] for event in tail.read()]


def test_what_is_added_is_read_once_and_a_torn_line_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = Tail(path)
    assert shown(tail) == []
    path.write_bytes(b'{"event": "a"}\n{"event": "b"')
    assert shown(tail) == ["a"]
    with path.open("ab") as file:
        file.write(b"}\n")
    assert shown(tail) == ["b"]
    assert shown(tail) == []


@pytest.mark.parametrize("added", [0, 1, 5])
@pytest.mark.parametrize("whole_rounds", [0, 1])
def test_a_run_that_goes_on_is_shown_from_there_however_long_its_log_is_again(
    tmp_path: Path, whole_rounds: int, added: int
) -> None:
    path = tmp_path / "events.jsonl"
    before = EventLog(path)
    before.emit("run_started")
    for number in range(whole_rounds):
        before.emit("round_finished", round=number)
    checkpoint = before.size() if whole_rounds else 0
    before.emit("site_ready")
    before.close()
    tail = Tail(path, path.stat().st_size)
    after = EventLog(path)  # some seconds later: no event of it is one of before
    after.cut(checkpoint)
    after.emit("run_started", seconds_later=60)
    for _ in range(added):
        after.emit("site_ready", seconds_later=61)
    assert shown(tail) == ["run_started", *["site_ready"] * added]
    after.emit("judged")
    assert shown(tail) == ["judged"]
    after.close()
