"""The deterministic half of preparing a case: decode, check, bring to one grid, normalise. Nothing here is random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.data.landmarks import to_standard
from client.data.manifest import Case, files_of
from client.data.readers import FileStamp, Unfit, Volume, file_of, read, row_of, shown
from shared_models.job import Data, Job

AFFINE_TOLERANCE = 1e-3
_FORMAT = 2  # raise it when this file prepares a case differently: every cached case is then made anew


@dataclass(frozen=True)
class Decoded:
    """A case as its files have it, checked: images (channels, *spatial) as float32, and its label.

    `label` is a mask (1, *spatial) of label values, a class index (), 0/1 per class (classes,), or a target like the
    image; `mask` is there when the task judges with masks beside its label. `annotated` is there with data.annotated:
    bool (classes,), and the label has none of the classes that are not. An image that the hospital lacks is zero.
    """

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray | None
    mask: np.ndarray | None = None
    annotated: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per axis of the file; 1.0 where it knows none."""
        return _spacing(self.affine, self.image.ndim - 1)


def prepare(case: Case, folder: Path, job: Job) -> dict[str, Any]:
    """Read one case and bring it to the job's grid and intensity scale; not cropped, not padded.

    Returns:
        image float32 (channels, *spatial); label uint8 (1, *spatial) for a mask (int64 above 256 classes), int64 ()
        for a class, float32 (classes,) for multi_label, float32 (channels, *spatial) for a target, which is
        normalised by itself; mask, like a label that is one, where job.mask_column names it; annotated bool (classes,)
        with data.annotated; spacing in mm per axis (1.0 where the file knows none); id; patient.

    Raises:
        Unfit: one sentence naming the file, for whatever is wrong with the case.
    """
    return finish(decode(case, folder, job), case, job)


def decode(case: Case, folder: Path, job: Job) -> Decoded:
    """Read the files of a case and refuse what cannot be trained on.

    Raises:
        Unfit: a file is missing or broken; shapes, affines or channels disagree; the image holds NaN or is
            constant; the mask or class is not in the job's classes.
    """
    data = job.data
    per_image, odd = divmod(data.channels, len(data.images))
    if odd:
        raise Unfit(
            "channels", f"data.channels is {data.channels}, which {len(data.images)} image columns cannot share evenly."
        )
    lacking_allowed = data.missing_channels == "zeros" and any(case.images)
    for column, reference in files_of(case, job).items():
        if not reference and not (column in data.images and lacking_allowed):
            what = "image" if column in data.images else "target" if job.task.label == "image" else "mask"
            raise Unfit("file_missing", f"The column '{column}' is empty: there is no {what}.")
    there = [reference for reference in case.images if reference]
    first = shown(there[0], folder)
    volumes: list[Volume] = []
    for reference in there:
        volume = _image(reference, folder, job, per_image)
        volumes.append(volume)
        _check_same_grid(volumes[0], volume, first, shown(reference, folder))
    found, like = iter(volumes), volumes[0].values
    image = np.concatenate([next(found).values if reference else np.zeros_like(like) for reference in case.images])
    mask = annotated = None
    if job.task.label == "mask":
        label = _mask(case.label, job.task.classes, folder, job, volumes[0], first)
        annotated = _annotated(case, job)
        if annotated is not None:
            label = np.where(annotated[label], label, 0).astype(label.dtype)
    elif job.task.label == "image":
        target = _image(case.label, folder, job, data.channels)
        _check_same_grid(volumes[0], target, first, shown(case.label, folder))
        label = target.values
    else:
        label = _class_label(case, job)
        if job.mask_column and job.task.kind == "translation" and job.task.how.mode == "unpaired":
            mask = _mask(case.columns[job.mask_column], job.task.how.mask_classes, folder, job, volumes[0], first)
    return Decoded(image, label, volumes[0].affine, mask, annotated)


def _image(reference: str, folder: Path, job: Job, channels: int) -> Volume:
    """An image as float32, with finite values that differ."""
    volume = read(reference, folder, job.data.spatial_dims, channels)
    volume = replace(volume, values=volume.values.astype(np.float32, copy=False))
    name = shown(reference, folder)
    if len(volume.values) != channels:
        raise Unfit(
            "channels", f"{name} has {_count(len(volume.values), 'channel')}, where the job expects {channels}."
        )
    _check_intensities(volume.values, name)
    return volume


