"""Many small prepared cases in one cache entry: thousands of 28 x 28 images as thousands of files would cost seconds.

A packed shelf is a handful of flat tensors that are mapped from disk, and a case is a view into them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from client.data.cache import CaseCache

_SMALL = 64 * 1024  # bytes of a case that is not worth a file of its own
_SHELF = 64 * 1024 * 1024  # bytes after which the next shelf is begun: what is in memory while one is filled


class ShelfFiller:
    """Puts prepared cases into the cache as they come, small ones by the shelf.

    ``shelves`` lists the ids of the cases on each shelf.
    """

    def __init__(self, cache: CaseCache | None) -> None:
        self.shelves: list[list[str]] = []
        self._cache = cache
        self._ids: list[str] = []
        self._keys: list[str] = []
        self._entries: list[dict[str, Tensor]] = []
        self._bytes = 0

    def add(self, case_id: str, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep one case; call `close` after the last."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size >= _SMALL:
            if self._cache:
                self._cache.put(key, tensors)
            return
        self._ids.append(case_id)
        self._keys.append(key)
        self._entries.append(tensors)
        self._bytes += size
        if self._bytes >= _SHELF:
            self.close()

    def close(self) -> None:
        """Finish the shelf that is being filled."""
        if self._ids:
            self.shelves.append(self._ids)
            if self._cache:
                self._cache.put(shelf_key(self._keys), pack(self._entries))
            self._ids, self._keys, self._entries, self._bytes = [], [], [], 0


def shelf_key(keys: Sequence[str]) -> str:
    """The cache key of a shelf, from the keys of the cases on it."""
    return hashlib.sha256("/".join(["shelf", *keys]).encode()).hexdigest()


def pack(entries: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join cases of the same tensor names, dtypes and numbers of axes; shapes may differ."""
    packed = {}
    for name in entries[0]:
        tensors = [entry[name] for entry in entries]
        packed[name] = torch.cat([tensor.reshape(-1) for tensor in tensors])
        packed[f"{name}.shape"] = torch.tensor([tensor.shape for tensor in tensors], dtype=torch.int64)
    return packed


def unpack(packed: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The cases that were packed, in their order, as views."""
    by_name = {}
    for name in packed:
        if not name.endswith(".shape"):
            by_name[name] = _pieces(packed[name], packed[f"{name}.shape"])
    return [dict(zip(by_name, values, strict=True)) for values in zip(*by_name.values(), strict=True)]


def _pieces(joined: Tensor, shapes: Tensor) -> Sequence[Tensor]:
    if bool((shapes == shapes[0]).all()):  # much faster for the many data sets that know one shape
        return joined.view(len(shapes), *shapes[0].tolist()).unbind()
    pieces = zip(joined.split(shapes.prod(dim=1).tolist()), shapes.tolist(), strict=True)
    return [piece.view(shape) for piece, shape in pieces]
