"""Whole processes on real chest X-rays, and one run that nothing disturbs to compare others with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.system.processes import JOB, WORKERS, Done, Going, Run, consilium, write


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Callable[..., Going]]:
    """Starts a command and goes on beside it: `going("simulate", ...)`."""
    started: list[Going] = []

    def start(*arguments: object, **environment: str) -> Going:
        started.append(Going(*arguments, log=tmp_path / f"stderr-{len(started)}.txt", **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture(scope="session")
def xrays(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with xrays.npz: 240 of the real images of PneumoniaMNIST, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("xrays")
    source = np.load(shared_data / "pneumoniamnist" / "pneumoniamnist.npz", allow_pickle=False)
    np.savez(
        folder / "xrays.npz",
        images=source["train_images"][:240],
        labels=source["train_labels"][:240, 0],
        patient=np.array([f"p{number:03d}" for number in range(240)]),
    )
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all runs, as a researcher has it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(cache))


@pytest.fixture(scope="session")
def undisturbed(xrays: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Done]:
    """The run of JOB with its baselines, from start to end: what every disturbed one must come to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = (write(folder, JOB), "--data-dir", xrays, "--out", folder / "run", "--workers", WORKERS)
    done = consilium("simulate", *arguments, CONSILIUM_CACHE=str(cache))
    assert done.code == 0, done.err
    return Run(folder / "run"), done


@pytest.fixture
def copy_of_undisturbed(undisturbed: tuple[Run, Done], tmp_path: Path) -> Run:
    """A finished run to damage."""
    shutil.copytree(undisturbed[0].path, tmp_path / "run")
    return Run(tmp_path / "run")
