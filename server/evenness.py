"""How evenly a model serves: its spread over the hospitals, and its results by group of patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from server.judgement import (
    FEDERATED,
    LOCAL,
    counted,
    differences_by_hospital,
    differs_by_hospital,
    judged_at,
    judged_over_all,
    patients_of,
)
from shared_models.job import Job
from shared_models.subgroups import PREFIX, Group, groups_of, sums_of
from shared_models.tasks import Sums, Task, task_of
from shared_models.tasks.bootstrap import interval

OWN = "local"
"""Each hospital's own model at its own patients, taken together."""


def evenness(job: Job, sums: Mapping[str, Mapping[str, Sums]]) -> dict[str, Any]:
    """The entries "spread" and "subgroups" of evaluations.json.

    Args:
        sums: model -> hospital -> metric sums, as `judge` takes them.
    """
    own = {site: by_site[site] for site in sums[FEDERATED] if site in (by_site := sums.get(LOCAL + site, {}))}
    models = {model: by_site for model, by_site in sums.items() if not model.startswith(LOCAL)}
    models |= {OWN: own} if own else {}
    return {
        "spread": {model: spread(task_of(job), by_site) for model, by_site in models.items()},
        "subgroups": subgroups(job, sums[FEDERATED], own),
    }


def spread(task: Task, by_site: Mapping[str, Sums]) -> dict[str, Any]:
    """Metric -> "range" (largest minus smallest value over the hospitals), "deviation" (standard deviation over them,
    as a population) and over how many "hospitals", "of" how many; metrics with fewer than two are left out.

    The hospitals are those that `server.judgement.counted` names.

    The chance in each hospital's value widens both: where all hospitals are truly alike, neither is 0.
    """
    at = judged_at(task, by_site)
    found = {}
    for name in next(iter(at.values())).metrics:
        over = counted({site: judged.rows[name] for site, judged in at.items()})
        if len(over) > 1:
            values, patients = [at[site].metrics[name] for site in over], [at[site].patients[site] for site in over]
            found[name] = {
                "range": asdict(interval(np.max(values, axis=0) - np.min(values, axis=0), patients)),
                "deviation": asdict(interval(np.std(values, axis=0), patients)),
                "hospitals": len(over),
                "of": len(at),
            }
    return found


def subgroups(job: Job, federated: Mapping[str, Sums], own: Mapping[str, Sums]) -> list[dict[str, Any]]:
    """A row for every group of the job: over the hospitals that tell of it, its numbers and the federated metrics.

    "federated-local" is the mean over the hospitals that tell of the group of their difference to the own model.
    """
    return [
        {
            "column": group.column,
            "group": group.label,
            **_row(task_of(job), job, group, number, federated, own),
        }
        for number, group in enumerate(groups_of(job))
    ]


def _row(
    task: Task, job: Job, group: Group, number: int, federated: Mapping[str, Sums], own: Mapping[str, Sums]
) -> dict[str, Any]:
    cells = {site: cell for site, sums in federated.items() if (cell := sums_of(number, sums))["cases"][0] > 0}
    column = [place for place, other in enumerate(groups_of(job)) if other.column == group.column]
    # A hospital that has told of all its cases in the other groups of this column has none in this one.
    untold = [site for site, sums in federated.items() if site not in cells and _untold_cases(sums, column)]
    row: dict[str, Any] = {"hospitals": list(cells), "withheld": untold, "patients": 0, "cases": 0, "metrics": {}}
    if not cells:
        return row | {"federated-local": {}}
    at = judged_at(task, cells)
    metrics = judged_over_all(task, cells, at, differs_by_hospital(job, FEDERATED)).rows
    theirs = judged_at(task, {site: sums_of(number, own[site]) for site in cells if site in own})
    differences = differences_by_hospital(at, theirs).get("all", {})
    patients, cases = sum(patients_of(at).values()), sum(cell["cases"][0] for cell in cells.values())
    row |= {"patients": int(patients), "cases": int(cases), "metrics": metrics}
    return row | {"federated-local": differences}


def _untold_cases(sums: Sums, column: Sequence[int]) -> int:
    """The cases of a site that are in none of the groups of a column that it tells of."""
    return int(sums["cases"][0] - sum(sums[f"{PREFIX}cases"][0, place] for place in column))
