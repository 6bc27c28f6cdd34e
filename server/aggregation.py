"""A weighted sum that takes one update at a time: its memory does not depend on the number of sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared_models.weights import Weights

# Elements worked on at once: the float64 temporaries of one block stay in a core's second-level cache.
BLOCK = 32_768


class RunningSum:
    """Σ wₖ·xₖ per tensor, in float64 with a float32 compensation (Knuth 1997, TwoSum).

    A float32 weight times a case count is exact in float64, and the compensation keeps what an addition rounds away,
    so the order in which sites answer cannot show in the float32 mean.
    """

    def __init__(self) -> None:
        self.weight = 0
        self.sites = 0
        self._sum: dict[str, NDArray[np.float64]] = {}
        self._lost: dict[str, NDArray[np.float32]] = {}
        self._work = np.empty((4, BLOCK), np.float64)

    def add(self, tensors: Mapping[str, NDArray[np.float32]], weight: int) -> None:
        """Folds one site's tensors in; the caller drops them afterwards."""
        for name, tensor in tensors.items():
            if name not in self._sum:
                self._sum[name] = np.zeros(tensor.shape, np.float64)
                self._lost[name] = np.zeros(tensor.shape, np.float32)
            flat, total, lost = tensor.reshape(-1), self._sum[name].reshape(-1), self._lost[name].reshape(-1)
            for start in range(0, flat.size, BLOCK):
                block = slice(start, start + BLOCK)
                self._add_block(flat[block], weight, total[block], lost[block])
        self.weight += weight
        self.sites += 1

    def _add_block(
        self, values: NDArray[np.float32], weight: int, total: NDArray[np.float64], lost: NDArray[np.float32]
    ) -> None:
        term, new, seen, rest = self._work[:, : values.size]
        np.multiply(values, float(weight), out=term, dtype=np.float64)
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
