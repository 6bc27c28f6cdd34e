"""A federation of processes to do harm to: its job, its wire, what a user reads of it, and what it must come to."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import yaml
from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp

from deploy.local_network import LocalNetwork, wait_for
from server.app import make_server_app
from server.events import EventLog
from server.federation import open_federation
from server.runs import Run as Folder
from server.status import describe
from shared_models.errors import RunStopped
from shared_models.job_file import load_job
from shared_models.supervision import free_port
from simulation.engine import run_in_processes
from simulation.run_folder import SimulationRequest, create
from tests.system.processes import Run

HOUR = 3600.0
PATIENCE = 240.0
"""Seconds that the tests wait for something to happen: for a minute after a crash Flower holds a node for connected."""

# Three brains' worth of slices made from the MNI152 template; a round's training lasts long enough to be hit.
JOB: dict[str, Any] = {
    "name": "faults",
    "seed": 7,
    "task": {"kind": "segmentation", "classes": ["background", "grey matter", "white matter"]},
    "data": {"spatial_dims": 2, "crop": [96, 96]},
    "model": {"name": "unet", "arguments": {"channels": [8, 16, 32], "strides": [2, 2]}},
    "training": {"optimizer": {"learning_rate": 0.005}, "batch_size": 5, "local_steps": 100},
    # Whoever is lost in a round is waited for, and the round is tried again.
    "federation": {"rounds": 2, "quorum": 3, "retries": 4},
    "evaluation": {"every": 0, "bootstrap": 20, "validation_share": 0.2, "test_share": 0.5},
    "simulation": {
        "dataset": {"name": "phantom", "patients_per_hospital": 28, "slices_per_patient": 1, "size": 96},
        "partition": {"name": "iid"},
        "hospitals": 3,
    },
}
# Two of three are enough, so the rounds go on without a site that is away.
GOES_ON = {**JOB, "federation": {"rounds": 30, "deadline_seconds": 120}}


class Wire:
    """The cable between the hospitals and the coordinator; one hospital's can be cut in the middle of an upload."""

    def __init__(self, port: int, behind: int) -> None:
        """Carries what comes at one port of loopback to another."""
        self._behind = behind
        self._victims: Callable[[], Collection[int]] = tuple
        self._left = float("inf")  # bytes that the victim may still send
        self.is_cut = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_in_upload(self, victims: Callable[[], Collection[int]], after: int) -> None:
        """Cuts the cable of one hospital once it has sent so many bytes from now on.

        Args:
            victims: tells the process ids of the hospital.
        """
        self._victims, self._left = victims, after

    def mend(self) -> None:
        """Lets everything through again."""
        self._left = float("inf")
        self._victims = tuple
        self.is_cut.clear()

    def close(self) -> None:
        """Takes no further connection."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                inside, (_, port) = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(inside, port), daemon=True).start()

    def _carry(self, site: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError), site, socket.create_connection(("127.0.0.1", self._behind)) as coordinator:
            other = {site: coordinator, coordinator: site}
            while True:
                for ready in select.select(list(other), [], [], 0.2)[0]:
                    content = ready.recv(16 * 1024)
                    if ready is site and self._left < float("inf") and self._is_victims(port):
                        self._left -= len(content)
                        if self._left < 0:
                            self.is_cut.set()
                    if self.is_cut.is_set() and self._is_victims(port):
                        # Not closed: packets that go nowhere are what a broken line looks like.
                        self._hold()
                        return
                    if not content:
                        return
                    other[ready].sendall(content)

    def _hold(self) -> None:
        while self.is_cut.is_set():
            time.sleep(0.1)

    def _is_victims(self, port: int) -> bool:
        with contextlib.suppress(psutil.Error):
            links = [link for pid in self._victims() for link in psutil.Process(pid).net_connections("tcp")]
            return any(link.laddr.port == port for link in links)
        return False


@dataclass
class Going:
    """A run that was launched."""

    network: Network
    name: str

    @property
    def run(self) -> Run:
        """What its folder says."""
        return Run(self.network.home / "runs" / self.name)

    @property
    def state(self) -> Any:
        """Where it stands."""
        return Folder(self.run.path).state()

    def waits_for(self, round_number: int) -> set[str]:
        """The sites that have been asked to train in a round and have not answered."""
        with contextlib.suppress(OSError, ValueError):
            waiting = json.loads((self.run.path / "waiting.json").read_text())
            return {one["site"] for one in waiting if one["question"] == "train" and one["round"] == round_number}
        return set()

    def wait_for_training(self, site: str, round_number: int) -> None:
        """Waits until a site is in the middle of a round's training."""
        wait_for(
            lambda: site in self.waits_for(round_number) and self.network.is_training(site),
            f"{site} to train in round {round_number}",
            PATIENCE,
        )
        time.sleep(0.3)  # behind the checks that come before the first step

    def wait_to_read(self, *words: str) -> str:
        """Waits until `consilium coordinator status` has a line with all these words; returns the line."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for line in self.network.status():
                if all(word in line for word in words):
                    return line
            time.sleep(0.02)  # some things are over soon
        raise TimeoutError(f"waited {PATIENCE:g} s for a status that says {words}")

    def wait_for_event(self, behind: int = 0, **wanted: Any) -> dict[str, Any]:
        """Waits until the event stream has an event with these values behind a round; returns the first."""
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            events = [event for event in self.run.events() if event.get("round") and event["round"] > behind]
            found[:] = [event for event in events if all(event.get(key) == value for key, value in wanted.items())]
            return bool(found)

        wait_for(is_there, f"the event {wanted}", PATIENCE)
        return found[0]

    def end(self) -> tuple[int, str]:
        """Follows the run to its end as a user does; returns the exit code and what was said last."""
        done = self.network.run("log", self.name)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done.returncode, done.stderr

    def last_round(self) -> int:
        """The last round that is finished."""
        return max(self.fingerprints(), default=0)

    def stop(self) -> None:
        """Stops it behind its last whole round, as a user does."""
        assert self.network.run("stop", self.name).returncode == 0
        assert self.end()[0] == 3

    def resume(self) -> None:
        """Queues it again."""
        done = self.network.run("resume", self.name, "--detach")
        assert done.returncode == 0, done.stderr

    def assert_complete(self, fingerprint: str) -> None:
        """It ends by itself with the model that nothing disturbed, and nobody missing from a round that counts."""
        code, said = self.end()
        assert (code, said) == (0, "") or code == 4, said
        assert self.run.fingerprint() == fingerprint
        assert not self.absences()

    def absences(self) -> set[tuple[int, str]]:
        """Round and site of every update that is missing from a round that counts, as the report says."""
        finished = self.fingerprints()
        table = [entry for entry in self.run.report()["participation"] if entry["round"] in finished]
        return {(e["round"], e["site"]) for e in table if e["last_attempt"] and e["status"] != "used"}

    def fingerprints(self) -> dict[int, str]:
        """The global model after each round."""
        return {event["round"]: event["fingerprint"] for event in self.run.events("round_finished")}


class Network(LocalNetwork):
    """A coordinator and three hospitals behind a wire."""

    def __init__(self, folder: Path) -> None:
        self.job = write_job(folder, JOB)
        super().__init__(folder, load_job(self.job), None, {"max_rounds": 100})
        # The kits name the wire's end; the coordinator listens behind it.
        outside, self.port = self.port, free_port()
        self.wire = Wire(outside, self.port)

    def launch(self, job: Path | None = None, *arguments: object) -> Going:
        """Launches a job and goes on beside it."""
        done = self.run("run", job or self.job, "--detach", *arguments)
        assert done.returncode == 0, done.stderr
        return Going(self, Path(done.stdout.split()[-1]).name)

    def status(self) -> list[str]:
        """What `consilium coordinator status` prints."""
        return describe(open_federation(self.home).paths)

    def is_training(self, site: str) -> bool:
        """Whether a site's worker says so."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.work(site) / "worker.json").read_text())["doing"] == "answers 'train'"
        return False

    def processes_of(self, site: str) -> list[psutil.Process]:
        """The daemon of a site and all that it started."""
        daemon = psutil.Process(self.processes[site].pid)
        return [daemon, *daemon.children(recursive=True)]

    def recover(self) -> None:
        """Waits until everything is as at the start: all connected, no run under way."""
        self.wire.mend()
        if "coordinator" not in self.processes:
            self.start_coordinator()
        for site in set(self.sites) - set(self.processes):
            self.start_site(site)
        if name := self.daemon().get("run"):  # of a test that failed
            self.run("stop", name)
        wait_for(lambda: all(self.health(site).get("healthy") for site in self.sites), "healthy sites", PATIENCE)
        wait_for(lambda: set(self.daemon().get("sites", {}).values()) == {"online"}, "all to connect", PATIENCE)
        wait_for(lambda: self.daemon().get("run") is None, "no run under way", PATIENCE)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.wire.close()


