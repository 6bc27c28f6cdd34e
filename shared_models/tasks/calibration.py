"""How far a model's probabilities are what happens: bins that sites can add, and what is read from them."""

from __future__ import annotations

import numpy as np

from shared_models.tasks.sums import ratio
from shared_models.tasks.task import MetricInfo

BINS = 15
INFO: dict[str, MetricInfo] = {
    "calibration_error": {"label": "Calibration error", "larger_is_better": False, "unit": "", "headline": True},
    "brier": {"label": "Brier score", "larger_is_better": False, "unit": "", "headline": False},
}


def binned(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """n, Σ confidence and Σ correct of each case in equal bins, closed on the right as in Guo et al. 2017.

    Args:
        confidence: probabilities (cases, k); every case has so many decisions.
        correct: (cases, k) of 0 and 1.

    Returns:
        (cases, 3, BINS).
    """
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    cells = (np.arange(len(confidence))[:, None] * BINS + bins).ravel()
    counted = [
        np.bincount(cells, values, len(confidence) * BINS).reshape(-1, BINS)
        for values in (None, confidence.ravel(), correct.ravel())
    ]
    return np.stack(counted, axis=1)


def calibration_error(bins: np.ndarray) -> np.ndarray:
    """Expected calibration error (Guo et al. 2017, eq. 3) of sums of `binned`, (replicates, 3, BINS) -> (replicates,).

    Resampling tends to raise it, so that its interval reaches further up than down.
    """
    n, confidence, correct = bins.transpose(1, 0, 2)
    return ratio(np.abs(confidence - correct).sum(axis=1), n.sum(axis=1))


def reliability(bins: np.ndarray) -> dict[str, list[float]]:
    """The curve {"confidence", "observed", "n"} of sums (3, BINS); bins without anything in them are left out."""
    n, confidence, correct = bins[:, bins[0] > 0]
    return {"confidence": (confidence / n).tolist(), "observed": (correct / n).tolist(), "n": n.tolist()}
