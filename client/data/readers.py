"""One reference of a manifest (NIfTI, PNG, JPEG, or a row of an npz array) decoded into an array."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shared_models.errors import BadInput
from shared_models.faults import QUARANTINE

_NPZ_ROW = re.compile(r"(?P<file>.+\.npz)::(?P<array>[^\[\]]+)\[(?P<row>\d+)\]")
_PICTURES = (".png", ".jpg", ".jpeg")
_NIFTI = (".nii", ".nii.gz")


class Unfit(BadInput):
    """What is wrong with a case; `category`, a key of QUARANTINE, may leave the site, the sentence stays."""

    def __init__(self, category: str, sentence: str) -> None:
        assert category in QUARANTINE
        super().__init__(sentence)
        self.category = category


@dataclass(frozen=True)
class Volume:
    """What a file holds: `values` (channels, *spatial) as stored, and `affine` (4, 4), voxel to mm; None without."""

    values: np.ndarray
    affine: np.ndarray | None


@dataclass(frozen=True)
class FileStamp:
    """A file's content and how to see that it has changed, without reading it again."""

    size: int
    mtime_ns: int
    sha256: str


def file_of(reference: str, folder: Path) -> Path:
    """The file that a reference points into; relative references start at the manifest's folder."""
    match = _NPZ_ROW.fullmatch(reference)
    return folder / (match["file"] if match else reference)


def row_of(reference: str) -> str:
    """The part of a reference that is inside the file, such as ``images[17]``; "" for the whole file."""
    match = _NPZ_ROW.fullmatch(reference)
    return f"{match['array']}[{match['row']}]" if match else ""


def shown(reference: str, folder: Path) -> str:
    """The reference as a sentence names it: relative to the manifest's folder where it lies inside."""
    prefix = f"{folder}/"
    return reference.removeprefix(prefix)


def stamp(file: Path) -> FileStamp | None:
    """Size, time and content digest of a file; None where there is none. A file seen before is not hashed again."""
    try:
        status = file.stat()
        return FileStamp(status.st_size, status.st_mtime_ns, _sha256(file, status.st_size, status.st_mtime_ns))
    except OSError:
        return None


@lru_cache(maxsize=64)  # an npz is asked for once per site and run; single images are not worth keeping
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(reference: str, folder: Path, spatial_dims: int, channels: int | None) -> Volume:
    """Decode one reference.

    Args:
        reference: a path or npz row, as the manifest has it.
        folder: the manifest's folder.
        spatial_dims: 2 or 3; a NIfTI slice (H, W, 1) counts as 2D.
        channels: of a picture: 1 reads it grey, 3 in colour; None takes it for a mask with labels as pixel values.

    Raises:
        Unfit: one sentence with the file.
    """
    name = shown(reference, folder)
    file = file_of(reference, folder)
    if not os.path.isfile(file):  # unlike Path.is_file, it answers no, too, where the folder may not be looked into
        raise Unfit("file_missing", f"The file {name} does not exist.")
    if match := _NPZ_ROW.fullmatch(reference):
        volume = _read_npz_row(file, match["array"], int(match["row"]), name, spatial_dims)
    elif file.name.lower().endswith(_NIFTI):
        volume = _read_nifti(file, name, spatial_dims)
    elif file.name.lower().endswith(_PICTURES):
        volume = _read_picture(file, name, channels)
    else:
        raise Unfit(
            "file_unreadable",
            f"The file {name} is of no known kind: expected {', '.join(_NIFTI + _PICTURES)}, "
            "or a row of an npz file such as images.npz::images[17].",
        )
    if volume.values.dtype.kind not in "buif":
        raise Unfit(
            "file_unreadable", f"{name} holds values of type {volume.values.dtype}, where real numbers are expected."
        )
    if volume.values.ndim != spatial_dims + 1:
        found = " x ".join(map(str, volume.values.shape[1:]))
        raise Unfit(
            "shape",
            f"{name} has {volume.values.ndim - 1} spatial dimensions ({found}), "
            f"where data.spatial_dims of the job says {spatial_dims}.",
        )
    return volume


def _read_nifti(file: Path, name: str, spatial_dims: int) -> Volume:
    from monai.data import NibabelReader

    reader = NibabelReader()
    try:
        values, meta = reader.get_data(reader.read(file))
    except Exception as error:  # nibabel, zlib and gzip raise a dozen kinds for a broken file
        raise Unfit("file_unreadable", f"{name} cannot be read as NIfTI ({_reason(error, file)}).") from error
    has_channels = meta["original_channel_dim"] == -1
    values = np.moveaxis(values, -1, 0) if has_channels else values[None]
    if spatial_dims == 2 and values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    affine = np.asarray(meta["affine"], dtype=np.float64)
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise Unfit("position", f"{name} does not say where its voxels lie: its affine is {affine.round(3).tolist()}.")
    return Volume(values, affine)


def _read_picture(file: Path, name: str, channels: int | None) -> Volume:
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(file) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if channels == 3:
                values = np.asarray(picture.convert("RGB"))
            elif channels is None or picture.mode.startswith(("I", "F")):  # 16 and 32 bit: convert("L") would clip
                values = np.asarray(picture)
            else:
                values = np.asarray(picture.convert("L"))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib.error ... for a broken file
        raise Unfit("file_unreadable", f"{name} cannot be read as a picture ({_reason(error, file)}).") from error
    if channels not in (None, 1, 3):
        raise Unfit(
            "channels", f"{name} is a picture, which gives 1 (grey) or 3 (colour) channels, where {channels} are asked."
        )
    if channels is None and values.ndim != 2:
        raise Unfit(
            "channels", f"The mask {name} is a colour picture; expected one channel with the label as pixel value."
        )
    return Volume(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0), None)


def _read_npz_row(file: Path, array_name: str, row: int, name: str, spatial_dims: int) -> Volume:
    status = file.stat()
    array = _npz_array(file, array_name, status.st_size, status.st_mtime_ns)
    if isinstance(array, str):
        raise Unfit("file_unreadable", f"{name} cannot be read ({array}).")
    if array.ndim == 0 or row >= len(array):
        raise Unfit("file_missing", f"{name} does not exist: the array has {len(array) if array.ndim else 'no'} rows.")
    values = np.asarray(array[row])
    has_channels = values.ndim == spatial_dims + 1
    return Volume(np.moveaxis(values, -1, 0) if has_channels else values[None], None)


@lru_cache(maxsize=8)  # images and masks of three splits, and two to spare
def _npz_array(file: Path, array: str, size: int, mtime_ns: int) -> np.ndarray | str:
    """The array, or why it cannot be read: also a failure is remembered, not tried again for every row."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if array not in arrays.files:
                return f"the arrays of the file are {', '.join(arrays.files)}"
            values: np.ndarray[Any, Any] = arrays[array]
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for a broken file
        return _reason(error, file)
    values.flags.writeable = False
    return values


def _reason(error: Exception, file: Path) -> str:
    """The error's first line, short, without the folder that the sentence names already."""
    text = (str(error).strip().splitlines() or [""])[0].replace(str(file), "the file").rstrip(".")
    return text[:160] or type(error).__name__
