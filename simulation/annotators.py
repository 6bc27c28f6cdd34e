"""Annotator shift: how a hospital's annotator draws masks and names classes, where the data set's are the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shared_models.job import Job
from shared_models.job_scanners import Annotator
from shared_models.seeds import derive_seed
from simulation.datasets.source import SourceCase
from simulation.rewritten import Redraw

ROUGHNESS = 2.0  # voxels: width of the bumps of a noisy contour


def with_own_classes(
    cases: Sequence[SourceCase], splits: Mapping[str, str], job: Job, hospital: str
) -> list[SourceCase]:
    """The cases with the classes that the hospital gives them; those of test patients stay the data set's.

    Args:
        splits: patient -> train, validation or test.
    """
    annotator = _annotator(job, hospital)
    if annotator is None or not annotator.mislabelled:
        return list(cases)
    own = [case for case in cases if splits[case.patient] != "test"]
    many = getattr(job.task, "mode", "") == "multi_label"
    seed = derive_seed(job.seed, "mislabelled", hospital)
    wrong = mislabelled(own, annotator.mislabelled, job.task.classes, multi_label=many, seed=seed)
    return [replace(case, label=wrong.get(case.id, case.label)) for case in cases]


def redraws(job: Job, hospital: str) -> list[Redraw]:
    """How the hospital draws masks: one step, or none where it draws like the data set."""
    annotator = _annotator(job, hospital)
    if annotator is None or annotator.masks is None:
        return []
    return [lambda case, mask: redraw(mask, annotator, derive_seed(job.seed, "annotator", hospital, case.id))]


def _annotator(job: Job, hospital: str) -> Annotator | None:
    return job.simulation.annotators.get(hospital) if job.simulation else None


def redraw(mask: np.ndarray, annotator: Annotator, seed: int) -> np.ndarray:
    """A mask (channel, *spatial) of label values as this annotator draws it.

    The outline of all classes together moves outwards (larger), inwards (smaller), or back and forth (noisier, by
    `voxels` in standard deviation); what is new takes the class of the nearest voxel. Smoother rounds outline and
    borders off with a Gaussian of `voxels`. A small structure can vanish, as it does with a real annotator.
    """
    if annotator.masks is None or not mask.any():
        return mask
    if annotator.masks == "smoother":
        return _smoother(mask[0], annotator.voxels)[None]
    if annotator.masks == "noisier":
        return _moved_outline(mask[0], annotator.voxels * _bumps(mask.shape[1:], seed))[None]
    return _moved_outline(mask[0], annotator.voxels if annotator.masks == "larger" else -annotator.voxels)[None]


def _moved_outline(mask: np.ndarray, outwards: np.ndarray | float) -> np.ndarray:
    """The outline moved by so many voxels (a number, or one for every voxel)."""
    from scipy.ndimage import distance_transform_edt

    inside = mask > 0
    away, nearest = distance_transform_edt(~inside, return_indices=True)
    # Distances are from voxel to voxel: the outline lies half-way between the last inside and the first outside.
    depth = np.where(inside, _depth(inside) - 0.5, 0.5 - away)
    return np.where(depth + outwards > 0, mask[tuple(nearest)], 0).astype(mask.dtype)


def _depth(inside: np.ndarray) -> np.ndarray:
    """Distance to the background; the border of the image is none."""
    from scipy.ndimage import distance_transform_edt

    return np.full(inside.shape, np.inf) if inside.all() else distance_transform_edt(inside)


def _smoother(mask: np.ndarray, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    classes = np.unique(mask[mask > 0])
    shares = np.stack([gaussian_filter((mask == value).astype(np.float32), sigma) for value in classes])
    return np.where(shares.sum(axis=0) > 0.5, classes[shares.argmax(axis=0)], 0).astype(mask.dtype)


def _bumps(shape: Sequence[int], seed: int) -> np.ndarray:
    """A smooth random field of deviation 1."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), ROUGHNESS)
    return field / field.std()


def mislabelled(
    cases: Sequence[SourceCase], share: float, classes: Sequence[str], *, multi_label: bool, seed: int
) -> dict[str, str]:
    """Wrong labels for a share of the cases, drawn at random: case id -> label as a manifest has it.

    A class becomes any other class; of several findings one is added or taken away. A label that is not one of the
    job's classes stays, for preflight to find.

    Args:
        share: of the cases, rounded to whole ones.
    """
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(cases), round(share * len(cases)), replace=False)
    wrong = {}
    for index in sorted(chosen):
        case = cases[index]
        found = {_index(text.strip(), classes) for text in case.label.split(";") if text.strip()}
        if -1 in found or not (found or multi_label):
            continue
        other = int(generator.integers(len(classes)))
        if multi_label:
            found ^= {other}
        else:
            (true,) = found
            found = {(true + 1 + int(generator.integers(len(classes) - 1))) % len(classes)}
        wrong[case.id] = ";".join(classes[value] for value in sorted(found))
    return wrong


def _index(text: str, classes: Sequence[str]) -> int:
    if text in classes:
        return classes.index(text)
    return int(text) if text.isdecimal() and int(text) < len(classes) else -1
