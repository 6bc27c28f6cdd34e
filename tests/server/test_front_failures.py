"""The front when something behind or around it fails, and real SuperNodes that dial it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from deploy import provision
from server import front as front_module
from server.front_exchange import UNKNOWN
from shared_models.errors import BadInput
from shared_models.keys import new_site_key
from tests.server.superlink import Federation, raw_head, reached_the_superlink, wait_until

PULL = "/v1/fleet/pull-messages"
PULL_OBJECT = "/v1/fleet/pull-object"
PUSH = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"


# When something fails


def test_a_superlink_that_dies_is_a_503_and_its_return_is_noticed(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    assert reached_the_superlink(federation.post(PULL, north))
    federation.stop_superlink()
    answer = federation.post(PULL, north)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.text == "the SuperLink does not answer (ConnectError)\n"
    federation.start_superlink()
    assert reached_the_superlink(federation.post(PULL, north))


def test_a_superlink_of_another_authority_is_not_spoken_to(
    federation: Federation, north: EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    home = tmp_path / "other"
    provision.init(home, "lab", "127.0.0.1:443", None)
    impostor = federation.another_front(home)
    impostor.start()
    right, federation.front.upstream = federation.front.upstream, f"https://127.0.0.1:{impostor.address[1]}"
    try:
        assert federation.post(PULL, north).status_code == 503
    finally:
        federation.front.upstream = right
        impostor.stop()


def test_the_front_starts_with_an_encrypted_key_and_leaves_no_plain_one(federation: Federation, tmp_path: Path) -> None:
    home = tmp_path / "locked"
    provision.init(home, "lab", "127.0.0.1:443", b"a good passphrase")
    locked = federation.another_front(home, b"a good passphrase")
    locked.start()
    try:
        context = ssl.create_default_context(cafile=str(home / "ca.crt"))
        answer = httpx.post(f"https://127.0.0.1:{locked.address[1]}{PULL}", verify=context, trust_env=False)
        assert answer.status_code == 401
        plain = [path for path in home.rglob("*") if path.is_file() and b"BEGIN PRIVATE KEY" in path.read_bytes()]
        assert plain == []
    finally:
        locked.stop()
    assert not locked.is_alive


@pytest.mark.parametrize("passphrase", [None, b"a wrong one"])
def test_a_wrong_passphrase_is_said_and_not_asked_for(
    federation: Federation, tmp_path: Path, passphrase: bytes | None
) -> None:
    home = tmp_path / "locked"
    provision.init(home, "lab", "127.0.0.1:443", b"a good passphrase")
    with pytest.raises(BadInput, match="check the files and the passphrase"):
        federation.another_front(home, passphrase)


def test_an_address_that_is_taken_is_said(federation: Federation) -> None:
    second = federation.another_front(federation.home)
    second.listen = federation.front.address
    with pytest.raises(BadInput, match="cannot listen on 127.0.0.1:"):
        second.start()


def test_what_the_superlink_fails_at_is_tried_again_rather_than_given_up(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    with stand_in(federation, lambda handler: handler.send_error(500, "a trace of the coordinator")):
        answer = federation.post(PULL, north)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.text == "the SuperLink failed with 500; its log says why\n"


def test_an_answer_that_is_cut_off_never_looks_whole(federation: Federation, north: EllipticCurvePrivateKey) -> None:
    def half(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 10)

    with stand_in(federation, half), pytest.raises(httpx.RemoteProtocolError):
        federation.post(PULL_OBJECT, north)


def test_only_the_headers_that_a_supernode_needs_pass_either_way(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    seen: dict[str, str] = {}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.update({name.lower(): value for name, value in handler.headers.items()})
        handler.send_response(200)
        for name, value in (("content-length", "0"), ("set-cookie", "x=1"), ("x-internal", "1")):
            handler.send_header(name, value)
        handler.end_headers()

    extra = {"flwr-task-token": "x", "flwr-superexec-ts": "1", "cookie": "x=1", "x-forwarded-for": "10.0.0.1"}
    with stand_in(federation, answer):
        received = federation.post(PULL_OBJECT, north, b"abc", **extra, **{"flwr-package-version": "1.41.0"})
    assert set(seen) & set(extra) == set()
    assert (seen["flwr-package-version"], seen["content-length"]) == ("1.41.0", "3")
    assert set(received.headers) <= {"content-length", "date", "connection"}


def test_a_site_that_never_reads_its_answer_does_not_keep_its_place(
    federation: Federation, north: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "EXCHANGE_SECONDS", 0.5)
    size = 64 * 2**20  # more than the buffers on the way hold
    refused = federation.traffic("north").refused

    def much(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(size))
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(bytes(size))

    with stand_in(federation, much), federation.connect() as connection:
        connection.sendall(raw_head("POST", PULL_OBJECT, north, "content-length: 0"))
        wait_until(lambda: federation.traffic("north").refused > refused, "the front has given the request up")
        received = 0
        with suppress(OSError):
            while chunk := connection.recv(2**20):
                received += len(chunk)
        assert received < size


def test_a_site_that_asks_for_messages_is_answered_when_there_is_one(
    federation: Federation, north: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(front_module, "WAKE_SECONDS", 0.01)
    looks: list[int] = []

    def third_time(handler: BaseHTTPRequestHandler) -> None:
        looks.append(1)
        content = b"a message" if len(looks) == 3 else b""
        handler.send_response(200)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with stand_in(federation, third_time):
        assert federation.post(PULL, north).content == b"a message"
    assert len(looks) == 3


def test_a_site_that_is_suspended_while_it_waits_for_messages_gets_none(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(front_module, "WAKE_SECONDS", 0.01)
    key = federation.admit("patient")

    def nothing(handler: BaseHTTPRequestHandler) -> None:
        federation.registry.suspend("patient")
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with stand_in(federation, nothing):
        assert federation.post(PULL, key).status_code == 403


def test_a_site_that_has_waited_long_enough_gets_the_empty_answer(
    federation: Federation, north: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "HOLD_SECONDS", 0.05)
    monkeypatch.setattr(front_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(front_module, "WAKE_SECONDS", 0.01)

    def nothing(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    with stand_in(federation, nothing):
        answer = federation.post(PULL, north)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_front_stops_while_a_site_is_in_the_middle_of_a_request(federation: Federation, tmp_path: Path) -> None:
    front = federation.another_front(federation.home)
    front.start()
    address, federation.front.address = federation.front.address, front.address
    key = federation.admit("slow")
    try:
        with federation.connect() as connection:
            connection.sendall(raw_head("POST", PULL, key, "content-length: 10") + b"abc")
            wait_until(lambda: front.traffic().get("slow"), "the request is under way")
            front.stop()
            assert not front.is_alive
            with pytest.raises(OSError):
                socket.create_connection(front.address, timeout=5)
    finally:
        federation.front.address = address


def test_a_site_that_waits_for_messages_is_told_to_come_back_when_the_front_stops(
    federation: Federation, tmp_path: Path
) -> None:
    asked = threading.Event()

    def nothing(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        handler.send_response(200)
        handler.send_header("content-length", "0")
        handler.end_headers()

    front = federation.another_front(federation.home)
    key = federation.admit("waiting")
    with stand_in(federation, nothing), ThreadPoolExecutor() as pool:
        front.upstream = federation.front.upstream
        front.start()
        address, federation.front.address = federation.front.address, front.address
        try:
            answer = pool.submit(federation.post, PULL, key)
            assert asked.wait(20)
            front.stop()
            assert (answer.result().status_code, answer.result().headers["retry-after"]) == (503, "5")
        finally:
            federation.front.address = address


@contextmanager
def stand_in(federation: Federation, behaviour: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[None]:
    """Something in the SuperLink's place that does what a SuperLink cannot be brought to do."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            behaviour(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(federation.home / "server.crt", federation.home / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    right, federation.front.upstream = federation.front.upstream, f"https://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        federation.front.upstream = right
        server.shutdown()
        server.server_close()


