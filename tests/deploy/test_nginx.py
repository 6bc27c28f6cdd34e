"""The nginx configuration refuses what the front refuses, and lets through what the front lets through."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.front_rules import LARGEST_MESSAGE, LARGEST_OBJECT, PUSH_OBJECT, ROUTES
from tests.server.superlink import Federation, free_port, signed_headers, wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx" / "consilium.conf"
SIZES = {"1m": LARGEST_MESSAGE, "16m": LARGEST_OBJECT}


def locations() -> dict[str, str]:
    """What each `location` says, by what follows the word."""
    text = re.sub(r"#.*", "", CONFIGURATION.read_text())
    return {place.strip(): body for place, body in re.findall(r"location ([^{]*)\{([^}]*)\}", text)}


def test_the_paths_that_nginx_passes_on_are_the_routes_of_the_front() -> None:
    passed = {place for place, body in locations().items() if "proxy_pass" in body}
    assert passed == {f"= {route}" for route in ROUTES}


def test_nginx_answers_every_other_path_with_a_403_of_its_own() -> None:
    others = {place: body for place, body in locations().items() if "proxy_pass" not in body}
    assert list(others) == ["/"]
    assert others["/"].split()[:2] == ["return", "403"]


def test_nginx_takes_bodies_as_large_as_the_front_does() -> None:
    text = CONFIGURATION.read_text()
    everywhere, of_objects = (SIZES[size] for size in re.findall(r"client_max_body_size (\S+);", text))
    assert (everywhere, of_objects) == (LARGEST_MESSAGE, LARGEST_OBJECT)
    assert "client_max_body_size 16m;" in locations()[f"= {PUSH_OBJECT}"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A front without a SuperLink, whose 503 says that a request came as far as that, and an nginx before it."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    made = Federation(tmp_path_factory.mktemp("nginx") / "home")
    made.front.start()
    port = free_port()
    text = CONFIGURATION.read_text().replace("/etc/consilium/coordinator", str(made.home))
    text = text.replace("127.0.0.1:8443", made.address).replace("listen [::]:443 ssl;", "")
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    folder = made.home.parent
    temporary = "".join(
        f"{kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder / 'pid'}; events {{}}\n"
        f"http {{ access_log off; {temporary}{text} }}\n"
    )
    command = [program, "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)

    def answers() -> bool:
        assert process.poll() is None, (folder / "nginx.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, "nginx answers")
        direct, made.front.address = made.front.address, ("127.0.0.1", port)
        yield made
        made.front.address = direct
    finally:
        process.kill()
        process.wait()
        made.front.stop()


def test_nginx_lets_a_site_through_to_the_front_and_no_stranger(federation: Federation) -> None:
    key = federation.admit("north")
    for route in ROUTES:
        answer = federation.post(route, key, b"x" * 1000)
        assert (answer.status_code, answer.text) == (503, "the SuperLink does not answer (ConnectError)\n")
    assert federation.post(PUSH_OBJECT, key, bytes(LARGEST_OBJECT)).status_code == 503
    stranger = federation.post(PUSH_OBJECT, None)
    assert (stranger.status_code, "no signature of a site" in stranger.text) == (401, True)


def test_nginx_refuses_what_the_front_refuses(federation: Federation) -> None:
    key = federation.admit("south")
    requests = federation.traffic("south").requests
    assert federation.post("/v1/control/list-runs", key).status_code == 403
    assert federation.post("/v1/fleet/register-node", key).status_code == 403
    assert federation.post("/v1/fleet/pull-messages?x=1", key).status_code == 403
    assert federation.post("/v1/fleet/pull-messages", key, bytes(LARGEST_MESSAGE + 1)).status_code == 413
    assert federation.post(PUSH_OBJECT, key, bytes(LARGEST_OBJECT + 1)).status_code == 413
    assert federation.post(PUSH_OBJECT, key, b"x", **{"content-encoding": "gzip"}).status_code == 415
    with httpx.Client(verify=federation.trust, trust_env=False) as client:
        assert client.get(federation.url + "/v1/fleet/pull-messages", headers=signed_headers(key)).status_code == 403
    for target in (
        "//v1/fleet/pull-messages",
        "/v1/fleet/../fleet/pull-messages",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet%2Fpull-messages",
        "/v1/fleet/%2e%2e/control/list-runs",
    ):
        line = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        assert federation.raw(line.encode()).startswith(b"HTTP/1.1 403 "), target
    after = federation.traffic("south").requests
    assert after == requests, "nginx passed one of them on"
