"""Federated statistics at a site: its training images counted into the tables of `shared_models.statistics`.

Nothing of a single patient is told. A histogram is microaggregated (Domingo-Ferrer and Mateo-Sanz 2002): neighbouring
cells are put together until at least the least number of patients is in each, so that no patient is lost and none
stands alone; a class that too few patients have is left out, and one that too few lack is told as if all had it.
So are a channel and labels, which some images have not, in sums of shares. Smallest and largest values are never told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from client.data.dataset import SiteData
from client.data.landmarks import landmarks_of
from client.data.manifest import Case
from client.data.preprocess import Decoded, decode, finish
from client.site import Site
from client.warm import data_of
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.statistics import (
    EXTENT,
    INTENSITY,
    MILLION,
    SPACING,
    Scale,
    Table,
    Tables,
    least_patients,
    table_shapes,
)
from shared_models.weights import to_record

HISTOGRAMS = ("spacing", "extent", "intensity", "foreground")


def statistics(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Tell of your training images what a preprocessing plan needs, in sums over patients.

    Raises:
        Fault: there are too few training patients to tell anything.
    """
    tables = tables_of(data_of(site, job), job, site.name, least_patients(job, site.min_patients))
    return RecordDict({"statistics": to_record(tables)})


def tables_of(data: SiteData, job: Job, site: str, least: int) -> Tables:
    """The tables of a site, see `table_shapes`.

    Args:
        least: patients behind every cell.

    Raises:
        Fault: there are fewer training patients than that.
    """
    patients = data.report.splits["train"]["patients"]
    if patients < least:
        text = f"Site {site} has {patients} training patients, where statistics rest on at least {least}."
        raise Fault(text, "too_few_patients", split="train", found=patients, needed=least)
    counting = _Counting(job, least)
    cases = sorted(data.cases("train"), key=attrgetter("patient"))
    for number, (_, mine) in enumerate(groupby(cases, key=attrgetter("patient"))):
        counting.add(number, _patient(mine, data, job))
    return counting.told()


def _patient(cases: Iterable[Case], data: SiteData, job: Job) -> Tables:
    """The tables of one patient: the cells that any case is in, and the mean of the cases' shares."""
    # As the files have it, but for the orientation of their axes.
    as_it_is = {"spacing": None, "normalisation": "none", "window": None, "landmarks": None}
    unprepared = job.model_copy(update={"data": job.data.model_copy(update=as_it_is)})
    rows = [_case(decode(case, data.folder, unprepared), case, job, unprepared) for case in cases]
    found = {}
    for name in rows[0]:
        values = np.stack([row[name] for row in rows])
        is_share = name in ("intensity", "foreground", "landmarks")
        found[name] = np.floor(values.mean(axis=0) * MILLION) if is_share else values.max(axis=0)
    if found["spacing_known"][1]:
        found["spacing_known"][0] = 0
    return found


def _case(decoded: Decoded, case: Case, job: Job, unprepared: Job) -> Tables:
    """The tables of one case: 1 in the cells that it is in, shares of its voxels, and its landmarks in 0..1."""
    sample = finish(decoded, case, unprepared)
    image, label = sample["image"].numpy(), sample["label"].numpy()
    shapes = table_shapes(job)
    tables = {name: np.zeros(shape) for name, shape in shapes.items() if name not in ("patients", "suppressed")}
    tables["spacing_known"][0 if decoded.affine is not None else 1] = 1
    is_resampled = _is_resampled(job)
    for axis, (size, spacing) in enumerate(zip(image.shape[1:], sample["spacing"], strict=True)):
        tables["spacing"][axis, SPACING.cells(spacing)] = 1
        tables["extent"][axis, EXTENT.cells(size * spacing if is_resampled else size)] = 1
    for channel, values in enumerate(image):
        if values.min() == values.max():
            continue  # the hospital lacks this channel
        tables["intensity"][channel] = _shares(values, INTENSITY)
        own = landmarks_of(values)
        if own[-1] > own[0]:
            tables["landmarks"][channel] = (own - own[0]) / (own[-1] - own[0])
            tables["landmark_patients"][channel] = 1
        if "foreground" in tables:
            tables["foreground"][channel] = _shares(values[label[0] > 0], INTENSITY)
    if job.task.label == "mask":
        tables["classes"][np.unique(label)] = 1
    elif job.task.label == "class":
        tables["classes"][:] = label if label.ndim else np.arange(len(tables["classes"])) == label
    return tables


