"""`consilium site doctor` as a person or a cron job meets it: real processes, what they print, their exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.cli_doctor import doctor
from tests.client.joined_site import PATIENTS, Joined

# The one command alone, with the exit codes of `consilium`.
PROGRAM = """
import typer
from deploy import cli
from deploy.cli_doctor import doctor
cli.app = typer.Typer()
site = typer.Typer()
site.callback()(lambda: None)
site.command()(doctor)
cli.app.add_typer(site, name="site")
cli.main()
"""
ROOT = Path(__file__).parent.parent.parent
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


def run(site: Joined, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, "site", "doctor", "--config", str(site.config), *options]
    kept = {name: value for name, value in os.environ.items() if name.upper() not in PROXIES}
    kept |= {"PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=kept, timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    assert not any(name in done.stdout + done.stderr for name in PATIENTS), "a patient is named"
    return done


def levels(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """What the table says of each check, such as {"key": "ok"}."""
    table = done.stdout.split("\n\n")[0].splitlines()[1:]
    checks = [*("health port", "CA certificate", "server certificate"), *(line.split()[1] for line in table)]
    found = {}
    for line in table:
        level, rest = line.split(maxsplit=1)
        found[next(check for check in checks if rest.startswith(check))] = level
    return found


@pytest.fixture
def site(tmp_path: Path) -> Joined:
    return Joined(tmp_path)


def test_a_site_that_is_well_ends_with_0_and_no_sentence(site: Joined):
    with site.front():
        done = run(site)
    found = levels(done)
    memory = found.pop("memory")  # of the machine that the tests run on
    assert set(found.values()) == {"ok"}, done.stdout
    assert len(found) == 19
    assert done.returncode == {"ok": 0, "warning": 1, "FAULT": 2}[memory]
    if memory == "ok":
        assert done.stdout.count("\n\n") == 0, "a sentence under a table of nothing but ok"


def test_warnings_alone_end_with_1_and_a_sentence_each(tmp_path: Path):
    site = Joined(tmp_path, made=datetime.now(UTC) - timedelta(days=345))
    with site.front():
        done = run(site)
    assert levels(done)["server certificate"] == "warning"
    assert "warning: the server certificate of 127.0.0.1 expires in 19 days" in done.stdout
    assert done.returncode == (2 if levels(done)["memory"] == "FAULT" else 1)


def test_faults_end_with_2_and_stand_before_warnings(tmp_path: Path):
    site = Joined(tmp_path, made=datetime.now(UTC) - timedelta(days=345))
    site.allow(coordinators=[])
    with site.front():
        done = run(site)
    sentences = done.stdout.split("\n\n")[1].splitlines()
    assert done.returncode == 2
    assert sentences[0].startswith("FAULT: policy.coordinators does not list SHA256:")
    assert sentences[1].startswith("warning: ")


def test_a_job_has_every_image_opened(site: Joined):
    (site.data / f"{PATIENTS[3]}.png").write_bytes(b"no picture")
    with site.front():
        done = run(site, "--job", str(site.job()))
    assert (levels(done)["cases"], levels(done)["job"]) == ("warning", "ok")
    assert "warning: 1 case would be left out (1 where a file cannot be read)" in done.stdout


def test_a_passphrase_comes_from_a_file_or_the_environment_and_is_not_printed(tmp_path: Path):
    site = Joined(tmp_path, passphrase=b"correct horse")
    (tmp_path / "secret").write_text("correct horse\n")
    with site.front():
        for done in (
            run(site, "--passphrase-file", str(tmp_path / "secret")),
            run(site, CONSILIUM_PASSPHRASE="correct horse"),
        ):
            assert levels(done)["key"] == "ok"
            assert "horse" not in done.stdout + done.stderr
        assert levels(run(site))["key"] == "warning"
        missing = run(site, "--passphrase-file", str(tmp_path / "none"))
        assert levels(missing)["key"] == "FAULT"
        assert "FAULT: the passphrase in" in missing.stdout


def test_without_a_configuration_it_says_so_and_ends_with_2(site: Joined):
    site.config.unlink()
    done = run(site)
    assert done.returncode == 2
    assert levels(done)["site.yaml"] == "FAULT" and f"FAULT: {site.config}" in done.stdout


def test_the_help_documents_every_exit_code():
    assert doctor.__doc__ is not None
    codes = doctor.__doc__.split("Exit codes")[1].split("\n")
    assert [line.split()[0] for line in codes if line.strip()] == ["0", "1", "2"]
