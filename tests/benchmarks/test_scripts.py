"""The benchmarks of the zoo: what they say without a GPU, that they run, and that a failure shows."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shared_models.zoo import MODELS

ROOT = Path(__file__).parents[2]
OLD = "| network | dims |\n|---|---|\n| vnet | 2D | failed |\n| no longer there | 2D | ok |"
ROWS = {(name, f"{dims}D") for name, kind in MODELS.items() for dims in kind.spatial_dims}


def benchmark(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_without_a_gpu_nothing_is_measured_and_that_is_said(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = benchmark("gpu.py")
    assert done.returncode == 0 and done.stdout.startswith("There is no GPU that torch can use"), done.stderr


def test_the_gpu_script_can_be_tried_on_the_cpu():
    small = "--device cpu --size 32 --steps 1 --batch 1 --modes fp32,bf16 --only autoencoder"
    done = benchmark("gpu.py", *shlex.split(small))
    assert done.returncode == 0, done.stderr
    for line, mode in zip(done.stdout.splitlines()[2:], ("fp32", "bf16"), strict=True):
        assert line.split()[:2] == ["autoencoder", mode] and float(line.split()[2]) > 0


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "models.md"
    path.write_text(f"above\n<!-- zoo:begin -->\n{OLD}\n<!-- zoo:end -->\nbelow\n", encoding="utf-8")
    return path


@pytest.fixture
def zoo(monkeypatch, page):
    """The module, as it is called with that page, and without data."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("zoo")
    monkeypatch.setattr(module, "write_data", lambda source, folder: None)
    monkeypatch.setattr(sys, "argv", ["zoo.py", "--page", str(page)])
    return module


@pytest.mark.parametrize(("result", "code"), [("ok", 0), ("failed: it does not fall", f"2 of {len(ROWS)} rows failed")])
def test_the_table_goes_between_its_markers_and_a_failed_row_is_in_it(zoo, page, monkeypatch, result, code):
    def row(name, dims, data):
        cells = {"network": name, "dims": f"{dims}D", "result": result if name == "vnet" else "ok"}
        return dict.fromkeys(zoo.HEADERS, "") | cells

    monkeypatch.setattr(zoo, "row_in_a_process", row)
    with pytest.raises(SystemExit) as end:
        zoo.main()
    assert end.value.code == code
    lines = page.read_text().splitlines()
    assert lines[:2] == ["above", "<!-- zoo:begin -->"] and lines[-2:] == ["<!-- zoo:end -->", "below"]
    rows = [line.strip("| ").split(" | ") for line in lines[4:-2]]
    assert {(row[0], row[1]) for row in rows} == ROWS and len(rows) == len(ROWS)
    assert {row[-1] for row in rows if row[0] == "vnet"} == {result}


@pytest.mark.system
def test_a_network_is_tried_in_2d_and_3d_on_real_data(shared_data, page):
    done = benchmark("zoo.py", "--only", "cnn", "--data", str(shared_data), "--page", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["cnn", "2D"], ["cnn", "3D"]]
    assert all(row[-2:] == ["same model", "ok"] for row in rows)


def test_the_page_has_a_row_for_every_network():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page.partition("<!-- zoo:begin -->")[2].partition("<!-- zoo:end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[3:]]
    assert {(row[0], row[1]) for row in rows} == ROWS
