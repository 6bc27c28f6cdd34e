"""What does a federation of real processes cost: idle, for each message, for each round?

    python benchmarks/network.py [--idle SECONDS] [--job JOB.yaml] [--data-dir FOLDER]

In the same minute on the same machine: a coordinator and a hospital's daemon beside Flower's own SuperLink and
SuperNode, all with nothing to do. Then a run over TLS on loopback, Flower's own processes with an app that gives back
what it gets, and the same job simulated.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from deploy.local_network import LocalNetwork, consilium, wait_for
from shared_models.job import Job
from shared_models.job_file import load_job
from shared_models.supervision import QUIET, free_port

ROOT = Path(__file__).parent.parent
BARE = Path(__file__).parent / "bare_network"
BIN = Path(sys.executable).parent
SETTLE_SECONDS = 15.0
WARM_SECONDS = 45.0  # with Flower's run before it longer than a worker looks out for a next task at its quick pace
BARE_MESSAGES = 6  # as bare_network/pyproject.toml says


class Relay:
    """Counts the bytes between the hospitals and the coordinator, TLS and all."""

    def __init__(self, port: int, behind: int) -> None:
        self.passed: list[tuple[float, int]] = []  # Unix time and bytes
        self._behind = behind
        self._listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def bytes_between(self, start: float, end: float) -> int:
        """Bytes of both directions between two times."""
        return sum(count for when, count in self.passed if start <= when < end)

    def _accept(self) -> None:
        while True:
            threading.Thread(target=self._carry, args=(self._listening.accept()[0],), daemon=True).start()

    def _carry(self, site: socket.socket) -> None:
        with suppress(OSError), site, socket.create_connection(("127.0.0.1", self._behind)) as coordinator:
            other = {site: coordinator, coordinator: site}
            while True:
                for ready in select.select(list(other), [], [])[0]:
                    content = ready.recv(65536)
                    if not content:
                        return
                    self.passed.append((time.time(), len(content)))
                    other[ready].sendall(content)


@dataclass
class Answered:
    """When a SuperNode had received each train message, and when it began to send the answer; monotonic seconds."""

    received: list[float] = field(default_factory=list)
    sending: list[float] = field(default_factory=list)
    _training = False

    def hear(self, line: str) -> None:
        """Takes a line of the SuperNode's log, as it is written."""
        if "Receiving: " in line:
            self._training = "Receiving: train message" in line
        elif "Received successfully" in line and self._training:
            self.received.append(time.monotonic())
        elif "Sending: train message" in line:
            self.sending.append(time.monotonic())

    def seconds(self) -> list[float]:
        """How long each message took at the site, from its last byte in to its answer ready."""
        return [sending - received for received, sending in zip(self.received, self.sending, strict=True)]


def follow(path: Path, hear: Callable[[str], None]) -> None:
    """Hears the lines of a growing log, in a thread."""

    def read() -> None:
        with path.open(errors="replace") as log:
            while True:
                if line := log.readline():
                    hear(line)
                else:
                    time.sleep(0.005)

    threading.Thread(target=read, daemon=True).start()


