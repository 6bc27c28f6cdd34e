"""A federation on separate hosts: four network namespaces, a bad line, and nothing but TLS on it.

Every hospital has 20 Mbit/s and 50 ms each way, loses 1 % of the packets, and can open connections outward only.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local_network import LocalNetwork, consilium
from shared_models.job_file import load_job
from shared_models.weights import schema
from shared_models.zoo import build
from tests.system.network_hosts import (
    COORDINATOR_ADDRESS,
    Hosts,
    conversations,
    listening,
    not_tls,
    plain_words,
    refusal,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "network-phantom.yaml"
HOSPITALS = ["hospital-1", "hospital-2", "hospital-3"]
PLAIN_PORT = 8099
CONNECTS = """
import socket, sys
try:
    socket.create_connection(({address!r}, {port}), timeout=3).close()
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""
PLAIN_REQUEST = """
import urllib.request
request = urllib.request.Request("http://{address}:{port}/v1/fleet/x", b"\\x93NUMPY hospital-1", method="POST")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
print(opener.open(request).status)
"""
PLAIN_SERVER = """
import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(({address!r}, {port}), Answer).serve_forever()
"""


@dataclass
class Seen:
    """What was there while the federation was at work, and what is left of it."""

    network: LocalNetwork
    run: Path
    simulated: str
    said: subprocess.CompletedProcess[str]
    listening: dict[str, set[tuple[str, int]]]
    reached: dict[str, str]
    frames: dict[str, int]
    capture: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """One run on four hosts, and the same job in one process."""
    if reason := refusal():
        pytest.skip(f"this machine makes no network namespaces: {reason}")
    folder = tmp_path_factory.mktemp("hosts")
    content = yaml.safe_load(EXAMPLE.read_text())
    content["federation"] |= {"rounds": 3, "deadline_seconds": 300}
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump(content, sort_keys=False))
    with (
        Hosts(HOSPITALS, folder / "cable.pcap") as hosts,
        LocalNetwork(folder, load_job(job), None, host=COORDINATOR_ADDRESS) as network,
    ):
        assert network.sites == HOSPITALS
        network.prefixes = {name: hosts.inside(name) for name in hosts.names}
        network.start()
        sockets = {name: listening(network.processes[name].pid) for name in hosts.names}
        said = network.run("run", job)
        reached = reach(hosts, sockets)
        for name in [*HOSPITALS, "coordinator"]:
            network.stop(name)
        plain_request(hosts)
        frames = hosts.unplug()
        consilium("simulate", job, "--compare", "none", "--workers", 2, "--out", folder / "simulated")
        run = next((network.home / "runs").iterdir())
        yield Seen(
            network, run, fingerprint(folder / "simulated"), said, sockets, reached, frames, folder / "cable.pcap"
        )


def reach(hosts: Hosts, sockets: dict[str, set[tuple[str, int]]]) -> dict[str, str]:
    """What becomes of connections from the coordinator's host to everything that listens at a hospital."""
    found = {}
    for name in HOSPITALS:
        for _, port in sockets[name]:
            found[f"{name}:{port}"] = hosts.python(
                "coordinator", CONNECTS.format(address=hosts.address(name), port=port)
            )
    listener = [sys.executable, "-m", "http.server", str(PLAIN_PORT)]
    with subprocess.Popen([*hosts.inside("hospital-1"), *listener], stderr=subprocess.DEVNULL) as process:
        address = hosts.address("hospital-1")
        wait_until_connects(hosts, "hospital-1", address)
        found["a server of its own"] = hosts.python("coordinator", CONNECTS.format(address=address, port=PLAIN_PORT))
        process.kill()
    return found


