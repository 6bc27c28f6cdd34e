"""The SuperLink that a coordinator supervises: on loopback, with TLS, node authentication and process isolation."""

from __future__ import annotations

import logging
import secrets
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.federation import Paths
from shared_models.flower_runtime import Control, Runtime
from shared_models.keys import load_private
from shared_models.supervision import Child, free_port, memory_file

SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 30.0


class SuperLink:
    """One SuperLink process and the ways to it.

    Attributes:
        runtime: where the ServerApp's tasks are claimed; the secret is new at every start of the daemon.
        process: the child process.
    """

    def __init__(self, paths: Paths, passphrase: bytes | None, log: logging.Logger) -> None:
        """Nothing is started yet.

        Raises:
            BadInput: the server's key cannot be opened.
        """
        self._paths = paths
        key = load_private(paths.server_key, passphrase)
        # The SuperLink takes plain keys only, and gets it in memory.
        self._key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.address = f"127.0.0.1:{free_port()}"
        authority = paths.ca_certificate.read_bytes()
        self.runtime = Runtime(self.address, secrets.token_bytes(32), authority)
        self.control = Control(self.address, authority)
        self.process = Child("superlink", log, SHORTEST_PAUSE, LONGEST_PAUSE)
        paths.superlink.mkdir(exist_ok=True, mode=0o700)

    @property
    def database(self) -> Path:
        """Flower's state: nodes, runs, and messages that are under way."""
        return self._paths.superlink / "state.db"

    def start(self) -> None:
        """Starts the process; it takes some seconds until it answers."""
        host, port = self.address.split(":")
        key, secret = memory_file(self._key), memory_file(self.runtime.secret)
        command = [
            str(Path(sys.executable).with_name("flower-superlink")),
            *("--host", host, "--port", port),
            *("--ssl-ca-certfile", str(self._paths.ca_certificate.absolute())),
            *("--ssl-certfile", str(self._paths.server_certificate.absolute())),
            *("--ssl-keyfile", f"/proc/self/fd/{key}"),
            "--enable-supernode-auth",
            *("--database", str(self.database.absolute())),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", f"/proc/self/fd/{secret}"),
        ]
        self.process.start(
            command, inherit=[key, secret], environment={"FLWR_HOME": str(self._paths.superlink.absolute())}
        )

    def reclaim(self) -> int:
        """Gives back the space of updates that were taken, and overwrites what they were; returns the bytes.

        Flower deletes a message's rows once it was pulled, but their pages stay in the file as they are. It is done
        when they are a quarter of the file, because the rest of the file is written anew.
        """
        if not self.database.exists():
            return 0
        try:
            with closing(sqlite3.connect(self.database, timeout=5, isolation_level=None)) as connection:
                (free,), (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in _SPACE)
                if free * 4 < pages:
                    return 0
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                return int(free * size)
        except sqlite3.OperationalError:
            return 0  # it is busy; there will be a quieter moment


_SPACE = ("freelist_count", "page_count", "page_size")
