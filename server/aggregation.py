"""How the updates of a round become one: what every way offers, and the weighted mean.

The mean takes one update at a time: its memory does not depend on the number of sites. Those that an update cannot
carry away are in `server.robust`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared_models.weights import Weights

# Elements worked on at once: the float64 temporaries of one block stay in a core's second-level cache.
BLOCK = 32_768


class Aggregator(Protocol):
    """One round's updates on their way to one. The order in which they are added must not show in the result."""

    @property
    def weight(self) -> float:
        """Of all updates so far together."""

    @property
    def sites(self) -> int:
        """The number of updates so far."""

    @property
    def notes(self) -> dict[str, Any]:
        """What the run's record should say of it, as JSON; whole once `take_mean` is done."""

    def add(self, site: str, tensors: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Takes one admitted update; all have the same names and shapes."""

    def take_mean(self) -> Weights:
        """The updates made one, in float32; called once.

        Raises:
            ValueError: there are too few of them.
        """


class RunningSum:
    """Σ wₖ·xₖ per tensor, in float64 with a float32 compensation (Knuth 1997, TwoSum).

    A float32 weight times a case count is exact in float64, and the compensation keeps what an addition rounds away,
    so the order in which sites answer cannot show in the float32 mean.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.sites = 0
        self.notes: dict[str, Any] = {}
        self._sum: dict[str, NDArray[np.float64]] = {}
        self._lost: dict[str, NDArray[np.float32]] = {}
        self._work = np.empty((4, BLOCK), np.float64)

    def add(self, site: str, tensors: Mapping[str, NDArray[np.float32]], weight: float) -> None:
        """Folds one site's tensors in; the caller drops them afterwards."""
        for name, tensor in tensors.items():
            if name not in self._sum:
                self._sum[name] = np.zeros(tensor.shape, np.float64)
                self._lost[name] = np.zeros(tensor.shape, np.float32)
            flat, total, lost = tensor.reshape(-1), self._sum[name].reshape(-1), self._lost[name].reshape(-1)
            for block in blocks(flat.size):
                self._add_block(flat[block], weight, total[block], lost[block])
        self.weight += weight
        self.sites += 1

    def _add_block(
        self, values: NDArray[np.float32], weight: float, total: NDArray[np.float64], lost: NDArray[np.float32]
    ) -> None:
        term, new, seen, rest = self._work[:, : values.size]
        np.multiply(values, weight, out=term, dtype=np.float64)
        np.add(total, term, out=new)
        np.subtract(new, total, out=seen)  # what of the term arrived in the sum
        np.subtract(new, seen, out=rest)
        np.subtract(total, rest, out=rest)  # what of the sum was rounded away
        np.subtract(term, seen, out=term)  # what of the term was rounded away
        np.add(rest, term, out=rest)
        np.add(lost, rest, out=lost, casting="same_kind")
        total[...] = new

    def take_mean(self) -> Weights:
        """The weighted mean in float32; the sum is used up, tensor by tensor, so that both never stand in memory whole.

        Raises:
            ValueError: nothing was added.
        """
        if self.weight <= 0:
            raise ValueError("the mean of no updates")
        mean: Weights = {}
        for name in list(self._sum):
            total = self._sum.pop(name)
            total += self._lost.pop(name)
            total /= self.weight
            mean[name] = total.astype(np.float32)
        return mean


def squared_distance(
    a: Mapping[str, NDArray[np.float32]], b: Mapping[str, NDArray[np.float32]], names: Collection[str]
) -> float:
    """Of two models, over the named tensors: block by block in float64, without a third model in memory."""
    squares = 0.0
    for name in sorted(names):  # a run that was resumed has its tensors in another order, and sums in the same
        ours, theirs = a[name].reshape(-1), b[name].reshape(-1)
        for block in blocks(ours.size):
            difference = ours[block].astype(np.float64) - theirs[block]
            # Not a dot product: its last bits depend on the number of threads.
            squares += float(np.square(difference, out=difference).sum())
    return squares


def blocks(size: int) -> Iterator[slice]:
    """Slices of at most BLOCK elements that cover so many."""
    for start in range(0, size, BLOCK):
        yield slice(start, start + BLOCK)
