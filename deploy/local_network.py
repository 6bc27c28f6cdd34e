"""A coordinator and some hospitals as separate processes on this machine, each with its own folder, keys and images.

Everything is done with the commands that people would type. The demonstration, the system tests and the benchmark of
the network use it.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import yaml

from shared_models.enrolment import read_kit
from shared_models.errors import ConsiliumError
from shared_models.job import Job
from shared_models.keys import key_fingerprint
from shared_models.supervision import QUIET, free_port
from shared_models.tasks import task_of
from simulation.datasets import open_dataset
from simulation.hospitals import make_split, write_hospitals

COMMAND = str(Path(sys.executable).with_name("consilium"))
PATIENCE = 60.0


class LocalNetwork:
    """The processes of one federation; use it as a context manager, so that all that it started is ended.

    Attributes:
        folder: `coordinator/` and `sites/<name>/` are in it.
        processes: by name; `coordinator` and the sites.
        prefixes: by the same names, what its command begins with, such as `ip netns exec NAME`; nothing by default.
    """

    def __init__(
        self,
        folder: Path,
        job: Job,
        data_dir: Path | None,
        policy: Mapping[str, Any] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """Divides the job's data set, makes the federation, and lets every hospital join it; nothing is started.

        Args:
            policy: keys of the hospitals' policy that differ from `allows(job)`.
            host: the coordinator's address.
        """
        self.folder = folder.absolute()
        self.home = self.folder / "coordinator"
        self.host, self.port = host, free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.prefixes: dict[str, list[str]] = {}
        cases = open_dataset(job, data_dir)
        manifests = write_hospitals(job, cases, make_split(job, data_dir, cases), self.folder / "manifests")
        self.sites = sorted(manifests)
        self._coordinator("init", "--name", "demo", "--address", f"{host}:{self.port}")
        for name, manifest in manifests.items():
            own_images(manifest, job, self.folder / "sites" / name / "data")
            self.join(name, {**allows(job), **(policy or {})})

    def join(self, name: str, policy: Mapping[str, Any]) -> None:
        """One hospital makes its key, is admitted, and writes its configuration."""
        home = self.folder / "sites" / name
        consilium("site", "init", "--name", name, "--home", home / "site")
        kit = home / "kit.json"
        self._coordinator("admit", home / "site" / "request.json", "--out", kit)
        # In real life a person compares it by telephone.
        fingerprint = key_fingerprint(read_kit(kit).signing_key)
        manifest = home / "data" / "manifest.csv"
        consilium(
            *("site", "join", kit, "--home", home / "site", "--manifest", manifest, "--data-root", home / "data"),
            *("--trust", fingerprint),
        )
        path = self.site_yaml(name)
        config = yaml.safe_load(path.read_text())
        config |= {"threads": 1, "health_port": free_port()}
        config["policy"] |= policy
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def site_yaml(self, name: str) -> Path:
        """The configuration of a hospital."""
        return self.folder / "sites" / name / "site" / "site.yaml"

    def work(self, name: str) -> Path:
        """The work directory of a hospital."""
        return self.folder / "sites" / name / "site" / "work"

    def start_coordinator(self) -> None:
        """Starts the coordinator and waits until the hospitals can reach it."""
        self._start("coordinator", "coordinator", "start", "--home", self.home, "--listen", f"{self.host}:{self.port}")
        wait_for(lambda: self.daemon().get("superlink", {}).get("ready"), "the coordinator to be ready")

    def start_site(self, name: str) -> None:
        """Starts a hospital's daemon."""
        self._start(name, "site", "start", "--config", self.site_yaml(name))

    def start(self) -> None:
        """Starts everything, and waits until every hospital is connected."""
        self.start_coordinator()
        for name in self.sites:
            self.start_site(name)
        self.wait_until_connected(self.sites)

    def wait_until_connected(self, names: list[str]) -> None:
        """Waits until these hospitals are connected."""
        wait_for(
            lambda: all(self.daemon().get("sites", {}).get(name) == "online" for name in names),
            f"{', '.join(names)} to connect",
        )

    def daemon(self) -> dict[str, Any]:
        """What the coordinator says of itself."""
        try:
            found: dict[str, Any] = json.loads((self.home / "daemon.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def health(self, name: str) -> dict[str, Any]:
        """What a hospital's daemon says of itself; empty when it does not answer."""
        import urllib.error
        import urllib.request

        port = yaml.safe_load(self.site_yaml(name).read_text())["health_port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as unhealthy:
            found = json.load(unhealthy)
        except OSError:
            return {}
        return found

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`consilium coordinator ...` with this home; it may fail."""
        return consilium("coordinator", *arguments, "--home", self.home, check=False)

    def stop(self, name: str) -> None:
        """Ends one process as systemd would."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> LocalNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for name in list(self.processes):
            self.stop(name)

    def _coordinator(self, *arguments: object) -> None:
        consilium("coordinator", *arguments, "--home", self.home)

    def _start(self, name: str, *arguments: object) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            [*self.prefixes.get(name, []), COMMAND, *map(str, arguments)],
            stdout=log,
            stderr=log,
            env={**os.environ, **QUIET},
        )
        log.close()


def consilium(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command of consilium.

    Raises:
        ConsiliumError: it failed, unless that is looked at by the caller; with what it said.
    """
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **QUIET}, check=False
    )
    if check and done.returncode:
        raise ConsiliumError(f"consilium {' '.join(map(str, arguments))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def allows(job: Job) -> dict[str, Any]:
    """A policy that lets one job pass without asking, and no more."""
    metrics = dict.fromkeys(name.split("/")[0] for name in task_of(job).metric_info())
    return {
        "tasks": [job.task.kind],
        "models": [job.model.name],
        "algorithms": [job.federation.algorithm.name],
        "max_rounds": job.federation.rounds,
        "max_local_steps": job.training.local_steps or 1000,
        "max_hours_per_day": 24,
        "min_patients": 3,
        "metrics": list(metrics),
        "statistics": job.federation.statistics is not None,
        "approve": "automatic",
    }


def own_images(manifest: Path, job: Job, folder: Path) -> Path:
    """Copies the images of one manifest into a folder of the hospital's own, with a manifest that names them there."""
    folder.mkdir(parents=True)
    with manifest.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = [header.index(name) for name in job.file_columns()]
    for column in columns:
        references = [row[column] for row in rows]
        if "::" in references[0]:
            own = _own_rows(references, folder / f"{header[column]}.npz")
        else:
            own = [_own_copy(Path(reference), folder / header[column]) for reference in references]
        for row, reference in zip(rows, own, strict=True):
            row[column] = reference
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return folder / "manifest.csv"


def wait_for(condition: Any, what: str, seconds: float = 120.0) -> None:
    """Waits until a condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.2)


def _own_rows(references: list[str], target: Path) -> list[str]:
    """The rows of an array that this hospital has, as an array of its own."""
    file, _, rest = references[0].partition("::")
    array = rest.split("[")[0]
    indices = [int(reference.rsplit("[", 1)[1].rstrip("]")) for reference in references]
    with np.load(file) as archive:
        np.savez_compressed(target, **{array: archive[array][indices]})
    return [f"{target.name}::{array}[{row}]" for row in range(len(references))]


def _own_copy(source: Path, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    shutil.copyfile(source, folder / source.name)
    return f"{folder.name}/{source.name}"
