"""Options that make large networks fit or run faster change neither what is learnt nor the names of what travels."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client.training import infer_cases, make_optimizers, train_round
from client.warm import check_memory, network_of
from shared_models.errors import BadInput
from shared_models.faults import Fault, sentence
from shared_models.job import Job
from shared_models.job_file import parse_job
from shared_models.memory import SavedTensors
from shared_models.tasks import CaseRecord, task_of
from shared_models.weights import load, schema, travelling
from shared_models.zoo import build

SEGMENTATION = {"kind": "segmentation", "classes": ["a", "b"]}
CLASSIFICATION = {"kind": "classification", "classes": ["a", "b"]}
PAIRED = {"kind": "translation", "how": {"mode": "paired"}}
UNPAIRED = {"kind": "translation", "how": {"mode": "unpaired", "domains": ["a", "b"]}}
CNN = {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}}
UNET = {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}}
VIT = {"name": "vit", "arguments": {"hidden_size": 12, "mlp_dim": 24, "num_layers": 2, "patch_size": 4}}
CYCLEGAN = {
    "name": "cyclegan",
    "arguments": {"channels": 4, "blocks": 4, "discriminator_channels": 4, "discriminator_layers": 2},
}
PIX2PIX = {"name": "pix2pix", "arguments": {"channels": [4, 8], "discriminator_channels": 4, "discriminator_layers": 2}}


def values(task: dict[str, Any], model: dict[str, Any], dims: int = 2, **training: Any) -> dict[str, Any]:
    return {
        "name": "test",
        "task": task,
        "data": {"spatial_dims": dims, "crop": [16] * dims},
        "model": model,
        "training": {
            "local_steps": 1, "batch_size": 8, "optimizer": {"name": "sgd", "learning_rate": 0.01}, **training,
        },
        "federation": {"rounds": 1},
    }  # fmt: skip


def job_for(task: dict[str, Any], model: dict[str, Any], dims: int = 2, **training: Any) -> Job:
    return Job.model_validate(values(task, model, dims, **training))


class Cases:
    """Eight prepared cases, in place of a site's data."""

    def __init__(self, job: Job) -> None:
        generator = torch.Generator().manual_seed(0)
        self._samples = []
        for number in range(8):
            image = torch.rand(1, *job.data.crop, generator=generator)
            label = {"mask": (image > 0.5).long(), "class": torch.tensor(number % 2), "image": 1 - image}[
                job.task.label
            ]
            self._samples.append({"image": image, "label": label, "id": f"c{number}", "patient": f"p{number}"})

    def cases(self, split: str) -> list[CaseRecord]:
        return [type("Case", (), {"label": str(number % 2), "number": number}) for number in range(8)]

    def samples(self, split: str) -> list[dict[str, Any]]:
        return self._samples

    def load(self, case: Any) -> dict[str, Any]:
        return dict(self._samples[case.number])


def trained(job: Job) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """What travels after a round with the warm network, and the probabilities of the first cases."""
    network, task, data = network_of(job, "cpu"), task_of(job), Cases(job)
    load(network, travelling(build(job)))
    train_round(network, make_optimizers(network, job, task), data, job, task, "here", 1)
    inferred = infer_cases(network, data, data.cases("test")[:2], job, task)
    return dict(travelling(network)), torch.stack([probabilities for _, probabilities in inferred])


def assert_same(job: Job, plain: Job) -> None:
    (weights, probabilities), (expected, expected_probabilities) = trained(job), trained(plain)
    assert list(weights) == list(expected)
    for name, array in weights.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    torch.testing.assert_close(probabilities, expected_probabilities, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("task", "model"), [(CLASSIFICATION, CNN), (SEGMENTATION, UNET), (PAIRED, PIX2PIX), (UNPAIRED, CYCLEGAN)]
)
def test_a_batch_in_parts_takes_the_same_step(task, model):
    assert_same(job_for(task, model, accumulate=3), job_for(task, model))  # parts of 3, 3 and 2 cases


def test_a_batch_goes_through_the_network_in_parts():
    sizes = []
    job = job_for(CLASSIFICATION, CNN, accumulate=3)
    network, task = build(job), task_of(job)
    network.register_forward_hook(lambda module, given, _: sizes.append(len(given[0])))
    train_round(network, make_optimizers(network, job, task), Cases(job), job, task, "here", 1)
    assert sizes == [3, 3, 2]


