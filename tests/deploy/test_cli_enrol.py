"""Enrolment as two people at two terminals go through it: real processes, what they say, and their exit codes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import cli_enrol
from shared_models.keys import is_encrypted

# The two groups of commands alone, with the exit codes of `consilium`.
PROGRAM = """
import sys, typer
from deploy import cli, cli_enrol
cli.app = typer.Typer()
for group, commands in (("coordinator", cli_enrol.COORDINATOR_COMMANDS), ("site", cli_enrol.SITE_COMMANDS)):
    part = typer.Typer()
    for name, command in commands.items():
        part.command(name)(command)
    cli.app.add_typer(part, name=group)
cli.main()
"""
ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with a manifest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.csv").write_text("image,label,patient\n")
    return tmp_path


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT | environment
    )


def done(*arguments: str, **environment: str) -> str:
    """What a command that succeeds says."""
    process = run(*arguments, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(*arguments: str, **environment: str) -> str:
    """What a refused command says: exit code 2, nothing but sentences."""
    process = run(*arguments, **environment)
    assert process.returncode == 2, process.stderr
    assert all(line.startswith("consilium: ") for line in process.stderr.splitlines())
    return process.stderr


def typed(answers: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a command at a terminal, where a person types these lines."""
    ours, theirs = pty.openpty()
    # In a session of its own it has no other terminal to ask at.
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    os.close(theirs)
    said = ""
    for answer in answers.splitlines():
        while not said.endswith((": ", "]: ")):
            said += process.stdout.read(1)
        os.write(ours, f"{answer}\n".encode())
        said += "\n"
    said += process.stdout.read()
    os.close(ours)
    return process.wait(), said


def fingerprints(said: str) -> list[str]:
    return re.findall(r"SHA256:\S{43}", said)


def enrolled() -> str:
    """A federation and a site whose kit has come back; the fingerprint of the signing key."""
    (fingerprint,) = fingerprints(done("coordinator", "init", "--name", "liver", "--address", "fl.example.org:443"))
    done("site", "init", "--name", "berlin")
    done("coordinator", "admit", "site/request.json", "--out", "kit.json")
    return fingerprint


def test_both_sides_see_the_fingerprints_that_they_compare(here: Path):
    (signing,) = fingerprints(done("coordinator", "init", "--name", "liver", "--address", "fl.example.org:443"))
    (site,) = fingerprints(done("site", "init", "--name", "berlin"))
    assert fingerprints(done("coordinator", "admit", "site/request.json")) == [site, signing]
    listed = done("coordinator", "list")
    assert listed.split()[:2] == ["berlin", "active"] and fingerprints(listed) == [site]
    assert "has joined liver" in done(
        "site", "join", "kit-berlin.json", "--manifest", "manifest.csv", "--trust", signing
    )
    assert signing in (here / "site" / "site.yaml").read_text()


def test_a_site_is_suspended_readmitted_and_removed(here: Path):
    enrolled()
    for command, state in (("suspend", "suspended"), ("readmit", "active")):
        done("coordinator", command, "berlin")
        assert done("coordinator", "list").split()[1] == state
    done("coordinator", "remove", "berlin")
    assert "No site yet" in done("coordinator", "list")
    assert "no site 'berlin'" in refused("coordinator", "suspend", "berlin")


def test_a_kit_is_trusted_by_the_fingerprint_that_was_told(here: Path):
    fingerprint = enrolled()
    join = ("site", "join", "kit.json", "--manifest", "manifest.csv")
    assert "but you were told SHA256:other" in refused(*join, "--trust", "SHA256:other")
    assert f"signs by {fingerprint}; compare by telephone" in refused(*join)
    code, said = typed("n", *join)
    assert code == 2 and fingerprint in said and "not joined" in said
    assert not (here / "site" / "kit.json").exists()
    code, said = typed("y", *join)
    assert code == 0 and fingerprint in said and "has joined liver" in said
    assert (here / "site" / "kit.json").exists() and (here / "site" / "site.yaml").exists()


