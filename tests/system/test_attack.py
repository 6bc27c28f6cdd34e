"""One attacker of five, in whole runs on real images: the mean is destroyed, robust aggregation is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.results import JOBS
from benchmarks.results_attack import CLEAN, KEPT, METRIC, job_of
from simulation.run import simulate
from simulation.run_folder import SimulationRequest

pytestmark = pytest.mark.system
ROBUST = ["median", "trimmed mean", "Krum", "geometric median"]


@pytest.fixture(scope="module")
def reports(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """By aggregation, the report of a run."""
    folder = tmp_path_factory.mktemp("attack")
    found = {}
    for number, row in enumerate([CLEAN, "mean", *ROBUST]):
        job = job_of(JOBS, row)
        job["evaluation"]["bootstrap"] = 20
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(job))
        out = folder / str(number)
        simulate(SimulationRequest(path, shared_data / "pneumoniamnist", out, compare=()))
        found[row] = json.loads((out / "report.json").read_text())
    return found


def score(report: dict) -> float:
    return report["models"]["federated"]["all"][METRIC]["value"] or 0.0


def test_the_mean_is_destroyed_and_the_report_names_the_attacker(reports):
    assert score(reports[CLEAN]) > 0.75
    assert score(reports["mean"]) < 0.6  # 0.5 is chance
    assert "hospital-5 stood out" in " ".join(doubt["text"] for doubt in reports["mean"]["doubts"])
    assert not [doubt for doubt in reports[CLEAN]["doubts"] if doubt["kind"] == "update_out_of_line"]


@pytest.mark.parametrize("row", ROBUST)
def test_robust_aggregation_keeps_the_score_and_names_the_attacker(reports, row):
    assert score(reports[row]) >= KEPT * score(reports[CLEAN])
    assert "hospital-5 stood out" in " ".join(doubt["text"] for doubt in reports[row]["doubts"])
