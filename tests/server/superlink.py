"""A real SuperLink behind a real front: what the tests of the front, and of what stands behind it, start."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from deploy import provision
from server.front import Front
from server.front_exchange import Traffic
from server.registry import Registry
from shared_models.keys import new_site_key, openssh_private, public_line

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    """What `holds` returns once that is true; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not in {seconds} s: {what}")


def raw_head(method: str, target: str, key: EllipticCurvePrivateKey, *lines: str) -> bytes:
    """The head of a request that a site signed, as it goes over the wire."""
    signature = [f"{name}: {value}" for name, value in signed_headers(key).items()]
    return "\r\n".join([f"{method} {target} HTTP/1.1", "host: x", *signature, *lines, "", ""]).encode()


def signed_headers(key: EllipticCurvePrivateKey, age: timedelta = timedelta(0)) -> dict[str, str]:
    """The headers that a SuperNode with this key sends."""
    timestamp = (datetime.now(UTC) - age).isoformat()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(timestamp.encode(), ECDSA(SHA256()))
    return {
        "flwr-public-key": base64.b64encode(pem).decode(),
        "flwr-timestamp": timestamp,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/protobuf",
    }


@dataclass
class Federation:
    """A coordinator's home, a SuperLink on loopback, a front before it, and the keys of sites."""

    home: Path
    port: int = field(default_factory=free_port)
    events: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, EllipticCurvePrivateKey] = field(default_factory=dict)
    superlink: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        provision.init(self.home, "lab", "127.0.0.1:443", None)
        self.registry = Registry(self.home / "registry.json")
        self.upstream = f"https://127.0.0.1:{self.port}"
        self.front = self.another_front(self.home)

    @property
    def address(self) -> str:
        host, port = self.front.address
        return f"{host}:{port}"

    @property
    def url(self) -> str:
        return f"https://{self.address}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.home / "ca.crt"))

    def traffic(self, site: str) -> Traffic:
        """What the front has counted for a site."""
        return self.front.traffic().get(site, Traffic())

    def another_front(self, home: Path, passphrase: bytes | None = None) -> Front:
        """One more front before the same SuperLink, with the certificate of another home."""
        return Front(
            listen=("127.0.0.1", 0),
            certificate=home / "server.crt",
            key=home / "server.key",
            passphrase=passphrase,
            upstream=self.upstream,
            upstream_ca=self.home / "ca.crt",
            registry=Registry(self.home / "registry.json"),
            on_event=lambda event, **fields: self.events.append({"event": event, **fields}),
        )

    def environment(self, name: str) -> dict[str, str]:
        folder = self.home / "flwr" / name
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return {**os.environ, **quiet, "FLWR_HOME": str(folder)}

    def start_superlink(self) -> None:
        log = (self.home / "superlink.log").open("ab")
        secret = self.home / "secret"
        secret.write_text("a-secret-of-the-tests-that-is-long-enough")
        options: dict[str, str | Path] = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--ssl-ca-certfile": self.home / "ca.crt",
            "--ssl-certfile": self.home / "server.crt",
            "--ssl-keyfile": self.home / "server.key",
            "--database": self.home / "state.db",
            "--isolation": "process",
            "--superexec-auth-secret-file": secret,
        }
        self.superlink = subprocess.Popen(
            [BIN / "flower-superlink", "--enable-supernode-auth", *chain.from_iterable(options.items())],
            env=self.environment("superlink"),
            cwd=self.home,
            stdout=log,
            stderr=log,
        )
        wait_until(self._superlink_answers, "the SuperLink answers")

    def stop_superlink(self) -> None:
        if self.superlink is not None:
            self.superlink.kill()
            self.superlink.wait()
            self.superlink = None

    def _superlink_answers(self) -> bool:
        assert self.superlink is not None and self.superlink.poll() is None, (self.home / "superlink.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def flwr(self, *words: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
        """One command of Flower's, sent to the SuperLink itself or to another address."""
        environment = self.environment("operator")
        Path(environment["FLWR_HOME"], "config.toml").write_text(
            '[superlink]\ndefault = "lab"\n[superlink.lab]\n'
            f'address = "{address or f"127.0.0.1:{self.port}"}"\nroot-certificates = "{self.home / "ca.crt"}"\n'
        )
        command = [str(BIN / "flwr"), *words]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=120)

    def admit(self, name: str, *, at_superlink: bool = False) -> EllipticCurvePrivateKey:
        """A site of this federation, with a key of its own."""
        key = self.keys[name] = new_site_key()
        self.registry.admit(name, public_line(key), datetime.now(UTC))
        if at_superlink:
            line = self.home / f"{name}.pub"
            line.write_text(public_line(key) + "\n")
            done = self.flwr("supernode", "register", str(line), "lab")
            assert done.returncode == 0, done.stdout + done.stderr
        return key

    def node_states(self) -> list[str]:
        """How the SuperLink sees its nodes, such as `online`."""
        done = self.flwr("supernode", "list", "lab", "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return [node["status"] for node in json.loads(done.stdout)["nodes"]]

    @contextmanager
    def supernode(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A real SuperNode of a site, which dials the front."""
        key = self.home / f"{name}.key"
        key.write_bytes(openssh_private(self.keys[name]))
        key.chmod(0o600)
        options: dict[str, str | Path] = {
            "--superlink": self.address,
            "--root-certificates": self.home / "ca.crt",
            "--auth-supernode-private-key": key,
            "--host": "127.0.0.1",
            "--port": str(free_port()),
            "--isolation": "process",
            "--superexec-auth-secret-file": self.home / "secret",
        }
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "flower-supernode", *chain.from_iterable(options.items())],
                env=self.environment(name),
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def post(
        self, path: str, key: EllipticCurvePrivateKey | None, content: Any = b"", **headers: str
    ) -> httpx.Response:
        """One request through the front, signed when there is a key."""
        signature = signed_headers(key) if key is not None else {}
        with httpx.Client(verify=self.trust, trust_env=False, timeout=60) as client:
            return client.post(self.url + path, content=content, headers={**signature, **headers})

    def connect(self) -> ssl.SSLSocket:
        """A connection to the front, on which nothing has been sent."""
        plain = socket.create_connection(self.front.address, timeout=60)
        return self.trust.wrap_socket(plain, server_hostname="127.0.0.1")

    def raw(self, request: bytes) -> bytes:
        """What the front answers to these very bytes."""
        with self.connect() as connection:
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer


@contextmanager
def running(home: Path) -> Iterator[Federation]:
    """A federation whose SuperLink and front run until the block ends."""
    federation = Federation(home)
    try:
        federation.start_superlink()
        federation.front.start()
        yield federation
    finally:
        federation.front.stop()
        federation.stop_superlink()


def reached_the_superlink(answer: httpx.Response) -> bool:
    """Whether the SuperLink gave this answer; the front's own are plain text."""
    return answer.headers["content-type"] == "application/json"