def test_nothing_is_overwritten(here: Path):
    fingerprint = enrolled()
    kit = (here / "kit.json").read_bytes()
    assert "exists already" in refused("coordinator", "init", "--name", "x", "--address", "a:1")
    assert "exists already" in refused("site", "init", "--name", "berlin")
    assert "exists already" in refused("coordinator", "admit", "site/request.json", "--out", "kit.json")
    assert (here / "kit.json").read_bytes() == kit
    join = ("site", "join", "kit.json", "--manifest", "manifest.csv", "--trust", fingerprint)
    done(*join)
    (here / "site" / "site.yaml").write_text("edited")
    assert "Kept site/site.yaml" in done(*join)
    assert (here / "site" / "site.yaml").read_text() == "edited"


def test_a_passphrase_comes_from_a_file_the_environment_or_a_person(here: Path):
    (here / "secret").write_text("correct horse\n")
    init = ("coordinator", "init", "--name", "liver", "--address", "fl.example.org:443")
    done(*init, "--passphrase-file", "secret")
    assert is_encrypted(here / "coordinator" / "ca.key")
    three_ways = refused("coordinator", "renew")
    assert all(way in three_ways for way in ("--passphrase-file", "CONSILIUM_PASSPHRASE", "terminal"))
    assert "does not open with this passphrase" in refused("coordinator", "renew", CONSILIUM_PASSPHRASE="wrong")
    assert "valid until" in done("coordinator", "renew", "--passphrase-file", "secret")
    assert "valid until" in done("coordinator", "renew", CONSILIUM_PASSPHRASE="correct horse")
    code, said = typed("correct horse", "coordinator", "renew")
    assert code == 0 and "valid until" in said

    done("site", "init", "--name", "berlin", CONSILIUM_PASSPHRASE="another")
    assert is_encrypted(here / "site" / "site.key")
    code, said = typed("one\ntwo", "site", "init", "--name", "munich", "--home", "munich", "--ask-passphrase")
    assert code == 2 and "differ" in said and not (here / "munich").exists()
    code, _ = typed("one\none", "site", "init", "--name", "munich", "--home", "munich", "--ask-passphrase")
    assert code == 0 and is_encrypted(here / "munich" / "site.key")


def test_a_passphrase_that_is_none_is_refused_before_anything_is_made(here: Path):
    (here / "empty").write_text("\n")
    init = ("site", "init", "--name", "berlin")
    assert "empty passphrase" in refused(*init, "--passphrase-file", "empty")
    assert "cannot be read" in refused(*init, "--passphrase-file", "nowhere")
    assert "empty passphrase" in refused(*init, CONSILIUM_PASSPHRASE="")
    assert "needs a terminal" in refused(*init, "--ask-passphrase")
    assert "not both" in refused(*init, "--ask-passphrase", "--passphrase-file", "empty")
    assert not (here / "site").exists()


def test_a_certificate_that_runs_out_is_warned_of(here: Path):
    from datetime import UTC, datetime, timedelta

    from deploy.provision import init

    init(here / "coordinator", "liver", "fl.example.org:443", None, now=datetime.now(UTC) - timedelta(days=345))
    warned = run("coordinator", "list")
    assert warned.returncode == 0
    assert re.search("warning: the server certificate of fl.example.org expires in (19|20) days", warned.stderr)
    done("coordinator", "renew")
    assert run("coordinator", "list").stderr == ""


def test_every_command_shows_how_it_is_called_and_how_it_ends():
    for commands, group in ((cli_enrol.COORDINATOR_COMMANDS, "coordinator"), (cli_enrol.SITE_COMMANDS, "site")):
        for name, command in commands.items():
            assert f"    consilium {group} {name}" in command.__doc__
            assert "Exit codes" in command.__doc__
