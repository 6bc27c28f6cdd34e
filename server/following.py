"""Shows a run that another process works on, from its event stream."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rich.console import Console
from rich.text import Text

from server.events import Event
from server.federation import Paths
from server.live import LiveDisplay
from server.runs import Run
from server.status import read_daemon
from shared_models.errors import RunStopped

LOOK_SECONDS = 0.3
QUIET_SECONDS = 3.0  # without an event, before it is looked at why


def follow(run: Run, start: int = 0) -> int:
    """Shows the events behind the first `start` bytes until the run is over; returns its exit code.

    Raises:
        RunStopped: it stopped; the sentence says why.
    """
    tail = Tail(run.path / "events.jsonl", start)
    console = Console(highlight=False)
    said, since = "", time.monotonic()
    with LiveDisplay(run.path, run.job().selection_metric(), console) as live:
        while True:
            state = run.state()  # before the events, so that the last of them is not missed
            for event in tail.read():
                live.handle(event)
                since = time.monotonic()
            if state.phase in ("complete", "stopped"):
                break
            if time.monotonic() - since > QUIET_SECONDS:
                since = time.monotonic()
                silent = _why_silent(run, state.phase)
                if silent != said and silent:
                    console.print(Text(silent), soft_wrap=True)
                said = silent
            time.sleep(LOOK_SECONDS)
    if state.phase == "stopped":
        raise RunStopped(f"{state.reason}; `consilium coordinator resume {run.name}` continues it")
    return state.exit_code or 0


def _why_silent(run: Run, phase: str) -> str:
    """Why nothing can come: the coordinator does not run, or works on another run. Empty when neither is so."""
    daemon = read_daemon(Paths(run.path.parent.parent))
    if not daemon.running:
        return "the coordinator is not running; the run goes on when `consilium coordinator start` has started it again"
    other = daemon.facts.get("run")
    return f"queued behind {other}" if phase == "queued" and other and other != run.name else ""


class Tail:
    """The whole lines that are added to a file.

    A run that goes on from a checkpoint cuts off the events behind it and writes them anew, so lines that are no
    longer what they were are read again.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        """Reads on from `start`, the end of a line."""
        self._path = path
        self._known: list[tuple[int, int]] = [(0, 0)]  # where each line ends, and its checksum
        if start:
            with path.open("rb") as file:
                for line in file.read(start).splitlines(keepends=True):
                    self._note(line)

    def read(self) -> Iterator[Event]:
        """What has come since the last call."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            self._forget_what_changed(file)
            file.seek(self._known[-1][0])
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._note(line)
                yield json.loads(line)

    def _note(self, line: bytes) -> None:
        self._known.append((self._known[-1][0] + len(line), zlib.crc32(line)))

    def _forget_what_changed(self, file: BinaryIO) -> None:
        while len(self._known) > 1:
            (begin, _), (end, checksum) = self._known[-2:]
            file.seek(begin)
            line = file.read(end - begin)
            if len(line) == end - begin and zlib.crc32(line) == checksum:
                return
            self._known.pop()
