"""AUROC, average precision and ROC curves from fixed histograms of probabilities, which sites can add.

A bin is a small range of log-odds, so that probabilities near 0 and 1 are told apart. Within a bin the order is
unknown: a pair of cases in the same bin counts half.
"""

from __future__ import annotations

import numpy as np

from shared_models.tasks.sums import ratio

BINS = 512
LOG_ODDS_LIMIT = 10.0
# The edges between the bins; what lies beyond ±10 (4.5e-5 from 0 or 1) falls into the first or last bin.
EDGES = np.linspace(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT, BINS + 1)[1:-1]


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """The bin (0 .. BINS - 1) of every probability, any shape."""
    p = np.asarray(probabilities, dtype=np.float64)
    with np.errstate(divide="ignore"):
        log_odds = np.log(p) - np.log1p(-p)
    return np.searchsorted(EDGES, log_odds, side="right")


def counted(weights: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """Weighted histograms (replicates, size): case i adds its weight to the cells[i], which differ from each other."""
    total = np.zeros((size, len(weights)))
    for of_case, weight in zip(cells, weights.T, strict=True):
        total[of_case] += weight
    return np.ascontiguousarray(total.T)


def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from histograms (..., BINS) -> (...); nan without both kinds.

    The Mann-Whitney form: the share of pairs in which the positive case has the higher probability, ties half.
    """
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=-1)
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return ratio(wins, pairs)


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Mean over the positive cases of the precision at their rank, (..., BINS) -> (...); nan without both kinds.

    The positives of a bin take its middle rank, with half of the bin's negatives before them.
    """
    from_above = np.s_[..., ::-1]
    p, n = positives[from_above], negatives[from_above]
    true = np.cumsum(p, axis=-1) - p + (p + 1) / 2
    false = np.cumsum(n, axis=-1) - n / 2
    total = positives.sum(axis=-1)
    hits = (p * true / (true + false)).sum(axis=-1)
    return ratio(hits, np.where(negatives.sum(axis=-1) > 0, total, 0.0))


def roc_points(positives: np.ndarray, negatives: np.ndarray, limit: int = 200) -> dict[str, list[float]]:
    """At most `limit` points {"fpr", "tpr"} from (0, 0) to (1, 1) of histograms (BINS,); needs both kinds."""
    tpr = np.concatenate([[0.0], np.cumsum(positives[::-1]) / positives.sum()])
    fpr = np.concatenate([[0.0], np.cumsum(negatives[::-1]) / negatives.sum()])
    moved = np.flatnonzero(np.concatenate([[True], (np.diff(tpr) > 0) | (np.diff(fpr) > 0)]))
    kept = moved[np.linspace(0, len(moved) - 1, min(limit, len(moved))).round().astype(int)]
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}
