"""One preprocessing plan from the statistics of all sites, in the manner of nnU-Net (Isensee et al. 2021).

Nothing is asked or read here: tables in, decisions out. Each decision is a key of the job's `data`, its value, and one
sentence that says why, with the numbers that it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Data, Job
from shared_models.page import natural
from shared_models.statistics import EXTENT, INTENSITY, PERCENTILES, SPACING, Scale, Table, Tables

ANISOTROPIC = 3.0
"""nnU-Net's: an axis whose spacing is larger than the others' by more than this factor is the slices' axis."""

HOUNSFIELD = (-200.0, 5000.0)
"""Air lies below the first, and nothing but metal above the second, where intensities are Hounsfield units of CT."""

_STEPS = (4, 8, 16, 32)
"""Sizes of a crop are multiples of the smallest of these that the network takes."""


@dataclass(frozen=True)
class Decision:
    """One key of the job's `data`, its value, and why."""

    key: str
    value: Any
    why: str


def pooled(sites: Mapping[str, Tables]) -> Tables:
    """The tables of all sites, added up."""
    names = next(iter(sites.values()))
    return {name: np.sum([sites[site][name] for site in sorted(sites)], axis=0) for name in names}


def decide(job: Job, sites: Mapping[str, Tables]) -> list[Decision]:
    """What the plan says of every key that it shall decide, in the order in which the decisions rest on each other.

    Args:
        sites: the tables of every site that told any, as `shared_models.statistics.table_shapes`.
    """
    wanted, tables = job.federation.statistics, pooled(sites)
    assert wanted is not None, "a plan is made for a job that asks for statistics"
    decisions = []
    if "spacing" in wanted.decide:
        decisions.append(_spacing(tables))
        job = _with(job, decisions[-1:])
    if "crop" in wanted.decide:
        decisions.append(_crop(job, tables))
    if "normalisation" in wanted.decide:
        decisions += _normalisation(job, sites, tables)
    return decisions


def planned(job: Job, decisions: list[Decision]) -> Job:
    """The job that is run: with the decisions filled in, and without `federation.statistics`."""
    federation = job.federation.model_copy(update={"statistics": None})
    return _with(job, decisions).model_copy(update={"federation": federation})


def described(tables: Tables) -> dict[str, Any]:
    """Tables in a few numbers, for people: of one site, or of all."""
    patients = int(tables["patients"][0])
    return {
        "patients": patients,
        "spacing": _by_axis(tables["spacing"], SPACING, 0.5),
        "extent": _by_axis(tables["extent"], EXTENT, 0.5),
        "intensity": [[INTENSITY.quantile(row, share) for share in (0.005, 0.5, 0.995)] for row in tables["intensity"]],
        "classes": [int(count) for count in tables["classes"]],
        "suppressed": int(tables["suppressed"][0]),
    }


def _with(job: Job, decisions: list[Decision]) -> Job:
    decided = {decision.key: decision.value for decision in decisions}
    if "normalisation" in decided:  # what belonged to the job's own is gone with it
        decided = {"window": None, "landmarks": None} | decided
    return job.model_copy(update={"data": Data.model_validate(job.data.model_dump() | decided)})


def _spacing(tables: Tables) -> Decision:
    """The median of every axis; of slices that are thick, the 10th percentile of their thickness."""
    patients = int(tables["patients"][0])
    known, unknown = (int(count) for count in tables["spacing_known"])
    if known < patients:
        # A hospital where these or those are too few to be told of tells of neither.
        some = f"{unknown}" if known + unknown == patients else "some"
        why = f"the images of {some} of {patients} patients do not say their voxel size, so grids are kept"
        return Decision("spacing", None, why)
    spacing, extent = _by_axis(tables["spacing"], SPACING, 0.5), _by_axis(tables["extent"], EXTENT, 0.5)
    shape = [size / step for size, step in zip(extent, spacing, strict=True)]
    worst = int(np.argmax(spacing))
    others = [axis for axis in range(len(spacing)) if axis != worst]
    finest_of_others, fewest_of_others = max(spacing[axis] for axis in others), min(shape[axis] for axis in others)
    why = f"the median of {patients} patients is {_by(spacing)} mm"
    if spacing[worst] > ANISOTROPIC * finest_of_others and shape[worst] * ANISOTROPIC < fewest_of_others:
        thin = _by_axis(tables["spacing"][worst : worst + 1], SPACING, 0.1)[0]
        spacing[worst] = max(thin, finest_of_others)
        why += f"; axis {worst + 1} has thick slices, of which the 10th percentile is taken, {thin:g} mm"
    return Decision("spacing", [round(value, 4) for value in spacing], why)


