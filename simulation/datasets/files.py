"""Where files that can be made or fetched again lie, and how a file appears: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shared_models.errors import BadInput


def cache_folder(*parts: str) -> Path:
    """A folder in ~/.cache/consilium, or in the one that CONSILIUM_CACHE names."""
    base = os.environ.get("CONSILIUM_CACHE") or Path.home() / ".cache" / "consilium"
    return Path(base).absolute().joinpath(*parts)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its place at ``path`` when the block ends well, and leaves nothing otherwise.

    Raises:
        BadInput: the folder is not there to write to, or full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
