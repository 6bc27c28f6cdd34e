"""A hospital's daemon and a server that is not its coordinator: it does not connect, and its log says why."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from deploy import provision
from deploy.local_network import COMMAND, consilium, wait_for
from server.front import Front
from server.registry import Registry
from shared_models.enrolment import read_kit
from shared_models.keys import key_fingerprint
from shared_models.supervision import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@dataclass
class Hospital:
    """A site that has joined the federation of `folder/coordinator`, whose coordinator is dialled at a port."""

    folder: Path
    port: int
    made: datetime

    def __post_init__(self) -> None:
        address = f"127.0.0.1:{self.port}"
        provision.init(self.folder / "coordinator", "lab", address, None, now=self.made)
        provision.init(self.folder / "other", "lab", address, None)
        site, kit = self.folder / "site", self.folder / "kit.json"
        consilium("site", "init", "--name", "north", "--home", site)
        consilium("coordinator", "admit", site / "request.json", "--home", self.folder / "coordinator", "--out", kit)
        (self.folder / "data").mkdir()
        (self.folder / "data" / "manifest.csv").write_text("patient,image,label,split\n")
        consilium(
            *("site", "join", kit, "--home", site, "--manifest", self.folder / "data" / "manifest.csv"),
            *("--data-root", self.folder / "data", "--trust", key_fingerprint(read_kit(kit).signing_key)),
        )
        self.config = site / "site.yaml"
        values = yaml.safe_load(self.config.read_text()) | {"health_port": free_port()}
        self.config.write_text(yaml.safe_dump(values))

    def log(self) -> str:
        logs = self.folder / "site" / "work" / "logs"
        return "".join(path.read_text() for path in sorted(logs.glob("*.log")))

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Its daemon."""
        with (self.folder / "out").open("wb") as out:
            process = subprocess.Popen([COMMAND, "site", "start", "--config", self.config], stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def front(self, home: str) -> Front:
        """A front that shows the certificate of a home."""
        return Front(
            listen=("127.0.0.1", self.port),
            certificate=self.folder / home / "server.crt",
            key=self.folder / home / "server.key",
            passphrase=None,
            upstream=f"https://127.0.0.1:{free_port()}",
            upstream_ca=self.folder / home / "ca.crt",
            registry=Registry(self.folder / "coordinator" / "registry.json"),
            on_event=lambda event, **fields: None,
        )


@pytest.mark.parametrize(
    ("home", "age", "says"),
    [
        ("other", timedelta(0), "and not by the kit's CA"),
        ("coordinator", timedelta(days=400), "has expired|expired on|ran out"),
    ],
    ids=["another CA's", "expired"],
)
def test_a_certificate_that_the_kit_does_not_vouch_for_gets_no_request(
    tmp_path: Path, home: str, age: timedelta, says: str
) -> None:
    hospital = Hospital(tmp_path, free_port(), datetime.now(UTC) - age)
    front = hospital.front(home)
    front.start()
    try:
        with hospital.running() as daemon:
            wait_for(lambda: any(words in hospital.log() for words in says.split("|")), "the log to say why", 120)
            wait_for(lambda: "CERTIFICATE_VERIFY_FAILED" in hospital.log(), "the SuperNode to refuse as well", 120)
            assert daemon.poll() is None, "the daemon goes on, and tries again"
        assert "is not reached" in hospital.log()
        assert sum(traffic.requests for traffic in front.traffic().values()) <= 1, "the doctor's look at who is there"
    finally:
        front.stop()


def test_a_server_without_a_certificate_gets_no_request(tmp_path: Path) -> None:
    requests: list[str] = []

    class Plain(BaseHTTPRequestHandler):
        def parse_request(self) -> bool:
            requests.append(self.raw_requestline.decode("latin-1"))
            return super().parse_request()

    hospital = Hospital(tmp_path, free_port(), datetime.now(UTC))
    server = ThreadingHTTPServer(("127.0.0.1", hospital.port), Plain)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with hospital.running():
            wait_for(lambda: "did not agree on TLS" in hospital.log(), "the log to say why", 120)
        assert requests and not [line for line in requests if "HTTP" in line], "only the greeting of TLS"
    finally:
        server.shutdown()
        server.server_close()


def test_a_port_that_nobody_listens_on_is_told(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, free_port(), datetime.now(UTC))
    with hospital.running():
        wait_for(lambda: "cannot be connected to (connection refused)" in hospital.log(), "the log to say why", 120)