def write_job(folder: Path, job: Mapping[str, Any]) -> Path:
    """The job as a file in a folder."""
    path = folder / f"{job['name']}-{job['federation']['rounds']}.yaml"
    path.write_text(yaml.safe_dump(dict(job), sort_keys=False))
    return path


def simulated(
    job: Path, out: Path, absent: Iterable[tuple[int, str]] = (), rounds: int | None = None
) -> dict[int, str]:
    """The global model after each round of the same job in one process.

    Args:
        absent: round and site of updates that shall be missing.
        rounds: the last round that is of interest; all when None.
    """
    run = create(SimulationRequest(job, out=out, compare=(), workers=1))
    events = EventLog(run.path / "events.jsonl")
    app = make_server_app(run.job, run.path, events, lambda grid, result: None)
    nodes = run.nodes()
    names = {100 + index: node["site"] for index, node in enumerate(nodes)}
    partly = ServerApp()

    @partly.main()
    def main(grid: Grid, context: Context) -> None:
        app(cast(Grid, _Partly(grid, names, set(absent), rounds)), context)

    with contextlib.suppress(RunStopped):
        run_in_processes(partly, nodes, 1, 1)
    events.close()
    return {event["round"]: event["fingerprint"] for event in Run(out).events("round_finished")}


class _Partly:
    """A grid that loses some questions to some sites, and ends behind some round."""

    def __init__(self, grid: Grid, names: Mapping[int, str], absent: set[tuple[int, str]], last: int | None) -> None:
        self._grid, self._names, self._absent, self._last = grid, names, absent, last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            number = message.content.config_records["instruction"].get("round")
            if message.metadata.message_type == MessageType.TRAIN and isinstance(number, int):
                if self._last is not None and number > self._last:
                    raise RunStopped("the rounds of interest are over")
                if (number, self._names[message.metadata.dst_node_id]) in self._absent:
                    ids.append("")
                    continue
            ids += self._grid.push_messages([message])
        return ids


