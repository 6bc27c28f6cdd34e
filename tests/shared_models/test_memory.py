"""What training is said to take is what it keeps, and what no shape can tell is not guessed."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from shared_models import zoo
from shared_models.job import Job
from shared_models.machine import machine_memory
from shared_models.memory import SavedTensors, free_memory, recompute_activations, training_memory
from shared_models.tasks import task_of

SEGMENTATION = {"kind": "segmentation", "classes": ["a", "b", "c"]}
CLASSIFICATION = {"kind": "classification", "classes": ["a", "b", "c"]}
UNET = {"name": "unet", "arguments": {"channels": [8, 16, 32], "strides": [2, 2]}}
VIT = {"name": "vit", "arguments": {"hidden_size": 48, "mlp_dim": 96, "num_layers": 3, "patch_size": 8}}
SWIN = {"name": "swin_unet", "arguments": {"embed_dim": 12, "patch_size": 2, "window_size": 3}}
RESNET = {"name": "resnet18", "arguments": {"widen_factor": 0.25}, "normalisation": "batch"}
PAIRED = {"kind": "translation", "how": {"mode": "paired"}}
UNPAIRED = {"kind": "translation", "how": {"mode": "unpaired", "domains": ["a", "b"]}}
PIX2PIX = {
    "name": "pix2pix",
    "arguments": {"channels": [4, 8, 8], "discriminator_channels": 4, "discriminator_layers": 2},
}


def job_for(task: dict[str, Any], model: dict[str, Any], **training: Any) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "task": task,
            "data": {"spatial_dims": 2, "crop": [48, 48]},
            "model": model,
            "training": {"local_steps": 1, "batch_size": 4, **training},
            "federation": {"rounds": 1},
        }
    )


def batch_for(job: Job, size: int) -> dict[str, torch.Tensor]:
    images = torch.rand(size, 1, *job.data.crop)
    label = {
        "mask": torch.randint(0, 3, (size, 1, *job.data.crop)),
        "class": torch.arange(size) % 2,
        "image": torch.rand(images.shape),
    }
    return {"image": images, "label": label[job.task.label]}


def measured(job: Job) -> int:
    """Bytes that a real step keeps for its backward pass."""
    network, task, most = zoo.build(job), task_of(job), 0
    if job.training.gradient_checkpointing:
        recompute_activations(network, job)
    half = torch.autocast("cpu", torch.bfloat16) if job.training.mixed_precision else contextlib.nullcontext()
    batch = batch_for(job, job.training.batch_size // job.training.accumulate)
    for player in task.players(network):
        saved = SavedTensors([*network.parameters(), *network.buffers()])
        with half, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda tensor: tensor):
            loss = task.step_loss(network, batch, player)
        most = max(most, saved.bytes)
        loss.backward()
    return most


@pytest.mark.parametrize(
    ("task", "model", "training"),
    [
        (SEGMENTATION, UNET, {}),
        (SEGMENTATION, UNET, {"mixed_precision": True}),
        (SEGMENTATION, UNET, {"gradient_checkpointing": True}),
        (SEGMENTATION, UNET, {"accumulate": 2}),
        (SEGMENTATION, SWIN, {}),
        (CLASSIFICATION, VIT, {}),
        (CLASSIFICATION, RESNET, {}),
        (PAIRED, PIX2PIX, {}),
    ],
    ids=lambda value: value.get("name") or value.get("kind") or " ".join(value),
)
def test_the_estimate_is_what_a_real_step_keeps(task, model, training):
    job = job_for(task, model, **training)
    estimate = training_memory(job)
    assert estimate.activations == pytest.approx(measured(job), rel=0.25)


def test_every_option_that_saves_memory_is_seen_to():
    def activations(**training: Any) -> int:
        job = job_for(SEGMENTATION, UNET, **training)
        return training_memory(job).activations

    plain = activations()
    assert activations(accumulate=4) == pytest.approx(plain / 4, rel=0.15)
    assert activations(mixed_precision=True) < 0.9 * plain
    assert activations(gradient_checkpointing=True) < 0.7 * plain


@pytest.mark.parametrize(
    ("optimizer", "moments"), [({"name": "adam"}, 2), ({"name": "sgd", "momentum": 0.9}, 1), ({"name": "sgd"}, 0)]
)
def test_weights_gradients_and_moments_are_counted_to_the_byte(optimizer, moments):
    job = job_for(CLASSIFICATION, RESNET, optimizer=optimizer)
    network = zoo.build(job)
    parameters = 4 * sum(parameter.numel() for parameter in network.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    estimate = training_memory(job)
    assert (estimate.weights, estimate.gradients) == (parameters + buffers, parameters)
    assert estimate.optimizer == moments * parameters
    assert estimate.total == estimate.weights + estimate.gradients + estimate.optimizer + estimate.activations


def test_terabytes_can_be_told_without_having_them():
    assert training_memory(job_for(CLASSIFICATION, RESNET, batch_size=10_000_000)).total > 10**12


def test_a_batch_divided_by_its_content_is_not_guessed():
    arguments = {"channels": 4, "blocks": 1, "discriminator_channels": 4, "discriminator_layers": 2}
    job = job_for(UNPAIRED, {"name": "cyclegan", "arguments": arguments})
    assert training_memory(job) is None


def test_free_memory_is_less_than_all_and_not_guessed_for_an_unknown_device():
    free, total = machine_memory()
    assert 0 < free <= total
    assert free_memory(torch.device("cpu")) <= total
    assert free_memory(torch.device("meta")) is None
