"""Two small classifiers that are trained at a site only to find out what synthetic images are worth to it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.job import Job
from shared_models.tasks.shape import to_size
from shared_models.tasks.task import Sample

WIDTHS = (16, 32, 64)
LEARNING_RATE = 1e-3


def trained_classifiers(
    training: Sequence[Sample],
    labels: Sequence[int],
    synthetic: tuple[Tensor, Tensor],
    job: Job,
    steps: int,
    seed: int,
    device: torch.device,
) -> tuple[nn.Module, nn.Module]:
    """One classifier without and one with synthetic images, both in evaluation mode.

    They start alike, take as many steps of Adam, and see the same real images in each; the second sees as many
    synthetic ones beside them. Real images are drawn class by class, so that the second gains nothing by the balance of
    its synthetic ones that the first could have had from real ones: only a class that the site does not have is new
    to it.

    Args:
        training: at least one, with "image" (C, *spatial); padded or cropped to the centre of data.crop.
        labels: the class of each.
        synthetic: images (n, C, *crop) and their classes (n,).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        without = small_classifier(job.data.spatial_dims, job.data.channels, len(job.task.classes)).to(device).train()
    beside = copy.deepcopy(without)
    optimizers = [torch.optim.Adam(network.parameters(), lr=LEARNING_RATE) for network in (without, beside)]
    by_class = [[i for i, label in enumerate(labels) if label == k] for k in sorted(set(labels))]
    size = job.training.batch_size
    for _ in range(steps):
        chosen = [_one(_one(by_class, generator), generator) for _ in range(size)]
        images = torch.stack([to_size(training[index]["image"], job.data.crop) for index in chosen]).to(device)
        truth = torch.tensor([labels[index] for index in chosen], device=device)
        made = torch.randint(len(synthetic[0]), (size,), generator=generator)
        more, their_truth = (values[made].to(device) for values in synthetic)
        _step(without, optimizers[0], images, truth)
        _step(beside, optimizers[1], torch.cat([images, more]), torch.cat([truth, their_truth]))
    return without.eval(), beside.eval()


def small_classifier(spatial_dims: int, channels: int, classes: int) -> nn.Sequential:
    """A plain CNN that halves the image three times: (B, channels, *spatial) to logits (B, classes)."""
    convolution, pool = (
        (nn.Conv2d, nn.AdaptiveAvgPool2d(1)) if spatial_dims == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d(1))
    )
    layers: list[nn.Module] = []
    for before, width in zip((channels, *WIDTHS), WIDTHS, strict=False):
        layers += [convolution(before, width, 3, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(WIDTHS[-1], classes))


def _one(values: Sequence[Any], generator: torch.Generator) -> Any:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, truth: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    F.cross_entropy(network(images), truth).backward()
    optimizer.step()
