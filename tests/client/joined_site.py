"""A hospital that has joined a federation, with a real front to dial: what the tests of the doctor look at."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from client.doctor import Level, Row, examine
from deploy import provision
from server.front import Front
from server.registry import Registry
from shared_models.enrolment import Kit
from shared_models.supervision import free_port

OPEN_POLICY = {
    "tasks": ["classification"],
    "models": ["cnn"],
    "algorithms": ["fedavg"],
    "max_rounds": 5,
    "max_local_steps": 50,
    "max_hours_per_day": 2,
    "min_patients": 1,
    "metrics": ["auroc", "average_precision", "balanced_accuracy", "accuracy", "calibration_error", "brier"],
}
JOB = {
    "name": "small",
    "task": {"kind": "classification", "classes": ["no", "yes"]},
    "data": {"spatial_dims": 2, "crop": [16, 16]},
    "model": {"name": "cnn"},
    "training": {"local_steps": 1},
    "federation": {"rounds": 2},
}
PATIENTS = [f"Doe-{number}" for number in range(10)]


@dataclass
class Joined:
    """A federation at `home` and a site at `site`, under one folder."""

    folder: Path
    passphrase: bytes | None = None
    made: datetime | None = None
    """When the federation says that it was made."""
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.home, self.site, self.data = (self.folder / name for name in ("coordinator", "site", "data"))
        provision.init(self.home, "lab", f"{self.host}:{self.port}", None, now=self.made)
        provision.init_site(self.site, "north", self.passphrase)
        self.kit: Kit = provision.admit(self.home, self.site / "request.json")
        self.data.mkdir()
        rng = np.random.default_rng(1)
        for patient in PATIENTS:
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(self.data / f"{patient}.png")
        self.manifest = self.data / "manifest.csv"
        self.write_manifest(*(f"{patient}.png,{number % 2},{patient}" for number, patient in enumerate(PATIENTS)))
        provision.join(self.site, self.kit, self.manifest, self.data)
        self.config = self.site / "site.yaml"
        self.edit(cache_gb=0.1, health_port=self.health_port)
        self.allow(**OPEN_POLICY)

    def write_manifest(self, *rows: str, header: str = "image,label,patient") -> None:
        self.manifest.write_text("\n".join([header, *rows, ""]))

    def edit(self, **values: Any) -> None:
        """Other values in site.yaml."""
        self.config.write_text(yaml.safe_dump(yaml.safe_load(self.config.read_text()) | values))

    def allow(self, **rules: Any) -> None:
        """Other rules in its policy."""
        self.edit(policy=yaml.safe_load(self.config.read_text())["policy"] | rules)

    def job(self, **values: Any) -> Path:
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(JOB | values))
        return path

    @contextmanager
    def front(self, home: Path | None = None) -> Iterator[None]:
        """The coordinator's front, whose SuperLink is away; with the certificate of another home."""
        home = home or self.home
        front = Front(
            listen=(self.kit.address.split(":")[0], self.port),
            certificate=home / "server.crt",
            key=home / "server.key",
            passphrase=None,
            upstream="https://127.0.0.1:1",
            upstream_ca=home / "ca.crt",
            registry=Registry(self.home / "registry.json"),
            on_event=lambda event, **fields: None,
        )
        front.start()
        try:
            yield
        finally:
            front.stop()

    @contextmanager
    def other_server(self, date: str | None, status: int = 403) -> Iterator[None]:
        """A server with the coordinator's certificate that tells this time."""

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(status)
                if date is not None:
                    self.send_header("Date", date)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.home / "server.crt", self.home / "server.key")
        with serving(Answer, self.port, context):
            yield


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """An HTTP server on loopback, over TLS with a context."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@contextmanager
def connect_proxy(refusal: str = "") -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that takes CONNECT; its address, and where it was asked to connect to.

    Args:
        refusal: such as ``403 Forbidden``, which it answers instead.
    """
    asked: list[str] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def serve(near: socket.socket) -> None:
        head = b""
        with near:
            while b"\r\n\r\n" not in head:
                head += near.recv(4096)
            target = head.split()[1].decode()
            asked.append(target)
            if refusal:
                near.sendall(f"HTTP/1.1 {refusal}\r\nContent-Length: 0\r\n\r\n".encode())
                return
            host, port = target.rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=30) as far:
                near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join()

    def accept(listening: socket.socket) -> None:
        try:
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
        except OSError:
            pass  # closed: the test has ended

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, args=(listening,), daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)


HERE = {"memory"}
"""Rows about the machine that the tests run on."""


def look(site: Joined, passphrase: bytes | None = None, job: Path | None = None) -> list[Row]:
    """Every row, whatever it says free of what nobody may read there."""
    rows = list(examine(site.config, lambda key: passphrase, job))
    for row in rows:
        assert bool(row.sentence) == (row.level > Level.OK), row
        text = f"{row.found} {row.sentence}"
        assert not any(name in text for name in PATIENTS), "a patient is named"
        assert "Traceback" not in text and "\n" not in text
    return rows


def ill(site: Joined, passphrase: bytes | None = None, job: Path | None = None) -> list[tuple[str, Level, str]]:
    """What is not well with a site and its coordinator, which answers."""
    with site.front():
        return worse(look(site, passphrase, job))


def worse(rows: list[Row]) -> list[tuple[str, Level, str]]:
    return [(row.check, row.level, row.sentence) for row in rows if row.level and row.check not in HERE]


def the_one(found: list[tuple[str, Level, str]], check: str, level: Level) -> str:
    """The sentence of the only row that is not well."""
    assert [(row[0], row[1]) for row in found] == [(check, level)], found
    return found[0][2]
