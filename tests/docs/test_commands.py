"""Every command of the README and of the researcher's page, as a reader would type it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, check_command, commands, run

PAGES = ("README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md"))))

# Minutes of installing into a fresh environment: `make test` has done the same before it came to these tests.
INSTALLATION = ("python3 -m venv .venv", ".venv/bin/pip install -c constraints.txt .")

# What makes the jobs of the pages end in seconds: fewer rounds and patients, a smaller network.
SMALLER = {
    r"rounds: \d+": "rounds: 2",
    r"(?m)local_epochs: 1$": "local_steps: 2",
    r"bootstrap: \d+": "bootstrap: 20",
    r"patients_per_hospital: \d+": "patients_per_hospital: 6",
    r"channels: \[16, 32, 64, 128\]": "channels: [4, 8, 12, 16]",
}


def make_smaller(folder: Path) -> None:
    for path in [*folder.glob("*.yaml"), *folder.glob("examples/*.yaml")]:
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in SMALLER.items():
            text = re.sub(pattern, replacement, text)
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_exists(page):
    for line in commands(ROOT / page):
        first, *rest = shlex.split(line)
        if first == "make":
            done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stderr}"
        elif first == "consilium":
            check_command(rest[: rest.index(">")] if ">" in rest else rest)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "examples" / "README.md"])
def test_every_link_and_every_example_is_there(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for example in re.findall(r"`(?:examples/)?(\w+\.yaml)`", text):
        if example not in ("job.yaml", "site.yaml"):
            assert (ROOT / "examples" / example).exists(), f"{page.name} names {example}"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with the examples, in which `typed(line)` runs a line as a reader with that home would."""
    (tmp_path / "examples").mkdir()
    for example in (ROOT / "examples").glob("*.yaml"):
        (tmp_path / "examples" / example.name).write_text(example.read_text(encoding="utf-8"), encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "CONSILIUM_CACHE": str(tmp_path / "cache")}

    def typed(line: str, codes: tuple[int, ...] = (0,)) -> str:
        make_smaller(tmp_path)
        done = run(line, tmp_path, **environment)
        assert done.returncode in codes, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return typed


@pytest.mark.system
def test_the_commands_of_the_researchers_page_work_in_their_order(reader, tmp_path):
    for line in commands(ROOT / "docs" / "researcher.md"):
        reader(line.replace("--seeds 3", "--seeds 1"))  # a sweep of two runs shows what one of six does
    first, again = ((tmp_path / "runs" / name / "split.json").read_text() for name in ("first", "again"))
    assert first == again


@pytest.mark.system
@pytest.mark.timeout(1800)  # four whole runs, three of them on real data
def test_the_commands_of_the_readme_work_in_their_order(reader, tmp_path, shared_data):
    (tmp_path / "data").symlink_to(shared_data)
    for line in commands(ROOT / "README.md"):
        if line not in INSTALLATION and not line.startswith("make "):
            reader(line)
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 4


@pytest.mark.system
def test_the_demo_ends_with_its_answer_and_the_place_of_the_report(tmp_path):
    command = [Path(sys.executable).with_name("consilium"), "simulate", "examples/demo.yaml", "--out", tmp_path / "run"]
    environment = {**os.environ, "CONSILIUM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Federated training beats local training at" in done.stdout
    assert done.stdout.splitlines()[-1] == f"report   {tmp_path / 'run' / 'report.html'}"
