"""How much memory training takes, seen from shapes alone before it begins, and how to take less of it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from shared_models import zoo
from shared_models.job import Job
from shared_models.machine import machine_memory
from shared_models.tasks import Batch, task_of

REMEDIES = (
    "smaller data.crop or training.batch_size, larger training.accumulate, training.gradient_checkpointing, "
    "training.mixed_precision or a smaller network"
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step holds at its peak, between the forward pass and the backward pass."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass and the loss keep for the backward pass."""

    @property
    def total(self) -> int:
        """The sum: a lower bound, see `training_memory`."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(job: Job) -> MemoryEstimate | None:
    """The memory of a training step of the job, from one forward pass and loss on tensors without content.

    Not in it: what convolutions use while they run, gradients of activations, what gradient checkpointing computes
    again, the images that are being prepared, Python and its libraries: training takes more.

    Returns:
        None where shapes do not depend on shapes alone, as in a CycleGAN, whose batches are divided by domain.
    """
    network = zoo.build(job)
    parameters = sum(_bytes(parameter) for parameter in network.parameters())
    spec = job.training.optimizer
    moments = 2 if spec.name != "sgd" else int(spec.momentum > 0)
    if job.training.gradient_checkpointing:
        recompute_activations(network, job)
    try:
        activations = _activations(job, network)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    weights = parameters + sum(_bytes(buffer) for buffer in network.buffers())
    return MemoryEstimate(weights, parameters, moments * parameters, activations)


def _activations(job: Job, network: nn.Module) -> int:
    """Bytes kept for the backward pass by the player of the task that keeps the most."""
    task, most = task_of(job), 0
    half = torch.autocast("cpu", torch.bfloat16) if job.training.mixed_precision else contextlib.nullcontext()
    network.train()
    with FakeTensorMode(allow_non_fake_inputs=True), _RealRanges(), half:
        batch = _batch(job)
        for player in task.players(network):
            kept = SavedTensors([*network.parameters(), *network.buffers()])
            with torch.autograd.graph.saved_tensors_hooks(kept.keep, _as_it_is):
                loss = task.step_loss(network, batch, player)
            most = max(most, kept.bytes)
            del loss  # it holds the tensors, without which an address may be given to another one
    return most


class SavedTensors:
    """Bytes of the tensors that autograd saves, memory shared by several counted once, to be used as a pack hook.

    Args:
        without: tensors that are there anyway, such as the weights.
    """

    def __init__(self, without: Iterable[Tensor]) -> None:
        self._without = {_storage(tensor) for tensor in without}
        self._sizes: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Counts a tensor and gives it back."""
        if _storage(tensor) not in self._without:
            self._sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        """Of all that was saved."""
        return sum(self._sizes.values())


class _RealRanges(TorchFunctionMode):
    """Lets MONAI's Dice loss read its axes out of torch.arange, as a tensor without content has nothing to read."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        real = unset_fake_temporarily() if func is torch.arange else contextlib.nullcontext()
        with real:
            return func(*args, **(kwargs or {}))


def _batch(job: Job) -> Batch:
    """Of the size that goes through the network at once."""
    data = job.data
    size = math.ceil(job.training.batch_size / job.training.accumulate)
    images = torch.zeros(size, data.channels, *data.crop)
    if job.task.label == "image":
        return {"image": images, "label": torch.zeros_like(images)}
    if job.task.label == "mask":
        return {"image": images, "label": torch.zeros(size, 1, *data.crop, dtype=torch.int64)}
    if job.task.kind == "classification" and job.task.mode == "multi_label":
        return {"image": images, "label": torch.zeros(size, len(job.task.classes))}
    return {"image": images, "label": torch.zeros(size, dtype=torch.int64)}


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def recompute_activations(network: nn.Module, job: Job) -> None:
    """Lets the network's blocks compute their activations again in the backward pass (Chen et al. 2016, "Training deep
    nets with sublinear memory cost"), in place. Names in the state dict stay as they are.
    """
    for block in zoo.check(job).checkpointed(network):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def free_memory(device: torch.device) -> int | None:
    """Bytes that training on the device can have; None where the device does not say."""
    if device.type == "cpu":
        return machine_memory()[0]
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device)  # what this process holds already, it can use again
    return None
