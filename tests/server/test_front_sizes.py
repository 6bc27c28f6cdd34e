"""How much the front takes: bodies, headers, time and requests, from sites and from strangers."""

from __future__ import annotations

import gzip
import ssl
import time
from collections.abc import Iterator

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from server import front as front_module
from server.front_rules import LARGEST_MESSAGE, LARGEST_OBJECT
from tests.server.superlink import Federation, raw_head, reached_the_superlink, wait_until

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"


def test_ten_gigabytes_are_refused_before_a_byte_of_them_is_sent(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    answer = federation.raw(raw_head("POST", PUSH_OBJECT, north, f"content-length: {10**10}"))
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "", "9" * 5000, "5\r\ncontent-length: 6"])
def test_a_length_that_is_none_is_refused(federation: Federation, north: EllipticCurvePrivateKey, length: str) -> None:
    answer = federation.raw(raw_head("POST", PULL, north, f"content-length: {length}"))
    assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(("path", "largest"), [(PUSH_OBJECT, LARGEST_OBJECT), (PUSH, LARGEST_MESSAGE)])
def test_a_body_of_the_largest_size_passes_and_one_byte_more_does_not(
    federation: Federation, north: EllipticCurvePrivateKey, path: str, largest: int
) -> None:
    fits = federation.post(path, north, bytes(largest))
    assert reached_the_superlink(fits)
    assert federation.post(path, north, bytes(largest + 1)).status_code == 413


def test_a_body_in_chunks_is_counted(federation: Federation, north: EllipticCurvePrivateKey) -> None:
    def chunks(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield bytes(256 * 1024)

    before = federation.traffic("north").bytes_up
    assert reached_the_superlink(federation.post(PUSH, north, chunks(4)))
    assert federation.traffic("north").bytes_up - before == LARGEST_MESSAGE
    # One chunk too many and then silence: the answer comes although the body has no end.
    head = raw_head("POST", PUSH, north, "transfer-encoding: chunked")
    answer = federation.raw(head + b"40000\r\n" + bytes(0x40000) + b"\r\n" + b"C0001\r\n" + bytes(0xC0001) + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_decompression_bomb_is_refused(federation: Federation, north: EllipticCurvePrivateKey) -> None:
    answer = federation.post(PUSH_OBJECT, north, gzip.compress(bytes(10**7)), **{"content-encoding": "gzip"})
    assert answer.status_code == 415


def test_headers_without_end_are_refused(federation: Federation) -> None:
    answer = federation.raw(f"POST {PULL} HTTP/1.1\r\nhost: x\r\nx: ".encode() + b"a" * 20_000)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_protobuf_bombs_are_refused_and_everything_lives_on(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    assert federation.superlink is not None
    process = psutil.Process(federation.superlink.pid)
    before = process.memory_info().rss
    deep = b""
    while len(deep) < LARGEST_MESSAGE - 100:
        deep = b"\x12" + _varint(len(deep)) + deep  # ObjectTree.children
    answer = federation.post(PUSH, north, b"\x1a" + _varint(len(deep)) + deep)
    assert answer.status_code == 400
    wide = federation.post(PUSH, north, b"\x12\x00" * (LARGEST_MESSAGE // 2))  # messages_list, all empty
    assert 400 <= wide.status_code < 500
    assert reached_the_superlink(federation.post(PULL, north))
    assert process.memory_info().rss - before < 300 * 2**20


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def test_a_connection_that_says_nothing_or_trickles_is_closed(
    federation: Federation, north: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "REQUEST_SECONDS", 0.5)
    with federation.connect() as silent:
        assert _closes(silent)
    with federation.connect() as trickle:
        with pytest.raises(OSError):
            for _ in range(600):
                trickle.sendall(b"P")
                time.sleep(0.1)
        assert _closes(trickle)


def test_a_body_that_never_ends_is_given_up(
    federation: Federation, north: EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "EXCHANGE_SECONDS", 0.5)
    answer = federation.raw(raw_head("POST", PULL, north, "content-length: 10") + b"abc")
    assert answer.startswith(b"HTTP/1.1 503 ")


def _closes(connection: ssl.SSLSocket) -> bool:
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


def test_a_site_that_asks_for_everything_at_once_is_told_to_wait_and_disturbs_no_other(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    greedy = federation.admit("greedy")
    half = raw_head("POST", PUSH_OBJECT, greedy, "content-length: 10") + b"abc"
    before = federation.traffic("greedy").requests
    held: list[ssl.SSLSocket] = []
    try:
        for _ in range(front_module.MOST_REQUESTS_PER_SITE):
            held.append(federation.connect())
            held[-1].sendall(half)
        wait_until(lambda: federation.traffic("greedy").requests - before == len(held), "all of them are under way")
        answer = federation.post(PULL, greedy)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert reached_the_superlink(federation.post(PULL, north))
    finally:
        for connection in held:
            connection.close()
    wait_until(lambda: reached_the_superlink(federation.post(PULL, greedy)), "the site is served again")
