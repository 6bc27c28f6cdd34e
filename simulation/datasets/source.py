"""One case of a public data set, before anybody decided which virtual hospital gets it."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shared_models.errors import BadInput

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceCase:
    """One case of a data set.

    Attributes:
        id: unique in the data set.
        patient: who the images are of; a patient is never divided between hospitals or splits.
        images: one reference per column of ``job.data.images``: an absolute path, or ``"/x/file.npz::array[17]"``.
        label: a reference like an image (segmentation), or a class name or index, several joined by ";"
            (classification).
        split: "train", "validation" or "test" where the data set has an official split, else "".
        label_key: what label-skewed partitions stratify by; "" where there is nothing to stratify by.
        columns: every other column, such as scanner, sex, age.
    """

    id: str
    patient: str
    images: tuple[str, ...]
    label: str
    split: str
    label_key: str
    columns: dict[str, str] = field(default_factory=dict)


def array_shape(archive: Path, array: str) -> tuple[int, ...]:
    """The shape of one array of an npz, read from its header: the pixels stay on disk."""
    try:
        with zipfile.ZipFile(archive) as members, members.open(f"{array}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(member)[0]
    except KeyError:
        raise BadInput(f"{archive} has no array {array!r}; it has {', '.join(array_names(archive))}") from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{archive} cannot be read as an npz: {error}; download it again") from None


def array_names(archive: Path) -> list[str]:
    """The names of the arrays of an npz."""
    try:
        with zipfile.ZipFile(archive) as members:
            return [name.removesuffix(".npy") for name in members.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{archive} cannot be read as an npz: {error}; download it again") from None


def read_array(archive: Path, array: str) -> np.ndarray:
    """One array of an npz, in memory; object arrays (pickles) are refused."""
    array_shape(archive, array)  # a clear sentence for a missing array or a broken file
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            return np.asarray(arrays[array])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{archive}: array {array!r} cannot be read: {error}") from None


def labels_as_text(labels: np.ndarray) -> list[str]:
    """Labels of an npz as manifest text.

    Args:
        labels: (n,) or (n, 1) class names or indices, or (n, classes) with a one for every finding.

    Returns:
        n texts: a class name or index, or the indices of the findings joined by ";" ("" for none).
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        return [";".join(map(str, np.flatnonzero(row))) for row in labels]
    return cells_as_text(labels)


def cells_as_text(values: np.ndarray) -> list[str]:
    """A column of an npz as text: bytes are UTF-8, NaN is an empty cell, 3.0 is "3"."""
    if values.dtype.kind == "S":
        return [value.decode("utf-8", "replace") for value in values.tolist()]
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else f"{value:.15g}" for value in values.tolist()]
    return [str(value) for value in values.tolist()]


def label_keys(labels: Sequence[str]) -> list[str]:
    """What to stratify by: the class itself; of several findings the rarest one, which is hardest to spread."""
    counts = Counter(finding for label in labels for finding in label.split(";"))
    return [min(label.split(";"), key=lambda finding: (counts[finding], finding)) or "none" for label in labels]