def kill(pid: int) -> None:
    """kill -9, of one process alone."""
    os.kill(pid, signal.SIGKILL)


def move_into_the_past(home: Path, seconds: float) -> None:
    """Makes the state of a coordinator that is not running older: of its SuperLink, its runs and itself."""
    with contextlib.closing(sqlite3.connect(home / "superlink" / "state.db")) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                _shift_column(database, table, column, kind, seconds)
    for path in [home / "daemon.json", *(home / "runs").glob("*/state.json"), *(home / "runs").glob("*/waiting.json")]:
        content = json.loads(path.read_text())
        for entry in content if isinstance(content, list) else [content]:
            for key in ("at", "since", "until"):
                if entry.get(key):
                    entry[key] -= seconds
        path.write_text(json.dumps(content))


MOMENTS = ("created_at", "delivered_at", "online_until", "active_until", "expires_at", "timestamp", "updated_at")


def _shift_column(database: sqlite3.Connection, table: str, column: str, kind: str, seconds: float) -> None:
    if not (column in MOMENTS or column.endswith("_at")):
        return
    if kind in ("FLOAT", "DOUBLE"):
        database.execute(f"UPDATE {table} SET {column} = {column} - ?", (seconds,))
        return
    for row, text in database.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
        if text:
            older = datetime.fromisoformat(text) - timedelta(seconds=seconds)
            shown = older.isoformat(sep=" " if " " in text else "T")
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (shown, row))


def fill(folder: Path) -> Path:
    """Fills a file system to its last byte; returns the file that does it."""
    path = folder / "full"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")
    assert shutil.disk_usage(folder).free == 0
    return path
