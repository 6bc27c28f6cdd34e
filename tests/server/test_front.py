"""The front as a site, a stranger and the coordinator meet it, before a real SuperLink."""

from __future__ import annotations

import inspect
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from deploy import provision
from server import front as front_module
from server import front_rules
from server.front_exchange import UNKNOWN
from server.front_rules import ROUTES
from shared_models.keys import new_site_key
from tests.server.superlink import Federation, raw_head, reached_the_superlink, signed_headers

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"


# Who is on the other side


def test_a_request_that_a_site_signed_reaches_the_superlink(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    answer = federation.post(PULL, north)
    assert answer.json() == {"detail": "Invalid SuperNode authentication"}


def test_a_coordinator_with_a_certificate_of_another_authority_is_not_trusted(
    federation: Federation, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    provision.init(other, "lab", "127.0.0.1:443", None)
    context = ssl.create_default_context(cafile=str(other / "ca.crt"))
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.post(federation.url + PULL, verify=context, trust_env=False)


def test_a_certificate_that_has_run_out_is_not_trusted(federation: Federation, tmp_path: Path) -> None:
    home = tmp_path / "old"
    provision.init(home, "lab", "127.0.0.1:443", None, now=datetime.now(UTC) - timedelta(days=400))
    old = federation.another_front(home)
    old.start()
    try:
        context = ssl.create_default_context(cafile=str(home / "ca.crt"))
        with pytest.raises(httpx.ConnectError, match="certificate has expired"):
            httpx.post(f"https://127.0.0.1:{old.address[1]}{PULL}", verify=context, trust_env=False)
    finally:
        old.stop()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_plain_text_and_old_tls_get_no_answer(federation: Federation) -> None:
    with socket.create_connection(federation.front.address, timeout=30) as connection:
        connection.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert not connection.recv(100).startswith(b"HTTP")
    old = federation.trust
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(federation.front.address, timeout=30) as plain,
        pytest.raises(ssl.SSLError, match="EOF|PROTOCOL_VERSION"),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_request_without_a_key_is_refused(federation: Federation) -> None:
    answer = federation.post(PULL, None)
    assert (answer.status_code, reached_the_superlink(answer)) == (401, False)


def test_a_key_that_no_site_has_is_refused(federation: Federation) -> None:
    answer = federation.post(PULL, new_site_key())
    assert answer.status_code == 401
    assert "no site of this federation has this key" in answer.text


def test_the_public_key_of_a_site_is_no_use_without_its_private_one(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    before = federation.traffic("north").refused
    forged = {
        **signed_headers(new_site_key()),
        "flwr-public-key": signed_headers(north)["flwr-public-key"],
    }
    answer = federation.post(PULL, None, **forged)
    assert (answer.status_code, answer.text) == (401, "the signature does not fit the key\n")
    after = federation.traffic("north").refused
    assert after == before, "a stranger's refusal counts as the site's"


@pytest.mark.parametrize("age", [timedelta(seconds=310), timedelta(seconds=-30)])
def test_a_signature_of_another_time_is_refused_with_the_difference(
    federation: Federation, north: EllipticCurvePrivateKey, age: timedelta
) -> None:
    answer = federation.post(PULL, None, **signed_headers(north, age))
    assert answer.status_code == 401
    assert f"signed {age.total_seconds():.0f} s ago" in answer.text


@pytest.mark.parametrize("value", ["", "!!!", "QUJD", "A" * 2000])
@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "flwr-timestamp"])
def test_damaged_headers_are_refused(
    federation: Federation, north: EllipticCurvePrivateKey, name: str, value: str
) -> None:
    answer = federation.post(PULL, None, **{**signed_headers(north), name: value})
    assert (answer.status_code, reached_the_superlink(answer)) == (401, False)


def test_a_suspended_site_is_refused_until_it_is_readmitted(federation: Federation) -> None:
    key = federation.admit("south")
    federation.registry.suspend("south")
    answer = federation.post(PULL, key)
    assert (answer.status_code, answer.text) == (403, "the coordinator has suspended this site\n")
    assert federation.post("/v1/fleet/send-node-heartbeat", key).status_code == 503
    federation.registry.readmit("south")
    assert reached_the_superlink(federation.post(PULL, key))
    federation.registry.remove("south")
    assert federation.post(PULL, key).status_code == 401


def test_a_damaged_registry_lets_nobody_in_and_says_nothing_of_it_outside(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    whole = federation.registry.path.read_bytes()
    try:
        federation.registry.path.write_bytes(b"{")
        answer = federation.post(PULL, north)
        assert (answer.status_code, answer.text) == (503, "the registry cannot be read\n")
    finally:
        federation.registry.path.write_bytes(whole)
    assert reached_the_superlink(federation.post(PULL, north))


# What is asked for


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-runs",
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
def test_what_no_supernode_asks_for_is_refused(
    federation: Federation, north: EllipticCurvePrivateKey, path: str
) -> None:
    assert federation.post(path, north).status_code == 403
    with httpx.Client(verify=federation.trust, trust_env=False) as client:
        assert client.get(federation.url + path, headers=signed_headers(north)).status_code == 403


@pytest.mark.parametrize(
    "target",
    [
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet%2Fpull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages#x",
        "/V1/FLEET/PULL-MESSAGES",
        "https://127.0.0.1/v1/fleet/pull-messages",
        "http://127.0.0.1/v1/control/list-runs",
        "\\v1\\fleet\\pull-messages",
        "*",
    ],
)
def test_no_other_spelling_of_a_path_is_let_through(
    federation: Federation, north: EllipticCurvePrivateKey, target: str
) -> None:
    answer = federation.raw(raw_head("POST", target, north, "content-length: 0"))
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT"])
def test_no_other_method_is_let_through(federation: Federation, north: EllipticCurvePrivateKey, method: str) -> None:
    answer = federation.raw(raw_head(method, PULL, north))
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_a_connection_is_not_upgraded(federation: Federation) -> None:
    upgrade = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
    answer = federation.raw(f"GET {PULL} HTTP/1.1\r\nhost: x\r\n{upgrade}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 403 ")


def test_a_second_request_hidden_in_a_body_is_not_seen_by_the_superlink(
    federation: Federation, north: EllipticCurvePrivateKey
) -> None:
    log = federation.home / "superlink.log"
    hidden = "POST /v1/control/list-runs HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    both = (f"content-length: {len(hidden)}", "transfer-encoding: chunked", "connection: close")
    answer = federation.raw(raw_head("POST", PULL, north, *both) + b"0\r\n\r\n" + hidden.encode())
    assert answer.count(b"HTTP/1.1 ") == 1
    assert "/v1/control/list-runs" not in log.read_text()


def test_the_operators_command_is_refused_through_the_front_and_works_at_the_superlink(federation: Federation) -> None:
    outside = federation.flwr("list", "lab", address=federation.address)
    assert "403" in outside.stdout + outside.stderr
    assert federation.flwr("list", "lab").returncode == 0


# What is told


def test_refusals_are_told_once_a_minute_for_each_site_and_counted(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = federation.admit("west")
    federation.registry.suspend("west")
    for _ in range(5):
        federation.post(PULL, key)
    monkeypatch.setattr(front_module, "LOG_SECONDS", 0)
    federation.post(PULL, key)
    told = [event for event in federation.events if event["site"] == "west"]
    once = {
        "event": "front-refused",
        "site": "west",
        "status": 403,
        "reason": "the coordinator has suspended this site",
        "refused": 1,
    }
    assert told == [once, {**once, "refused": 5}]
    assert federation.traffic("west").refused == 6


def test_a_stranger_is_told_of_with_the_address_it_came_from(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_module, "LOG_SECONDS", 0)
    federation.post("/docs", None)
    last = federation.events[-1]
    assert (last["site"], last["status"]) == (UNKNOWN, 403)
    assert last["reason"].endswith("(from 127.0.0.1)")


# What must not drift


def test_what_is_copied_from_flower_is_what_flower_has() -> None:
    from flwr.common import constant as common
    from flwr.supercore import constant as supercore

    assert front_rules.PUBLIC_KEY_HEADER.decode() == supercore.FLEET_HTTP_PUBLIC_KEY_HEADER
    assert front_rules.SIGNATURE_HEADER.decode() == supercore.FLEET_HTTP_SIGNATURE_HEADER
    assert front_rules.TIMESTAMP_HEADER.decode() == common.TIMESTAMP_HEADER
    assert timedelta(seconds=common.SYSTEM_TIME_TOLERANCE) == front_rules.CLOCK_SKEW
    oldest = common.TIMESTAMP_TOLERANCE + common.SYSTEM_TIME_TOLERANCE
    assert timedelta(seconds=oldest) == front_rules.OLDEST_SIGNATURE
    for name in ("COMPONENT_NAME", "PACKAGE_NAME", "PACKAGE_VERSION"):
        assert getattr(supercore, f"FLWR_{name}_METADATA_KEY").encode() in front_rules.PASSED_ON
    assert supercore.VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY in front_rules.PASSED_BACK


def test_the_routes_are_those_of_flower_but_for_the_two_of_sites_without_a_key() -> None:
    from flwr.superlink.routers.fleet.router import router
    from flwr.supernode import fleet_http_connection
    from flwr.supernode.fleet_http_client import FleetHttpClient

    of_flower = {str(getattr(route, "path", route)) for route in router.routes}
    assert of_flower - ROUTES == {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert of_flower >= ROUTES
    assert all(path in inspect.getsource(FleetHttpClient) for path in ROUTES)
    # Flower's own condition for the two: a node that was given no key.
    source = inspect.getsource(fleet_http_connection)
    assert source.count("client.RegisterNode,") == 1 and source.count("if self_registered:") == 2
