"""Shows a run that another process works on, from its event stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from server.events import Event
from server.live import LiveDisplay
from server.runs import Run
from shared_models.errors import RunStopped

LOOK_SECONDS = 0.3


def follow(run: Run, start: int = 0) -> int:
    """Shows the events behind the first `start` bytes until the run is over; returns its exit code.

    Raises:
        RunStopped: it stopped; the sentence says why.
    """
    tail = Tail(run.path / "events.jsonl", start)
    with LiveDisplay(run.path, run.job().selection_metric()) as live:
        while True:
            state = run.state()  # before the events, so that the last of them is not missed
            for event in tail.read():
                live.handle(event)
            if state.phase in ("complete", "stopped"):
                break
            time.sleep(LOOK_SECONDS)
    if state.phase == "stopped":
        raise RunStopped(f"{state.reason}; `consilium coordinator resume {run.name}` continues it")
    return state.exit_code or 0


class Tail:
    """The whole lines that are added to a file; one that was cut back is read on from its new end."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self._path, self._position = path, start

    def read(self) -> Iterator[Event]:
        """What has come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            self._position = min(self._position, file.seek(0, 2))
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                yield json.loads(line)
