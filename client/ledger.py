"""The ledger: what this hospital was asked, what it allowed and what left it, in a file that shows any later change.

One line of JSON an entry. Each carries the hash of the entry before it and is signed with the site's key, so that
nobody without the key can change, remove, reorder or insert a line unseen. The file beside it, ``<name>.head``, is
signed too and names the last entry, so that lines cut off the end are missed. Whoever puts an older copy of both files
back is found only by comparing the hash of the last entry with one that was noted elsewhere: `verify_ledger` gives it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared_models.errors import BadInput, RunStopped
from shared_models.files import whole_file
from shared_models.keys import PrivateKey, canonical_json, public_line, sign, verify

NOTHING = "0" * 64
"""What the first entry has for the hash of the one before it."""

LARGEST_LINE = 16 * 1024**2  # bytes
_CHUNK = 64 * 1024
_OWN = {"n": int, "time": str, "kind": str, "site": str, "previous": str, "hash": str, "signature": str}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_HEAD_SCHEMA = "consilium-ledger-head/1"
_TO_DO = "see `consilium site ledger verify`; to go on, keep this ledger and its .head elsewhere and begin a new one"


@dataclass(frozen=True)
class Ledger:
    """The ledger at ``path``, to which a site adds; several processes may at once."""

    path: Path
    key: PrivateKey
    site: str

    def append(self, kind: str, /, **fields: Any) -> str:
        """Add an entry and return its hash, 64 hexadecimal digits; it is on the disk when this returns.

        A last line that a power loss tore is cut off first, kept in a file beside the ledger, and said so in an entry
        of its own (`repaired`).

        Args:
            kind: what happened, such as ``answer``.
            fields: the facts, as JSON knows them; names in lower case.

        Raises:
            BadInput: a field cannot be written, or the ledger is not as this site left it.
            RunStopped: the disk is full or refuses; the ledger is as it was.
        """
        facts = _facts(kind, fields)
        try:
            with _locked(self.path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as file:
                size = os.fstat(file).st_size
                if size == 0:
                    _sync_folder(self.path.parent)
                last, end = _last_line(file, size)
                n, previous = self._last_entry(last)
                if end < size:
                    kept = self._keep(os.pread(file, size - end, end))
                    repair = {"torn_bytes": size - end, "kept": kept}
                    n, previous, end = self._write(file, end, n + 1, previous, "repaired", repair)
                return self._write(file, end, n + 1, previous, kind, facts)[1]
        except OSError as error:
            raise RunStopped(
                f"nothing can be written to the ledger {self.path}: {error.strerror}; without its line nothing leaves "
                "this site, so free space or mend the folder"
            ) from error

    def _last_entry(self, line: bytes) -> tuple[int, str]:
        """The number and hash of the entry to follow, once it is what this site wrote and the head agrees."""
        public = public_line(self.key)
        n, last = 0, NOTHING
        if line:
            entry, fault = _examine(line, public)
            if entry is None or fault:
                raise BadInput(f"the last line of the ledger {self.path} {fault}; {_TO_DO}")
            n, last = entry["n"], entry["hash"]
        fault = _head_fault(_read_head(self.path, public), n, {n: last})
        if fault:
            raise BadInput(f"the ledger {self.path} is not as this site left it: {fault}; {_TO_DO}")
        return n, last

    def _keep(self, torn: bytes) -> str:
        """Put torn bytes beside the ledger; return the name of the file."""
        path = self.path.with_name(f"{self.path.stem}.torn-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
        with whole_file(path) as file:
            file.write(torn)
        return path.name

    def _write(self, file: int, end: int, n: int, previous: str, kind: str, facts: dict) -> tuple[int, str, int]:
        """Write one entry at the offset ``end``, over whatever is torn there; its number, its hash and the new end."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = {**facts, "n": n, "time": time, "kind": kind, "site": self.site, "previous": previous}
        digest = _digest(entry)
        line = canonical_json({**entry, "hash": digest, "signature": sign(self.key, digest.encode())}).encode() + b"\n"
        if len(line) > LARGEST_LINE:
            raise BadInput(
                f"an entry of {len(line)} bytes is too large for the ledger; expected at most {LARGEST_LINE}"
            )
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(file, line[written:], end + written)
            os.ftruncate(file, end + len(line))
            os.fsync(file)
            _write_head(self.path, self.key, n, digest)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, end)
                os.fsync(file)
            raise
        return n, digest, end + len(line)


