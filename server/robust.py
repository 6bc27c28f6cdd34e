"""Aggregation that a minority of faulty or hostile sites cannot carry away, and the choice of a way by the job.

These rules compare the updates of a round, so all of them are held: one model a site, in float32 as received. What is
computed from them goes block by block.

Distances are over the trained tensors. Running statistics have the scale of the images and not that of the weights, so
that a distance would hide one behind the other; where a rule goes by distances they take their coordinate-wise median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.aggregation import Aggregator, RunningSum, blocks, squared_distance
from shared_models.job import Job
from shared_models.weights import Weights

_SMOOTHING = 1e-6  # of the updates' spread: the least distance that the geometric median divides by
_STEPS = 1000
_CONVERGED = 1e-12  # change of a site's share in a step


@dataclass(frozen=True)
class SiteUpdate:
    """One site's admitted tensors, and what they count."""

    site: str
    tensors: Mapping[str, NDArray[np.float32]]
    weight: float


Result = tuple[Weights, dict[str, Any]]
"""The updates made one, and what the record should say of it."""


def aggregator(job: Job, current: Weights, trainable: Collection[str]) -> Aggregator:
    """What makes the updates of one round one, as `federation.aggregation` says.

    Args:
        current: the global model that the round began with.
        trainable: names of the tensors that are trained; the others that travel are running statistics.
    """
    how = job.federation.aggregation
    match how.name:
        case "mean":
            return RunningSum()
        case "median":
            return HeldUpdates(how.fewest, lambda updates: trimmed_mean(updates, 0.5))
        case "trimmed_mean":
            return HeldUpdates(how.fewest, lambda updates: trimmed_mean(updates, how.trim))
        case "krum":
            return HeldUpdates(how.fewest, lambda updates: krum(updates, trainable, how.faulty, how.keep))
        case "geometric_median":
            return HeldUpdates(how.fewest, lambda updates: geometric_median(updates, trainable))
        case "clipped_mean":
            if how.norm is not None:
                return ClippedSum(how.norm, current, trainable)
            return HeldUpdates(how.fewest, lambda updates: clipped_mean(updates, current, trainable))


