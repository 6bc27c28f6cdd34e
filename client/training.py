"""The local loop: batches, augmentation, optimiser steps, and the same network judged on a split."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.data.augment import augmentation
from client.data.dataset import SiteData
from client.data.manifest import Case
from client.data.patches import random_patch
from shared_models.algorithms import FedAvg
from shared_models.algorithms.local_round import LocalRound
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.seeds import derive_seed
from shared_models.tasks import Batch, CaseRecord, Sample, Task


@dataclass
class Progress:
    """What a round of local training did; `loss` is the task's own, the mean over its steps."""

    cases: int
    steps: int
    loss: float
    seconds: float


Optimizers = dict[str, torch.optim.Optimizer]
"""Of every player of a task, see `Task.players`."""


def make_optimizers(network: nn.Module, job: Job, task: Task) -> Optimizers:
    """The optimiser of the job, once for every player of the task."""
    return {player: _optimizer(parameters, job) for player, parameters in task.players(network).items()}


def _optimizer(parameters: list[nn.Parameter], job: Job) -> torch.optim.Optimizer:
    spec = job.training.optimizer
    common: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if parameters[0].device.type in ("cpu", "cuda"):
        common["fused"] = True  # one pass over the memory instead of one per operation
    if spec.name == "sgd":
        return torch.optim.SGD(parameters, momentum=spec.momentum, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return kind(parameters, betas=(spec.beta, 0.999), **common)


def train_round(
    network: nn.Module,
    optimizers: Optimizers,
    data: SiteData,
    job: Job,
    task: Task,
    site: str,
    round_number: int,
    steps: int | None = None,
    local: LocalRound | None = None,
) -> Progress:
    """One round of local training, in place; every draw derives from job seed, site name and round.

    Args:
        steps: optimiser steps instead of the job's local epochs or steps.
        local: what a federated algorithm's site half needs; without one, the steps are those of the task alone.

    Raises:
        BadInput: the loss is no longer finite, no step was in the range of float16, or there is no case to train on.
    """
    began = time.monotonic()
    cases = [case for case in data.cases("train") if task.trains_on(case.label)]
    if not cases:
        raise Fault("no training case is of a class that this task trains on", "no_training_cases")
    device = next(network.parameters()).device
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = job.learning_rate(round_number)
    torch.manual_seed(derive_seed(job.seed, "dropout", site, round_number))
    rng = np.random.default_rng(derive_seed(job.seed, "batches", site, round_number))
    augment = augmentation(job, derive_seed(job.seed, "augmentation", site, round_number))
    scaler = torch.amp.GradScaler(device.type, enabled=_half(job, device) is torch.float16)
    local = local or LocalRound(network, job, FedAvg())
    local.cases, local.planned_steps = len(cases), steps or job.training.steps(len(cases))
    local.learning_rate = job.learning_rate(round_number)
    if local.algorithm.needs_initial_loss:
        local.initial_loss = _initial_loss(network, cases, data, job, task)
    local.algorithm.begin(local)
    network.train()
    total = torch.zeros((), device=device)
    labels = [case.label for case in cases] if task.mixes_labels else [""] * len(cases)
    for indices in _batches(labels, job, rng, local.planned_steps):
        samples = [data.load(cases[index]) for index in indices]
        if augment:
            samples = [augment(sample) for sample in samples]
        patches = [random_patch(sample, job, rng) for sample in samples]
        losses, taken = _step(local, optimizers, scaler, _parts(patches, job, device), task)
        total += losses[0]
        local.steps += taken
    mean = float(total) / local.planned_steps
    if not math.isfinite(mean):
        text = f"the training loss in round {round_number} is {mean}; lower the learning rate"
        raise Fault(text, "diverged", round=round_number)
    if not local.steps:
        text = (
            f"every training step in round {round_number} overflowed float16; take more, or leave out mixed_precision"
        )
        raise Fault(text, "overflow", round=round_number)
    return Progress(len(cases), local.steps, mean, time.monotonic() - began)


@torch.no_grad()
def _initial_loss(network: nn.Module, cases: Sequence[Case], data: SiteData, job: Job, task: Task) -> float:
    """The mean loss of the network as it stands over the training cases, a patch from each."""
    device, size = next(network.parameters()).device, job.training.batch_size
    rng = np.random.default_rng(derive_seed(job.seed, "initial_loss"))
    network.eval()
    total = 0.0
    for start in range(0, len(cases), size):
        patches = [random_patch(data.load(case), job, rng) for case in cases[start : start + size]]
        for part in _parts(patches, job, device):
            with _autocast(job, device):
                total += float(task.step_loss(network, part, "network")) * len(part["image"])
    return total / len(cases)


def _parts(patches: Sequence[dict[str, Any]], job: Job, device: torch.device) -> list[Batch]:
    """The batch on the device, in the parts that it is computed in."""
    size = math.ceil(len(patches) / job.training.accumulate)
    return [
        {
            "image": _images(patches[start : start + size], job, device),
            **{
                key: torch.stack([patch[key] for patch in patches[start : start + size]]).to(device)
                for key in ("label", "annotated")
                if key in patches[0]
            },
        }
        for start in range(0, len(patches), size)
    ]


def _images(samples: Sequence[Sample], job: Job, device: torch.device) -> Tensor:
    """(B, C, *spatial) on the device, in the job's memory layout."""
    images = torch.stack([sample["image"] for sample in samples])
    return images.to(device, non_blocking=True, memory_format=memory_layout(job))


def memory_layout(job: Job) -> torch.memory_format:
    """Of images and of the weights of convolutions."""
    if not job.training.channels_last:
        return torch.contiguous_format
    return {2: torch.channels_last, 3: torch.channels_last_3d}[job.data.spatial_dims]


def _step(
    local: LocalRound, optimizers: Optimizers, scaler: torch.amp.GradScaler, parts: Sequence[Batch], task: Task
) -> tuple[list[Tensor], bool]:
    """One optimiser step of every player in turn: the task's own losses of them, and whether any took it.

    In float16, a player whose gradients overflow is not stepped, and the scaler scales the next loss by less.
    """
    device, size = parts[0]["image"].device, sum(len(part["image"]) for part in parts)
    losses, taken = [], False
    for player, optimizer in optimizers.items():
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=device)
        for part in parts:
            share = len(part["image"]) / size
            with _autocast(local.job, device):
                loss, own = local.algorithm.step_loss(local, task, part, player)
            scaler.scale(loss * share).backward()
            total += own.detach() * share
        scaler.unscale_(optimizer)  # an algorithm acts on gradients as they are
        if not (scaler.is_enabled() and _overflowed(optimizer)):
            taken = True
            with torch.no_grad():
                local.algorithm.correct_gradients(local)
        scaler.step(optimizer)  # not if they overflowed
        losses.append(total)
    scaler.update()
    return losses, taken