@dataclass(frozen=True)
class Verification:
    """What an audit of a ledger found."""

    entries: int
    """Whole lines."""
    faults: list[str]
    """What was changed, removed, reordered, inserted or signed by another key; empty for a whole ledger."""
    torn: bool
    """The last line is torn, as a power loss leaves it; the next entry repairs that."""
    head: str | None
    """The hash of the last line: compare it with one noted earlier or elsewhere."""


def verify_ledger(path: Path, public: str) -> Verification:
    """Go through a ledger from its first line to its last, and name every line that is not as the site wrote it.

    Args:
        path: the ledger; its ``.head`` lies beside it.
        public: the site's public key, as `shared_models.keys.public_line` writes it.

    Raises:
        BadInput: there is no ledger, it cannot be read, or ``public`` is no key.
    """
    if not path.exists() and _head_path(path).exists():
        return Verification(0, ["the ledger was removed; only its head is there"], False, None)
    with _reading(path) as (size, end):
        head = _read_head(path, public)
    faults = []
    good: dict[int, str] = {}  # number and hash of each entry that is as the site wrote it
    doubtful: set[int] = set()  # numbers that a faulty line may stand for
    lines, highest, before, last = 0, 0, NOTHING, None
    for lines, raw in enumerate(_lines(path, end), start=1):
        entry, fault = _examine(raw, public)
        last = entry["hash"] if entry else None
        if entry is None or fault:
            faults.append(f"line {lines} {fault}")
            n = entry["n"] if entry else highest + 1
            doubtful |= {n, highest + 1}
            if n == highest + 1:
                highest, before = n, ""
            continue
        n = entry["n"]
        if n in good:
            faults.append(f"line {lines} was inserted: it repeats entry {n}")
            continue
        if n < highest:
            faults.append(f"line {lines} was moved: entry {n} stands after entry {highest}")
        elif n == highest + 1 and before not in ("", entry["previous"]):
            faults.append(f"line {lines} does not continue the line before it: it is from another ledger")
        good[n] = entry["hash"]
        if n >= highest:
            highest, before = n, entry["hash"]
    while highest + 1 in doubtful:
        highest += 1
    faults += _removed(good.keys() | doubtful, max(good, default=0))
    ending = _head_fault(head, highest, good)
    return Verification(lines, faults + ([ending] if ending else []), end < size, last)


def _removed(present: set[int], highest: int) -> list[str]:
    """A sentence for each gap in the numbers up to the highest."""
    gaps: list[list[int]] = []
    for n in sorted(set(range(1, highest)) - present):
        if gaps and gaps[-1][1] == n - 1:
            gaps[-1][1] = n
        else:
            gaps.append([n, n])
    return [_missing(first, last) for first, last in gaps]


def _missing(first: int, last: int) -> str:
    return f"entry {first} was removed" if first == last else f"entries {first} to {last} were removed"


