"""The `consilium` command as a process, the run it leaves behind, and the job of most system tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.checkpoint import load_weights
from shared_models.weights import fingerprint

CONSILIUM = Path(sys.executable).with_name("consilium")
ROUNDS = 14
WORKERS = 2

# 2.6 million parameters with two moments each: a checkpoint of 31 MB, which takes long enough to be hit by a kill.
JOB: dict[str, Any] = {
    "name": "xrays",
    "seed": 11,
    "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    "data": {"spatial_dims": 2, "crop": [28, 28]},
    "model": {"name": "cnn", "arguments": {"channels": [4, 8], "hidden": 6500}},
    "training": {"optimizer": {"learning_rate": 0.001}, "batch_size": 10, "local_steps": 2},
    "federation": {
        "rounds": ROUNDS,
        "algorithm": {"server_optimizer": {"name": "adam", "learning_rate": 0.003}},
    },
    "evaluation": {"bootstrap": 20, "validation_share": 0.2, "test_share": 0.2},
    "simulation": {
        "dataset": {
            "name": "folder",
            "table": "xrays.npz",
            "columns": {"image": "images", "label": "labels", "patient": "patient"},
        },
        "partition": {"name": "iid"},
        "hospitals": 4,
    },
}


@dataclass(frozen=True)
class Done:
    """A finished command: what it said and how it ended."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one sentence on stderr: no traceback, no second line."""
        assert "Traceback" not in self.out + self.err, self.err
        assert self.err.startswith("consilium: ") and self.err.count("\n") == 1, self.err
        return self.err


def consilium(*arguments: object, **environment: str) -> Done:
    """Runs the command to its end."""
    done = subprocess.run(
        [CONSILIUM, *map(str, arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Run:
    """What a run directory says."""

    path: Path

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The whole lines of the event stream, of some kinds; a line that is being written is passed over."""
        path = self.path / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [event for event in map(json.loads, lines) if not kinds or event["event"] in kinds]

    def fingerprint(self) -> str:
        """Of the last global model, which the file of weights and the event stream agree on."""
        last = self.events("run_finished")[-1]["fingerprint"]
        assert fingerprint(load_weights(self.path / "models" / "federated-last.safetensors")) == last
        return str(last)

    def history(self) -> list[dict[str, Any]]:
        """Everything that happened in the rounds but for the clock."""
        kinds = ("round_started", "site_replied", "round_finished", "validated")
        events = [{k: v for k, v in e.items() if k not in ("time", "seconds")} for e in self.events(*kinds)]
        # The order in which sites reply is the machine's.
        return sorted(events, key=lambda e: (e["round"], kinds.index(e["event"]), e.get("attempt", 0), e.get("site")))

    def evaluations(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "evaluations.json").read_text())
        return content

    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "report.json").read_text())
        return content


class Going:
    """A command that is running; whatever it started ends with the test."""

    def __init__(self, *arguments: object, log: Path, **environment: str) -> None:
        self._log = log.open("w+")
        self.process = subprocess.Popen(
            [CONSILIUM, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
            env=os.environ | environment,
            start_new_session=True,
            # Where the tests run in the background of a shell, their processes would be told to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_until(self, happened: Callable[[], bool], pause: float = 0.001) -> bool:
        """Whether it happened before the process ended."""
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            if happened():
                return True
            assert time.monotonic() < deadline, "it did not happen within two minutes"
            time.sleep(pause)
        return False

    def workers(self) -> list[int]:
        """Process ids of the children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def kill(self) -> None:
        """kill -9, of this one process alone."""
        self.process.kill()
        self.process.wait()

    def end(self) -> Done:
        """Waits for the end."""
        code = self.process.wait(timeout=300)
        self._log.seek(0)
        return Done(code, "", self._log.read())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits only to be buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def changed(job: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A job with other values: `changed(JOB, federation={"rounds": 3})`; what is not named stays."""
    return job | {
        name: job.get(name, {}) | value if isinstance(value, dict) else value for name, value in sections.items()
    }


def write(folder: Path, job: dict[str, Any]) -> Path:
    """The job as a file in a folder."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def assert_as_undisturbed(run: Run, undisturbed: Run) -> None:
    """The same model, the same history, the same judgement, and every event once."""
    assert run.fingerprint() == undisturbed.fingerprint()
    assert run.history() == undisturbed.history()
    assert run.evaluations() == undisturbed.evaluations()
    once = ("baseline_finished", "judged", "run_finished", "site_refused")
    assert Counter(e["event"] for e in run.events(*once)) == Counter(e["event"] for e in undisturbed.events(*once))
    own, other = run.report(), undisturbed.report()
    assert own["models"] == other["models"]
    for folder in ("", "models", "sites", "pictures"):
        names = {path.relative_to(run.path) for path in (run.path / folder).glob("*")}
        expected = {path.relative_to(undisturbed.path) for path in (undisturbed.path / folder).glob("*")}
        assert names == expected, names ^ expected


def has_come(run: Run, moment: str, after: int) -> Callable[[], bool]:
    """A test whether the run is at this moment of a round behind round `after`."""
    path, seen = run.path / "events.jsonl", 0

    def last_line() -> dict[str, object]:
        nonlocal seen
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 4000))
                lines = file.read().decode(errors="replace").split("\n")
            return json.loads(lines[-2]) if len(lines) > 1 else {}
        except (OSError, ValueError):
            return {}

    def now() -> bool:
        if moment == "checkpointing":
            rounds = [int(file.name[7:12]) for file in run.path.glob("checkpoints/.round-*.safetensors.*.tmp")]
            return any(number > after for number in rounds)
        event = last_line()
        wanted = {"training": "round_started", "aggregation": "site_replied"}[moment]
        return event.get("event") == wanted and int(str(event["round"])) > after

    return now