def _overflowed(optimizer: torch.optim.Optimizer) -> bool:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    finite = [parameter.grad.isfinite().all() for parameter in parameters if parameter.grad is not None]
    return not torch.stack(finite).all()


def _batches(labels: Sequence[str], job: Job, rng: np.random.Generator, wanted: int) -> Iterator[Sequence[int]]:
    """Indices of so many batches: every case once per pass, in batches of nearly equal size and mixture of labels.

    Equal sizes, because a last batch of one case has no variance for batch norm to divide by.
    """
    per_pass = math.ceil(len(labels) / job.training.batch_size)
    while wanted > 0:
        order = rng.permutation(len(labels)).tolist()
        if len(set(labels)) > 1:
            by_label = sorted(order, key=labels.__getitem__)
            dealt = [by_label[start::per_pass] for start in range(per_pass)]
            batches = [dealt[number] for number in rng.permutation(per_pass)]
        else:
            batches = [batch.tolist() for batch in np.array_split(order, per_pass)]
        yield from batches[:wanted]
        wanted -= per_pass


def _half(job: Job, device: torch.device) -> torch.dtype | None:
    if not job.training.mixed_precision:
        return None
    if device.type == "cpu" and job.data.spatial_dims == 3:
        # oneDNN's bfloat16 gradient of a 3D convolution's weights reads memory that nobody wrote (torch 2.13): now and
        # then NaN, and never the same twice.
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _autocast(job: Job, device: torch.device) -> contextlib.AbstractContextManager[object]:
    dtype = _half(job, device)
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def judge_cases(network: nn.Module, data: SiteData, cases: Sequence[Case], job: Job, task: Task) -> list[CaseRecord]:
    """What the network does on each case, in order."""
    records: list[CaseRecord] = []
    for sample, probabilities in infer_cases(network, data, cases, job, task):
        records.append(task.judge(probabilities, sample))
    return records


def judging_seed(job: Job) -> int:
    """What `Task.ready` draws with: the same at every site and for every model, so that only the models differ."""
    return derive_seed(job.seed, "judging")


def infer_cases(
    network: nn.Module, data: SiteData, cases: Sequence[Case], job: Job, task: Task
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Each case as it was presented, with its probabilities on the CPU; neighbours of equal shape share a batch."""
    device = next(network.parameters()).device
    judged = task.ready(network, data.samples("train"), job, judging_seed(job))
    for start in range(0, len(cases), task.judged_together):
        samples = [task.present(data.load(case)) for case in cases[start : start + task.judged_together]]
        alike = len({tuple(sample["image"].shape) for sample in samples}) == 1
        for group in [samples] if alike else [[sample] for sample in samples]:
            with _autocast(job, device):
                probabilities = task.infer(judged, _images(group, job, device), job)
            yield from zip(group, probabilities.float().cpu(), strict=True)
