"""Who stands out on real images: a faulty hospital among equals, and nobody among honest ones with other patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulation.run import simulate
from simulation.run_folder import SimulationRequest

pytestmark = pytest.mark.system


def named(folder: Path, data: Path, seed: int, **simulation: Any) -> list[str]:
    """The hospitals that the report of a small run on PneumoniaMNIST names."""
    job = {
        "name": "standing-out",
        "seed": seed,
        "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
        "data": {"spatial_dims": 2, "crop": [28, 28]},
        "model": {"name": "cnn", "arguments": {"channels": [8, 16], "hidden": 16}},
        "training": {"optimizer": {"learning_rate": 0.005}, "batch_size": 32, "local_steps": 8},
        "federation": {"rounds": 6},
        "evaluation": {"bootstrap": 0, "every": 0},
        "simulation": {
            "dataset": {"name": "medmnist", "flag": "pneumoniamnist"},
            "hospitals": 5,
            "partition": {"name": "iid"},
            **simulation,
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    simulate(SimulationRequest(path, data, folder / "run", compare=()))
    report = json.loads((folder / "run" / "report.json").read_text())
    assert len(report["rounds"]) == 6
    return [doubt["text"].split()[0] for doubt in report["doubts"] if doubt["kind"] == "update_out_of_line"]


@pytest.mark.parametrize("kind", ["sign_flip", "label_flip"])
def test_a_faulty_hospital_is_named(tmp_path: Path, shared_data: Path, kind: str) -> None:
    assert named(tmp_path, shared_data, 0, faulty={"hospital-5": {"kind": kind}}) == ["hospital-5"]


@pytest.mark.parametrize(("alpha", "seed"), [(0.1, 0), (0.1, 1), (0.5, 0)])
def test_honest_hospitals_with_other_patients_are_not(
    tmp_path: Path, shared_data: Path, alpha: float, seed: int
) -> None:
    assert not named(tmp_path, shared_data, seed, partition={"name": "dirichlet", "alpha": alpha})
