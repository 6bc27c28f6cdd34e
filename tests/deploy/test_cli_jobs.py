"""Approving jobs, as hospital IT meets it: a real site folder with a real key, what is said, and what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from client.approvals import Approval, list_jobs, note_job
from client.config import load_site_config, write_site_config
from client.ledger import read_ledger, verify_ledger
from client.policy import Policy
from deploy.cli_jobs import COMMANDS
from shared_models.keys import key_fingerprint, new_signing_key, new_site_key, public_line, save_private
from tests.client.test_approvals import make_job

KEY = new_site_key()
PASSPHRASE = b"correct horse"
ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import typer
from deploy import cli, cli_jobs
cli.app = typer.Typer()
for name, command in cli_jobs.COMMANDS.items():
    cli.app.command(name)(command)
cli.main()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a site."""
    home = tmp_path / "site"
    home.mkdir()
    save_private(home / "site.key", KEY, None)
    write_site_config(
        home / "site.yaml",
        site="aachen",
        kit=home / "kit.json",
        key=home / "site.key",
        manifest=home / "manifest.csv",
        data_root=home,
        work=home / "work",
        coordinator=key_fingerprint(public_line(new_signing_key())),
    )
    load_site_config(home / "site.yaml")
    return home


@pytest.fixture
def site(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs one of the commands in the folder above the site's, as the help has it."""
    app = typer.Typer()
    for name, command in COMMANDS.items():
        app.command(name)(command)
    monkeypatch.chdir(home.parent)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return run


def asked(home: Path, **changes) -> Approval:
    """A job arrives."""
    return note_job(
        home / "work" / "jobs",
        make_job(**changes),
        run="vessels-1",
        federation="liver",
        policy=Policy(),
        patients={"train": 31, "validation": 4, "test": 8},
        cases={"train": 62, "validation": 8, "test": 16},
        now=datetime.now(UTC),
    )


def done(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def test_no_job_and_one_waiting_are_said(site, home: Path) -> None:
    assert "No job was asked" in done(site("jobs"))
    job = asked(home)
    told = done(site("jobs"))
    assert "vessels" in told
    assert "waiting" in told
    assert "31" in told
    assert f"consilium site show {job.job_hash[:12]}" in told


def test_show_says_what_would_run_on_whom_what_leaves_and_what_the_policy_says(site, home: Path) -> None:
    asked(home)
    told = " ".join(done(site("show", "vessels")).split())
    for part in (
        "segmentation: background, vessel",
        'unet, {"channels": [4, 8], "strides": [2]}',
        "10 rounds of 20 steps, batches of 8",
        "31 train, 4 validation, 8 test",
        "federation liver, run vessels-1",
        "sums over the validation patients behind dice",
        "policy.max_rounds: asked 10, allowed 0",
        "No other job of this name is approved.",
    ):
        assert part in told
    size = [line for line in told.split(" MB")[0].split()][-1]
    assert 0 < float(size) < 1


def test_show_says_what_differs_from_the_last_approved_version(site, home: Path) -> None:
    first = asked(home)
    done(site("approve", "vessels"))
    second = asked(home, federation={"rounds": 1000})
    told = done(site("show", second.job_hash[:8]))
    assert f"approved ({first.job_hash[:12]})" in told
    [line] = [line for line in told.splitlines() if line.startswith("federation.")]
    assert line.split() == ["federation.rounds", "10", "1000"]


def test_a_decision_lasts_and_stands_in_the_ledger_signed(site, home: Path) -> None:
    job = asked(home)
    assert "Approved vessels" in done(site("approve", "vessels", "--by", "A. Head"))
    done(site("withdraw", job.job_hash[:8], "--by", "A. Head", "--why", "the study has ended"))
    asked(home, seed=1)
    done(site("refuse", make_job(seed=1).fingerprint()[:8], "--why", "no ethics vote"))
    assert [approval.state for approval in list_jobs(home / "work" / "jobs")].count("withdrawn") == 1
    ledger = home / "work" / "ledger.jsonl"
    assert verify_ledger(ledger, public_line(KEY)).faults == []
    lines = list(read_ledger(ledger))
    assert [line["kind"] for line in lines] == ["approved", "withdrawn", "refused"]
    assert lines[1]["job_hash"] == job.job_hash
    assert (lines[1]["job"], lines[1]["by"], lines[1]["why"]) == ("vessels", "A. Head", "the study has ended")
    assert lines[2]["by"]


def test_a_decision_that_the_ledger_cannot_take_is_none(site, home: Path) -> None:
    asked(home)
    (home / "work" / "ledger.jsonl").mkdir()
    assert site("approve", "vessels").exit_code != 0
    [job] = list_jobs(home / "work" / "jobs")
    assert job.state == "waiting"


def test_nothing_of_a_coordinator_reaches_the_terminal_as_a_command(site, home: Path) -> None:
    classes = ["background", "\x1b[2Jvessel", "[red]bold[/red]"]
    asked(home, task={"kind": "segmentation", "classes": classes})
    told = done(site("show", "vessels"))
    assert "\x1b" not in told
    assert "[red]bold[/red]" in told


def test_an_encrypted_key_needs_its_passphrase_and_a_wrong_job_does_not_ask_for_it(home: Path, tmp_path: Path) -> None:
    (home / "site.key").unlink()
    save_private(home / "site.key", KEY, PASSPHRASE)
    asked(home)
    assert "there is no job 'lungs'" in refused(home, "approve", "lungs")
    assert "is encrypted" in refused(home, "approve", "vessels")
    (tmp_path / "passphrase").write_bytes(PASSPHRASE + b"\n")
    process = run(home, "approve", "vessels", "--passphrase-file", str(tmp_path / "passphrase"))
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("withdraw", "vessels", "--why", "x"), "is waiting, and cannot be withdrawn"),
        (("refuse", "vessels", "--why", " "), "needs its reason; give --why"),
        (("approve", "vessels", "--by", "policy"), "give --by"),
        (("show", "1234567"), "there is no job '1234567'"),
        (("jobs", "--config", "nowhere.yaml"), "nowhere.yaml: no site configuration here"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence_with_exit_code_2(
    home: Path, arguments: tuple[str, ...], told: str
) -> None:
    asked(home)
    assert told in refused(home, *arguments)


def test_a_damaged_file_of_a_job_is_named(home: Path) -> None:
    job = asked(home)
    path = home / "work" / "jobs" / f"{job.job_hash}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "approved", "job": {"name": "vessels"}}))
    told = refused(home, "jobs")
    assert str(path.relative_to(home.parent)) in told
    assert "damaged or edited" in told


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_an_example_and_exit_codes(site, command: str) -> None:
    told = done(site(command, "--help"))
    assert f"consilium site {command}" in told
    assert "Exit codes" in told


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "CONSILIUM_PASSPHRASE"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=home.parent,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def refused(home: Path, *arguments: str) -> str:
    """What a refused command says: exit code 2, nothing but sentences."""
    process = run(home, *arguments)
    assert process.returncode == 2, process.stderr
    assert all(line.startswith("consilium: ") for line in process.stderr.splitlines())
    return process.stderr
