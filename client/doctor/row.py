"""What the doctor says of one thing that it looked at, and how it looks without waiting for ever."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

T = TypeVar("T")


class Level(IntEnum):
    """How bad it is; the worst is the exit code of `consilium site doctor`."""

    OK = 0
    WARNING = 1
    FAULT = 2


@dataclass(frozen=True)
class Row:
    """One line of the doctor's table. No secret and nothing of a patient stands in it."""

    check: str
    found: str
    level: Level = Level.OK
    sentence: str = ""
    """Of a warning or a fault: what was found, what was expected and what to do."""


class Late(Exception):
    """What was asked has not answered in its time."""


def warning(check: str, found: str, sentence: str) -> Row:
    """A row about what works, but should be seen to."""
    return Row(check, found, Level.WARNING, sentence)


def fault(check: str, found: str, sentence: str) -> Row:
    """A row about what keeps the site from working, or from keeping its data to itself."""
    return Row(check, found, Level.FAULT, sentence)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises. One that hangs, as on a network drive that is away, is left to hang.

    Raises:
        Late: it has done neither after so many seconds.
    """
    outcome: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise Late from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # of the two, the one without an error


def printable(text: str, longest: int = 100) -> str:
    """A text from outside as one short line that no terminal takes for a command."""
    line = "".join(sign if sign.isprintable() else " " for sign in text).strip()
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def count(number: int, one: str, many: str = "") -> str:
    """Such as ``1 row`` or ``2 rows``."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def gib(size: float) -> str:
    """A size in bytes, in GiB."""
    return f"{size / 2**30:.1f} GiB"