def plain_request(hosts: Hosts) -> None:
    """A request without TLS over the same cable, to see that it would have been seen."""
    where: dict[str, Any] = {"address": COORDINATOR_ADDRESS, "port": PLAIN_PORT}
    server = [sys.executable, "-c", PLAIN_SERVER.format(**where)]
    with subprocess.Popen([*hosts.inside("coordinator"), *server], stderr=subprocess.DEVNULL) as process:
        wait_until_connects(hosts, "coordinator", COORDINATOR_ADDRESS)
        assert hosts.python("hospital-1", PLAIN_REQUEST.format(**where)) == "200"
        process.kill()


def wait_until_connects(hosts: Hosts, name: str, address: str) -> None:
    """Waits until a host's server answers on that host."""
    for _ in range(100):
        if hosts.python(name, CONNECTS.format(address=address, port=PLAIN_PORT)) == "connected":
            return
        time.sleep(0.1)
    raise AssertionError("the server did not start")


def fingerprint(run: Path) -> str:
    """The global model of a run."""
    return str(json.loads((run / "report.json").read_text())["run"]["fingerprint"])


def forbidden_words(network: LocalNetwork) -> list[bytes]:
    """What nobody shall be able to read on the wire: of Flower and HTTP, of the job, the sites and their patients."""
    job = load_job(EXAMPLE)
    words = ["consilium", "flwr", "POST /", "GET /v1", "HTTP/1.1 ", "content-type:", "\x93NUMPY"]
    words += [job.name, *job.task.classes, *network.sites, "scanner-a", "fedavg", "instruction"]
    words += [entry.name for entry in schema(build(job))]
    for name in network.sites:
        with (network.folder / "sites" / name / "data" / "manifest.csv").open(newline="") as file:
            words += [row["case"] for row in csv.DictReader(file)]
    return [word.encode("latin-1") for word in words]


def test_the_same_global_model_comes_out_on_four_hosts_with_a_bad_line_as_in_one_process(seen: Seen) -> None:
    assert seen.said.returncode == 0, seen.said.stderr
    assert fingerprint(seen.run) == seen.simulated
    assert seen.frames["lost"] > 0.005 * seen.frames["frames"] > 5


def test_a_hospital_listens_on_loopback_only_and_nobody_can_connect_to_it(seen: Seen) -> None:
    for name in HOSPITALS:
        assert len(seen.listening[name]) >= 2  # the SuperNode's local API and the health page
        assert {address for address, _ in seen.listening[name]} == {"127.0.0.1"}
    assert len(seen.reached) >= 7
    assert set(seen.reached.values()) <= {"ConnectionRefusedError", "TimeoutError"}
    assert seen.frames["refused"] > 0


def test_of_the_coordinator_only_the_front_is_reachable(seen: Seen) -> None:
    outside = {(address, port) for address, port in seen.listening["coordinator"] if address != "127.0.0.1"}
    assert outside == {(COORDINATOR_ADDRESS, seen.network.port)}


def test_on_the_wire_there_is_tls_and_no_plain_text(seen: Seen) -> None:
    words = forbidden_words(seen.network)
    everything = [one for one in conversations(seen.capture) if PLAIN_PORT not in (one.source_port, one.target_port)]
    assert {seen.network.port} == {
        one.target_port if one.target == COORDINATOR_ADDRESS else one.source_port for one in everything
    }
    assert {one.source for one in everything} == {COORDINATOR_ADDRESS, *(f"10.77.0.{n}" for n in (2, 3, 4))}
    last = json.loads((seen.run / "events.jsonl").read_text().splitlines()[-1])
    assert sum(len(one.content) for one in everything) > last["bytes_sent"] + last["bytes_received"] > 10**5
    for one in everything:
        assert not_tls(one.content) == []
        assert plain_words(one.content, words) == []


def test_a_request_without_tls_would_have_been_found(seen: Seen) -> None:
    plain = [one.content for one in conversations(seen.capture) if one.target_port == PLAIN_PORT]
    assert len(plain) == 1
    assert not_tls(plain[0]) == ["it begins with b'POST /v1', which is no TLS handshake"]
    assert set(plain_words(plain[0], forbidden_words(seen.network))) >= {b"POST /", b"\x93NUMPY", b"hospital-1"}
