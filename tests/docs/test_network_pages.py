"""Every command of the pages for coordinator and hospital, as two people would type them, with a real federation."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from client.config import SiteFile
from client.policy import Policy
from deploy.local_network import own_images, wait_for
from shared_models.enrolment import read_kit
from shared_models.job_file import load_job
from shared_models.keys import key_fingerprint
from shared_models.supervision import QUIET, free_port
from simulation.datasets import open_dataset
from simulation.hospitals import make_split, write_hospitals
from tests.docs.pages import ROOT, commands, yaml_of
from tests.docs.test_commands import INSTALLATION

PATIENCE = 60  # seconds until a daemon that is told to end has ended

JOB = {
    "name": "liver",
    "federation": {"rounds": 2, "deadline_seconds": 120},
    "evaluation": {"validation_share": 0.25, "test_share": 0.25, "bootstrap": 20},
    "simulation": {
        "dataset": {"name": "phantom", "patients_per_hospital": 48, "slices_per_patient": 1, "size": 96},
        "partition": {"name": "iid"},
        "hospitals": 1,
    },
}


class Desk:
    """One folder, in which the lines of both pages are typed; daemons and followed runs stay in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, **QUIET, "PATH": path, "HOME": str(folder)}
        self.background: dict[str, subprocess.Popen[str]] = {}
        # What stands in the pages for something that a reader has, and what this reader has.
        self.meant = {"fl.example.org:443": f"127.0.0.1:{free_port()}", "127.0.0.1:8443": f"127.0.0.1:{free_port()}"}

    def type(self, line: str, codes: tuple[int, ...] = (0,)) -> str:
        """Types a line and waits for it; returns what it printed."""
        command = self.as_meant(line)
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode in codes, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def leave(self, name: str, line: str) -> None:
        """Types a line in a terminal of its own."""
        with (self.folder / f"{name}.out").open("w") as out:
            self.background[name] = subprocess.Popen(
                shlex.split(self.as_meant(line).replace("~", str(self.folder))),
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def printed(self, name: str) -> str:
        """What a line in a terminal of its own has printed so far."""
        return (self.folder / f"{name}.out").read_text()

    def end(self, name: str) -> int:
        """Ends a daemon as systemd would; returns its exit code."""
        process = self.background.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def as_meant(self, line: str) -> str:
        for written, meant in self.meant.items():
            line = line.replace(written, meant)
        return line

    def listens_at(self, name: str) -> set[str]:
        """HOST:PORT of everything at which a daemon and its children can be reached."""
        process = psutil.Process(self.background[name].pid)
        found = [
            connection.laddr
            for each in [process, *process.children(recursive=True)]
            for connection in each.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        return {f"{address.ip}:{address.port}" for address in found}

    def runs(self) -> list[Path]:
        return sorted((self.folder / "coordinator" / "runs").glob("*"))

    def phase(self) -> str:
        """Where the newest run stands."""
        return str(json.loads((self.runs()[-1] / "state.json").read_text())["phase"])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A folder with a passphrase, a job, and the cases of one hospital in `cases/`."""
    (tmp_path / "passphrase").write_text("a passphrase\n")
    job = yaml.safe_load((ROOT / "examples" / "network-phantom.yaml").read_text()) | JOB
    job["training"] |= {"local_steps": 2}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    loaded = load_job(tmp_path / "job.yaml")
    cases = open_dataset(loaded, None)
    (manifest,) = write_hospitals(loaded, cases, make_split(loaded, None, cases), tmp_path / "virtual").values()
    own_images(manifest, loaded, tmp_path / "cases")
    made = Desk(tmp_path)
    yield made
    for name in list(made.background):
        made.end(name)


def lines_of(page: str) -> Callable[[str], list[str]]:
    """Gives the lines of a page in their order, up to and with the first that begins with a text."""
    rest = iter(line for line in commands(ROOT / "docs" / page) if line not in INSTALLATION)

    def until(text: str) -> list[str]:
        found = []
        for line in rest:
            found.append(line)
            if line.startswith(text):
                return found
        raise AssertionError(f"{page} has no further line {text!r}, but {found}")

    return until


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_commands_of_both_pages_make_a_federation_that_trains(desk: Desk) -> None:
    coordinator, hospital = lines_of("coordinator.md"), lines_of("hospital.md")
    for line in itertools.chain(hospital("consilium site init"), coordinator("consilium coordinator init")):
        desk.type(line)
    shutil.copy(desk.folder / "site" / "request.json", desk.folder)  # the mail of the hospital
    admit, fingerprints = coordinator("consilium coordinator list"), ""
    for line in admit:
        fingerprints += desk.type(line)
    shutil.move(desk.folder / "kit-north.json", desk.folder / "kit.json")  # and the answer
    told = key_fingerprint(read_kit(desk.folder / "kit.json").signing_key)
    assert told in fingerprints
    desk.meant["SHA256:..."] = told

    (start,), (behind_nginx,) = coordinator("consilium coordinator start"), coordinator("consilium coordinator start")
    desk.leave("nginx", behind_nginx)
    wait_for(lambda: desk.meant["127.0.0.1:8443"] in desk.printed("nginx"), "the front behind nginx")
    assert desk.end("nginx") == 0
    desk.leave("coordinator", start)
    wait_for(lambda: (desk.folder / "coordinator" / "daemon.json").exists(), "the coordinator")

    for line in hospital("consilium site check"):
        desk.type(line)
    site_yaml = desk.folder / "site" / "site.yaml"
    site = yaml.safe_load(site_yaml.read_text())
    site |= {"threads": 1, "health_port": free_port()}
    site["policy"] |= yaml.safe_load(yaml_of(ROOT / "docs" / "hospital.md"))["policy"]
    site_yaml.write_text(yaml.safe_dump(site))
    site_yaml.chmod(0o600)
    doctor, start_site, status = hospital("consilium site status")
    desk.type(doctor, codes=(0, 1))  # 1: a warning, such as little memory
    desk.leave("site", start_site)

    *check, run = coordinator("consilium coordinator run")
    for line in check:
        desk.type(line)
    desk.leave("run", run)
    wait_for(lambda: list((desk.folder / "site" / "work" / "jobs").glob("*.json")), "the job to be asked of the site")
    assert "all is well" in desk.type(status)
    # Nobody reaches a site from outside, and of the coordinator only its front.
    assert {where.rpartition(":")[0] for where in desk.listens_at("site")} == {"127.0.0.1"}
    outside = {where for where in desk.listens_at("coordinator") if not where.startswith("127.0.0.1:")}
    assert outside == {"0.0.0.0:" + desk.meant["fl.example.org:443"].rpartition(":")[2]}
    jobs, show, approve = hospital("consilium site approve")
    assert "waiting" in desk.type(jobs)
    assert "patients" in desk.type(show)
    assert desk.phase() == "running"
    desk.type(approve)
    (status,) = coordinator("consilium coordinator status")
    assert "liver" in desk.type(status)
    assert desk.background.pop("run").wait(300) == 0, desk.printed("run")

    detached, stop, resume, log, results = coordinator("consilium coordinator results")
    desk.type(detached)
    assert len(desk.runs()) == 2
    desk.meant["liver-20260102-030405"] = desk.runs()[-1].name
    desk.type(stop)
    wait_for(lambda: desk.phase() == "stopped", "the run to stop")
    desk.type(resume)
    desk.type(log)
    said = desk.type(results)
    first, second = (json.loads((run / "report.json").read_text())["run"]["fingerprint"] for run in desk.runs())
    assert first == second and second in said

    (withdraw,) = hospital("consilium site withdraw")
    assert "Withdrew" in desk.type(withdraw)
    assert "is whole" in "".join(desk.type(line) for line in hospital("consilium site ledger export"))
    report = desk.folder / "site" / "work" / "runs" / desk.runs()[-1].name / "report.html"
    assert "data:image/png" in report.read_text()

    named = {name for name in first_cells("coordinator.md") if not name.startswith("--")}
    home = desk.folder / "coordinator"
    assert {name for name in named if not [*home.glob(name), *home.glob(f"runs/*/{name}")]} == set()
    for line in coordinator("consilium coordinator renew"):
        desk.type(line)
    assert desk.end("site") == 0 and desk.end("coordinator") == 0


def first_cells(page: str) -> set[str]:
    """Everything that stands between backticks in the first column of the tables of a page."""
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", (ROOT / "docs" / page).read_text())
    return {name for cell in rows for name in re.findall(r"`([^`]*)`", cell)}


def test_the_page_for_hospitals_explains_every_key_of_site_yaml() -> None:
    assert first_cells("hospital.md") == {*SiteFile.model_fields, *Policy.model_fields}
