"""Which update is out of line with the others of its round? Found without keeping the updates.

Of every update a sketch of 1024 numbers is kept (Charikar et al. 2002, "Finding frequent items in data streams", count
sketch): its values with random signs, summed in buckets. Lengths and angles between sketches are those between the
updates, to within about 3 %.

A hospital stands out if it alone, or a small minority, differs while the others agree. Where patients differ much
(label skew), honest updates point away from each other: then nobody agrees, and nobody stands out. Standing out is no
proof of a fault: a hospital whose patients are unlike all others' may, too. Where one hospital begins with what the one
before it has learnt, directions say nothing, and lengths alone are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.aggregation import BLOCK
from shared_models.job import Job
from shared_models.seeds import derive_seed
from shared_models.weights import Weights

BUCKETS = 1024
FEWEST = 4
"""Of fewer updates, none can stand out: three are no majority against one."""
MAJORITY = 0.75
"""Share of the updates that have to be alike before another one stands out."""
TOO_LONG = 5.0
"""Times as long as the longest of the majority. Honest updates stay below it, under strong label skew too."""
AGREE = 0.2
"""The least cosine of each of the majority to the others of it."""
GAP = 0.4
"""How far below the majority's least cosine another's must be."""

Sketch = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How an update compares with the others of its round."""

    norm: float
    """Its length: the L2 norm of its trained tensors minus those of the model that it began with."""
    length: float
    """In medians of the round's norms."""
    direction: float
    """Cosine to the mean direction of the majority: 1 the same way, 0 across, -1 back."""
    why: Literal["long", "away"] | None = None
    """What makes it stand out; None for what does not."""

    @property
    def ratio(self) -> float:
        """The number behind `why`."""
        return self.length if self.why == "long" else self.direction


class Lineup:
    """The updates of one round, one beside the other."""

    def __init__(self, job: Job, number: int, trainable: Collection[str]) -> None:
        """Nobody is there yet.

        Args:
            number: the round.
            trainable: names of the tensors that are compared; running statistics follow the scale of the images.
        """
        self._seed = derive_seed(job.seed, "outliers", number)
        self._names = sorted(trainable)
        self._one_behind_the_other = job.federation.algorithm.relays
        self._sketches: dict[str, Sketch] = {}
        self._norms: dict[str, float] = {}
        self._buckets = np.arange(BLOCK + BUCKETS) % BUCKETS

    def add(self, site: str, tensors: Weights, start: Weights) -> float:
        """Takes an update in, block by block; returns its norm.

        Args:
            start: the model that the site began with.
        """
        # The same signs for every update of the round, in the same order.
        rng = np.random.default_rng(self._seed)
        sketch, squares, position = np.zeros(BUCKETS), 0.0, 0
        for name in self._names:
            before, after = start[name].reshape(-1), tensors[name].reshape(-1)
            for first in range(0, after.size, BLOCK):
                block = slice(first, first + BLOCK)
                step = after[block].astype(np.float64) - before[block]
                squares += float(np.dot(step, step))
                flipped = np.unpackbits(np.frombuffer(rng.bytes(-(-step.size // 8)), np.uint8), count=step.size)
                step[flipped.view(bool)] *= -1
                offset = position % BUCKETS
                sketch += np.bincount(self._buckets[offset : offset + step.size], step, BUCKETS)
                position += step.size
        self._sketches[site], self._norms[site] = sketch, math.sqrt(squares)
        return self._norms[site]

    def finish(self) -> dict[str, Score]:
        """Every site's score, in the order of their names."""
        sites = sorted(self._sketches)
        if not sites:
            return {}
        norms = np.array([self._norms[site] for site in sites])
        units = np.stack([self._sketches[site] for site in sites])
        units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), np.finfo(float).tiny)
        enough = math.ceil(MAJORITY * len(sites))
        alike = np.argsort(-_directions(units, np.arange(len(sites))), kind="stable")[:enough]
        directions = _directions(units, alike)
        lengths = norms / (np.median(norms) or 1.0)
        long = norms > TOO_LONG * np.sort(norms)[enough - 1]
        least = directions[alike].min()
        away = (directions < least - GAP) & (least > AGREE)
        if len(sites) < FEWEST:
            long[:] = False
        if len(sites) < FEWEST or self._one_behind_the_other:
            away[:] = False
        return {
            site: Score(
                norm=float(norms[k]),
                length=float(lengths[k]),
                direction=float(directions[k]),
                why="long" if long[k] else "away" if away[k] else None,
            )
            for k, site in enumerate(sites)
        }


def _directions(units: NDArray[np.float64], group: NDArray[np.intp]) -> NDArray[np.float64]:
    """(K,): the cosine of each row to the mean of the group's other rows; 0 where there are none."""
    total = units[group].sum(axis=0)
    inside = np.isin(np.arange(len(units)), group)
    others = total - units * inside[:, None]
    lengths = np.linalg.norm(others, axis=1)
    dots = np.einsum("ij,ij->i", units, others)
    directions: NDArray[np.float64] = np.divide(dots, lengths, out=np.zeros(len(units)), where=lengths > 1e-12)
    return directions
