"""`make demo-network`, as a newcomer types it: real hospitals' data where there is some, else the phantom."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_the_demonstration_ends_with_the_same_model_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    data = os.environ.get("CONSILIUM_SHARED_DATA") or str(ROOT.parent / "shared" / "data")
    environment = {**os.environ, "CONSILIUM_SHARED_DATA": data, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "deploy.demo_network"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The same global model." in done.stdout
    assert done.stdout.count("ledger whole") == 3
    assert len(done.stdout.splitlines()) < 50  # about a screen
    (network,) = (tmp_path / "runs").iterdir()
    assert list(network.glob("coordinator/runs/*/report.html"))
    assert len(list((network / "sites").rglob("report.html"))) == 3
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or ())
    ]
    assert left == []
