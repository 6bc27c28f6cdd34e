"""The fenced blocks of the documentation, and how a test does what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer.main

from deploy.cli import app

ROOT = Path(__file__).parents[2]
PACKAGES = ("shared_models", "client", "server", "simulation", "deploy", "tests")
EDIT = re.compile(r"# (?P<path>[\w/]+\.py)(?:, (?P<where>below|above|in place of): (?P<line>.+))?$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language, text) for language, text in found]


def commands(page: Path) -> list[str]:
    """Every command line of the page's `bash` blocks, without comments and empty lines."""
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    stripped = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in stripped if line and not line.startswith("#")]


def check_command(arguments: Sequence[str]) -> None:
    """Raises unless `consilium` has a command with these options and values."""
    command, rest = typer.main.get_command(app), list(arguments)
    while hasattr(command, "commands") and (rest or not command.invoke_without_command):
        assert rest and rest[0] in command.commands, f"{' '.join(arguments)}: there is no such command"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context("consilium", rest)


def yaml_of(page: Path) -> str:
    """The page's only `yaml` block."""
    (text,) = [block.text for block in blocks(page) if block.language == "yaml"]
    return text


def copy_of_the_tree(target: Path) -> Path:
    """A copy of the packages and the settings, to be changed by a page."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)
    return target


def follow(page: Path, tree: Path) -> list[str]:
    """Does to a tree what the `python` blocks of a page say; returns the paths of the files that were touched."""
    touched = []
    for block in blocks(page):
        if block.language != "python":
            continue
        head, body = block.text.split("\n", 1)
        edit = EDIT.match(head)
        assert edit, f"{page.name}: the block that starts with {head!r} does not say where it goes"
        path = tree / edit["path"]
        if edit["where"] is None:
            assert not path.exists(), f"{page.name}: {edit['path']} is there already"
            path.write_text(body, encoding="utf-8")
        else:
            path.write_text(_edited(path, edit["where"], edit["line"], body), encoding="utf-8")
        touched.append(edit["path"])
    return touched


def _edited(path: Path, where: str, line: str, body: str) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [number for number, text in enumerate(lines) if text.strip() == line]
    assert len(places) == 1, f"{path.name} has {len(places)} lines {line!r}, where the page expects one"
    start = places[0] + (where == "below")
    lines[start : places[0] + (where != "above")] = [body]
    return "".join(lines)


def run(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of a page in bash."""
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
