"""The local loop: deterministic, every case once a pass, and loud when it diverges."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from client.alone import train_alone
from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.training import _batches, judge_cases, make_optimizers, train_round
from shared_models.algorithms.local_round import LocalRound
from shared_models.algorithms.qfedavg import QFedAvg
from shared_models.algorithms.scaffold import Scaffold
from shared_models.errors import BadInput
from shared_models.faults import Fault
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
    batches = list(_batches([""] * cases, job, np.random.default_rng(0), job.training.steps(cases)))
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


@pytest.fixture
def in_float16(monkeypatch):
    """As on a GPU without bfloat16; by the argument, the first scale of the loss."""

    def begin(scale: float) -> None:
        scaler = partial(torch.amp.GradScaler, init_scale=scale)
        monkeypatch.setattr("client.training._half", lambda job, device: torch.float16)
        monkeypatch.setattr("torch.amp.GradScaler", scaler)

    return begin


def test_a_step_that_overflows_float16_does_not_count(site, tmp_path, in_float16):
    """The scale is halved until the gradients are finite, and from then on training goes as in float32."""
    job = make_job(local_steps=12, local_epochs=None, optimizer={"name": "sgd", "learning_rate": 0.01})
    in_float16(2.0**19)
    local = scaffold_round(site, job, tmp_path)
    assert 0 < local.steps < 12
    _, one_round = trained(site, job, tmp_path)
    assert one_round.steps == local.steps and np.isfinite(one_round.loss)
    # With plain SGD, the mean of the gradients is the way gone by the steps that were taken.
    control = local.algorithm.contribution(local).kept
    before = travelling(build(job))
    for name, array in travelling(local.network).items():
        way = (before[name] - array) / (0.01 * local.steps)
        np.testing.assert_allclose(control[f"control/{name}"], way, atol=2e-4, err_msg=name)


def test_a_round_in_which_every_step_overflows_is_said(site, tmp_path, in_float16):
    in_float16(2.0**120)
    with pytest.raises(Fault, match="every training step in round 1 overflowed float16") as fault:
        trained(site, make_job(mixed_precision=True), tmp_path)
    assert fault.value.code == "overflow"


def scaffold_round(site, job, tmp_path):
    network, task = build(job), task_of(job)
    local = LocalRound(network, job, Scaffold())
    data, optimizers = data_of(site, job, tmp_path), make_optimizers(network, job, task)
    train_round(network, optimizers, data, job, task, "here", 1, local=local)
    return local


def test_the_initial_loss_is_that_of_the_model_as_it_is_judged(site, tmp_path):
    """With batch norm, a pass in training mode would have another loss, and move the running statistics."""
    batch_norm = {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"}
    job = Job.model_validate({**make_job(optimizer={"name": "sgd"}).model_dump(), "model": batch_norm})
    network, task, data = build(job), task_of(job), data_of(site, job, tmp_path)
    came = fingerprint(travelling(network))
    samples = [data.load(case) for case in data.cases("train")]
    with torch.no_grad():
        logits = network.eval()(torch.stack([sample["image"] for sample in samples]))
    seen = []

    class Watching(QFedAvg):
        def begin(self, local):
            seen.append((local.initial_loss, fingerprint(travelling(local.network))))

    local = LocalRound(network.train(), job, Watching(q=1.0))
    train_round(network, make_optimizers(network, job, task), data, job, task, "here", 1, local=local)
    expected = float(task.loss(logits, torch.stack([sample["label"] for sample in samples])))
    assert seen == [(pytest.approx(expected, rel=1e-5), came)]


def test_the_learning_rate_falls_over_the_rounds():
    job = make_job(optimizer={"learning_rate": 0.1, "schedule": "cosine"})
    rates = [job.learning_rate(number) for number in (1, 2, 3, 4)]
    assert rates[0] == 0.1
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(0.05)
    assert make_job(optimizer={"learning_rate": 0.1}).learning_rate(4) == 0.1


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
