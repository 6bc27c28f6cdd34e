"""Federated statistics: what a site tells of its training images before the run, so that one plan can be made of all.

Both halves share this file: the site fills these tables (`client.statistics`), the coordinator adds them up over the
sites and decides (`server.plan`). They are the dataset fingerprint of nnU-Net (Isensee et al. 2021, "nnU-Net", Nature
Methods 18), made of sums: each patient counts once, every value is a whole number that is not negative, and no case
can be told from another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared_models.job import Job

Table = NDArray[np.float64]
Tables = dict[str, Table]

MILLION = 10**6
"""Shares are told in millionths, so that they are whole numbers, too."""

PERCENTILES = (1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99)
"""The landmarks of an image (Nyul, Udupa and Zhang 2000, "New variants of a method of MRI scale standardization")."""

LEAST_PATIENTS = 5
"""Behind every count, where neither job nor policy ask for more."""


@dataclass(frozen=True)
class Scale:
    """The cells of a histogram, the same at every site."""

    edges: NDArray[np.floating[Any]]
    """Between the cells, ascending; the first and the last cell have no end."""
    values: Table
    """What a value in each cell is taken for."""

    def cells(self, values: ArrayLike) -> NDArray[np.intp]:
        """The cell of each value."""
        return np.searchsorted(self.edges, values, side="right")

    def quantile(self, counts: Table, share: float) -> float | None:
        """The value below which this share of the counts lies, to the width of a cell; None without counts."""
        total = counts.sum()
        if not total:
            return None
        return float(self.values[np.searchsorted(np.cumsum(counts), share * total)])


def _scale(edges: NDArray[np.floating[Any]], first: float, last: float) -> Scale:
    return Scale(edges, np.concatenate([[first], (edges[1:] + edges[:-1]) / 2, [last]]))


SPACING = Scale(np.arange(1.5, 1000) / 100, np.arange(1, 1001) / 100)
"""mm, to the hundredth, from 0.01 to 10."""
EXTENT = _scale(0.1 * 1.02 ** np.arange(617), 0.1, 0.1 * 1.02**616)
"""mm (voxels where the grid is not changed), in steps of 2 % from 0.1 to 20000."""
INTENSITY = _scale(np.sinh(np.linspace(-17, 17, 1025)), -math.sinh(17), math.sinh(17))
"""As the files have it: steps of .03 around zero and of 3 % far from it, up to 12 million either way."""


def table_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Every table that a site of this job tells, and its shape.

    patients          (1,)               training patients
    spacing_known     (2,)               patients all of whose images know their spacing, and the others
    spacing           (axes, SPACING)    patients, by the spacing of their images
    extent            (axes, EXTENT)     patients, by the size of their images
    intensity         (channels, INTENSITY)  millionths of each patient's voxels, added up over patients
    foreground        the same, of voxels with a label; only where labels are masks
    landmarks         (channels, PERCENTILES)  percentiles of an image in millionths of the way from the first of them
                                         to the last, added up over patients
    landmark_patients (channels,)        patients in that sum
    classes           (classes,)         patients who have the class
    suppressed        (1,)               cells that would have told of too few patients: merged, or left out
    """
    axes, channels, classes = job.data.spatial_dims, job.data.channels, len(job.task.classes)
    masks = job.task.label == "mask"
    return {
        "patients": (1,),
        "spacing_known": (2,),
        "spacing": (axes, len(SPACING.values)),
        "extent": (axes, len(EXTENT.values)),
        "intensity": (channels, len(INTENSITY.values)),
        **({"foreground": (channels, len(INTENSITY.values))} if masks else {}),
        "landmarks": (channels, len(PERCENTILES)),
        "landmark_patients": (channels,),
        "classes": (classes,),
        "suppressed": (1,),
    }


COUNTS = ("spacing_known", "spacing", "extent", "landmark_patients", "classes")
"""The tables whose cells are numbers of patients: none that is not zero is below the least number."""


def least_patients(job: Job, policy: int) -> int:
    """The patients behind every cell that is told: what the job says, or the hospital's policy if that is more."""
    wanted = job.federation.statistics
    return max(policy, wanted.min_patients if wanted else LEAST_PATIENTS)


def problem(tables: Mapping[str, Table], job: Job, least: int = 1) -> str | None:
    """What is wrong with tables of the right names, shapes and type; None for what a site can have counted.

    Args:
        least: patients behind every cell that is a number of patients.
    """
    patients = float(tables["patients"][0])
    if not least <= patients < 2**29:
        return f"'patients' is {patients:g}, expected at least {least}"
    for name in table_shapes(job):
        values = tables[name]
        if (values < 0).any() or (values != np.floor(values)).any():
            return f"'{name}' has values that are no whole numbers of at least 0"
        if name in COUNTS and ((values > 0) & (values < least)).any():
            return f"'{name}' has cells that rest on fewer than {least} patients"
        if name in ("intensity", "foreground") and (values.sum(axis=1) > patients * MILLION).any():
            return f"'{name}' has more than all voxels of all patients"
        if name == "landmarks" and (values > patients * MILLION).any():
            return f"'{name}' has larger shares than the whole way in all patients"
        if name in ("landmark_patients", "classes", "spacing_known") and (values > patients).any():
            return f"'{name}' has more patients than there are"
    if not all(tables[name].sum(axis=1).all() for name in ("spacing", "extent")):
        return "an axis has no spacing or no extent"
    return None
