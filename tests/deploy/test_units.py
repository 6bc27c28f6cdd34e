"""The files for systemd and Docker name commands, options and paths that there are, and are as closed as they say."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import client.daemon
import server.daemon
from tests.docs.pages import ROOT, check_command

UNITS = ROOT / "deploy" / "systemd"
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
SITE, COORDINATOR = "consilium-site.service", "consilium-coordinator.service"
FRONT_SECONDS = 5  # that the coordinator's front gets to end

both = pytest.mark.parametrize("name", [SITE, COORDINATOR])


def service(name: str) -> dict[str, str]:
    """The section [Service] of a unit; of a key that is given twice, the last."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string((UNITS / name).read_text())
    return {key: value.replace("\\\n", " ") for key, value in unit["Service"].items()}


@both
def test_a_unit_starts_a_command_that_exists_in_the_folder_that_it_may_write_to(name: str) -> None:
    found = service(name)
    program, *arguments = shlex.split(found["ExecStart"])
    assert program == "/opt/consilium/bin/consilium"
    check_command(arguments)
    home = Path(arguments[arguments.index("--config" if name == SITE else "--home") + 1])
    writable = Path(found["ReadWritePaths"])
    # A site's daemon cannot change its own policy, key or kit.
    assert (writable.parent if name == SITE else writable) == (home.parent if name == SITE else home)
    credential = found["LoadCredential"].split(":")[0]
    assert arguments[arguments.index("--passphrase-file") + 1] == f"${{CREDENTIALS_DIRECTORY}}/{credential}"


@both
def test_a_unit_waits_longer_than_the_daemon_takes_to_end(name: str) -> None:
    found = service(name)
    longest = 2 * client.daemon.PATIENCE if name == SITE else FRONT_SECONDS + server.daemon.PATIENCE
    assert float(found["TimeoutStopSec"]) > longest
    # The daemon alone is told to end, and ends its children in their order.
    assert found["KillMode"] == "mixed" and found["Restart"] == "always"


@both
def test_systemd_takes_a_unit_and_finds_it_closed(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = (UNITS / name).read_text().replace("/opt/consilium/bin/consilium", sys.executable)
    (tmp_path / name).write_text(text)
    verified = subprocess.run(["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True)
    assert verified.returncode == 0 and not verified.stderr, verified.stderr
    # Exposure 2.0 of 10; a service without any protection has 9.6.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", tmp_path / name]
    closed = subprocess.run(command, capture_output=True, text=True)
    assert closed.returncode == 0, closed.stdout[-300:]


def test_everything_that_the_image_is_made_of_is_there_and_is_sent_to_the_builder() -> None:
    text = DOCKERFILE.read_text()
    copied = [line.split()[1:-1] for line in text.splitlines() if re.match(r"COPY (?!--from)", line)]
    sources = {source for line in copied for source in line}
    assert sources and all((ROOT / source).exists() for source in sources)
    sent = {line[1:] for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"}
    assert sent == sources
    packages = {source for source in sources if (ROOT / source).is_dir()}
    assert packages == {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"}
    assert re.search(r"(?m)^USER consilium$", text.split("FROM")[-1])


def test_every_command_of_the_dockerfile_exists() -> None:
    comment = re.sub(r"(?m)\\\n?$|^# ?", "", DOCKERFILE.read_text().split("FROM")[0])
    lines = [" ".join(line.split("  #")[0].split()) for line in comment.splitlines()]
    commands = [line.rpartition("consilium ")[2] for line in lines if re.match(r"(docker exec .*)?consilium ", line)]
    assert len(commands) == 3
    for command in commands:
        check_command(shlex.split(command))
