"""`consilium coordinator start`: keeps the SuperLink, the TLS front and the run that is under way alive.

One loop looks at everything some times a second. Runs are worked on one at a time, in the order they were asked for; a
run whose process died goes on from its last checkpoint. What is under way is in `daemon.json`, for `status` to read.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.deployed_run import GO_ON, Assignment
from server.federation import Federation
from server.front import Front
from server.runs import Run, all_runs
from server.superlink import SuperLink
from shared_models.errors import ConsiliumError
from shared_models.files import whole_file
from shared_models.flower_runtime import COORDINATOR_TASK, TaskQueue
from shared_models.keys import load_private
from shared_models.supervision import Child, only_one, rotating_log

TICK = 0.2
STATUS_SECONDS = 2.0
SLOW_TICK = 10.0
MOST_DEATHS = 5
"""A run whose process dies so often without finishing a round in between is stopped."""

PATIENCE = 20.0
"""Seconds that a run gets to stop by itself."""


@dataclass
class Current:
    """The run that is being worked on."""

    run: Run
    flower_run: int | None = None
    process: Child | None = None
    deaths: int = 0
    last_round: int = 0


class Coordinator:
    """The daemon of one coordinator's home."""

    def __init__(self, federation: Federation, listen: tuple[str, int], passphrase: bytes | None) -> None:
        """Opens the keys and takes the home for itself; nothing is started yet.

        Raises:
            BadInput: a key cannot be opened, or another daemon has this home.
        """
        self._federation, paths = federation, federation.paths
        self._lock = only_one(paths.home / "daemon.lock")
        self._log = rotating_log(paths.logs / "coordinator.log")
        key = load_private(paths.signing_key, passphrase)
        self._signing_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self._superlink = SuperLink(paths, passphrase, self._log)
        self._front = Front(
            listen=listen,
            certificate=paths.server_certificate,
            key=paths.server_key,
            passphrase=passphrase,
            upstream=f"https://{self._superlink.address}",
            upstream_ca=paths.ca_certificate,
            registry=federation.registry,
            on_event=self._front_says,
        )
        self._tasks = TaskQueue(self._superlink.runtime, COORDINATOR_TASK)
        self._current: Current | None = None
        self._stopping = False
        self._ready = self._took_over = False
        self._slow_at = self._status_at = 0.0
        self._status: dict[str, Any] = {}
        self._woken = 0
        self._warnings: list[str] = []
        self._nodes: dict[str, str] = {}
        self._problem: str | None = None
        self._began = time.time()

    def run(self, on_start: Callable[[], None]) -> None:
        """Runs until SIGTERM or SIGINT; a run that is under way goes on at the next start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._front.start()
        on_start()
        self._take_up_unfinished()
        try:
            while not self._stopping:
                self._tick()
                time.sleep(TICK)
        finally:
            self._end()

    @property
    def listens_at(self) -> str:
        """HOST:PORT of the front."""
        host, port = self._front.address
        return f"{host}:{port}"

    def _tick(self) -> None:
        if self._superlink.process.is_due():
            self._ready = False
            self._superlink.start()
        if not self._front.is_alive:
            self._log.info("the front ended; it is started again")
            self._front.start()
        try:
            if not self._ready or time.monotonic() > self._slow_at:
                self._look_around()
            if self._ready:
                self._work()
            self._problem = None
        except httpx.HTTPError as error:
            self._ready = False
            self._problem = f"the SuperLink does not answer ({type(error).__name__})"
        except ConsiliumError as error:
            self._problem = str(error)
            self._log.info("%s", error)
        self._wake_sites()
        self._write_status()

    def _wake_sites(self) -> None:
        """The process of the run writes whom it waits for whenever it has sent something."""
        current = self._current
        with suppress(OSError):
            written = current.run.waiting_file.stat().st_mtime_ns if current else 0
            if written != self._woken:
                self._woken = written
                self._front.wake()

    def _look_around(self) -> None:
        """What needs no haste: the registry's keys in the SuperLink, certificates, disk."""
        self._slow_at = time.monotonic() + SLOW_TICK
        control = self._superlink.control
        registered = control.nodes()
        if not self._took_over:
            control.stop_all_runs()
            self._took_over = True
        self._ready = True
        wanted = {entry.public_key: entry for entry in self._federation.registry.entries()}
        for line in wanted.keys() - registered.keys():
            control.register(line, wanted[line].name)
            self._log.info("site %s may connect", wanted[line].name)
        for line in registered.keys() - wanted.keys():
            control.unregister(registered[line][0])
            self._log.info("node %d was removed from the registry and may connect no more", registered[line][0])
        self._warnings = self._federation.warnings(datetime.now(UTC))
        self._nodes = {entry.name: registered.get(line, (0, "registered"))[1] for line, entry in wanted.items()}
        given_back = self._superlink.reclaim()
        if given_back:
            self._log.info("%.0f MB of taken updates were overwritten and given back", given_back / 1e6)

    # --- runs ---

    def _take_up_unfinished(self) -> None:
        for run in all_runs(self._federation.paths.runs):
            if run.state().phase == "running":
                self._log.info("run %s goes on from its last checkpoint", run.name)
                run.move("queued", reason="the coordinator was started again")

    def _work(self) -> None:
        if self._current is None:
            self._next_run()
        if self._current is None:
            return
        current = self._current
        if current.run.stop_file.exists():
            self._stop_current(current)
        elif current.process is None:
            self._start_process(current)
        elif not current.process.alive:
            self._process_ended(current)

    def _next_run(self) -> None:
        for run in all_runs(self._federation.paths.runs):
            if run.state().phase == "queued":
                if run.stop_file.exists():
                    run.stop_file.unlink()
                    run.move("stopped", reason="stopped before it began", exit_code=3)
                    continue
                run.move("running", reason=None, exit_code=None)
                self._current = Current(run)
                return

    def _start_process(self, current: Current) -> None:
        """Makes a Flower run, claims its task, and gives it to a process of ours."""
        if current.flower_run is None:
            current.flower_run = self._superlink.control.start_run()
            self._log.info("run %s is Flower's run %d", current.run.name, current.flower_run)
        claim = self._tasks.claim()
        if claim is None:
            return
        if claim.run_id != current.flower_run:
            self._superlink.control.stop_run(claim.run_id)  # one that nobody waits for any more
            return
        current.run.move("running", attempts=current.run.state().attempts + 1)
        assignment = Assignment(
            run=str(current.run.path.absolute()),
            federation=self._federation.name,
            registry=str(self._federation.paths.registry.absolute()),
            address=self._superlink.address,
            certificates=self._federation.paths.ca_certificate.read_text(),
            token=claim.token,
            signing_key=self._signing_key,
        )
        log = rotating_log(current.run.path / "run.log")
        current.process = Child("run", log, 0, 0)
        current.process.start([sys.executable, "-m", "server.deployed_run"], stdin=assignment.to_bytes())

    def _process_ended(self, current: Current) -> None:
        assert current.process is not None
        code = current.process.exit_code
        done = _last_round(current.run)
        if done > current.last_round:
            current.deaths, current.last_round = 0, done
        if current.flower_run is not None:
            self._superlink.control.stop_run(current.flower_run)
        if code in (0, 4):
            current.run.move("complete", exit_code=code)
        elif code in (2, 3):
            current.run.move("stopped", exit_code=code, reason=_reason(current.run))
        elif current.deaths + 1 >= MOST_DEATHS:
            reason = f"its process died {MOST_DEATHS} times in one round; run.log in its folder says of what"
            current.run.move("stopped", exit_code=3, reason=reason)
        else:
            if code != GO_ON:
                current.deaths += 1
            self._log.info("the process of run %s ended with %s; it goes on", current.run.name, code)
            current.process = current.flower_run = None
            return
        self._log.info("run %s: %s", current.run.name, current.run.state().phase)
        self._current = None
        self._superlink.reclaim()

    def _stop_current(self, current: Current) -> None:
        if current.process is not None and current.process.alive:
            current.process.stop(PATIENCE)
        if current.flower_run is not None:
            self._superlink.control.stop_run(current.flower_run)
        current.run.stop_file.unlink(missing_ok=True)
        current.run.move("stopped", exit_code=3, reason="stopped on request")
        self._current = None
        self._superlink.reclaim()

    # --- the daemon itself ---

    def _end(self) -> None:
        """The run that is under way stays `running` on disk, so that the next start takes it up."""
        if self._current is not None and self._current.process is not None:
            # Not asked to stop, which would be the end of the run: its last checkpoint is whole at any moment.
            self._current.process.signal(signal.SIGKILL)
        self._front.stop()
        self._tasks.close()
        self._superlink.control.close()
        self._superlink.process.stop(PATIENCE)
        self._status_file.unlink(missing_ok=True)
        self._log.info("the coordinator ended")

    @property
    def _status_file(self) -> Path:
        return self._federation.paths.home / "daemon.json"

    def _write_status(self) -> None:
        """Whenever something has changed; and now and then, so that it is seen that the daemon is alive."""
        superlink = self._superlink.process
        status: dict[str, Any] = {
            "pid": os.getpid(),
            "since": self._began,
            "listens_at": self.listens_at,
            "superlink": {"ready": self._ready, "restarts": superlink.restarts, "pid": superlink.pid},
            "run": self._current.run.name if self._current else None,
            "run_pid": self._current.process.pid if self._current and self._current.process else None,
            "sites": self._nodes,
            "problem": self._problem,
            "warnings": self._warnings,
        }
        if status == self._status and time.monotonic() < self._status_at:
            return
        self._status, self._status_at = status, time.monotonic() + STATUS_SECONDS
        # A full disk is no reason for the daemon to end.
        with suppress(OSError), whole_file(self._status_file) as file:
            file.write(json.dumps({"at": time.time(), **status}, indent=1).encode())

    def _front_says(self, event: str, **facts: Any) -> None:
        self._log.info("%s %s", event, json.dumps(facts, default=str))


def _last_round(run: Run) -> int:
    """The last round that a checkpoint is there for."""
    return max((int(path.stem.removeprefix("round-")) for path in run.path.glob("checkpoints/round-*.json")), default=0)


def _reason(run: Run) -> str:
    """Why a run stopped, as its last event says, or its log."""
    from server.events import read_events

    events = run.path / "events.jsonl"
    last = list(read_events(events))[-1:] if events.exists() else []
    if last and last[0]["event"] == "run_finished" and last[0].get("reason"):
        return str(last[0]["reason"])
    return "it could not go on; run.log in its folder says why"
