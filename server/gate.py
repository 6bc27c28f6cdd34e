"""The do-no-harm gate: every hospital keeps whichever model is best on its own validation patients.

Test patients have no say. What is then judged on them is the model that was kept, so that the choice is paid for: a
hospital whose few validation patients mislead it shows up as harmed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

from flwr.serverapp import Grid

from server.app import Result
from server.baseline_files import saved
from server.events import EventLog
from server.judgement import FEDERATED, LOCAL, Model, collect, judged_at
from server.participation import Site
from shared_models import subgroups
from shared_models.comparisons import KEPT, VARIANTS
from shared_models.job import Job
from shared_models.page import listed
from shared_models.tasks import Sums, task_of

OWN = "local"
CANDIDATES = ("fine_tuned", "personalised")
"""The variants that a hospital may keep, beside the federated model and its own."""

Numbers = dict[str, Any]
"""Value, interval and n of a metric, see `server.judgement.Judged.rows`."""


class Choice(TypedDict):
    """What one hospital keeps."""

    kept: str
    validation: dict[str, float | None]
    """Candidate -> the selection metric on the hospital's validation patients; None where it has no value."""
    intervals: dict[str, Numbers]
    """Candidate -> the 95 % interval of that value (`low`, `high`) and its `n`, or `why` there is none."""
    why: str | None
    """Why it had no choice, and keeps the federated model; None where it had one."""


def choose_models(
    grid: Grid, result: Result, job: Job, comparisons: Collection[str], run_dir: Path, events: EventLog
) -> dict[str, Choice]:
    """Every hospital's choice between the models that are compared; {} where there is only the federated one."""
    variants = ["", *(variant for variant in CANDIDATES if variant in comparisons)]
    if OWN not in comparisons and len(variants) == 1:
        return {}
    judged: dict[str, dict[str, dict[str, Numbers]]] = {}
    for variant in variants:
        name = VARIANTS.get(variant, FEDERATED)
        model = Model(f"{name}-validated", result.best, result.best_round, result.best_used, variant)
        judged[name] = _validated(grid, result.sites, job, model, events)
        if name == FEDERATED and OWN in comparisons:
            judged[OWN] = _own_validated(grid, result.sites, job, run_dir, events)
    return {
        site: _choice(job, of.cases["validation"], {name: rows.get(site, {}) for name, rows in judged.items()})
        for site, of in sorted(result.sites.items())
        if of.cases["validation"] or of.cases["test"]  # or it is asked for nothing, and keeps none
    }


def _validated(
    grid: Grid, sites: Mapping[str, Site], job: Job, model: Model, events: EventLog
) -> dict[str, dict[str, Numbers]]:
    """Hospital -> metric -> numbers of a model on the hospital's validation patients."""
    replicates = min(job.evaluation.bootstrap, subgroups.MOST_REPLICATES)  # for an interval that is shown, no more
    sums = collect(grid, sites, job, model, "validation", replicates, events)
    return {site: judged.rows for site, judged in judged_at(task_of(job), sums).items()}


def _own_validated(
    grid: Grid, sites: Mapping[str, Site], job: Job, run_dir: Path, events: EventLog
) -> dict[str, dict[str, Numbers]]:
    """The same of each hospital's own model, which goes to nobody else."""
    found: dict[str, dict[str, Numbers]] = {}
    for name, site in sites.items():
        if (weights := saved(run_dir, LOCAL + name)) is not None:
            found |= _validated(grid, {name: site}, job, Model(f"{OWN}-validated", weights), events)
    return found


def _choice(job: Job, cases: int, judged: Mapping[str, Mapping[str, Numbers]]) -> Choice:
    """The first of the candidates with the best value, the federated model standing first; that one without a choice.

    Where the metric has no value, as AUROC for patients of one class, no other is gone by instead: by any, a model that
    always says that class would be the best.

    Args:
        cases: that the hospital has for validation.
        judged: candidate -> metric -> numbers; no metric for one that gave no result.
    """
    metric = job.selection_metric()
    numbers = {name: rows[metric] for name, rows in judged.items() if metric in rows}
    values = {name: row["value"] for name, row in numbers.items() if row["value"] is not None}
    if not cases:
        why: str | None = "it has no validation patients"
    elif not any(judged.values()):
        why = "it gave no result on its validation patients"
    elif not values:
        why = f"its validation patients have no {task_of(job).metric_info().get(metric, {'label': metric})['label']}"
    else:
        why = _unseen_organs(job, judged[FEDERATED])
    return {
        "kept": FEDERATED if why else max(values, key=lambda name: values[name]),
        "validation": {name: values.get(name) for name in judged},
        "intervals": {name: {key: row[key] for key in ("low", "high", "n", "why")} for name, row in numbers.items()},
        "why": why,
    }


def _unseen_organs(job: Job, federated: Mapping[str, Numbers]) -> str | None:
    """Where not every case annotates all organs: why a hospital's validation patients cannot choose; None if they can.

    A hospital's own model has never learnt the organs that its masks lack, and they cannot show that it misses them.

    Args:
        federated: metric -> numbers of the federated model on them; none if it gave no result.
    """
    if job.data.annotated is None or not federated:
        return None
    unseen = [organ for organ in job.task.classes[1:] if federated[f"dice/{organ}"]["value"] is None]
    return f"its validation masks have no {listed(unseen)}, so they cannot tell which model is best" if unseen else None


def judge_kept(
    grid: Grid, result: Result, job: Job, choices: Mapping[str, Choice], run_dir: Path, events: EventLog
) -> dict[str, Sums]:
    """The test sums of what each hospital keeps, which it also writes to its disk when it is asked for them.

    A hospital without test patients is asked for the sums of its validation patients, so that it has its model, too;
    they are dropped.
    """
    variants = {FEDERATED: "", **{VARIANTS[variant]: variant for variant in CANDIDATES}}
    sums: dict[str, Sums] = {}

    def judge(model: Model, names: Collection[str]) -> None:
        at = {name: result.sites[name] for name in names}
        tested = {name: site for name, site in at.items() if site.cases["test"]}
        sums.update(collect(grid, tested, job, model, "test", job.evaluation.bootstrap, events))
        if untested := {name: at[name] for name in at if name not in tested}:
            collect(grid, untested, job, model, "validation", 0, events)

    for name, variant in variants.items():
        model = Model(KEPT, result.best, result.best_round, result.best_used, variant)
        judge(model, [site for site in choices if choices[site]["kept"] == name])
    for site in (s for s in choices if choices[s]["kept"] == OWN):
        weights = saved(run_dir, LOCAL + site)
        assert weights is not None  # it had a validation value
        judge(Model(KEPT, weights), [site])
    return {site: sums[site] for site in sorted(sums)}
