"""AUROC, average precision and ROC curves from fixed histograms of probabilities, which sites can add.

Bins are small ranges of log-odds, so that probabilities near 0 and 1 are told apart. Within a bin the order is unknown:
a pair of cases in the same bin counts half.

A model that has barely learnt gives all images nearly the same log-odds (a vision transformer after 10 steps: with a
standard deviation of 0.006), at a level that nobody knows beforehand. Equal bins that tell such images apart would be
tens of thousands. So every case is counted twice: in a coarse histogram of all log-odds, and in a fine one that wraps
around like the minutes of a clock, whose bins begin anew every `WINDOW` coarse bins. The first says which hour it is,
the second which minute; only coarse bins a whole number of windows apart are mixed up in it.
"""

from __future__ import annotations

import numpy as np

from shared_models.tasks.sums import ratio

LOG_ODDS_LIMIT = 10.0  # what lies beyond ±10 (4.5e-5 from 0 or 1) falls into the first or last bin
COARSE = 512  # bins, 0.04 wide
STEPS = 64  # fine bins in a coarse one, 0.0006 wide
WINDOW = 16  # coarse bins until the fine ones begin anew, 0.6 in all
CELLS = COARSE + WINDOW * STEPS
"""Numbers of a histogram: the coarse bins, then the fine ones."""
CROWDED = 1 / 64
"""The share of a kind of cases in a coarse bin that makes it worth dividing."""


def cells_of(probabilities: np.ndarray) -> np.ndarray:
    """The coarse and the fine cell (0 .. CELLS - 1) that every probability is counted in, any shape -> (..., 2)."""
    p = np.asarray(probabilities, dtype=np.float64)
    with np.errstate(divide="ignore"):
        log_odds = np.log(p) - np.log1p(-p)
    place = (np.clip(log_odds, -LOG_ODDS_LIMIT, LOG_ODDS_LIMIT) + LOG_ODDS_LIMIT) / (2 * LOG_ODDS_LIMIT)
    finest = np.minimum((place * COARSE * STEPS).astype(int), COARSE * STEPS - 1)
    return np.stack([finest // STEPS, COARSE + finest % (CELLS - COARSE)], axis=-1)


def counted(weights: np.ndarray, cells: np.ndarray, size: int) -> np.ndarray:
    """Weighted histograms (replicates, size): case i adds its weight to the cells[i], which differ from each other."""
    total = np.zeros((size, len(weights)))
    for of_case, weight in zip(cells, weights.T, strict=True):
        total[of_case] += weight
    return np.ascontiguousarray(total.T)


def ordered(positives: np.ndarray, negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both kinds of cases in bins from the lowest log-odds to the highest: (replicates, CELLS) -> (replicates, bins).

    These are the coarse bins, with those that are crowded in the first row divided as the fine ones say.
    """
    kinds = positives[0, :COARSE], negatives[0, :COARSE]
    crowded = np.flatnonzero(np.any([kind > CROWDED * kind.sum() for kind in kinds], axis=0))
    return _divided(positives, crowded), _divided(negatives, crowded)


def _divided(histogram: np.ndarray, crowded: np.ndarray) -> np.ndarray:
    """Of the coarse bins that share their fine ones, each is taken to be divided like all of them together."""
    coarse, fine = histogram[:, :COARSE], histogram[:, COARSE:].reshape(-1, WINDOW, STEPS)
    in_turn = fine.sum(axis=2)
    bins = list(coarse.T[:, None])
    for place in crowded:
        turn = place % WINDOW
        bins[place] = fine[:, turn].T * np.nan_to_num(ratio(coarse[:, place], in_turn[:, turn]))
    return np.concatenate(bins).T


def auroc(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Area under the ROC curve from ordered histograms (..., bins) -> (...); nan without both kinds.

    The Mann-Whitney form: the share of pairs in which the positive case has the higher probability, ties half.
    """
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=-1)
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return ratio(wins, pairs)


def average_precision(positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Mean over the positive cases of the precision at their rank, (..., bins) -> (...); nan without both kinds.

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
    """At most `limit` points {"fpr", "tpr"} from (0, 0) to (1, 1) of ordered histograms (bins,); needs both kinds."""
    tpr, fpr = (np.cumsum(np.concatenate([[0.0], kind[::-1]])) for kind in (positives, negatives))
    tpr, fpr = tpr / tpr[-1], fpr / fpr[-1]
    moved = np.flatnonzero(np.concatenate([[True], (np.diff(tpr) > 0) | (np.diff(fpr) > 0)]))
    kept = moved[np.linspace(0, len(moved) - 1, min(limit, len(moved))).round().astype(int)]
    return {"fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}
