"""Where files that can be made or fetched again lie, and how one is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared_models.errors import BadInput
from shared_models.files import whole_file


def cache_folder(*parts: str) -> Path:
    """A folder in ~/.cache/consilium, or in the one that CONSILIUM_CACHE names."""
    base = os.environ.get("CONSILIUM_CACHE") or Path.home() / ".cache" / "consilium"
    return Path(base).absolute().joinpath(*parts)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears whole, as `whole_file`, for what is written before a run has begun.

    Raises:
        BadInput: the folder is not there to write to, or full.
    """
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
