"""Anomaly detection: trained on normal cases, scored by reconstruction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from shared_models.zoo import build

TASK = {"kind": "anomaly", "classes": ["healthy", "tumour", "cyst"]}


def record(case: str, label: int, error: float) -> CaseRecord:
    return CaseRecord(case, f"patient of {case}", {"error": [error], "label": [float(label)]})


def metrics_of(job: Job, sums: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in task_of(job).metrics(sums).items()}


@pytest.mark.parametrize(
    ("label", "trained_on"),
    [("healthy", True), ("0", True), ("tumour", False), ("1", False), ("cyst", False), ("", False), ("Healthy", False)],
)
def test_only_cases_of_the_first_class_are_trained_on(job_for, label: str, trained_on: bool) -> None:
    assert task_of(job_for(TASK)).trains_on(label) is trained_on


def test_a_class_that_is_called_0_is_not_the_first_index(job_for) -> None:
    assert not task_of(job_for(TASK | {"classes": ["healthy", "0"]})).trains_on("0")


class Fixed(nn.Module):
    """Reconstructs nothing but zeros, with a code of one number."""

    def __init__(self, mean: float | None, log_variance: float = 0.0) -> None:
        super().__init__()
        self.mean, self.log_variance = mean, log_variance

    def forward(self, images):
        if self.mean is None:
            return torch.zeros_like(images), None, None
        code = torch.ones(len(images), 1)
        return torch.zeros_like(images), self.mean * code, self.log_variance * code


def test_loss_is_the_squared_error_and_the_divergence_per_voxel(job_for) -> None:
    task, batch = task_of(job_for(TASK | {"divergence_weight": 0.5})), {"image": torch.full((2, 1, 4, 4), 3.0)}
    assert task.step_loss(Fixed(None), batch, "network").item() == pytest.approx(9.0)
    assert task.step_loss(Fixed(0.0), batch, "network").item() == pytest.approx(9.0), "N(0, 1) diverges from nothing"
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(2.0, np.exp(0.25)), normal(0.0, 1.0)).item()
    expected = pytest.approx(9.0 + 0.5 * divergence / 16)
    assert task.step_loss(Fixed(2.0, 0.5), batch, "network").item() == expected


def test_metrics_rank_the_normal_against_the_others(job_for) -> None:
    job = job_for(TASK)
    records = [record("a", 0, 0.01), record("b", 0, 0.02), record("c", 1, 0.5), record("d", 2, 0.015)]
    found = metrics_of(job, task_of(job).sums(records, np.ones((1, 4))))
    assert found["auroc/tumour"] == 1.0
    assert found["auroc/cyst"] == 0.5
    assert found["auroc"] == 0.75
    assert found["error/healthy"] == pytest.approx(0.015, abs=1e-6)
    assert task_of(job).counts(task_of(job).sums(records, np.ones((1, 4))))["auroc/cyst"] == 3


def test_sums_of_two_sites_are_those_of_both_together(job_for) -> None:
    job, rng = job_for(TASK), np.random.default_rng(0)
    # One error below the range of the histograms, and one above it.
    records = [record(str(i), i % 3, error) for i, error in enumerate([1e-9, *rng.lognormal(-3, 2, 20), 1e9])]
    weights = rng.integers(0, 3, (5, len(records))).astype(float)
    task = task_of(job)
    both, one, two = (
        task.sums([records[i] for i in chosen], weights[:, chosen])
        for chosen in (range(len(records)), range(9), range(9, len(records)))
    )
    assert all(np.array_equal(both[name], one[name] + two[name]) for name in both)
    assert both["errors"].sum() == weights.sum()


def test_without_abnormal_cases_ranking_is_undefined_and_errors_are_not(job_for) -> None:
    job = job_for(TASK)
    sums = task_of(job).sums([record("a", 0, 0.1)], np.ones((1, 1)))
    assert np.isnan(metrics_of(job, sums)["auroc"]) and metrics_of(job, sums)["error/healthy"] > 0
    assert task_of(job).counts(sums)["auroc"] == 0
    assert task_of(job).curves(sums) == {}


def test_a_network_that_changes_the_size_is_refused(job_for) -> None:
    sample = {"id": "case-7", "patient": "p", "label": torch.tensor(0), "image": torch.zeros(1, 8, 8)}
    with pytest.raises(BadInput, match="case-7"):
        task_of(job_for(TASK)).judge(torch.zeros(1, 4, 4), sample)


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_an_autoencoder_of_the_zoo_finds_blobs_that_it_was_not_trained_on(name: str) -> None:
    job = Job.model_validate(
        {
            "name": "blobs",
            "task": {"kind": "anomaly", "classes": ["healthy", "blob"], "divergence_weight": 1e-4},
            "data": {"spatial_dims": 2, "crop": [16, 16], "normalisation": "none"},
            "model": {"name": name, "arguments": {"latent": 4, "channels": 8}},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )
    generator = torch.Generator().manual_seed(0)
    images = stripes(120, generator)
    task, network = task_of(job), build(job)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    network.train()
    torch.manual_seed(0)
    for step in range(150):
        optimizer.zero_grad()
        start = step * 16 % 80
        task.step_loss(network, {"image": images[start : start + 16]}, "network").backward()
        optimizer.step()
    held_out = images[80:]
    held_out[20:, :, 5:9, 5:9] += 0.7
    reconstructed = task.infer(network, held_out, job)
    records = [
        task.judge(made, {"id": str(i), "patient": str(i), "label": torch.tensor(int(i >= 20)), "image": image})
        for i, (made, image) in enumerate(zip(reconstructed, held_out, strict=True))
    ]
    assert metrics_of(job, task.sums(records, np.ones((1, 40))))["auroc"] > 0.9


def stripes(number: int, generator: torch.Generator) -> torch.Tensor:
    """Images (number, 1, 16, 16) of a wave whose phase differs, with a little noise."""
    phase = 6.28 * torch.rand(number, 1, 1, 1, generator=generator)
    wave = torch.sin(phase + torch.arange(16) * 6.28 / 16).expand(-1, 1, 16, 16)
    return wave + 0.05 * torch.randn(number, 1, 16, 16, generator=generator)


def test_every_metric_is_shown_and_counted_and_the_first_one_selects(job_for) -> None:
    job = job_for(TASK)
    task = task_of(job)
    sums = task.sums([], np.ones((4, 0)))
    metrics, info = task.metrics(sums), task.metric_info()
    assert set(metrics) == set(info) == set(task.counts(sums))
    assert all(len(values) == 4 and np.isnan(values).all() for values in metrics.values())
    assert next(iter(info)) == job.selection_metric() and info[job.selection_metric()]["larger_is_better"]