def finish(decoded: Decoded, case: Case, job: Job) -> dict[str, Any]:
    """Orientation, spacing and normalisation of a decoded case; returns what `prepare` returns."""
    image, label, mask, affine = decoded.image, decoded.label, decoded.mask, decoded.affine
    name = Path(next(filter(None, case.images))).name
    if job.data.spacing is not None and affine is None:
        raise Unfit(
            "position",
            f"{name} does not know its voxel size, so it cannot be resampled to "
            f"{job.data.spacing} mm: leave out data.spacing.",
        )
    if affine is not None:
        try:
            if job.task.label != "class":
                label, _ = _to_grid(label, affine, job, "nearest" if job.task.label == "mask" else "bilinear")
            if mask is not None:
                mask, _ = _to_grid(mask, affine, job, "nearest")
            image, affine = _to_grid(image, affine, job, "bilinear")
        except (ValueError, RuntimeError) as error:
            raise Unfit(
                "position",
                f"{name} cannot be brought to RAS orientation and spacing {job.data.spacing}: its affine is "
                f"{affine.round(3).tolist()}.",
            ) from error
    if job.task.label == "image":
        label = _normalised(label, job.data)
    sample = {
        "image": torch.from_numpy(_normalised(image, job.data)),
        "label": torch.from_numpy(np.array(label, order="C")),
        "id": case.id,
        "patient": case.patient,
        "spacing": _spacing(affine, job.data.spatial_dims),
    }
    if mask is not None:
        sample["mask"] = torch.from_numpy(np.array(mask, order="C"))
    if decoded.annotated is not None:
        sample["annotated"] = torch.from_numpy(decoded.annotated)
    return sample


def preparation(job: Job) -> str:
    """The parts of a job that decide what a prepared case looks like, and nothing else, in one canonical form."""
    parts = {
        "format": _FORMAT,
        "task": job.task.model_dump(
            include={"kind": True, "classes": True, "mode": True, "how": {"mode", "domains", "mask_classes"}}
        ),
        "data": job.data.model_dump(
            include={"spatial_dims", "channels", "spacing", "normalisation", "window", "landmarks"}
        ),
    }
    return json.dumps(parts, sort_keys=True)


def case_keys(cases: Sequence[Case], folder: Path, job: Job, stamps: Mapping[str, FileStamp | None]) -> dict[str, str]:
    """The cache key of every prepared case by its id: file contents, rows used, `preparation` and words.

    The words are the class label, and what the manifest says to be annotated.

    Args:
        stamps: every file of the cases by its path; the key of a case with a missing file is of no use.
    """
    common = preparation(job)
    keys = {}
    for case in cases:
        used = references(case, job)
        known = [stamps.get(str(file_of(reference, folder))) for reference in used]
        contents = [stamp.sha256 if stamp else "" for stamp in known]
        label = case.label if job.task.label == "class" else ""
        annotated = [case.columns.get(job.data.annotated, "")] if job.data.annotated else []
        parts = [common, label, *annotated, *contents, *map(row_of, used)]
        keys[case.id] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return keys


