"""Runs that plan their preprocessing: the plan of real MR images on three scales, and what becomes of a plan."""

import csv
import json
import shutil
from itertools import islice

import numpy as np
import pytest
import yaml

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from server.checkpoint import load_weights
from server.events import EventLog
from shared_models.errors import RunStopped
from shared_models.job_file import read_job
from shared_models.weights import fingerprint
from simulation import run
from simulation.run import simulate
from simulation.run_folder import SimulationRequest, create

PATIENTS = {"float_gt4095": 8, "float_le4095": 9, "uint8": 4}
JOB = {
    "name": "planned",
    "task": {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]},
    "data": {"spatial_dims": 3, "crop": [24, 24, 24]},
    "model": {"name": "unet", "arguments": {"channels": [2, 4], "strides": [2]}},
    "training": {"local_steps": 1},
    "federation": {"rounds": 1, "statistics": {"harmonise": True, "min_patients": 4}},
    "simulation": {
        "dataset": {"name": "decathlon", "task": "few", "columns": "cases.csv"},
        "partition": {"name": "natural", "column": "acquisition_group"},
    },
}


@pytest.fixture(scope="module")
def few(shared_data, tmp_path_factory):
    """A folder with a few of the real cases of every scanner."""
    source, folder = shared_data / "hippocampus", tmp_path_factory.mktemp("few")
    rows = list(csv.DictReader((source / "cases.csv").open()))
    chosen = [
        row
        for group, number in PATIENTS.items()
        for row in islice((row for row in rows if row["acquisition_group"] == group), number)
    ]
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    pairs = [{key: str(source / row[key]) for key in ("image", "label")} for row in chosen]
    (folder / "dataset.json").write_text(json.dumps({"training": pairs}))
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    return folder


def test_images_whose_scales_differ_a_thousandfold_get_one_scale(few, tmp_path):
    folder = create(SimulationRequest(few / "job.yaml", few, tmp_path / "run", workers=1, compare=()))
    planned = run._planned(folder, EventLog(tmp_path / "events.jsonl")).job
    assert planned.data.spacing == [1, 1, 1]
    # At most 24^3 voxels, in the proportions of images of about 35 x 50 x 36.
    assert 24**3 / 2 < np.prod(planned.data.crop) <= 24**3 and max(planned.data.crop) == planned.data.crop[1]
    without = {"normalisation": "none", "landmarks": None}
    raw = planned.model_copy(update={"data": planned.data.model_copy(update=without)})
    medians = {}
    for job in (raw, planned):
        for site in PATIENTS:  # uint8, too, which has too few patients to tell of them
            manifest = folder.path / "sites" / site / "manifest.csv"
            data = SiteData(manifest, job, site, CaseCache(tmp_path / "cache", 2**28))
            values = [np.median(sample["image"]) for sample in data.samples("train")]
            medians[job.data.normalisation, site] = float(np.mean(values))
    before, after = ([medians[how, site] for site in PATIENTS] for how in ("none", "landmarks"))
    assert max(before) / min(before) > 1000
    assert max(after) - min(after) < 0.2  # of a standard deviation
    plan = json.loads((folder.path / "plan.json").read_text())
    assert list(plan["sites"]) == ["float_gt4095", "float_le4095"]
    assert "training patients, where statistics rest on at least 4" in plan["left_out"]["uint8"]


# What becomes of a plan, on images that train in a second

SKEWED = {"partition": {"name": "quantity", "alpha": 0.5}}


@pytest.fixture
def done(write_job, squares, tmp_path):
    """A finished run of three hospitals, of which two are too small to tell anything."""
    job = write_job(federation={"rounds": 1, "statistics": {"min_patients": 10}}, simulation=SKEWED)
    assert simulate(SimulationRequest(job, squares, tmp_path / "run", workers=1, compare=())) == 4
    return tmp_path / "run"


def test_the_planned_job_is_what_is_run_and_what_the_report_tells(done):
    plan, planned = json.loads((done / "plan.json").read_text()), read_job(done / "planned-job.yaml")
    assert plan["planned_job_hash"] == planned.fingerprint() and planned.federation.statistics is None
    assert read_job(done / "job.yaml").federation.statistics is not None
    checkpoint = json.loads(next((done / "checkpoints").glob("*.json")).read_text())
    assert checkpoint["job_hash"] == planned.fingerprint()
    report = json.loads((done / "report.json").read_text())
    assert list(report["plan"]["left_out"]) == ["hospital-1", "hospital-3"]
    assert "hospital-3 has no part in the preprocessing plan: " in " ".join(report["warnings"])
    assert report["sites"]["hospital-3"]["rounds_used"] == 1  # it still trains
    page = (done / "report.html").read_text()
    assert "Preprocessing plan" in page and "do not say their voxel size" in page


def test_a_run_that_was_killed_behind_its_plan_asks_nobody_again(done, monkeypatch):
    before = fingerprint(load_weights(done / "models" / "federated-last.safetensors"))
    shutil.rmtree(done / "checkpoints")
    (done / "events.jsonl").unlink()
    monkeypatch.setattr(run, "make_plan", None)
    simulate(SimulationRequest(None, resume=done))
    assert fingerprint(load_weights(done / "models" / "federated-last.safetensors")) == before


def test_without_any_statistics_there_is_no_plan_and_no_run(write_job, squares, tmp_path):
    job = write_job(federation={"rounds": 1, "statistics": {"min_patients": 50}})
    with pytest.raises(
        RunStopped, match="no site told its statistics, so there is no plan: hospital-1: .* at least 50"
    ):
        simulate(SimulationRequest(job, squares, tmp_path / "run", workers=1, compare=()))
    assert json.loads((tmp_path / "run" / "report.json").read_text())["status"] == "stopped"