class HeldUpdates:
    """Holds the updates of a round until a rule makes them one, in the order of the sites' names."""

    def __init__(self, fewest: int, rule: Callable[[Sequence[SiteUpdate]], Result]) -> None:
        """`fewest`: updates that the rule needs."""
        self.notes: dict[str, Any] = {}
        self._fewest, self._rule = fewest, rule
        self._updates: list[SiteUpdate] = []

    @property
    def weight(self) -> float:
        return sum(update.weight for update in self._updates)

    @property
    def sites(self) -> int:
        return len(self._updates)

    def add(self, site: str, tensors: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        self._updates.append(SiteUpdate(site, tensors, weight))

    def take_mean(self) -> Weights:
        if self.sites < self._fewest:
            raise ValueError(f"{self.sites} updates, of the {self._fewest} that this aggregation needs")
        result, self.notes = self._rule(sorted(self._updates, key=lambda update: update.site))
        return result


def trimmed_mean(updates: Sequence[SiteUpdate], trim: float) -> Result:
    """Yin et al. 2018, "Byzantine-robust distributed learning", definitions 1 (`trim` 0.5: the median) and 2.

    Of every coordinate, the mean without the largest and the smallest values: at either end `trim` of the updates,
    rounded up, and at most so many that one value (of an even number, two) is left. Every site counts alike.
    """
    cut = min(math.ceil(trim * len(updates) - 1e-9), (len(updates) - 1) // 2)
    return _without_extremes(updates, updates[0].tensors, cut), {"left_out_at_either_end": cut}


def _without_extremes(updates: Sequence[SiteUpdate], names: Collection[str], cut: int) -> Weights:
    result: Weights = {}
    for name in names:
        rows = [update.tensors[name].reshape(-1) for update in updates]
        result[name] = np.empty(updates[0].tensors[name].shape, np.float32)
        flat = result[name].reshape(-1)
        for block in blocks(flat.size):
            values = np.sort(np.stack([row[block] for row in rows]), axis=0)
            flat[block] = values[cut : len(rows) - cut].mean(axis=0, dtype=np.float64)
    return result


def krum(updates: Sequence[SiteUpdate], trainable: Collection[str], faulty: int, keep: int) -> Result:
    """Blanchard et al. 2017, "Machine learning with adversaries", section 4; Multi-Krum where `keep` is above 1.

    An update's score is the sum of its squared distances to its n - f - 2 nearest neighbours; the `keep` updates with
    the least scores are averaged, alike.
    """
    neighbours = len(updates) - faulty - 2
    squares = np.sort(_squared_distances(updates, trainable), axis=1)
    scores = squares[:, 1 : neighbours + 1].sum(axis=1)  # the first is its distance to itself
    kept = sorted(np.argsort(scores, kind="stable")[:keep].tolist())
    total = RunningSum()
    for index in kept:
        total.add(updates[index].site, _only(updates[index].tensors, trainable), 1)
    notes = {
        "kept": [updates[index].site for index in kept],
        "scores": {update.site: float(score) for update, score in zip(updates, scores, strict=True)},
    }
    return total.take_mean() | _median_statistics(updates, trainable), notes


def geometric_median(updates: Sequence[SiteUpdate], trainable: Collection[str]) -> Result:
    """Pillutla et al. 2022, "Robust aggregation for federated learning", by weights.

    The point with the least weighted sum of distances to the updates.
    """
    weights = np.array([update.weight for update in updates], np.float64)
    shares = _weiszfeld(_squared_distances(updates, trainable), weights / weights.sum())
    total = RunningSum()
    for update, share in zip(updates, shares, strict=True):
        total.add(update.site, _only(update.tensors, trainable), float(share))
    notes = {"shares": {update.site: float(share) for update, share in zip(updates, shares, strict=True)}}
    return total.take_mean() | _median_statistics(updates, trainable), notes


def _weiszfeld(squares: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smoothed Weiszfeld (algorithm 2): the share of every update in the geometric median.

    Every iterate v = Σ cₖ wₖ with Σ cₖ = 1, so that the squared distances between updates say how far v is from each:
    ‖v - wⱼ‖² = Σ cₖ Dₖⱼ - ½ Σ cₖ cₗ Dₖₗ. The models themselves are not needed.

    Args:
        squares: (n, n) squared distances.
        weights: (n,), with the sum 1.
    """
    least = _SMOOTHING * math.sqrt(squares.mean())
    if least == 0:  # all are the same
        return weights
    shares = weights
    for _ in range(_STEPS):
        apart = squares @ shares
        distances = np.sqrt(np.maximum(apart - shares @ apart / 2, 0))
        following = weights / np.maximum(distances, least)
        following /= following.sum()
        change = np.abs(following - shares).max()
        shares = following
        if change < _CONVERGED:
            break
    return shares


class ClippedSum:
    """The weighted mean of updates cut to a length, one at a time.

    Norm thresholding (Sun et al. 2019, "Can you really backdoor federated learning?"): an update's length is that of
    its difference to the global model, and one that is longer than `norm` is scaled down to it. Running statistics,
    which are small, are held for their median.
    """

    def __init__(self, norm: float, current: Weights, trainable: Collection[str]) -> None:
        self.notes: dict[str, Any] = {}
        self._norm, self._current, self._trainable = norm, current, trainable
        self._sum = RunningSum()
        self._statistics: list[SiteUpdate] = []
        self._lengths: dict[str, float] = {}

    @property
    def weight(self) -> float:
        return self._sum.weight

    @property
    def sites(self) -> int:
        return self._sum.sites

    def add(self, site: str, tensors: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        length = math.sqrt(squared_distance(tensors, self._current, self._trainable))
        trained = _only(tensors, self._trainable)
        if length > self._norm:
            share = self._norm / length
            trained = {name: _part_of_the_way(self._current[name], end, share) for name, end in trained.items()}
        self._sum.add(site, trained, weight)
        # Copies: a view would keep the whole message in memory.
        rest = {name: tensor.copy() for name, tensor in tensors.items() if name not in self._trainable}
        self._statistics.append(SiteUpdate(site, rest, weight))
        self._lengths[site] = length

    def take_mean(self) -> Weights:
        self.notes = {"norm": self._norm, "lengths": dict(sorted(self._lengths.items()))}
        return self._sum.take_mean() | _median_statistics(self._statistics, self._trainable)


def clipped_mean(updates: Sequence[SiteUpdate], current: Weights, trainable: Collection[str]) -> Result:
    """As `ClippedSum`, where the updates' own median length is the longest that is allowed."""
    lengths = [math.sqrt(squared_distance(update.tensors, current, trainable)) for update in updates]
    total = ClippedSum(float(np.median(lengths)), current, trainable)
    for update in updates:
        total.add(update.site, update.tensors, update.weight)
    return total.take_mean(), total.notes


def _part_of_the_way(start: NDArray[np.float32], end: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """start + share · (end - start)."""
    point = np.empty(start.shape, np.float32)
    begin, aim, flat = start.reshape(-1), end.reshape(-1), point.reshape(-1)
    for block in blocks(flat.size):
        before = begin[block].astype(np.float64)
        flat[block] = before + share * (aim[block] - before)
    return point


def _squared_distances(updates: Sequence[SiteUpdate], trainable: Collection[str]) -> NDArray[np.float64]:
    """(n, n), between all updates."""
    squares = np.zeros((len(updates), len(updates)))
    for i, ours in enumerate(updates):
        for j, theirs in enumerate(updates[:i]):
            squares[i, j] = squares[j, i] = squared_distance(ours.tensors, theirs.tensors, trainable)
    return squares


def _median_statistics(updates: Sequence[SiteUpdate], trainable: Collection[str]) -> Weights:
    """The coordinate-wise median of the tensors that are not trained."""
    names = [name for name in updates[0].tensors if name not in trainable]
    return _without_extremes(updates, names, (len(updates) - 1) // 2)


def _only(tensors: Mapping[str, NDArray[np.float32]], names: Collection[str]) -> Mapping[str, NDArray[np.float32]]:
    return {name: tensor for name, tensor in tensors.items() if name in names}
