"""A hospital's own copies of its files, where they differ from the data set's: seen by its scanner, drawn anew.

A file stays of its kind: a NIfTI gets a NIfTI, a picture a PNG, rows of an npz an npz of the hospital. A case that
preflight will set aside, because it is broken as it comes, keeps its own files and so its own reason.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.data.manifest import Case
from client.data.preprocess import decode
from client.data.readers import Volume, read
from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets.source import SourceCase
from simulation.shift import Scanner

Redraw = Callable[[SourceCase, np.ndarray], np.ndarray]
"""A case and its mask (1, *spatial) of label values -> the mask as the hospital has it, of the same shape and type."""


def rewrite(
    cases: Sequence[SourceCase],
    splits: Mapping[str, str],
    job: Job,
    scanner: Scanner | None,
    redraws: Sequence[Redraw],
    folder: Path,
    advance: Callable[[], None],
) -> list[SourceCase]:
    """The cases of one hospital, naming the files in `folder` that were written where something differs.

    Args:
        splits: patient -> train, validation or test.
        scanner: of the hospital; applied to images, targets and the grid of masks, in every split.
        redraws: applied in their order to the masks of training and validation patients. Test patients keep the data
            set's, so that every model is judged by the same truth.
        advance: called after every case.

    Raises:
        BadInput: the files cannot be written.
    """
    seen = scanner if scanner and scanner.chain else None
    files = _Files(folder)
    result = []
    for place, case in enumerate(cases):
        if (seen or redraws) and _fit(case, job):
            own = () if splits[case.patient] == "test" else redraws
            case = _rewritten(case, f"{place:05d}-{_plain(case.id)}", job, seen, own, files)
        result.append(case)
        advance()
    files.close()
    return result


def _fit(case: SourceCase, job: Job) -> bool:
    try:
        decode(Case(case.id, case.patient, case.images, case.label, "train", case.columns), Path("/"), job)
    except BadInput:
        return False
    return True


def _rewritten(
    case: SourceCase, name: str, job: Job, scanner: Scanner | None, redraws: Sequence[Redraw], files: _Files
) -> SourceCase:
    channels = job.data.channels // len(job.data.images)

    def image(reference: str, column: str) -> str:
        if not scanner or not reference:  # an image that the hospital does not take
            return reference
        volume = read(reference, Path("/"), job.data.spatial_dims, channels)
        seen = scanner.image(volume, f"{case.id}/{column}")
        return files.write(reference, seen, f"{name}-{_plain(column)}")

    def mask(reference: str, column: str, drawn: Sequence[Redraw]) -> str:
        if not drawn and not (scanner and scanner.changes_grid):
            return reference
        volume = read(reference, Path("/"), job.data.spatial_dims, None)
        for redraw in drawn:
            volume = replace(volume, values=redraw(case, volume.values))
        return files.write(reference, scanner.mask(volume) if scanner else volume, f"{name}-{_plain(column)}")

    images = tuple(image(*pair) for pair in zip(case.images, job.data.images, strict=True))
    label, columns = case.label, dict(case.columns)
    if job.task.label == "mask":
        label = mask(label, job.data.label, redraws)
    elif job.task.label == "image" and job.data.label not in job.data.images:
        label = image(label, job.data.label)
    if job.mask_column:
        columns[job.mask_column] = mask(columns[job.mask_column], job.mask_column, ())
    return replace(case, images=images, label=label, columns=columns)


def _plain(name: str) -> str:
    """A name that may stand in a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)


class _Files:
    """Files of one hospital: written as they come, but rows of an npz, which are kept until `close`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, list[np.ndarray]] = {}

    def write(self, source: str, volume: Volume, name: str) -> str:
        """Keeps a volume in the way that its source is kept; returns the reference of a manifest."""
        if "::" in source:
            return self._row(source, volume)
        if source.lower().endswith((".nii", ".nii.gz")):
            return self._put(f"{name}.nii.gz", _nifti(volume))
        return self._put(f"{name}.png", _png(volume.values))

    def close(self) -> None:
        """Writes the npz."""
        if self._rows:
            content = io.BytesIO()
            arrays: dict[str, Any] = {name: np.stack(rows) for name, rows in self._rows.items()}
            np.savez(content, allow_pickle=False, **arrays)
            self._put("rows.npz", content.getvalue())

    def _row(self, source: str, volume: Volume) -> str:
        """Rows of one array stay together; those of archives of one name, one a patient, may differ in shape."""
        archive, _, row = source.partition("::")
        values = _last_channels(volume.values)
        name = "-".join([_plain(Path(archive).stem), row.partition("[")[0], "x".join(map(str, values.shape))])
        rows = self._rows.setdefault(name, [])
        rows.append(values)
        return f"{self._folder / 'rows.npz'}::{name}[{len(rows) - 1}]"

    def _put(self, name: str, content: bytes) -> str:
        path = self._folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror or error}") from None
        return str(path)


def _last_channels(values: np.ndarray) -> np.ndarray:
    return values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)


def _nifti(volume: Volume) -> bytes:
    """A slice becomes a volume of one slice, as NIfTI has it."""
    import nibabel

    values = volume.values[..., None] if volume.values.ndim == 3 else volume.values
    content = nibabel.Nifti1Image(_last_channels(values), volume.affine, dtype=values.dtype).to_bytes()
    return gzip.compress(content, 1, mtime=0)  # no time in it: the same job gives the same bytes


def _png(values: np.ndarray) -> bytes:
    """Grey or colour; whole numbers above a byte become 16 bit, as PNG has them."""
    from PIL import Image

    values = _last_channels(values)
    if values.dtype != np.uint8:
        values = values.clip(0, 65535).astype(np.uint16)
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="PNG")
    return content.getvalue()
