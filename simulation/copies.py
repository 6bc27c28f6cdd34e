"""Copies of one image at several hospitals: models that learnt from it at one would be judged by it at another.

A hospital's preflight finds the copies among its own cases. Nobody can look between real hospitals, whose images never
meet; in a simulation all of them are at hand.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.data.manifest import SPLITS, Case, read_manifest
from client.data.preprocess import decode
from client.data.readers import file_of, read, row_of, stamp
from shared_models.errors import BadInput
from shared_models.job import Job


@dataclass(frozen=True)
class _Member:
    """A case of one hospital."""

    hospital: str
    case: Case
    folder: Path


def copies(manifests: Mapping[str, Path], job: Job) -> list[dict[str, Any]]:
    """How many cases of which hospital and split have the images of an earlier split (train, validation, test) of
    another hospital.

    Rows of an npz are equal if their pixels are, files if their bytes are. A file is read only where another one has
    its size, so that a large data set of files costs a look at every one and no more; rows are always read.

    Args:
        manifests: by hospital, as `write_hospitals` returns them: where a scanner or an annotator has rewritten an
            image, the hospital's own file is compared.

    Returns:
        Rows of `hospital` and `split` that hold the copies, `of` and `of_split` that hold the same images earlier, and
        the number of `cases`; every case is counted once.
    """
    members = [member for name, path in manifests.items() for member in _members(name, path, job)]
    suspects = [member for group in _divided(members, _sizes) for member in group]
    counts: Counter[tuple[str, str, str, str]] = Counter()
    for group in _divided(suspects, lambda member: _contents(member, job)):
        counts.update(_seen_earlier([member for member in group if _fit(member, job)]))
    keys = ("hospital", "split", "of", "of_split")
    return [dict(zip(keys, where, strict=True)) | {"cases": cases} for where, cases in sorted(counts.items())]


def _members(hospital: str, manifest: Path, job: Job) -> list[_Member]:
    try:
        return [_Member(hospital, case, manifest.parent) for case in read_manifest(manifest, job, hospital)]
    except BadInput:  # the hospital is refused for it, with the reason
        return []


def _divided(members: Sequence[_Member], key: Callable[[_Member], Hashable]) -> list[list[_Member]]:
    """The members with an equal key, of those keys that several splits and several hospitals have."""
    groups: dict[Hashable, list[_Member]] = defaultdict(list)
    for member in members:
        if (value := key(member)) is not None:
            groups[value].append(member)
    return [
        group
        for group in groups.values()
        if len({member.hospital for member in group}) > 1 and len({member.case.split for member in group}) > 1
    ]


def _sizes(member: _Member) -> Hashable:
    """Bytes of the files of a case, 0 for an image that the hospital lacks; None where a file is missing.

    Of a row of an npz nothing is said, as equal pixels may lie in files of any size.
    """
    try:
        return tuple(_size(image, member.folder) for image in member.case.images)
    except OSError:
        return None


def _size(image: str, folder: Path) -> int | None:
    if row_of(image):
        return None
    return file_of(image, folder).stat().st_size if image else 0


def _contents(member: _Member, job: Job) -> Hashable:
    """A digest of every image of a case; None where one cannot be read."""
    try:
        return tuple(image and _content(image, member.folder, job) for image in member.case.images)
    except BadInput:
        return None


def _content(image: str, folder: Path, job: Job) -> str:
    if not row_of(image):
        found = stamp(file_of(image, folder))
        return found.sha256 if found else ""
    pixels = read(image, folder, job.data.spatial_dims, None).values.astype(np.float32)
    return hashlib.sha256(f"{pixels.shape}".encode() + np.ascontiguousarray(pixels).data).hexdigest()


def _fit(member: _Member, job: Job) -> bool:
    """Whether the case takes part: two constant images are equal, and preflight sets both aside."""
    try:
        decode(member.case, member.folder, job)
    except BadInput:
        return False
    return True


def _seen_earlier(group: Sequence[_Member]) -> list[tuple[str, str, str, str]]:
    """Hospital and split of each of these equal images that is a copy, and of the first that it is a copy of."""
    found = []
    for member in group:
        earlier = [
            (SPLITS.index(other.case.split), other.hospital)
            for other in group
            if other.hospital != member.hospital and SPLITS.index(other.case.split) < SPLITS.index(member.case.split)
        ]
        if earlier:
            split, hospital = min(earlier)
            found.append((member.hospital, member.case.split, hospital, SPLITS[split]))
    return found
