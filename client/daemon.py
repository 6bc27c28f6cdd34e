"""`consilium site start`: keeps a SuperNode and a warm worker alive, and says on loopback how they are.

The SuperNode dials out to the coordinator and nowhere else, and hands messages to the worker over loopback. A SuperNode
that ends, or whose local API no longer answers, is started again after the pause that Flower needs: for a minute after
a crash the coordinator still holds the dead one for connected, and refuses it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.config import SiteConfig
from client.doctor import Level
from client.doctor.network import coordinator
from client.ledger import Ledger
from shared_models.certificates import expiry_warning
from shared_models.enrolment import Kit, parse_address
from shared_models.errors import BadInput
from shared_models.keys import openssh_private
from shared_models.supervision import Child, free_port, memory_file, only_one, rotating_log

TICK = 0.5
PATIENCE = 20.0
DEAF_SECONDS = 60.0
"""A SuperNode whose local API has not answered for so long is ended and started again."""

ASK_SECONDS = 5.0
"""How often the SuperNode's local API is asked whether it answers."""

REACH_SECONDS = 30.0
"""How often it is looked whether the coordinator can be reached."""


HARMLESS = "/v1/fleet/get-run"
"""A question that a SuperNode asks and that changes nothing: its answer tells whether this site is let in."""

REFUSALS = {
    401: "the coordinator does not take this site's key or the time of its clock: see `consilium site doctor`",
    403: "the coordinator has suspended this site; ask it why",
}


@dataclass(frozen=True)
class Orders:
    """What the worker is told on standard input; never in arguments, which every user of the machine can read."""

    config: str
    address: str
    secret: str
    """Base64."""
    passphrase: str | None

    def to_bytes(self) -> bytes:
        """As standard input carries it."""
        return json.dumps(asdict(self)).encode()