def _is_resampled(job: Job) -> bool:
    """Whether sizes count in mm: they do where the grid of the files will not be kept."""
    plan = job.federation.statistics
    return job.data.spacing is not None or (plan is not None and "spacing" in plan.decide)


def _shares(values: np.ndarray, scale: Scale) -> Table:
    """The share of the values in each cell; zeros where there is no value."""
    counts = np.bincount(scale.cells(values.ravel()), minlength=len(scale.values))
    return counts / max(values.size, 1)


class _Counting:
    """Adds patients up, and remembers of every cell who is in it, as far as that is needed to suppress it."""

    def __init__(self, job: Job, least: int) -> None:
        self._least = least
        self._sums = {name: np.zeros(shape) for name, shape in table_shapes(job).items()}
        self._who: dict[tuple[str, int, int], set[int]] = {}

    def add(self, number: int, tables: Mapping[str, Table]) -> None:
        """Adds the patient of this number."""
        self._sums["patients"] += 1
        for name, values in tables.items():
            self._sums[name] += values
            if name not in HISTOGRAMS:
                continue
            for row, cell in zip(*np.nonzero(values), strict=True):
                who = self._who.setdefault((name, int(row), int(cell)), set())
                if len(who) < self._least:  # more are not needed
                    who.add(number)

    def told(self) -> Tables:
        """The sums, without any cell that rests on too few patients, or that too few are missing from."""
        tables = {name: values.copy() for name, values in self._sums.items()}
        suppressed = 0
        for name in HISTOGRAMS:
            for row in range(len(tables.get(name, ()))):
                tables[name][row], merged = self._microaggregated(name, row)
                suppressed += merged
        if self._is_few(tables["spacing_known"]).any():
            tables["spacing_known"][:] = 0
            suppressed += 2
        suppressed += self._hide_few_of_class(tables["classes"], int(tables["patients"][0]))
        few = tables["landmark_patients"] < self._least
        tables["landmark_patients"][few] = tables["landmarks"][few] = 0
        self._hide_few_without_shares(tables)
        tables["suppressed"][0] = suppressed
        return tables

    def _hide_few_of_class(self, classes: Table, patients: int) -> int:
        """Changes the counts of patients so that no few of them have a class, or lack it; how many it has changed."""
        before = classes.copy()
        rare, common = self._is_few(classes), self._is_few(patients - classes)
        classes[rare], classes[common] = 0, patients
        # Where classes exclude each other, those that are left out are what the others leave of all patients.
        while 0 < patients - classes.sum() < self._least:
            classes[classes == classes[classes > 0].min()] = 0
        return int((classes != before).sum())

    def _hide_few_without_shares(self, tables: Tables) -> None:
        """Scales shares up to all patients where too few have none: a sum of shares is the number that have them."""
        everybody = int(tables["patients"][0]) * MILLION
        rows = [(row, row.sum()) for name in ("intensity", "foreground") for row in tables.get(name, ())]
        rows += [(row, row[-1]) for row in tables["landmarks"]]  # the last one is the whole way
        for row, whole in rows:
            if whole and everybody - whole < self._least * MILLION:
                row[:] = np.floor(row * (everybody / whole))
        common = self._is_few(tables["patients"] - tables["landmark_patients"])
        tables["landmark_patients"][common] = tables["patients"][0]

    def _is_few(self, counts: Table) -> NDArray[np.bool_]:
        return (counts > 0) & (counts < self._least)

    def _microaggregated(self, name: str, row: int) -> tuple[Table, int]:
        """One histogram with its cells put together into groups of enough patients, and how many cells that cost.

        A group stands in the cell of its median. Where all patients together are too few, nothing is told.
        """
        sums = self._sums[name][row]
        groups: list[list[int]] = []
        cells: list[int] = []
        people: set[int] = set()
        for cell in np.flatnonzero(sums).tolist():
            cells.append(cell)
            people |= self._who[name, row, cell]
            if len(people) >= self._least:
                groups.append(cells)
                cells, people = [], set()
        if cells and groups:
            groups[-1] += cells
        told, merged = np.zeros_like(sums), int(np.count_nonzero(sums)) - len(groups)
        for group in groups:
            running = np.cumsum(sums[group])
            told[group[int(np.searchsorted(running, running[-1] / 2))]] = running[-1]
        return told, merged
