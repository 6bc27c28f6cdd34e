"""The machine that this process runs on; it can be asked where torch cannot be imported."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


def machine_memory() -> tuple[int, int]:
    """Bytes free and in all, within the limit of a container."""
    state = psutil.virtual_memory()
    total, free = state.total, state.available
    with suppress(OSError, ValueError):  # "max" without a limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
        free = min(free, total - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free, total