class SiteDaemon:
    """The daemon of one site."""

    def __init__(
        self,
        config_path: Path,
        config: SiteConfig,
        kit: Kit,
        key: EllipticCurvePrivateKey,
        passphrase: bytes | None,
    ) -> None:
        """Takes the work directory for itself; nothing is started yet.

        Raises:
            BadInput: another daemon has it, the kit is another site's, or the health port is taken.
        """
        if kit.site != config.site:
            raise BadInput(
                f"{config.kit} is the kit of site {kit.site}, and this is {config.site}; ask for your own kit"
            )
        self._config_path, self._config, self._kit, self._passphrase = config_path, config, kit, passphrase
        self._lock = only_one(config.work / "daemon.lock")
        self._log = rotating_log(config.work / "logs" / "daemon.log")
        self._key = key
        self._ledger = Ledger(config.work / "ledger.jsonl", key, config.site)
        self._address, self._secret = f"127.0.0.1:{free_port()}", secrets.token_bytes(32)
        log = rotating_log(config.work / "logs" / "flower.log")
        self._supernode = Child("supernode", log, 5, 20)
        self._worker = Child("worker", self._log, 1, 30)
        self._heard = time.monotonic()
        self._reached: float | None = None
        self._reach_at = self._ask_at = 0.0
        self._warnings: list[str] = []
        self._turned_away: str | None = None
        self._stopping = False
        self._began = time.time()
        try:
            self._health = _HealthServer(("127.0.0.1", config.health_port), self)
        except OSError as error:
            raise BadInput(
                f"health_port {config.health_port} cannot be listened on ({error.strerror}); "
                "free it, or set another health_port in site.yaml"
            ) from None

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT, then ends what it started."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        threading.Thread(target=self._health.serve_forever, daemon=True).start()
        self._ledger.append("started", pid=os.getpid(), coordinator=self._kit.address)
        try:
            while not self._stopping:
                self._tick()
                time.sleep(TICK)
        finally:
            self._log.info("the daemon ends")
            # The worker first: its answer that it is being stopped still goes out.
            self._worker.stop(PATIENCE)
            self._supernode.stop(PATIENCE)
            self._health.shutdown()

    def health(self) -> dict[str, Any]:
        """What `consilium site status` shows."""
        doing: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            doing = json.loads((self._config.work / "worker.json").read_text())
        reached = self._reached is not None and time.time() - self._reached < 3 * REACH_SECONDS
        return {
            "site": self._config.site,
            "federation": self._kit.federation,
            "coordinator": self._kit.address,
            "healthy": self._supernode.alive and self._worker.alive and reached and not self._turned_away,
            "pid": os.getpid(),
            "since": self._began,
            "supernode": _facts(self._supernode),
            "worker": {**_facts(self._worker), **doing},
            "coordinator_reached": self._reached,
            "warnings": [*filter(None, [self._turned_away]), *self._warnings],
        }

    def _tick(self) -> None:
        if self._supernode.exit_code == 0:  # it ends so by itself for one reason only, and does not say it
            self._log.info(
                "the coordinator refuses this site's key: the site was not admitted or was removed, or the clock of "
                "this machine is wrong; see `consilium site doctor`, and ask the coordinator"
            )
        if self._supernode.is_due():
            self._start_supernode()
        if self._worker.is_due():
            self._start_worker()
        now = time.monotonic()
        if now < self._ask_at:
            return
        self._ask_at = now + ASK_SECONDS
        if _answers(self._address):
            self._heard = now
        elif self._supernode.alive and now - self._heard > DEAF_SECONDS:
            self._log.info("the SuperNode's local API has not answered for %d s: it is ended", now - self._heard)
            self._supernode.signal(signal.SIGKILL)
            self._heard = now
        if now >= self._reach_at:
            self._reach_at = now + REACH_SECONDS
            threading.Thread(target=self._reach, daemon=True).start()

    def _start_supernode(self) -> None:
        self._heard = time.monotonic()
        authority = memory_file(self._kit.ca_certificate.encode())
        key, secret = memory_file(openssh_private(self._key)), memory_file(self._secret)
        host, port = self._address.split(":")
        command = [
            *(sys.executable, "-m", "client.supernode"),
            *("--superlink", self._kit.address),
            *("--root-certificates", f"/proc/self/fd/{authority}"),
            *("--auth-supernode-private-key", f"/proc/self/fd/{key}"),
            *("--isolation", "process", "--superexec-auth-secret-file", f"/proc/self/fd/{secret}"),
            *("--host", host, "--port", port),
        ]
        home = self._config.work / "flower"
        home.mkdir(exist_ok=True, mode=0o700)
        environment = {"FLWR_HOME": str(home), "NO_PROXY": _no_proxy()}
        self._supernode.start(command, inherit=[authority, key, secret], environment=environment)

    def _start_worker(self) -> None:
        orders = Orders(
            config=str(self._config_path.absolute()),
            address=self._address,
            secret=base64.b64encode(self._secret).decode(),
            passphrase=self._passphrase.decode() if self._passphrase else None,
        )
        command = [sys.executable, "-m", "client.executor"]
        self._worker.start(command, stdin=orders.to_bytes(), environment={"NO_PROXY": _no_proxy()})

    def _reach(self) -> None:
        """Notes whether the coordinator answers; through a proxy if one is set, as the SuperNode does."""
        import ssl

        import httpx

        context = ssl.create_default_context(cadata=self._kit.ca_certificate)
        host, port = parse_address(self._kit.address)
        shown = f"[{host}]" if ":" in host else host
        try:
            with httpx.stream(
                "POST",
                f"https://{shown}:{port}{HARMLESS}",
                headers=_signed_headers(self._key),
                verify=context,
                timeout=10,
            ) as answer:
                shown_by_it = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
        except (httpx.HTTPError, OSError) as error:
            self._log.info("the coordinator at %s is not reached: %s", self._kit.address, type(error).__name__)
            for row in coordinator(self._kit):  # looks closer, and says why
                if row.level is Level.FAULT:
                    self._log.info("%s", row.sentence)
            return
        self._reached = time.time()
        # The front refuses in plain text. What the SuperLink behind it says to so short a question tells nothing.
        by_front = answer.headers.get("content-type", "").startswith("text/plain")
        turned_away = REFUSALS.get(answer.status_code) if by_front else None
        if turned_away != self._turned_away:
            self._turned_away = turned_away
            self._log.info("%s", turned_away or "the coordinator lets this site in")
        certificates = (ssl.DER_cert_to_PEM_cert(shown_by_it), self._kit.ca_certificate)
        found = [warning for pem in certificates if (warning := expiry_warning(pem, datetime.now(UTC)))]
        if found != self._warnings:
            self._warnings = found
            for warning in found:
                self._log.info("%s", warning)


def _signed_headers(key: EllipticCurvePrivateKey) -> dict[str, str]:
    """As a SuperNode signs each of its requests; the front's own tests compare the names with Flower's."""
    timestamp = datetime.now(UTC).isoformat()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = key.sign(timestamp.encode("ascii"), ECDSA(SHA256()))
    return {
        "flwr-public-key": base64.b64encode(public).decode(),
        "flwr-signature": base64.b64encode(signature).decode(),
        "flwr-timestamp": timestamp,
        "content-type": "application/protobuf",
    }


def _facts(child: Child) -> dict[str, Any]:
    return {"alive": child.alive, "pid": child.pid, "restarts": child.restarts}


class _HealthServer(ThreadingHTTPServer):
    """GET /health on loopback: 200 when all is well, else 503; the same JSON either way."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], daemon: SiteDaemon) -> None:
        super().__init__(address, _Health)
        self.site = daemon


class _Health(BaseHTTPRequestHandler):
    server: _HealthServer

    def do_GET(self) -> None:
        if self.path != "/health":
            self.send_error(404)
            return
        health = self.server.site.health()
        content = json.dumps(health, indent=1).encode()
        self.send_response(200 if health["healthy"] else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """A monitor asks every few seconds; that is no news."""


def _answers(address: str) -> bool:
    """Whether the SuperNode's local API takes a connection and speaks HTTP."""
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def _no_proxy() -> str:
    """Loopback never goes through a proxy, whatever else the hospital excepts."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    return ",".join(filter(None, [given, "127.0.0.1", "localhost"]))
