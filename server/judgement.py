"""What a model is worth: sums from the sites, pooled exactly, with patient-level bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.admission import fault_of
from server.checkpoint import RunState
from server.events import EventLog
from server.participation import Reply, Site, ask, instruction
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import Sums, Task, task_of
from shared_models.tasks.bootstrap import difference, interval, pooled
from shared_models.weights import Weights, from_record, mismatch, to_record

FEDERATED, POOLED, LOCAL = "federated", "pooled", "local:"


def validate(grid: Grid, sites: Mapping[str, Site], job: Job, state: RunState, events: EventLog) -> None:
    """Judges the global model on every site's validation patients and remembers the best round in the state."""
    sums = collect(grid, sites, job, state.weights, f"{FEDERATED}-round", "validation", 0, events, state.round)
    if not sums:
        return
    metrics = {site: first_values(job, values) for site, values in sums.items()}
    overall = first_values(job, pooled(list(sums.values())))
    value = overall.get(job.selection_metric())
    if value is None and state.round == job.federation.rounds and job.selection_metric() not in overall:
        events.emit("warning", text=f"evaluation.select: there is no metric '{job.selection_metric()}'")
    best = value is not None and (state.best_value is None or value > state.best_value)
    if best:
        state.best_round, state.best_value = state.round, value
    events.emit("validated", round=state.round, metrics=overall, by_site=metrics, best=best)


def collect(
    grid: Grid,
    sites: Mapping[str, Site],
    job: Job,
    weights: Weights,
    model: str,
    split: str,
    replicates: int,
    events: EventLog,
    number: int = 0,
) -> dict[str, Sums]:
    """The metric sums of one model at every site that has patients in the split.

    A site that gives none is said in a warning, and is missing from the answer.

    Args:
        number: the round that the model is of; what stays at a site is taken from there.
    """
    content = RecordDict(
        {
            "instruction": instruction(job, model=model, split=split, replicates=replicates, round=number),
            "weights": to_record(weights),
        }
    )
    requests = {name: (site.node, content) for name, site in sites.items() if site.cases.get(split, 0) > 0}
    shapes = {name: array.shape for name, array in task_of(job).sums([], np.zeros((replicates + 1, 0))).items()}
    sums: dict[str, Sums] = {}
    for reply in ask(grid, requests, MessageType.EVALUATE, job.federation.deadline_seconds):
        try:
            sums[reply.site] = _sums(reply, shapes)
        except BadInput as error:
            sentence = f"{reply.site} gave no {split} result for model '{model}': {error}"
            events.emit("warning", text=sentence, left_out=True)
    return {name: sums[name] for name in sorted(sums)}


def _sums(reply: Reply, shapes: Mapping[str, tuple[int, ...]]) -> Sums:
    message = reply.message
    if message is None:
        raise BadInput(reply.why)
    fault = fault_of(message)
    if fault:
        raise BadInput(fault)
    record = message.content.get("sums")
    if not isinstance(record, ArrayRecord):
        raise BadInput("the reply has no record 'sums'")
    sums: Sums = {}
    arrays = from_record(record)
    problem = mismatch(shapes, {name: array.shape for name, array in arrays.items()})
    if problem:
        raise BadInput(f"its sums are not those of this task: {problem}")
    for name, array in arrays.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise BadInput(f"its sum '{name}' is not a finite float64 array")
        sums[name] = array.astype(np.float64, copy=False)
    return sums


def first_values(job: Job, sums: Sums) -> dict[str, float | None]:
    """The metrics without their replicates; None where a metric is undefined."""
    values = {name: float(row[0]) for name, row in task_of(job).metrics(sums).items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def judge(job: Job, sums: Mapping[str, Mapping[str, Sums]]) -> dict[str, Any]:
    """The content of evaluations.json.

    Args:
        sums: model -> hospital -> metric sums with bootstrap replicates; every model has the same replicates, so that
            differences are paired.
    """
    task = task_of(job)
    pooled_sums = {model: with_all(by_site) for model, by_site in sums.items()}
    local = {site: sums[LOCAL + site][site] for site in sums[FEDERATED] if site in sums.get(LOCAL + site, {})}
    return {
        "schema": 1,
        "split": "test",
        "bootstrap": job.evaluation.bootstrap,
        "metrics": task.metric_info(),
        "models": {
            model: {site: _values(task, values) for site, values in by_site.items()}
            for model, by_site in pooled_sums.items()
        },
        "differences": {
            f"{FEDERATED}-local": _against_local(task, sums[FEDERATED], local),
            f"{FEDERATED}-{POOLED}": _against_pooled(task, sums[FEDERATED], sums.get(POOLED, {})),
        },
        "curves": {model: {"all": task.curves(by_site["all"])} for model, by_site in pooled_sums.items() if by_site},
    }


def with_all(by_site: Mapping[str, Sums]) -> dict[str, Sums]:
    """The hospitals and, as `all`, the sums over them."""
    return {**by_site, "all": pooled(list(by_site.values()))} if by_site else {}


def _values(task: Task, sums: Sums) -> dict[str, Any]:
    counts, patients = task.counts(sums), float(sums["patients"][0])
    return {
        name: {**asdict(interval(values, patients)), "n": counts[name]} for name, values in task.metrics(sums).items()
    }


def _against_local(task: Task, ours: Mapping[str, Sums], local: Mapping[str, Sums]) -> dict[str, Any]:
    """Differences to each hospital's own model, and as `all` their plain mean over the hospitals.

    The sums of different models are not pooled: a ranking of their scores together would reward a model that only
    knows which hospital it stands in.
    """
    result = {}
    gaps: dict[str, list[NDArray[np.float64]]] = {}
    for site, sums in local.items():
        theirs, patients = task.metrics(sums), float(sums["patients"][0])
        own = {name: values - theirs[name] for name, values in task.metrics(ours[site]).items()}
        result[site] = {name: asdict(interval(values, patients)) for name, values in own.items()}
        for name, values in own.items():
            if np.isfinite(values[0]):
                gaps.setdefault(name, []).append(values)
    if gaps and local.keys() == ours.keys():
        result["all"] = {name: asdict(interval(np.mean(values, axis=0))) for name, values in gaps.items()}
    return result


def _against_pooled(task: Task, ours: Mapping[str, Sums], pooled_model: Mapping[str, Sums]) -> dict[str, Any]:
    """Differences to the one model of the pooled baseline, at each hospital and over all patients together."""
    ours_all, theirs_all = with_all(ours), with_all(pooled_model)
    result = {}
    for site in (
        site for site in ours_all if site in theirs_all and (site != "all" or ours.keys() == pooled_model.keys())
    ):
        theirs, patients = task.metrics(theirs_all[site]), float(ours_all[site]["patients"][0])
        result[site] = {
            name: asdict(difference(values, theirs[name], patients))
            for name, values in task.metrics(ours_all[site]).items()
        }
    return result


def undefined(evaluations: Mapping[str, Any]) -> str | None:
    """One sentence that names the hospitals where the federated model's main metric has no value; None if all have."""
    main = next(name for name, info in evaluations["metrics"].items() if info["headline"])
    without = {
        site: metrics[main]["why"]
        for site, metrics in evaluations["models"][FEDERATED].items()
        if metrics[main]["value"] is None
    }
    if not without:
        return None
    label, why = evaluations["metrics"][main]["label"], next(iter(without.values()))
    return f"{label} has no value at {', '.join(without)} ({why}); these hospitals count in the value over all"
