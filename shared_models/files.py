"""How a file appears: whole or not at all."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its place at ``path`` when the block ends well, and leaves nothing otherwise.

    A reader, or a crash, sees the old content or the new, never a part. What a process that was killed in the middle of
    the same file has left beside it goes.

    Raises:
        OSError: the folder is not there to write to, or full; what was at ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not _is_being_written(left):
            left.unlink(missing_ok=True)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _is_being_written(temporary: Path) -> bool:
    """Whether the process that a temporary file is named after is there; what has another name is not ours to judge."""
    try:
        os.kill(int(temporary.name.split(".")[-2]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        return True  # of somebody else, or no name of ours
    return True
