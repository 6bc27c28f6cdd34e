"""A job that plans its preprocessing, on real processes over TLS: the plan, and the model, are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deploy.local_network import LocalNetwork, consilium
from server.checkpoint import load_weights
from shared_models.job_file import dump_job, load_job, read_job
from shared_models.weights import fingerprint
from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_the_network_plans_and_trains_as_the_simulation_does(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_job(load_job(ROOT / "examples" / "network-phantom.yaml")))
    values["name"] = "planned"
    values["federation"] |= {"rounds": 1, "quorum": 2, "statistics": {"harmonise": True}}
    values["training"]["local_steps"] = 2
    values["simulation"]["hospitals"] = 2
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    simulated = tmp_path / "simulated"
    consilium("simulate", path, "--compare", "none", "--workers", 2, "--out", simulated)

    with LocalNetwork(tmp_path / "network", load_job(path), None) as network:
        network.start()
        done = network.run("run", path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "plan   data.normalisation landmarks" in done.stdout
        [run] = [entry for entry in (network.home / "runs").iterdir() if entry.name.startswith("planned")]
        assert read_job(run / "planned-job.yaml") == read_job(simulated / "planned-job.yaml")
        prints = [fingerprint(load_weights(f / "models" / "federated-last.safetensors")) for f in (run, simulated)]
        assert prints[0] == prints[1]
        # Every hospital has both jobs on record, the one that asked for statistics and the one that was run.
        for name in network.sites:
            jobs = [json.loads(file.read_text()) for file in (network.work(name) / "jobs").glob("*.json")]
            assert len(jobs) == 2 and {bool(job["job"]["federation"]["statistics"]) for job in jobs} == {True, False}
