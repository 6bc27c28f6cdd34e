"""Prepared cases on disk, bounded, and shared by the processes of a machine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_LOG = logging.getLogger(__name__)
_SUFFIX = ".safetensors"


class CaseCache:
    """Entries of tensors by key: one safetensors file each, replaced as a whole, with a checksum inside.

    Any number of processes may share the folder. What is read is verified once per process; an entry that does not
    match its checksum is deleted and counts as absent.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Keep at most about `limit_bytes` in `folder`; the entries that were not used for longest go first."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._verified: dict[str, tuple[int, int]] = {}
        self._writable = True  # as far as is known: a full disk is told once, but tried again
        self._unseen_bytes: int | None = None  # written since the folder was last measured; None: never measured

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors put under this key, or None. They are mapped from the file: processes share the pages."""
        path = self._path(key)
        try:
            status = path.stat()
            with safe_open(path, framework="pt") as file:
                checksum = (file.metadata() or {}).get("checksum")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            identity = (status.st_ino, status.st_size)
            if self._verified.get(key) != identity:
                if checksum != _checksum(tensors):
                    raise SafetensorError("the checksum does not match")
                self._verified[key] = identity
                with contextlib.suppress(OSError):
                    os.utime(path)  # used: not among the first to be evicted
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (SafetensorError, OSError, ValueError) as error:
            _LOG.warning("The cache entry %s is damaged (%s): it is made anew.", path, error)
            self._discard(path)
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors; a disk that is full or read-only costs the cache, not the run."""
        path = self._path(key)
        if path.exists():
            return
        content = safetensors.torch.save(tensors, metadata={"checksum": _checksum(tensors)})
        if len(content) > self.limit_bytes:
            return
        try:
            self._write(path, content)
        except OSError as error:
            if self._writable:
                _LOG.warning("The cache in %s cannot be written (%s): cases are prepared again.", self.folder, error)
            self._writable = False
            return
        if self._unseen_bytes is not None:
            self._unseen_bytes += len(content)
        if self._unseen_bytes is None or self._unseen_bytes > self.limit_bytes // 20:
            self._evict()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        """Write through a temporary file. No fsync: after a power cut the checksum tells a torn entry apart."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            self._discard(Path(temporary))
            raise

    def _evict(self) -> None:
        """Measure the folder and delete what was not used for longest, until a tenth of the limit is free.

        A process that has mapped a deleted entry keeps its pages; one that comes later prepares the case again.
        Temporary files that a killed process left behind age and go like entries.
        """
        found = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process evicts at the same time
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        if total > self.limit_bytes:
            for _, size, path in sorted(found):
                if total <= self.limit_bytes * 9 // 10:
                    break
                self._discard(path)
                total -= size
        self._unseen_bytes = 0

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).numpy().data)
    return digest.hexdigest()