def _crop(job: Job, tables: Tables) -> Decision:
    """The shape of the median image in the voxels that data.crop allows, in sizes that the network takes."""
    wanted = job.federation.statistics
    in_mm = wanted is not None and "spacing" in wanted.decide  # as the sites told sizes, see `client.statistics`
    # Where no image says its voxel size, every voxel stood for a mm.
    if in_mm and job.data.spacing is None and tables["spacing_known"][1] < tables["patients"][0]:
        why = "sizes were told in mm, and without a voxel size for all images nobody knows them in voxels"
        return Decision("crop", job.data.crop, f"{why}, so that of the job stays")
    spacing = job.data.spacing or [1.0] * job.data.spatial_dims
    extent = _by_axis(tables["extent"], EXTENT, 0.5)
    median = [max(1, round(size / step)) for size, step in zip(extent, spacing, strict=True)]
    budget = math.prod(job.data.crop)
    found = next(filter(None, (_sizes(median, budget, step, lambda c: _fits(job, c)) for step in _STEPS)), None)
    at = f" at {_by(job.data.spacing)} mm" if job.data.spacing else ""
    why = f"the median image has {_by(median)} voxels{at}, and data.crop of the job allows {budget} in a patch"
    if found is None:
        return Decision("crop", job.data.crop, f"{why}; no shape nearer to it fits {job.model.name}, so that one stays")
    return Decision("crop", found, f"{why}; rounded to what {job.model.name} takes")


def _sizes(median: list[int], budget: int, step: int, fits: Callable[[list[int]], bool]) -> list[int] | None:
    """Multiples of a step that hold the median image, or, if that is too much, are in its proportions; or None."""
    sizes = [-(-size // step) * step for size in median]
    while math.prod(sizes) > budget:
        axis = max(range(len(sizes)), key=lambda axis: (sizes[axis] > step, sizes[axis] / median[axis]))
        if sizes[axis] == step:
            return None
        sizes[axis] -= step
    return sizes if fits(sizes) else None


def _fits(job: Job, crop: list[int]) -> bool:
    try:
        zoo.check(job.model_copy(update={"data": job.data.model_copy(update={"crop": crop})}))
    except BadInput:
        return False
    return True


def _normalisation(job: Job, sites: Mapping[str, Tables], tables: Tables) -> list[Decision]:
    wanted = job.federation.statistics
    assert wanted is not None
    if wanted.harmonise:
        rows = [_standard(*pair) for pair in zip(tables["landmarks"], tables["landmark_patients"], strict=True)]
        why = (
            f"every image's percentiles become those of the mean image of {int(tables['patients'][0])} patients, "
            "scaled to mean 0 and standard deviation 1"
        )
        what = f"what the percentiles {', '.join(map(str, PERCENTILES))} of each channel become"
        return [Decision("normalisation", "landmarks", why), Decision("landmarks", rows, what)]
    told = tables.get("foreground", tables["intensity"])
    rows = [[_window(row, share) for share in (0.005, 0.995)] for row in told]
    calibrated = all(map(_in_hounsfield_units, sites.values())) and all(low < high for low, high in rows)
    if calibrated and job.task.label != "image":  # a target has another scale than its source
        where = "labelled voxels" if "foreground" in tables else "voxels"
        why = (
            "at every site intensities reach from air to bone in Hounsfield units, which mean the same everywhere: "
            f"the 0.5th to 99.5th percentile of all {where}, {_by(rows[0])}, becomes 0 to 1"
        )
        what = "the intensities of each channel that become 0 and 1"
        return [Decision("normalisation", "window", why), Decision("window", rows, what)]
    medians = {site: INTENSITY.quantile(found["intensity"][0], 0.5) for site, found in sites.items()}
    known = {site: median for site in sorted(medians, key=natural) if (median := medians[site]) is not None}
    scales = ", ".join(f"{site} {median:.3g}" for site, median in known.items())
    why = f"intensities are not calibrated (median by site: {scales}), so each image is scaled by itself"
    return [Decision("normalisation", "zscore", why)]


def _in_hounsfield_units(tables: Tables) -> bool:
    """Whether every channel of a site's images has air and no more than metal."""
    for row in tables["intensity"]:
        low, high = INTENSITY.quantile(row, 0.005), INTENSITY.quantile(row, 0.995)
        if low is None or high is None or not (low < HOUNSFIELD[0] and 0 < high < HOUNSFIELD[1]):
            return False
    return True


def _window(counts: Table, share: float) -> float:
    value = INTENSITY.quantile(counts, share)
    return float(f"{value or 0.0:.3g}")


def _standard(landmarks: Table, patients: float) -> list[float]:
    """The standard scale: the mean of all images' landmarks, so scaled that their voxels have mean 0 and deviation 1.

    The mean of quantile functions is that of the images' common histogram (their Wasserstein barycentre); Nyul, Udupa
    and Zhang 2000 leave the standard scale's own range free.
    """
    if not patients:
        raise BadInput("no site has enough patients whose images differ in intensity: leave harmonise out")
    mean, shares = landmarks / patients, np.array(PERCENTILES) / 100
    weights = np.zeros(len(shares))  # of the trapezium rule, between the first and the last percentile
    weights[:-1] += np.diff(shares) / 2
    weights[1:] += np.diff(shares) / 2
    weights /= weights.sum()
    centre = float(weights @ mean)
    width = math.sqrt(float(weights @ (mean - centre) ** 2))
    return [round(float(value), 4) for value in np.maximum.accumulate((mean - centre) / width)]


def _by_axis(rows: Table, scale: Scale, share: float) -> list[float]:
    return [scale.quantile(row, share) or 0.0 for row in rows]


def _by(values: list[float] | list[int] | None) -> str:
    return " x ".join(f"{value:.4g}" for value in values or [])
