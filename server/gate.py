"""The do-no-harm gate: every hospital keeps whichever model is best on its own validation patients.

Test patients have no say. What is then judged on them is the model that was kept, so that the choice is paid for: a
hospital whose few validation patients mislead it shows up as harmed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict

from flwr.serverapp import Grid

from server.app import Result
from server.baseline_files import model_path, read_note, saved
from server.events import EventLog
from server.judgement import FEDERATED, LOCAL, Model, collect, first_values
from shared_models.comparisons import KEPT, VARIANTS
from shared_models.job import Job
from shared_models.page import listed
from shared_models.tasks import Sums

OWN = "local"
CANDIDATES = ("fine_tuned", "personalised")
"""The variants that a hospital may keep, beside the federated model and its own."""


class Choice(TypedDict):
    """What one hospital keeps."""

    kept: str
    validation: dict[str, float | None]
    """Candidate -> the selection metric on the hospital's validation patients; None where it has no value."""
    why: str | None
    """Why the hospital had no choice, and keeps the federated model whatever the values are; None where it had one."""


def choose_models(
    grid: Grid, result: Result, job: Job, comparisons: Collection[str], run_dir: Path, events: EventLog
) -> dict[str, Choice]:
    """Every hospital's choice between the models that are compared; {} where there is only the federated one.

    A hospital without a validation value, and one where two are equal, keeps the federated model; so does one whose
    validation masks lack an organ, see `_why_no_choice`.
    """
    federated = _validated(grid, result, job, "", events)
    values = {FEDERATED: _selected(job, federated)}
    if OWN in comparisons:
        values[OWN] = {site: _own_value(run_dir, job, site) for site in result.sites}
    for variant in CANDIDATES:
        if variant in comparisons:
            values[VARIANTS[variant]] = _selected(job, _validated(grid, result, job, variant, events))
    if len(values) == 1:
        return {}
    return {
        site: _best(
            {name: by_site.get(site) for name, by_site in values.items()},
            _why_no_choice(job, federated[site]) if site in federated else None,
        )
        for site, of in sorted(result.sites.items())
        if of.cases["validation"] or of.cases["test"]  # or it is asked for nothing, and keeps none
    }


def _validated(
    grid: Grid, result: Result, job: Job, variant: str, events: EventLog
) -> dict[str, dict[str, float | None]]:
    """Hospital -> the metrics of the federated model, or of a variant of it, on the hospital's validation patients."""
    name = VARIANTS.get(variant, FEDERATED)
    model = Model(f"{name}-validated", result.best, result.best_round, result.best_used, variant)
    sums = collect(grid, result.sites, job, model, "validation", 0, events)
    return {site: first_values(job, values) for site, values in sums.items()}


def _selected(job: Job, metrics: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    return {site: values.get(job.selection_metric()) for site, values in metrics.items()}


def _why_no_choice(job: Job, metrics: Mapping[str, float | None]) -> str | None:
    """Where not every case annotates all organs: why a hospital's validation patients cannot choose; None if they can.

    A hospital's own model has never learnt the organs that its masks lack, and they cannot show that it misses them.

    Args:
        metrics: of the federated model on the hospital's validation patients.
    """
    if job.data.annotated is None:
        return None
    unseen = [organ for organ in job.task.classes[1:] if metrics[f"dice/{organ}"] is None]
    return f"its validation masks have no {listed(unseen)}, so they cannot tell which model is best" if unseen else None


def _own_value(run_dir: Path, job: Job, site: str) -> float | None:
    """What a hospital's own model had on its validation patients in the round that was chosen by it."""
    if not model_path(run_dir, LOCAL + site).exists():
        return None
    note = read_note(run_dir, LOCAL + site)
    metrics = {point["round"]: point["metrics"] for point in note["curve"]}
    value: float | None = metrics.get(note["best_round"], {}).get(job.selection_metric())
    return value


def _best(validation: Mapping[str, float | None], why_no_choice: str | None = None) -> Choice:
    """The first of those with the largest value, the federated model standing first; only that one without a choice."""
    kept, most = FEDERATED, validation[FEDERATED]
    for name, value in validation.items():
        if why_no_choice is None and value is not None and (most is None or value > most):
            kept, most = name, value
    return {"kept": kept, "validation": dict(validation), "why": why_no_choice}


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