# A real SuperNode


def test_a_real_supernode_is_online_through_the_front_and_sleeps_through_a_suspension(federation: Federation) -> None:
    federation.admit("east", at_superlink=True)
    with federation.supernode("east") as process:
        wait_until(lambda: "online" in federation.node_states(), "the SuperNode is online")
        federation.registry.suspend("east")
        refused = federation.traffic("east").refused
        wait_until(lambda: federation.traffic("east").refused >= refused + 2, "the site asks twice in vain")
        requests = federation.traffic("east").requests
        federation.registry.readmit("east")
        wait_until(lambda: federation.traffic("east").requests >= requests + 2, "the site is back by itself")
        assert process.poll() is None
        assert "online" in federation.node_states()


def test_a_supernode_outlives_a_superlink_that_is_away(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_module, "HOLD_SECONDS", 1.0)  # so that it asks often enough to be seen asking
    federation.admit("coast", at_superlink=True)
    with federation.supernode("coast") as process:
        wait_until(lambda: federation.traffic("coast").requests, "the SuperNode is there")
        federation.stop_superlink()
        refused = federation.traffic("coast").refused
        wait_until(lambda: federation.traffic("coast").refused > refused, "the SuperNode gets a 503")
        federation.start_superlink()
        requests, down = federation.traffic("coast").requests, federation.traffic("coast").bytes_down
        wait_until(lambda: federation.traffic("coast").requests >= requests + 3, "the SuperNode asks again")
        assert process.poll() is None
        assert federation.traffic("coast").bytes_down >= down


def test_a_supernode_of_a_stranger_stops_itself(federation: Federation) -> None:
    federation.keys["stranger"] = new_site_key()
    refused = federation.traffic(UNKNOWN).refused
    with federation.supernode("stranger") as process:
        process.wait(timeout=90)
    assert "SuperNode ID" not in (federation.home / "stranger.log").read_text()
    assert federation.traffic(UNKNOWN).refused > refused
