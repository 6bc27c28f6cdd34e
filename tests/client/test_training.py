"""The local loop: deterministic, every case once a pass, and loud when it diverges."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from client.alone import train_alone
from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.training import _batches, _planned, judge_cases, learning_rate, make_optimizers, train_round
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.weights import fingerprint, travelling
from shared_models.zoo import build


def make_job(**training):
    return Job.model_validate(
        {
            "name": "squares",
            "seed": 3,
            "task": {"kind": "classification", "classes": ["small", "large"]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}},
            "training": {"optimizer": {"learning_rate": 0.01}, "batch_size": 8, "local_epochs": 1, **training},
            "federation": {"rounds": 4},
        }
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A manifest of 29 cases: 21 to train on, 4 to validate, 4 to test."""
    folder = tmp_path_factory.mktemp("site")
    rng = np.random.default_rng(0)
    images = rng.normal(100, 20, (29, 16, 16))
    for i, image in enumerate(images):
        image[2 : 5 + 5 * (i % 2), 2 : 5 + 5 * (i % 2)] += 100
    np.savez(folder / "data.npz", images=images.clip(0, 255).astype(np.uint8))
    splits = ["train"] * 21 + ["validation"] * 4 + ["test"] * 4
    rows = [f"p{i},data.npz::images[{i}],{i % 2},{split}" for i, split in enumerate(splits)]
    (folder / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
    return folder / "manifest.csv"


def data_of(site, job, tmp_path):
    return SiteData(site, job, "here", CaseCache(tmp_path / "cache", 2**20), report_folder=tmp_path)


def trained(site, job, tmp_path, name="here", number=1):
    network = build(job)
    progress = train_round(
        network,
        make_optimizers(network, job, task_of(job)),
        data_of(site, job, tmp_path),
        job,
        task_of(job),
        name,
        number,
    )
    return fingerprint(travelling(network)), progress


@pytest.mark.parametrize("augmentation", [[], ["flip", "noise"]])
def test_the_same_site_and_round_train_the_same_whatever_ran_before(site, tmp_path, augmentation):
    job = make_job(augmentation=augmentation)
    first, _ = trained(site, job, tmp_path)
    torch.manual_seed(99)
    np.random.seed(99)
    assert trained(site, job, tmp_path)[0] == first
    assert trained(site, job, tmp_path, name="elsewhere")[0] != first
    assert trained(site, job, tmp_path, number=2)[0] != first


@pytest.mark.parametrize(("cases", "batch"), [(21, 8), (17, 8), (9, 8), (1, 8), (8, 8), (100, 3)])
def test_a_pass_takes_every_case_once_and_makes_no_batch_of_one(cases, batch):
    job = make_job(batch_size=batch, local_epochs=2)
    batches = list(_batches([""] * cases, job, np.random.default_rng(0), _planned(cases, job, None)))
    assert Counter(index for indices in batches for index in indices) == Counter(list(range(cases)) * 2)
    assert max(map(len, batches)) <= batch
    assert min(map(len, batches)) > 1 or cases == 1


def test_steps_are_counted_not_passes_where_the_job_says_so(site, tmp_path):
    job = make_job(local_epochs=None, local_steps=7)
    assert trained(site, job, tmp_path)[1].steps == 7
    assert trained(site, make_job(), tmp_path)[1].steps == 3


def test_training_learns(site, tmp_path):
    job = make_job(local_epochs=20)
    network, data = build(job), data_of(site, job, tmp_path)
    losses = [
        train_round(network, make_optimizers(network, job, task_of(job)), data, job, task_of(job), "here", r).loss
        for r in (1, 2, 3)
    ]
    assert losses[2] < losses[0] / 2
    records = judge_cases(network, data, data.cases("test"), job, task_of(job))
    assert [record.case for record in records] == [case.id for case in data.cases("test")]


def test_mixed_precision_trains_and_gives_float32_weights(site, tmp_path):
    job = make_job(mixed_precision=True)
    network = build(job)
    train_round(
        network, make_optimizers(network, job, task_of(job)), data_of(site, job, tmp_path), job, task_of(job), "here", 1
    )
    assert {array.dtype for array in travelling(network).values()} == {np.dtype(np.float32)}
    assert fingerprint(travelling(network)) != trained(site, make_job(), tmp_path)[0]


def test_a_loss_that_is_no_number_is_said(site, tmp_path):
    job = make_job(optimizer={"name": "sgd", "learning_rate": 1e30})
    with pytest.raises(BadInput, match="the training loss in round 1 is (nan|inf); lower the learning rate"):
        trained(site, job, tmp_path)


def test_the_learning_rate_falls_over_the_rounds():
    job = make_job(optimizer={"learning_rate": 0.1, "schedule": "cosine"})
    rates = [learning_rate(job, number) for number in (1, 2, 3, 4)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(0.05)
    assert learning_rate(make_job(optimizer={"learning_rate": 0.1}), 4) == 0.1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_optimiser_of_the_job_file_steps(site, tmp_path, name):
    job = make_job(optimizer={"name": name, "learning_rate": 0.01})
    assert trained(site, job, tmp_path)[0] != fingerprint(travelling(build(job)))


def test_a_site_alone_keeps_its_best_round(site, tmp_path):
    job = make_job()
    network, data = build(job), data_of(site, job, tmp_path)
    best, numbers, curve = train_alone(network, data, job, task_of(job), "here", steps=None)
    assert [entry["round"] for entry in curve] == [1, 2, 3, 4]
    assert numbers["steps"] == 4 * 3
    values = [entry["metrics"]["auroc"] for entry in curve]
    assert numbers["best_round"] == 1 + values.index(max(values))
    if numbers["best_round"] == 4:
        assert fingerprint(best) == fingerprint(travelling(network))
