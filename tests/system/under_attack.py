"""A federation under attack: the job, the hostile site, and a look at its processes as root of this machine has it."""

from __future__ import annotations

import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.local_network import LocalNetwork
from shared_models.flower_runtime import Runtime
from tests.system.hostile_site import ATTACKS
from tests.system.processes import Run

ROOT = Path(__file__).parent.parent.parent
SUSPENDED_ROUNDS = 3
JOB: dict[str, Any] = {
    "name": "attacks",
    "seed": 11,
    "task": {"kind": "classification", "classes": ["small", "large"]},
    "data": {"spatial_dims": 2, "crop": [16, 16]},
    "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}},
    "training": {"batch_size": 4, "local_steps": 2},
    "federation": {"rounds": len(ATTACKS) + SUSPENDED_ROUNDS, "deadline_seconds": 300},
    "evaluation": {"every": 0, "bootstrap": 5, "validation_share": 0.2, "test_share": 0.2},
    "simulation": {
        "dataset": {
            "name": "folder",
            "table": "squares.npz",
            "columns": {"image": "images", "label": "labels", "patient": "patient"},
        },
        "partition": {"name": "iid"},
        "hospitals": 2,
    },
}
HONEST_SITES = ["hospital-1", "hospital-2"]


@dataclass
class Attacked:
    """A run of all attacks, and what was seen of the processes while it went on."""

    run: Run
    exit_code: int
    tried: list[str]
    processes: dict[str, bytes] = field(default_factory=dict)
    """The arguments and environment of every process, by its name and id."""
    secrets: dict[str, bytes] = field(default_factory=dict)

    def of_mallory(self) -> dict[int, dict[str, Any]]:
        """What became of each round's answer."""
        return {e["round"]: e for e in self.run.events("site_replied") if e["site"] == "mallory"}


def start_mallory(net: LocalNetwork) -> None:
    """The hostile site, in a process of its own."""
    home = net.folder / "sites" / "mallory"
    command = [sys.executable, "-m", "tests.system.hostile_site", home / "kit.json", home / "site.key"]
    with (net.folder / "mallory.out").open("wb") as log:
        net.processes["mallory"] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    net.wait_until_connected(["mallory"])


def processes_of(net: LocalNetwork) -> Iterator[psutil.Process]:
    """Every process of the coordinator and the honest hospitals."""
    for name, process in net.processes.items():
        if name != "mallory":
            parent = psutil.Process(process.pid)
            yield from (parent, *parent.children(recursive=True))


def look_at_processes(net: LocalNetwork) -> dict[str, bytes]:
    found = {}
    for process in processes_of(net):
        folder = Path(f"/proc/{process.pid}")
        found[f"{process.pid} {' '.join(process.cmdline()[:4])}"] = b"".join(
            (folder / name).read_bytes() for name in ("cmdline", "environ")
        )
    return found


def secrets_of(net: LocalNetwork) -> dict[str, bytes]:
    """What the processes have in memory files: keys, and the secrets of the Runtime APIs."""
    found = {}
    for process in processes_of(net):
        for number in re.findall(r"/proc/self/fd/(\d+)", " ".join(process.cmdline())):
            content = Path(f"/proc/{process.pid}/fd/{number}").read_bytes()
            if b"BEGIN CERTIFICATE" not in content:
                found[f"{process.pid}/{number}"] = content
    return found


def option(net: LocalNetwork, program: str, name: str) -> tuple[int, str]:
    """The id and the value of one option of the first process of a program."""
    for process in processes_of(net):
        words = process.cmdline()
        if any(program in word for word in words):
            return process.pid, words[words.index(name) + 1]
    raise AssertionError(f"no process of {program}")


def superlink(net: LocalNetwork) -> Runtime:
    """The SuperLink as somebody meets it who has taken over the coordinator's machine: with its secret."""
    pid, file = option(net, "flower-superlink", "--superexec-auth-secret-file")
    _, port = option(net, "flower-superlink", "--port")
    secret = Path(file.replace("self", str(pid))).read_bytes()
    return Runtime(f"127.0.0.1:{port}", secret, (net.home / "ca.crt").read_bytes())


def post(net: LocalNetwork, path: str, headers: dict[str, str]) -> httpx.Response:
    """One request to the front."""
    trust = ssl.create_default_context(cafile=str(net.home / "ca.crt"))
    return httpx.post(f"https://127.0.0.1:{net.port}/v1/{path}", verify=trust, headers=headers, trust_env=False)
