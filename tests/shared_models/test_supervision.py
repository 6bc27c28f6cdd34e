"""Child processes of a daemon: kept alive, ended with it, and their secrets where nobody else can read them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared_models import supervision
from shared_models.errors import BadInput
from shared_models.supervision import Child, memory_file, only_one, rotating_log

SECRET = "correct horse battery staple"


def wait_until(holds, what):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def python(code):
    return [sys.executable, "-c", code]


@pytest.fixture
def log_path(tmp_path):
    return tmp_path / "logs" / "daemon.log"


@pytest.fixture
def child(log_path):
    child = Child("helper", rotating_log(log_path), 0.2, 0.8)
    yield child
    child.stop(0)


def test_a_child_that_dies_is_due_again_after_pauses_that_grow_to_the_longest(child, log_path):
    assert child.is_due() and not child.alive and child.pid is None
    pauses = []
    for _ in range(4):
        child.start(python("raise SystemExit(7)"))
        wait_until(lambda: not child.alive, "the child ended")
        assert child.exit_code == 7
        began = time.monotonic()
        assert not child.is_due(), "not at once"
        wait_until(child.is_due, "the pause was over")
        pauses.append(time.monotonic() - began)
    assert child.restarts == 3
    # A pause may be longer on a busy machine, never shorter.
    assert all(pause >= least for pause, least in zip(pauses, (0.4, 0.8, 0.8, 0.8), strict=True))
    assert log_path.read_text().count("helper ended with 7") == 4


def test_a_long_life_makes_the_pause_short_again(child):
    for _ in range(3):
        child.start(python("pass"))
        wait_until(lambda: not child.alive, "the child ended")
        child.is_due()
    child.start(python("import time; time.sleep(0.9)"))
    wait_until(lambda: not child.alive, "the child ended")
    began = time.monotonic()
    wait_until(child.is_due, "the pause was over")
    assert time.monotonic() - began >= 0.2
    assert child._pause == 0.2


def test_what_a_child_says_is_in_the_log_with_its_name(child, log_path):
    child.start(python("import sys; print('on stdout'); print('on stderr \\xff', file=sys.stderr)"))
    wait_until(lambda: "on stderr" in log_path.read_text() and "on stdout" in log_path.read_text(), "it is in the log")
    assert "helper: on stdout" in log_path.read_text()


def test_a_child_that_does_not_end_when_it_is_asked_to_is_ended(child, tmp_path):
    ready = tmp_path / "ready"
    code = f"import pathlib, signal, time; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(ready)!r}).touch()"
    child.start(python(code + "; time.sleep(600)"))
    wait_until(ready.exists, "the child ignores the signal")
    child.stop(0.1)
    assert child.exit_code == -signal.SIGKILL


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from shared_models.supervision import Child, rotating_log
child = Child("helper", rotating_log(Path({str(tmp_path)!r}) / "log"), 1, 1)
child.start([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()

    def gone():
        try:  # a zombie that nobody has reaped yet is dead as well
            return ") Z " in Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True

    wait_until(gone, "the child died with its parent")
    parent.stdout.close()


def test_a_secret_on_standard_input_is_in_no_argument_and_no_environment(child, log_path):
    child.start(
        python("import sys, time; print(len(sys.stdin.read()), flush=True); time.sleep(600)"), stdin=SECRET.encode()
    )
    wait_until(lambda: f"helper: {len(SECRET)}" in log_path.read_text(), "the child has read it")
    for name in ("cmdline", "environ"):
        assert SECRET.encode() not in Path(f"/proc/{child.pid}/{name}").read_bytes()
    assert SECRET not in log_path.read_text()


def test_a_memory_file_is_read_by_the_child_and_is_nowhere_on_disk(child, log_path, tmp_path):
    descriptor = memory_file(SECRET.encode())
    link = os.readlink(f"/proc/self/fd/{descriptor}")
    assert link.startswith("/memfd:") and link.endswith("(deleted)")
    code = f"print(open('/proc/self/fd/{descriptor}').read()[::-1], flush=True); import time; time.sleep(600)"
    child.start(python(code), inherit=[descriptor])
    wait_until(lambda: SECRET[::-1] in log_path.read_text(), "the child has read it")
    with pytest.raises(OSError):
        os.fstat(descriptor)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert found == []


def test_a_child_is_told_to_call_nobody_at_home(child, log_path):
    code = "import os; print(os.environ['FLWR_TELEMETRY_ENABLED'], os.environ['FLWR_HOME'], flush=True)"
    child.start(python(code), environment={"FLWR_HOME": "/elsewhere"})
    wait_until(lambda: "helper: 0 /elsewhere" in log_path.read_text(), "the child has said it")


def test_a_log_rotates_and_every_file_of_it_is_its_owners(log_path, monkeypatch):
    monkeypatch.setattr(supervision, "LOG_BYTES", 1000)
    log_path.parent.mkdir()
    log_path.write_text("left by a version that was less careful\n")
    log_path.chmod(0o644)
    old = os.umask(0)
    try:
        log = rotating_log(log_path)
        for number in range(200):
            log.info("line %d %s", number, "x" * 50)
    finally:
        os.umask(old)
    files = sorted(log_path.parent.iterdir())
    assert len(files) == 1 + supervision.LOG_FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert all(path.stat().st_size <= 1000 for path in files)
    assert "line 199" in log_path.read_text()


def test_a_home_is_held_by_one_daemon_until_it_ends(tmp_path):
    lock = tmp_path / "daemon.lock"
    descriptor = only_one(lock)
    with pytest.raises(BadInput, match=f"a daemon runs already from {tmp_path}"):
        only_one(lock)
    os.close(descriptor)
    os.close(only_one(lock))
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