@pytest.mark.parametrize(("task", "model"), [(SEGMENTATION, UNET), (CLASSIFICATION, VIT), (UNPAIRED, CYCLEGAN)])
def test_activations_that_are_computed_again_give_the_same_step_with_less_memory(task, model):
    plain, job = job_for(task, model), job_for(task, model, gradient_checkpointing=True)
    assert_same(job, plain)

    def saved(job: Job) -> int:
        network, task = network_of(job, "cpu").train(), task_of(job)
        samples = Cases(job).samples("train")
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "label")}
        kept = SavedTensors(network.parameters())
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
            task.step_loss(network, batch, next(iter(task.players(network))))
        return kept.bytes

    assert saved(job) < 0.8 * saved(plain)


@pytest.mark.parametrize(
    ("task", "model", "dims"), [(SEGMENTATION, UNET, 2), (SEGMENTATION, UNET, 3), (PAIRED, PIX2PIX, 2)]
)
def test_another_memory_layout_gives_the_same_model(task, model, dims):
    job = job_for(task, model, dims, channels_last=True)
    assert_same(job, job_for(task, model, dims))
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    kernels = [p for p in network_of(job, "cpu").parameters() if p.ndim == dims + 2 and min(p.shape) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)


@pytest.mark.system
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize(
    ("task", "model", "options"),
    [
        (CLASSIFICATION, CNN, {}),
        (PAIRED, PIX2PIX, {}),
        (SEGMENTATION, UNET, {"gradient_checkpointing": True, "channels_last": True, "accumulate": 2}),
    ],
)
def test_a_compiled_network_gives_the_same_model(task, model, options):
    job = job_for(task, model, compile=True, **options)
    assert_same(job, job_for(task, model))
    assert [entry.name for entry in schema(network_of(job, "cpu"))] == [entry.name for entry in schema(build(job))]


def test_a_machine_without_a_compiler_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Fault, match="training.compile needs a C.. compiler") as refusal:
        network_of(job_for(CLASSIFICATION, CNN, compile=True), "cpu")
    assert refusal.value.code == "compiler"


def test_training_that_will_not_fit_is_said_before_it_begins(monkeypatch):
    job = job_for(SEGMENTATION, UNET)
    monkeypatch.setattr("client.warm.free_memory", lambda device: 50_000)
    with pytest.raises(
        Fault, match="at least 1 MB of memory on cpu, and 0 MB are free: use smaller data.crop"
    ) as refusal:
        check_memory(job, "cpu")
    assert "a larger training.accumulate" in sentence(refusal.value.code, **refusal.value.parameters)
    monkeypatch.setattr("client.warm.free_memory", lambda device: 2**30)
    check_memory(job, "cpu")


BATCH = {"normalisation": "batch"}


@pytest.mark.parametrize(
    ("job", "refusal"),
    [
        (values(SEGMENTATION, UNET | BATCH, accumulate=2), "training.accumulate: batch normalisation would see parts"),
        (
            values(SEGMENTATION, UNET | BATCH, gradient_checkpointing=True),
            "training.gradient_checkpointing: batch normalisation would count every image twice",
        ),
        (
            values(PAIRED, PIX2PIX, gradient_checkpointing=True),
            "training.gradient_checkpointing: 'pix2pix' has no blocks to compute again",
        ),
        (
            values(SEGMENTATION, UNET) | {"federation": {"rounds": 1, "share": {"networks": "generators"}}},
            "federation.share.networks: 'unet' has no discriminators",
        ),
    ],
)
def test_what_a_network_cannot_do_is_refused_when_the_job_is_read(job, refusal):
    with pytest.raises(BadInput) as error:
        parse_job(yaml.safe_dump(job), "job.yaml")
    assert refusal in str(error.value)
    assert str(error.value).count("job.yaml:") == 1


def test_generators_of_a_gan_may_travel_alone():
    job = values(PAIRED, PIX2PIX) | {"federation": {"rounds": 1, "share": {"networks": "generators"}}}
    assert parse_job(yaml.safe_dump(job), "job.yaml").federation.share.networks == "generators"