def references(case: Case, job: Job) -> list[str]:
    """What has to be read for a case: its images, and what the task has of masks and targets."""
    return list(files_of(case, job).values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_same_grid(first: Volume, other: Volume, first_name: str, other_name: str) -> None:
    if first.values.shape[1:] != other.values.shape[1:]:
        shapes = [" x ".join(map(str, volume.values.shape[1:])) for volume in (other, first)]
        raise Unfit("position", f"{other_name} has the shape {shapes[0]}, but {first_name} has {shapes[1]}.")
    if first.affine is None or other.affine is None:
        return
    difference = float(np.abs(first.affine - other.affine).max())
    if not difference <= AFFINE_TOLERANCE:
        raise Unfit(
            "position",
            f"{other_name} lies elsewhere in space than {first_name}: their affines differ by "
            f"{difference:.4g} (up to {AFFINE_TOLERANCE} is tolerated).",
        )


def _check_intensities(values: np.ndarray, name: str) -> None:
    if values.size == 0:
        raise Unfit("constant", f"{name} is empty: its shape is {' x '.join(map(str, values.shape[1:]))}.")
    low, high = values.min(), values.max()  # NaN and infinity show in them: no array of flags is needed
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(values.size - np.isfinite(values).sum())
        raise Unfit(
            "not_finite",
            f"{name} holds {_count(bad, 'value')} that {'is' if bad == 1 else 'are'} not finite (NaN or infinite).",
        )
    if low == high:
        raise Unfit("constant", f"{name} is constant: every value is {low:g}.")


def _class_label(case: Case, job: Job) -> np.ndarray:
    classes = job.task.classes
    if job.task.kind == "classification" and job.task.mode == "multi_label":
        found = {_class_index(text.strip(), classes, job) for text in case.label.split(";") if text.strip()}
        return np.array([index in found for index in range(len(classes))], dtype=np.float32)
    return np.array(_class_index(case.label, classes, job), dtype=np.int64)


def _class_index(text: str, classes: list[str], job: Job) -> int:
    """A class by its name, else by its index."""
    if not text:
        raise Unfit("label_missing", f"The column '{job.data.label}' is empty: there is no class.")
    if text in classes:
        return classes.index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise Unfit(
        "label_values",
        f"The label '{text}' is not one of the classes {', '.join(classes)}, "
        f"nor an index from 0 to {len(classes) - 1}.",
    )


def _annotated(case: Case, job: Job) -> np.ndarray | None:
    """Which classes a case annotates, bool (classes,), the background always; None without data.annotated."""
    column, classes = job.data.annotated, job.task.classes
    if column is None:
        return None
    named = [name.strip() for name in case.columns.get(column, "").split(";") if name.strip()]
    odd = next((name for name in named if name not in classes[1:]), None)
    if odd is not None:
        raise Unfit(
            "label_values",
            f"The column '{column}' says that '{odd}' is annotated; expected {', '.join(classes[1:])}, "
            "several separated by ';', or nothing where all are.",
        )
    return np.array([not named or place == 0 or name in named for place, name in enumerate(classes)])


def _mask(reference: str, names: list[str], folder: Path, job: Job, image: Volume, image_name: str) -> np.ndarray:
    name = shown(reference, folder)
    mask = read(reference, folder, job.data.spatial_dims, channels=None)
    if len(mask.values) != 1:
        raise Unfit(
            "channels", f"The mask {name} has {len(mask.values)} channels; expected one with the label as value."
        )
    _check_same_grid(image, mask, image_name, name)
    classes = len(names)
    found = np.unique(mask.values)
    values = mask.values
    if classes == 2 and found[-1] == 255 and set(found.tolist()) <= {0, 255}:
        values, found = values == 255, np.array([0, 1])  # a black and white picture
    if not (np.isfinite(found).all() and (found == np.floor(found)).all()):
        raise Unfit(
            "label_values", f"The mask {name} holds values that are no whole numbers, such as {_first_odd(found):g}."
        )
    if found[0] < 0 or found[-1] >= classes:
        outside = [f"{value:g}" for value in found if not 0 <= value < classes]
        raise Unfit(
            "label_values",
            f"The mask {name} holds the label {', '.join(outside[:5])}{' ...' if outside[5:] else ''}; "
            f"expected 0 to {classes - 1} ({', '.join(names)}).",
        )
    return values.astype(np.uint8 if classes <= 256 else np.int64)


def _first_odd(found: np.ndarray) -> float:
    return float(next(value for value in found if value != np.floor(value) or not np.isfinite(value)))


def _to_grid(values: np.ndarray, affine: np.ndarray, job: Job, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Turn a volume so that its axes run to the right, front and top (RAS), then resample to the job's spacing.

    A 2D image keeps its orientation: it is a slice or a projection, and which way up it lies is the site's choice.
    It is resampled in its own plane, which may stand upright in the scanner.
    """
    import nibabel
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    turn = job.data.spatial_dims == 3 and nibabel.aff2axcodes(affine) != ("R", "A", "S")
    if not turn and job.data.spacing is None:
        return values, affine
    if job.data.spatial_dims == 2:
        affine = np.diag([*_spacing(affine, 2), 1.0, 1.0])
    volume: Any = MetaTensor(torch.from_numpy(values.astype(np.float32)), affine=torch.from_numpy(affine))
    if turn:
        volume = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(volume)
    if job.data.spacing is not None:
        volume = Spacing(job.data.spacing, mode=mode)(volume)
    return volume.as_tensor().numpy().astype(values.dtype, copy=False), np.asarray(volume.affine)


def _spacing(affine: np.ndarray | None, spatial_dims: int) -> tuple[float, ...]:
    if affine is None:
        return (1.0,) * spatial_dims
    return tuple(round(float(size), 6) for size in np.linalg.norm(affine[:3, :spatial_dims], axis=0))


def _normalised(image: np.ndarray, data: Data) -> np.ndarray:
    """Normalise each channel (C, *spatial) on its own; a constant channel becomes 0.

    The statistics are float64 sums of numpy, which does not split them over threads: a case prepared with two
    threads and one prepared with eight are the same to the last bit.
    """
    how = data.normalisation
    if how == "none":
        return np.ascontiguousarray(image, dtype=np.float32)
    result = np.empty(image.shape, dtype=np.float32)
    for channel, (values, out) in enumerate(zip(image, result, strict=True)):
        if not values.any():  # an image that the hospital lacks is zero on every scale
            out[...] = 0.0
            continue
        if how == "landmarks":
            assert data.landmarks is not None, "the job's data section has refused landmarks without them"
            out[...] = to_standard(values, data.landmarks[channel])
            continue
        if how == "zscore":
            low, width = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
        elif how == "minmax":
            low, width = float(values.min()), float(values.max()) - float(values.min())
        elif how == "window":
            assert data.window is not None, "the job's data section has refused a window without one"
            low, high = data.window[channel]
            width = high - low if values.min() < values.max() else 0.0
        else:
            low, high = np.percentile(values, (0.5, 99.5)).tolist()
            width = high - low
        out[...] = (values - np.float32(low)) / np.float32(width) if np.float32(width) > 0 else 0.0
        if how in ("percentile", "window"):
            out.clip(0.0, 1.0, out=out)
    return result


KEPT = ("image", "label", "mask", "annotated")


def sample_tensors(sample: dict[str, Any]) -> dict[str, Tensor]:
    """The part of a prepared sample that the cache keeps."""
    tensors: dict[str, Tensor] = {key: sample[key] for key in KEPT if key in sample}
    return tensors | {"spacing": torch.tensor(sample["spacing"], dtype=torch.float64)}


def sample_of(tensors: dict[str, Tensor], case: Case) -> dict[str, Any]:
    """A prepared sample from what the cache kept."""
    spacing = tuple(tensors["spacing"].tolist())
    return {**tensors, "id": case.id, "patient": case.patient, "spacing": spacing}