@contextmanager
def bare_flower(folder: Path) -> Iterator[tuple[dict[str, psutil.Process], Answered, Path]]:
    """Flower's own processes, as its documentation starts them: those of the site, its clock, FLWR_HOME of the CLI."""
    port, answered = free_port(), Answered()
    home = folder / "flower-home"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    # A SuperNode calls its SuperExec by name.
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"}
    started: list[subprocess.Popen] = []

    def start(name: str, *arguments: str) -> Path:
        log = home / f"{name}.log"
        with log.open("w") as out:
            command = [BIN / name, "--insecure", *arguments]
            started.append(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=home))
        return log

    try:
        start("flower-superlink", "--port", str(port))
        wait_for(lambda: answers(port), "Flower's SuperLink")
        log = start("flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port()))
        follow(log, answered.hear)
        supernode = psutil.Process(started[-1].pid)
        wait_for(supernode.children, "Flower's SuperExec")
        yield {"SuperNode": supernode, "its SuperExec": supernode.children()[0]}, answered, home
    finally:
        everything = [child for one in started for child in psutil.Process(one.pid).children(recursive=True)]
        for one in reversed(started):
            one.terminate()
            one.wait()
        for child in everything:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def answers(port: int) -> bool:
    """Whether something listens there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def idle_table(processes: dict[str, dict[str, psutil.Process]], seconds: float) -> None:
    """Memory now, and CPU time over some seconds, of each process."""

    def cpu(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before = {id(one): cpu(one) for group in processes.values() for one in group.values()}
    time.sleep(seconds)
    print(f"\nIdle over {seconds:.0f} s{'':27}{'PSS':>9}{'RSS':>9}{'CPU':>9}")
    sums: dict[str, tuple[float, float]] = {}
    for group, members in processes.items():
        pss_sum = cpu_sum = 0.0
        for name, process in members.items():
            used, memory = cpu(process) - before[id(process)], process.memory_full_info()
            print(f"  {group + ', ' + name:<38}{memory.pss / 1e6:>6.0f} MB{memory.rss / 1e6:>6.0f} MB{used:>7.2f} s")
            pss_sum, cpu_sum = pss_sum + memory.pss, cpu_sum + used
        sums[group] = pss_sum, cpu_sum
    ours, bare = sums["site"], sums["bare Flower"]
    print(f"  site / bare Flower: memory {ours[0] / bare[0]:.2f}, CPU {ours[1] / bare[1]:.2f}")


def processes_of(network: LocalNetwork, site: str) -> dict[str, dict[str, psutil.Process]]:
    """The processes of the coordinator and of one site."""
    health, daemon = network.health(site), network.daemon()
    found = {
        "coordinator": {"daemon and front": daemon["pid"], "SuperLink": daemon["superlink"]["pid"]},
        "site": {"daemon": health["pid"], "SuperNode": health["supernode"]["pid"], "worker": health["worker"]["pid"]},
    }
    return {group: {name: psutil.Process(pid) for name, pid in members.items()} for group, members in found.items()}


@dataclass
class Phases:
    """Median seconds and bytes of the rounds behind the first, which also reads and prepares the data."""

    train: float
    add_up: float
    judge: float
    whole: float
    payload: int
    wire: int


def phases(run: Path, relay: Relay | None) -> Phases:
    """Reads them off a run's events."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    at = lambda event: datetime.fromisoformat(event["time"]).timestamp()  # noqa: E731
    rounds: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.get("round", 0) and event["event"] in ("round_started", "round_finished", "validated"):
            rounds.setdefault(event["round"], {})[event["event"]] = at(event)
        if event["event"] == "site_replied":
            found = rounds[event["round"]]
            found["replied"] = max(at(event), found.get("replied", 0.0))
            found["payload"] = found.get("payload", 0) + event["bytes_down"] + event["bytes_up"]
    starts = [rounds[number]["round_started"] for number in sorted(rounds)]
    later = [rounds[number] for number in sorted(rounds)][1:]
    return Phases(
        train=median(r["replied"] - r["round_started"] for r in later),
        add_up=median(r["round_finished"] - r["replied"] for r in later),
        judge=median(r["validated"] - r["round_finished"] for r in later),
        whole=median(end - start for start, end in pairwise([*starts[1:], later[-1]["validated"]])),
        payload=int(median(r["payload"] for r in later)),
        wire=int(median(relay.bytes_between(a, b) for a, b in pairwise(starts[1:]))) if relay else 0,
    )


def round_table(network: Phases, simulated: Phases) -> None:
    """A round over the network beside the same in one process."""
    print(f"\nA round, median behind the first{'':8}{'network':>10}{'simulated':>12}{'ratio':>8}")
    for name, label in (
        ("train", "train at the sites"),
        ("add_up", "add up, checkpoint"),
        ("judge", "judge on validation"),
        ("whole", "in all"),
    ):
        a, b = getattr(network, name), getattr(simulated, name)
        print(f"  {label:<38}{a:>8.2f} s{b:>10.2f} s{a / b:>8.1f}")
    print(f"  {'what training sends and gets':<38}{network.payload / 1e6:>7.2f} MB{simulated.payload / 1e6:>9.2f} MB")
    print(f"  {'on the wire, with judging and TLS':<38}{network.wire / 1e6:>7.2f} MB")


def message_table(ours: list[float], work: list[float], bare: list[float]) -> None:
    """How long a site takes for one message beside the work that it asks for."""
    warm = median(took - worked for took, worked in zip(ours[1:], work[1:], strict=True))
    fresh = median(bare)
    print(
        f"\nA train message at a site, last byte in to answer ready, without the training; {len(ours)} and {len(bare)}"
    )
    print(f"  warm worker, with checks, door and ledger {warm:>13.2f} s")
    print(f"  Flower's new process for each message     {fresh:>13.2f} s")
    print(f"  warm / Flower                             {warm / fresh:>13.2f}")


def load() -> str:
    """How busy the machine is."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def measure(job_path: Path, job: Job, data_dir: Path | None, idle_seconds: float, folder: Path) -> None:
    """Runs everything and prints the tables."""
    with LocalNetwork(folder, job, data_dir) as network:
        outside, network.port = network.port, free_port()
        relay = Relay(outside, network.port)
        network.start_coordinator()
        first, *others = network.sites
        network.start_site(first)
        network.wait_until_connected([first])
        with bare_flower(folder) as (bare_processes, bare_answered, home):
            ours, answered = processes_of(network, first), Answered()
            time.sleep(SETTLE_SECONDS)
            print(f"\nBoth have just started; {load()}")
            idle_table({**ours, "bare Flower": bare_processes}, idle_seconds)
            follow(network.work(first) / "logs" / "flower.log", answered.hear)
            for name in others:
                network.start_site(name)
            network.wait_until_connected(network.sites)
            print(f"\nOver the network: {load()}")
            began = time.monotonic()
            done = network.run("run", job_path)
            if done.returncode:
                sys.exit(f"the run ended with {done.returncode}: {done.stderr}")
            took = time.monotonic() - began
            for name in others:
                network.stop(name)
            environment = {**os.environ, **QUIET, "FLWR_HOME": str(home)}
            command = [BIN / "flwr", "run", BARE, "bench"]
            subprocess.run(command, env=environment, cwd=home, check=True, stdout=subprocess.DEVNULL)
            wait_for(lambda: len(bare_answered.sending) >= BARE_MESSAGES, "Flower's answers", 300)
            time.sleep(WARM_SECONDS)
            print(f"{took:.0f} s in all. Both after their runs; {load()}")
            idle_table({**ours, "bare Flower": bare_processes}, idle_seconds)
        run = next((network.home / "runs").iterdir())
    simulated = folder / "simulated"
    options = ["--data-dir", data_dir] if data_dir else []
    print(f"\nSimulated: {load()}")
    began = time.monotonic()
    consilium("simulate", job_path, *options, "--compare", "none", "--workers", 2, "--out", simulated)
    print(f"{time.monotonic() - began:.0f} s in all")
    round_table(phases(run, relay), phases(simulated, None))
    message_table(answered.seconds(), training_seconds(run, first), bare_answered.seconds())


def training_seconds(run: Path, site: str) -> list[float]:
    """Seconds of local steps behind each update of a site."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["seconds"] for event in events if event["event"] == "site_replied" and event["site"] == site]


def main() -> None:
    """Parses the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=float, default=60.0, metavar="SECONDS", help="how long to watch idle processes")
    parser.add_argument("--job", type=Path, default=ROOT / "examples" / "network-phantom.yaml")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    job = load_job(arguments.job)
    with tempfile.TemporaryDirectory() as name:
        measure(arguments.job, job, arguments.data_dir, arguments.idle, Path(name) / "network")


if __name__ == "__main__":
    main()
