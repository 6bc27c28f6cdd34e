"""The one stream of what happened in a run: terminal, report and dashboard read it, the round only writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared_models.errors import BadInput

Event = dict[str, Any]


class EventLog:
    """Appends events to `events.jsonl`, one JSON object a line, and hands each to its listeners."""

    def __init__(self, path: Path, listeners: tuple[Callable[[Event], None], ...] = ()) -> None:
        self.path = path
        self._listeners = listeners
        self._file = path.open("a", encoding="utf-8")

    def emit(self, event: str, **fields: Any) -> None:
        """Writes one event; NaN becomes null, because JSON has none."""
        entry: Event = {"event": event, "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}
        entry = _without_nan(entry)
        self._file.write(json.dumps(entry, allow_nan=False) + "\n")
        self._file.flush()
        for listener in self._listeners:
            listener(entry)

    def size(self) -> int:
        """Bytes written and safe on disk: what a checkpoint remembers, to cut off what came after it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def cut(self, size: int) -> None:
        """Forgets everything behind `size` bytes: events of a round that will be run again."""
        self._file.flush()
        os.truncate(self.path, size)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(path: Path) -> Iterator[Event]:
    """The events of a run; a last line cut short by a crash is passed over.

    Raises:
        BadInput: another line is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                return
            raise BadInput(f"{path}:{number}: not a JSON object; the file was changed after the run wrote it") from None
        yield event


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
