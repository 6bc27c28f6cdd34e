"""Child processes of a daemon: they end with it, their words go to a log that rotates, their secrets to no disk."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import logging.handlers
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import cast

from shared_models.errors import BadInput

LOG_BYTES, LOG_FILES = 10 * 2**20, 5
PR_SET_PDEATHSIG = 1
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Environment of every child: Flower calls nobody at home and installs nothing."""


def rotating_log(path: Path) -> logging.Logger:
    """A log of at most 60 MB in all, readable by its owner only; its lines carry the UTC time."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = logging.Logger(path.stem)
    handler = _PrivateHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    log.addHandler(handler)
    return log


class _PrivateHandler(logging.handlers.RotatingFileHandler):
    """Its files, also those that follow a full one, are readable by their owner only."""

    def _open(self) -> TextIOWrapper:
        file = open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)  # noqa: SIM115
        os.fchmod(file.fileno(), 0o600)  # one that was there already
        return cast(TextIOWrapper, file)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def memory_file(content: bytes) -> int:
    """The descriptor of a nameless file in memory; a child that inherits it reads it at /proc/self/fd/N."""
    descriptor = os.memfd_create("consilium")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    return descriptor


def only_one(lock: Path) -> int:
    """Holds a lock file for as long as this process lives; returns its descriptor.

    Raises:
        BadInput: another process holds it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BadInput(f"a daemon runs already from {lock.parent}; stop it first, or use it") from None
    return descriptor


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Child:
    """One process that is kept alive, and the seconds to wait before it is started again."""

    def __init__(self, name: str, log: logging.Logger, shortest_pause: float, longest_pause: float) -> None:
        """Nothing is started yet.

        Args:
            shortest_pause: seconds between its death and the next start; doubled at each death.
            longest_pause: the most that the pause grows to. A life that was longer than it resets the pause.
        """
        self.name = name
        self.restarts = -1
        self._log = log
        self._shortest, self._longest = shortest_pause, longest_pause
        self._pause, self._started, self._not_before = shortest_pause, 0.0, 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it is running now."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process id, while it is running."""
        return self._process.pid if self._process is not None and self.alive else None

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs or before its first start."""
        return self._process.poll() if self._process is not None else None

    def is_due(self) -> bool:
        """Whether it is dead, and the pause after its death is over."""
        if self.alive:
            return False
        if self._process is not None:
            self._log.info("%s ended with %s", self.name, self._process.returncode)
            lived = time.monotonic() - self._started
            self._pause = self._shortest if lived > self._longest else min(self._pause * 2, self._longest)
            self._not_before = time.monotonic() + self._pause
            self._process = None
        return time.monotonic() >= self._not_before

    def start(
        self,
        command: Sequence[str],
        *,
        stdin: bytes = b"",
        inherit: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts it; the daemon's death is its death.

        Args:
            stdin: what it reads there, such as a secret, which is in no argument and no environment.
            inherit: descriptors that it gets, and that are closed here.
        """
        self.restarts += 1
        self._started = time.monotonic()
        parent = os.getpid()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(inherit),
            env={**os.environ, **QUIET, **(environment or {})},
            start_new_session=True,  # a Ctrl-C at the daemon's terminal is the daemon's to handle
            preexec_fn=lambda: end_with(parent),
        )
        for descriptor in inherit:
            os.close(descriptor)
        threading.Thread(target=self._copy_output, args=(self._process,), daemon=True).start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(stdin)
            self._process.stdin.close()
        except BrokenPipeError:
            self._log.info("%s ended before it read its input", self.name)
        self._log.info("%s started as process %d", self.name, self._process.pid)

    def signal(self, number: int) -> None:
        """Sends a signal, if it is running."""
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    def stop(self, patience: float) -> None:
        """Asks it to end, and makes it end when it has not after so many seconds."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _copy_output(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._log.info("%s: %s", self.name, line.decode("utf-8", "replace").rstrip())


# Looked up before any fork: between a fork and the other program, little is safe to do.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def end_with(parent: int) -> None:
    """In the child, before it becomes another program: Linux ends it when its parent ends."""
    if _prctl:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
