"""A model's test results by group of patients, with small groups suppressed before anything leaves the site."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.data.manifest import Case
from client.site import Site
from shared_models.job import Job
from shared_models.subgroups import PREFIX, Group, groups_of, shapes
from shared_models.tasks import CaseRecord, Sums, task_of


def subgroup_sums(
    site: Site,
    job: Job,
    model: str,
    split: str,
    cases: Sequence[Case],
    records: Sequence[CaseRecord],
    weights: np.ndarray,
) -> Sums:
    """The sums of every group of `shared_models.subgroups`, all zeros for a group that is not told; {} if not asked.

    Args:
        cases, records: the judged cases and what the model did on each, in the same order.
        weights: (1 + replicates, cases), those of the site's sums over all cases, so that groups and models are paired.
    """
    sums = {name: np.zeros(shape) for name, shape in shapes(job, site.name, model, split, len(weights) - 1).items()}
    if not sums:
        return {}
    task, groups = task_of(job), groups_of(job)
    members = group_members(groups, cases)
    least = max(job.evaluation.subgroup_patients, site.min_patients)
    hidden = suppressed(groups, members, [case.patient for case in cases], least)
    rows = len(next(iter(sums.values())))
    for number, chosen in enumerate(members):
        if number in hidden or not chosen:
            continue
        own = task.sums([records[index] for index in chosen], weights[:rows, chosen])
        for name, values in own.items():
            sums[PREFIX + name][:, number] = values
    return sums


def group_members(groups: Sequence[Group], cases: Sequence[Case]) -> list[list[int]]:
    """For every group the indices of its cases; a case is in exactly one group of each column.

    A case without the column, or with an empty cell, is in the column's last group, `other`.
    """
    members: list[list[int]] = [[] for _ in groups]
    for column in dict.fromkeys(group.column for group in groups):
        own = [number for number, group in enumerate(groups) if group.column == column]
        for index, case in enumerate(cases):
            cell = case.columns.get(column, "")
            members[next(number for number in own if groups[number].holds(cell))].append(index)
    return members


def suppressed(
    groups: Sequence[Group], members: Sequence[Sequence[int]], patients: Sequence[str], least: int
) -> set[int]:
    """The groups that are not told: those of fewer than `least` patients, and what would give them away.

    What is told of all patients minus what is told of a column's groups is what is not told of it. So in each column
    the smallest groups are left out until those left out have `least` patients together (complementary suppression;
    Hundepool et al. 2012, Statistical Disclosure Control, chapter 4).

    Args:
        members: of every group, the indices of its cases.
        patients: of every case.
    """
    hidden: set[int] = set()
    for column in dict.fromkeys(group.column for group in groups):
        who = {
            number: {patients[index] for index in members[number]}
            for number, group in enumerate(groups)
            if group.column == column and members[number]
        }
        together: set[str] = set()
        for number in sorted(who, key=lambda number: len(who[number])):
            if len(who[number]) >= least and (not together or len(together) >= least):
                break
            hidden.add(number)
            together |= who[number]
    return hidden
