"""The groups of patients that a job's test results are told for: which there are, and the form of their sums.

Beside a model's sums over all cases of a site, an array ``subgroup/<sum>`` holds the same sum for every group: shape
(1 + replicates, groups, ...), the groups in the order of `groups_of`. A group that is not told is all zeros.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from shared_models.job import Job
from shared_models.tasks import Sums, task_of

PREFIX = "subgroup/"
OTHER = "other"
MOST_REPLICATES = 100
"""Fewer than of all cases: a classification sends its histograms, 25 kB a class, for every group and replicate."""


@dataclass(frozen=True)
class Group:
    """Cases whose cell in a manifest column is a category, a number in a band [low, high), or neither."""

    column: str
    label: str
    category: str | None = None
    band: tuple[float, float] | None = None

    def holds(self, cell: str) -> bool:
        """Whether a cell belongs to this group; everything belongs to `OTHER`, which is asked last."""
        if self.category is not None:
            return cell == self.category
        if self.band is None:
            return True
        try:
            return self.band[0] <= float(cell) < self.band[1]
        except ValueError:
            return False


def groups_of(job: Job) -> list[Group]:
    """Every group, column by column; the last one of each column is whatever fits no other.

    The columns are in alphabetical order: a job that travelled does not know in which order they were written.
    """
    groups = []
    for column, told in sorted(job.evaluation.subgroups.items()):
        edges = [entry for entry in told if not isinstance(entry, str)]
        groups += [Group(column, entry, category=entry) for entry in told if isinstance(entry, str)]
        groups += [
            Group(column, f"{low:g} to under {high:g}", band=(low, high)) for low, high in itertools.pairwise(edges)
        ]
        groups.append(Group(column, OTHER))
    return groups


def shapes(job: Job, site: str, model: str, split: str, replicates: int) -> dict[str, tuple[int, ...]]:
    """The arrays of groups' sums in a site's evaluation of a model, each with its whole shape; {} where none belongs.

    A site tells its groups of the federated model and of its own local one, on test patients.
    """
    if not job.evaluation.subgroups or split != "test" or model not in ("federated", f"local:{site}"):
        return {}
    rows, groups = 1 + min(replicates, MOST_REPLICATES), len(groups_of(job))
    none = task_of(job).sums([], np.zeros((rows, 0)))
    return {PREFIX + name: (rows, groups, *values.shape[1:]) for name, values in none.items()}


def totals(sums: Sums) -> Sums:
    """The sums over all cases, without those by group."""
    return {name: values for name, values in sums.items() if not name.startswith(PREFIX)}


def sums_of(group: int, sums: Sums) -> Sums:
    """The sums of one group, by its place in `groups_of`, as a task reads them."""
    return {name.removeprefix(PREFIX): values[:, group] for name, values in sums.items() if name.startswith(PREFIX)}
