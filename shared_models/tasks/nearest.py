"""How near an image lies to the training images of a site: has a generator made a new one, or copied?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_models.tasks.shape import to_size
from shared_models.tasks.task import Sample

COMPARED_SIZE = 32
"""Larger images are averaged down to so many voxels along an axis before they are compared."""
TOO_NEAR = 0.01
_ROWS_AT_ONCE = 512


class TrainingImages:
    """The training images of a site, ready to be compared with others.

    The distance of two images is the root mean squared difference of their voxels, after the job's normalisation and
    at no more than `COMPARED_SIZE` voxels along an axis.

    Attributes:
        labels: class of every image.
        too_near: the distance below which 1 % of the training images have a training image of another patient, by
            linear interpolation; nan where there is one patient only. A generator that draws from what the images
            were drawn from comes so near to a training image about as often. That generated images are held against
            what real ones do, not against a fixed distance, follows Meehan et al. 2020, "A non-parametric test to
            detect data-copying in generative models", section 2.
    """

    def __init__(self, samples: Sequence[Sample], crop: Sequence[int]) -> None:
        """Reads every sample once: "image" (C, *spatial), "label" and "patient"."""
        self._crop = crop
        rows, patients = [], []
        self.labels: list[int] = []
        for sample in samples:
            rows.append(self._row(sample["image"][None]))
            patients.append(sample["patient"])
            self.labels.append(int(sample["label"]))
        self._rows = torch.cat(rows)
        self.too_near = self._usual_distance(patients)

    def nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For images (B, C, *spatial): distance to the nearest training image and its index, each (B,), on the CPU."""
        found = [self._distances(rows).min(dim=1) for rows in self._row(images).split(_ROWS_AT_ONCE)]
        return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])

    def _row(self, images: Tensor) -> Tensor:
        """(B, voxels): float64, in which the difference of nearly equal images does not drown."""
        images = to_size(images.cpu().float(), self._crop)
        size = [min(axis, COMPARED_SIZE) for axis in self._crop]
        return F.interpolate(images, size, mode="area").flatten(1).double()

    def _distances(self, rows: Tensor) -> Tensor:
        squared = (rows**2).sum(1)[:, None] + (self._rows**2).sum(1) - 2 * rows @ self._rows.T
        return (squared.clamp(min=0) / rows.shape[1]).sqrt()

    def _usual_distance(self, patients: Sequence[str]) -> float:
        codes = torch.from_numpy(np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1])
        found = []
        for rows, of in zip(self._rows.split(_ROWS_AT_ONCE), codes.split(_ROWS_AT_ONCE), strict=True):
            same = of[:, None] == codes
            found.append(self._distances(rows).masked_fill(same, float("inf")).min(dim=1).values)
        distances = torch.cat(found)
        defined = distances[distances.isfinite()]
        return float(defined.quantile(TOO_NEAR)) if len(defined) else float("nan")