def read_ledger(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a ledger, oldest first, without proof that they are genuine; a torn last line is left out.

    Raises:
        BadInput: there is no ledger, it cannot be read, or a line is no entry.
    """
    with _reading(path) as (_, end):
        pass
    for number, raw in enumerate(_lines(path, end), start=1):
        entry = _parse(raw)
        if entry is None:
            raise BadInput(f"line {number} of {path} is no entry of a ledger; see `consilium site ledger verify`")
        yield entry


def _facts(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as JSON gives them back, so that what is hashed is what will be read."""
    for name in (kind, *fields):
        if not _NAME.fullmatch(name) or name in _OWN:
            raise BadInput(f"{name[:60]!r} cannot be the name of a field or kind of the ledger")
    try:
        facts: dict[str, Any] = json.loads(canonical_json(fields))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"a field of the ledger entry {kind!r} cannot be written: {error}") from None
    return facts


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The entry on a line, or None where the line is not one that this module writes."""
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or canonical_json(entry).encode() + b"\n" != line:
            return None
    except (ValueError, RecursionError):
        return None
    return entry if all(type(entry.get(key)) is kind for key, kind in _OWN.items()) else None


def _examine(line: bytes, public: str) -> tuple[dict[str, Any] | None, str | None]:
    """The entry on a line, and what is wrong with it."""
    entry = _parse(line)
    if entry is None:
        return None, "was changed: it is no entry of a ledger"
    if _digest({key: value for key, value in entry.items() if key not in ("hash", "signature")}) != entry["hash"]:
        return entry, "was changed: its content does not have the hash that it carries"
    if not verify(public, entry["hash"].encode(), entry["signature"]):
        return entry, "is not signed by this site's key: it was changed or inserted"
    return entry, None


def _write_head(path: Path, key: PrivateKey, n: int, digest: str) -> None:
    content = {"schema": _HEAD_SCHEMA, "n": n, "hash": digest}
    signature = sign(key, canonical_json(content).encode())
    with whole_file(_head_path(path)) as file:
        file.write(canonical_json({**content, "signature": signature}).encode())


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path, public: str) -> tuple[int, str] | None:
    """Number and hash of the last entry as the head names them; None without a head, (-1, "") for another's head."""
    try:
        with _head_path(path).open("rb") as file:
            head = json.loads(file.read(4096))
        content = {"schema": _HEAD_SCHEMA, "n": head["n"], "hash": head["hash"]}
        genuine = verify(public, canonical_json(content).encode(), head["signature"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        genuine = False
    return (content["n"], content["hash"]) if genuine else (-1, "")


def _head_fault(head: tuple[int, str] | None, last: int, hashes: dict[int, str]) -> str | None:
    """What the head says against a ledger that ends with entry ``last``.

    A head may be behind, as a power loss between the entry and its head leaves it; it is never ahead.
    """
    if head is None:
        return None if last < 2 else "its head is missing, so nobody can tell whether the last entries are"
    n, digest = head
    if n < 0:
        return "its head is damaged or not signed by this site's key"
    if n > last:
        return f"{_missing(last + 1, n)} from the end"
    if n in hashes and hashes[n] != digest:
        return f"entry {n} is not the one that its head names"
    return None


@contextmanager
def _locked(path: Path, flags: int, lock: int) -> Iterator[int]:
    """The open ledger as a file descriptor, while no other process writes to it."""
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, lock)
        yield file
    finally:
        os.close(file)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[int, int]]:
    """The bytes of a ledger and of its whole lines, while nobody writes; what was written stays as it is afterwards."""
    try:
        with _locked(path, os.O_RDONLY, fcntl.LOCK_SH) as file:
            size = os.fstat(file).st_size
            yield size, _last_line(file, size)[1]
    except FileNotFoundError:
        raise BadInput(f"there is no ledger at {path}; a site begins one when it first starts") from None
    except OSError as error:
        raise BadInput(f"the ledger {path} cannot be read: {error.strerror}") from None


def _lines(path: Path, end: int) -> Iterator[bytes]:
    """The lines of a ledger up to the offset ``end``; of one that is too long for an entry, only the beginning."""
    with path.open("rb") as file:
        while file.tell() < end:
            line = file.readline(LARGEST_LINE)
            if not line:
                return
            yield line
            while line and not line.endswith(b"\n"):
                line = file.readline(LARGEST_LINE)


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file last."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _last_line(file: int, size: int) -> tuple[bytes, int]:
    """The last whole line (empty where there is none) and the offset of its end, without reading what is before it."""
    start, data = size, b""
    while start > 0 and data.count(b"\n") < 2:
        step = min(_CHUNK, start)
        start -= step
        data = os.pread(file, step, start) + data
    end = data.rfind(b"\n") + 1
    begin = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
    return data[begin:end], start + end
