"""A small segmenter that is trained at a site only to judge other images by: is an organ still found in them?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared_models.job import Job
from shared_models.job_tasks import SegmentationTask
from shared_models.tasks.segmentation import Segmentation
from shared_models.tasks.shape import to_size
from shared_models.tasks.task import Sample

_KEPT = 4
_trained: dict[str, nn.Module] = {}


def task_for(classes: list[str]) -> Segmentation:
    """The segmentation that the segmenter does."""
    return Segmentation(SegmentationTask(kind="segmentation", classes=classes))


def trained_segmenter(
    samples: Sequence[Sample], classes: list[str], job: Job, steps: int, seed: int, device: torch.device
) -> nn.Module:
    """A U-Net in evaluation mode, trained with Adam for so many steps on random patches.

    The same samples, job and seed give the same network. It is asked for whenever a model is judged, so the last few
    are kept in the process.

    Args:
        samples: at least one, with "image" (C, *spatial) and "mask" (1, *spatial); data.crop is divisible by 4.
    """
    key = _key(samples, job, steps, seed, device)
    if key not in _trained:
        while len(_trained) >= _KEPT:
            del _trained[next(iter(_trained))]
        _trained[key] = _train(samples, classes, job, steps, seed, device)
    return _trained[key]


def _key(samples: Sequence[Sample], job: Job, steps: int, seed: int, device: torch.device) -> str:
    digest = hashlib.sha256(f"{job.fingerprint()} {steps} {seed} {device}".encode())
    for sample in samples:
        digest.update(sample["image"].contiguous().numpy().data)
        digest.update(sample["mask"].contiguous().numpy().data)
    return digest.hexdigest()


def _train(
    samples: Sequence[Sample], classes: list[str], job: Job, steps: int, seed: int, device: torch.device
) -> nn.Module:
    from monai.networks.nets import UNet

    task, generator = task_for(classes), torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = UNet(
            job.data.spatial_dims, job.data.channels, len(classes), (16, 32, 64), (2, 2), num_res_units=1
        )
    network = network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        chosen = torch.randint(len(samples), (job.training.batch_size,), generator=generator)
        patches = [_patch(samples[index], job.data.crop, generator) for index in chosen.tolist()]
        images, masks = (torch.stack(tensors).to(device) for tensors in zip(*patches, strict=True))
        optimizer.zero_grad(set_to_none=True)
        task.loss(network(images), masks).backward()
        optimizer.step()
    return network.eval()


def _patch(sample: Sample, crop: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Image and mask at one random position, padded to the crop where they are smaller."""
    window = [slice(None)]
    for have, want in zip(sample["image"].shape[1:], crop, strict=True):
        start = int(torch.randint(max(have - want, 0) + 1, (), generator=generator))
        window.append(slice(start, start + want))
    return to_size(sample["image"][tuple(window)], crop), to_size(sample["mask"][tuple(window)], crop)


def mean_dice(predicted: Tensor, mask: Tensor) -> float | None:
    """Mean Dice over the foreground classes that the mask or the prediction has; None where neither has one.

    Args:
        predicted, mask: label values, both (*spatial).
    """
    found = []
    for value in range(1, 1 + int(max(predicted.max(), mask.max()))):
        ours, theirs = predicted == value, mask == value
        size = int(ours.sum() + theirs.sum())
        if size:
            found.append(2 * int((ours & theirs).sum()) / size)
    return sum(found) / len(found) if found else None
