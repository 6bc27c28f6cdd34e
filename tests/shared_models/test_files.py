"""A file appears whole or not at all, and what a killed process has left beside it goes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared_models.files import whole_file

KILLED = """
import os, sys, signal
from pathlib import Path
from shared_models.files import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_fails_in_the_middle_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_what_a_killed_process_has_left_goes_when_the_file_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    process = subprocess.run([sys.executable, "-c", KILLED, path])
    assert process.returncode < 0 and [name[-4:] for name in os.listdir(tmp_path)] == [".tmp"]
    with whole_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == [path.name]


def test_what_another_process_writes_at_the_moment_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    of_others = {f".{path.name}.{os.getppid()}.tmp", ".model.json.99999999.tmp", f".{path.name}.backup.tmp"}
    for name in of_others:
        (tmp_path / name).write_bytes(b"half")
    with whole_file(path) as file:
        file.write(b"whole")
    assert set(os.listdir(tmp_path)) == of_others | {path.name}
