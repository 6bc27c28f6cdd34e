import subprocess
import sys

import numpy as np
import pytest

from shared_models.tasks import CaseRecord, task_of

SEGMENTATION = {"kind": "segmentation", "classes": ["background", "liver", "spleen"]}
CLASSIFICATION = {"kind": "classification", "classes": ["normal", "pneumonia"]}
FINDINGS = {"kind": "classification", "classes": ["effusion", "nodule", "mass"], "mode": "multi_label"}


@pytest.mark.parametrize(("section", "outputs"), [(SEGMENTATION, 3), (CLASSIFICATION, 2), (FINDINGS, 3)])
def test_every_metric_has_a_label_and_a_count(job_for, section, outputs):
    job = job_for(section)
    task = task_of(job)
    assert task.outputs == outputs
    sums = task.sums([], np.ones((4, 0)))
    metrics, info = task.metrics(sums), task.metric_info()
    assert list(metrics) and set(metrics) == set(info) == set(task.counts(sums))
    assert all(values.shape == (4,) for values in metrics.values())
    assert job.selection_metric() in info and info[job.selection_metric()]["larger_is_better"]
    assert next(iter(info)) == job.selection_metric(), "the first metric tells the story"
    assert sums["cases"].tolist() == sums["patients"].tolist() == [0, 0, 0, 0]


def test_all_sums_have_one_row_a_replicate(job_for):
    organs = {"dice": [1, None], "surface_dice": [1, None], "hd95": [0, None], "missed": [0, 0], "false": [0, 0]}
    for section, values in (
        (SEGMENTATION, organs),
        (CLASSIFICATION, {"probabilities": [0.3, 0.7], "label": [1]}),
        (FINDINGS, {"probabilities": [0.3, 0.7, 0.5], "label": [1, 0, 0]}),
    ):
        record = CaseRecord("c", "p", values)
        sums = task_of(job_for(section)).sums([record], np.ones((7, 1)))
        assert all(array.shape[0] == 7 and array.dtype == np.float64 for array in sums.values())


def test_classification_and_small_images_run_without_monai():
    """Importing MONAI takes seconds, which the first training step of a small job must not wait for."""
    program = """
import sys
import torch
from shared_models.job import Job
from shared_models.tasks import task_of

def job(task):
    return Job.model_validate({
        "name": "t", "task": task, "data": {"spatial_dims": 2, "crop": [8, 8]}, "model": {"name": "m"},
        "training": {"local_steps": 1}, "federation": {"rounds": 1}})

quick = job({"kind": "classification", "classes": ["a", "b"]})
task = task_of(quick)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
task.loss(network(torch.randn(2, 1, 8, 8)), torch.tensor([0, 1])).backward()
sample = {"id": "c", "patient": "p", "label": torch.tensor(0)}
task.judge(task.infer(network, torch.randn(1, 1, 8, 8), quick)[0], sample)
masks = job({"kind": "segmentation", "classes": ["a", "b"]})
task_of(masks).infer(torch.nn.Conv2d(1, 2, 1), torch.randn(1, 1, 7, 8), masks)
assert not {"monai", "scipy", "matplotlib", "pandas"} & set(sys.modules), "loaded too much"
"""
    subprocess.run([sys.executable, "-c", program], check=True)
