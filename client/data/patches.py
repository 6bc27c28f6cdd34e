"""Cutting a prepared case to the job's crop. Torch only, so that plain classification starts without monai."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from shared_models.job import Job

_FOREGROUND_SHARE = 0.5


def random_patch(sample: dict[str, Any], job: Job, generator: np.random.Generator) -> dict[str, Any]:
    """The sample with image, and mask or target if it has one, cut to the job's crop at one random position.

    Half of the patches of a mask with foreground are centred on a random foreground voxel (as far as the border
    allows). An axis shorter than the crop is padded with zeros on both sides, as sliding-window inference does.
    """
    image, crop = sample["image"], job.data.crop
    spatial = image.shape[1:]
    if tuple(spatial) == tuple(crop):
        return sample
    room = [max(size - want, 0) for size, want in zip(spatial, crop, strict=True)]
    start = [int(generator.integers(0, free + 1)) for free in room]
    if job.task.label == "mask" and any(room) and generator.random() < _FOREGROUND_SHARE:
        foreground = torch.nonzero(sample["label"].reshape(-1))
        if len(foreground):
            voxel = np.unravel_index(int(foreground[generator.integers(len(foreground))]), spatial)
            start = [min(max(int(at) - want // 2, 0), free) for at, want, free in zip(voxel, crop, room, strict=True)]
    cut = {"image": _cut(image, start, crop)}
    if job.task.label != "class":
        cut["label"] = _cut(sample["label"], start, crop)
    return {**sample, **cut}


def _cut(values: Tensor, start: Sequence[int], crop: Sequence[int]) -> Tensor:
    window = tuple(slice(first, first + want) for first, want in zip(start, crop, strict=True))
    values = values[(slice(None), *window)]
    missing = [want - size for size, want in zip(values.shape[1:], crop, strict=True)]
    if any(missing):
        sides = [(gap // 2, gap - gap // 2) for gap in missing]
        values = pad(values, [width for side in reversed(sides) for width in side])
    return values
