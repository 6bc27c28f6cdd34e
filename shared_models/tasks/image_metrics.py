"""How alike two images are, and metrics that are means of such numbers over cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from shared_models.tasks.sums import population, ratio, weighted_sums
from shared_models.tasks.task import CaseRecord, MetricInfo, Sums, Task

EXACT_DB = 100.0
"""What is counted for an exact copy, whose PSNR is infinite: one such case must not be the mean of all."""
_WINDOW, _DEVIATION = 11, 1.5
_FINEST = 1e-10  # of the data range: where the squared error is that of EXACT_DB, (1e-5)^2


class MeanOverCases(Task):
    """A task whose records hold one number per measure, or None, and whose metrics are the means of these.

    Attributes:
        measures: how every metric is shown, by its name in the `values` of a record, the most important first.
    """

    measures: Mapping[str, MetricInfo]

    def sums(self, records: Sequence[CaseRecord], weights: np.ndarray) -> Sums:
        """Per measure Σ and the number of cases it is defined in: (replicates,)."""
        sums: Sums = population([record.patient for record in records], weights)
        for name in self.measures:
            terms = np.array([record.values[name][0] for record in records], dtype=float)
            sums[name] = weighted_sums(weights, terms)
            sums[f"{name}_n"] = weighted_sums(weights, np.isfinite(terms).astype(float))
        return sums

    def metrics(self, sums: Sums) -> dict[str, np.ndarray]:
        """Means over the cases in which a measure is defined."""
        return {name: ratio(sums[name], sums[f"{name}_n"]) for name in self.measures}

    def counts(self, sums: Sums) -> dict[str, int]:
        """Cases in which a measure is defined."""
        return {name: int(sums[f"{name}_n"][0]) for name in self.measures}

    def metric_info(self) -> dict[str, MetricInfo]:
        """Labels and directions."""
        return dict(self.measures)


def likeness(image: Tensor, target: Tensor) -> dict[str, float | None]:
    """PSNR in dB, SSIM and L1 of an image and its target, both (C, *spatial).

    The data range of PSNR and SSIM is that of the target, its largest minus its smallest value: images are normalised
    in several ways, and none of them has a range of its own. Both are None where the target is constant. L1 is in
    units of the normalised intensities.
    """
    image, target = image.float(), target.float()
    span = float(target.max() - target.min())
    values: dict[str, float | None] = {"psnr": None, "ssim": None, "l1": float((image - target).abs().mean())}
    if span > 0:
        values |= {"psnr": psnr(image, target, span), "ssim": ssim(image, target, span)}
    return values


def psnr(image: Tensor, target: Tensor, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error), at most `EXACT_DB`."""
    error = float(((image - target) ** 2).mean(dtype=torch.float64))
    return float(-10 * np.log10(max(error / data_range**2, _FINEST)))


def ssim(image: Tensor, target: Tensor, data_range: float) -> float:
    """Mean structural similarity (Wang et al. 2004, eq. 13): Gaussian window of 11 voxels and deviation 1.5.

    An image that is narrower than the window gets the largest odd window that fits.

    Args:
        image, target: (C, *spatial) with two or three spatial axes.
    """
    from monai.metrics.regression import compute_ssim_and_cs

    narrowest = min(target.shape[1:])
    window = min(_WINDOW, narrowest - 1 + narrowest % 2)
    dims = target.ndim - 1
    similarity, _ = compute_ssim_and_cs(
        image[None], target[None], dims, [window] * dims, [_DEVIATION] * dims, data_range=data_range
    )
    return float(similarity.mean(dtype=torch.float64))


def median_filtered(image: Tensor) -> Tensor:
    """Every channel of (C, *spatial) through a median filter three voxels wide along every axis."""
    from scipy.ndimage import median_filter

    values = image.float().numpy()
    return torch.from_numpy(np.stack([median_filter(channel, size=3) for channel in values]))
