"""What a model is worth: sums from the sites, pooled exactly, with patient-level bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.admission import fault_of
from server.best_round import remember_if_best
from server.checkpoint import RunState
from server.events import EventLog
from server.participation import Reply, Site, ask, instruction
from shared_models import subgroups
from shared_models.comparisons import ENSEMBLE
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.page import listed
from shared_models.tasks import Sums, Task, task_of
from shared_models.tasks.bootstrap import difference, interval, pooled
from shared_models.weights import Weights, from_record, mismatch, to_record

Row = dict[str, Any]

FEDERATED, POOLED, LOCAL = "federated", "pooled", "local:"
POINTS = 201
"""Of a mean ROC curve."""


@dataclass(frozen=True)
class Model:
    """A model that sites are asked to judge.

    Attributes:
        name: in the results.
        weights: those that travel; a list of whole models for an ensemble.
        round: that it is of; 0 for a baseline.
        last_used: by site, the last round up to that one that its update is in: what stays at a site is taken from
            there. A baseline is whole, and has none.
        variant: what the site makes of it first, see `shared_models.comparisons`; "" judges it as it is.
    """

    name: str
    weights: Weights | list[Weights]
    round: int = 0
    last_used: Mapping[str, int] = field(default_factory=dict)
    variant: str = ""


def validate(grid: Grid, sites: Mapping[str, Site], job: Job, state: RunState, events: EventLog) -> None:
    """Judges the global model on every site's validation patients and remembers the best round in the state."""
    model = Model(f"{FEDERATED}-round", state.weights, state.round, state.last_used)
    sums = collect(grid, sites, job, model, "validation", 0, events)
    if not sums:
        return
    task = task_of(job)
    at = judged_at(task, sums)
    metrics = {site: _first(judged.metrics) for site, judged in at.items()}
    overall = _first(judged_over_all(task, sums, at, differs_by_hospital(job, FEDERATED)).metrics)
    select = job.selection_metric()
    value = overall.get(select)
    if value is None and state.round == job.federation.rounds and select not in overall:
        events.emit("warning", text=f"evaluation.select: there is no metric '{select}'")
    by_hospital = {site: values.get(select) for site, values in metrics.items()}
    cases = {site: float(values["cases"][0]) for site, values in sums.items()}
    # A metric without a value says nothing: neither which round is best, nor about patience.
    best = value is not None and remember_if_best(state, value, by_hospital, cases, events)
    events.emit("validated", round=state.round, metrics=overall, by_site=metrics, best=best)


def collect(
    grid: Grid, sites: Mapping[str, Site], job: Job, model: Model, split: str, replicates: int, events: EventLog
) -> dict[str, Sums]:
    """The metric sums of one model at every site that has patients in the split.

    A site that gives none is said in a warning, and is missing from the answer.
    """
    fields = {"model": model.name, "split": split, "replicates": replicates, "round": model.round}
    if isinstance(model.weights, list):
        records = {f"weights-{number:04d}": to_record(member) for number, member in enumerate(model.weights)}
    else:
        records = {"weights": to_record(model.weights)}
    requests = {}
    for name, site in sites.items():
        if site.cases.get(split, 0) > 0:
            order = instruction(job, **fields, last_used=model.last_used.get(name, 0), variant=model.variant)
            requests[name] = (site.node, RecordDict({"instruction": order, **records}))
    shapes = {name: array.shape for name, array in task_of(job).sums([], np.zeros((replicates + 1, 0))).items()}
    sums: dict[str, Sums] = {}
    for reply in ask(grid, requests, MessageType.EVALUATE, job.federation.deadline_seconds):
        try:
            sums[reply.site] = _sums(reply, shapes | subgroups.shapes(job, reply.site, model.name, split, replicates))
        except BadInput as error:
            sentence = f"{reply.site} gave no {split} result for model '{model.name}': {error}"
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


def _first(metrics: Mapping[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """The metrics without their replicates; None where a metric is undefined."""
    values = {name: float(row[0]) for name, row in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def differs_by_hospital(job: Job, model: str) -> bool:
    """Whether the hospitals have a model each under this name, and not all the same one.

    The federated model is another at every hospital where the job keeps a part of it at home. The discriminators of a
    GAN, which may stay there too, are not what is judged.
    """
    if model == FEDERATED:
        return job.federation.share.normalisation != "all" or job.federation.share.heads != "all"
    return model not in (POOLED, ENSEMBLE) and not model.startswith(LOCAL)


@dataclass(frozen=True)
class Judged:
    """The metrics of sums, each with its replicates, and the number of cases behind each.

    Attributes:
        patients: hospital -> how many it draws from.
        means: of the metrics that are a mean over hospitals, the hospitals that count in it.
    """

    metrics: dict[str, NDArray[np.float64]]
    counts: dict[str, int]
    patients: dict[str, float]
    means: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Metric -> its value, interval and n; of a mean over hospitals also over how many, of how many."""
        return {name: {**self._row(name), "n": self.counts[name]} for name in self.metrics}

    def _row(self, name: str) -> Row:
        if name in self.means:
            return mean_row(self.metrics[name], self.patients, self.means[name])
        return asdict(interval(self.metrics[name], [*self.patients.values()]))


def counted(by_hospital: Mapping[str, Row]) -> list[str]:
    """The hospitals that a mean over hospitals, the worst one and their spread are taken over.

    Those whose value has an interval: that of a single case of a class may be anything. Where none has one, as without
    replicates, all with a value.

    Args:
        by_hospital: hospital -> "value" and "low" of one metric.
    """
    there = [name for name, row in by_hospital.items() if row.get("value") is not None]
    return [name for name in there if by_hospital[name].get("low") is not None] or there


def mean_row(values: NDArray[np.float64], patients: Mapping[str, float], over: Sequence[str]) -> Row:
    """Value and interval of what was taken `over` some of the hospitals, and over how many of how many.

    Args:
        patients: hospital -> how many it draws from, of all hospitals.
    """
    row = asdict(interval(values, [patients[name] for name in over]))
    return row | {"hospitals": len(over), "of": len(patients)}


def judged_at(task: Task, by_site: Mapping[str, Sums]) -> dict[str, Judged]:
    """Each hospital by itself."""
    return {
        site: Judged(task.metrics(sums), task.counts(sums), {site: float(sums["patients"][0])})
        for site, sums in by_site.items()
    }


def judged_over_all(task: Task, by_site: Mapping[str, Sums], at: Mapping[str, Judged], apart: bool) -> Judged:
    """All hospitals' patients together; but metrics across classes are means where hospitals have a model each.

    Args:
        at: `judged_at` of the same sums.
        apart: the hospitals have a model each.
    """
    total, means = with_all(by_site)["all"], mean_over_hospitals(task, at)
    if not apart:
        return Judged(task.metrics(total), task.counts(total), means.patients)
    return Judged(task.metrics(total) | means.metrics, task.counts(total) | means.counts, means.patients, means.means)


def mean_over_hospitals(task: Task, at: Mapping[str, Judged]) -> Judged:
    """Metrics across classes, as the plain mean over the hospitals that are `counted`."""
    metrics, counts, means = {}, {}, {}
    for name in filter(task.is_across_classes, next(iter(at.values())).metrics):
        means[name] = counted({site: judged.rows[name] for site, judged in at.items()})
        # Where no hospital has a value, the mean has none, as the first hospital has.
        found = [at[site] for site in means[name] or list(at)[:1]]
        metrics[name] = np.mean([judged.metrics[name] for judged in found], axis=0)
        counts[name] = sum(judged.counts[name] for judged in found)
    return Judged(metrics, counts, patients_of(at), means)


def patients_of(at: Mapping[str, Judged]) -> dict[str, float]:
    """Hospital -> how many it draws from."""
    return {site: number for judged in at.values() for site, number in judged.patients.items()}


def judge(job: Job, sums: Mapping[str, Mapping[str, Sums]]) -> dict[str, Any]:
    """The content of evaluations.json.

    Args:
        sums: model -> hospital -> metric sums with bootstrap replicates; every model has the same replicates, so that
            differences are paired. Every model has a hospital.
    """
    task = task_of(job)
    apart = {model: differs_by_hospital(job, model) for model in sums}
    at = {model: judged_at(task, by_site) for model, by_site in sums.items()}
    everywhere = {
        model: {**at[model], "all": judged_over_all(task, by_site, at[model], apart[model])}
        for model, by_site in sums.items()
    }
    return {
        "schema": 1,
        "split": "test",
        "bootstrap": job.evaluation.bootstrap,
        "metrics": task.metric_info(),
        "models": {model: {site: judged.rows for site, judged in found.items()} for model, found in everywhere.items()},
        # Of one model for all hospitals: what it can be held by against models that differ by hospital.
        "mean_over_hospitals": {model: mean_over_hospitals(task, at[model]).rows for model in sums if not apart[model]},
        "differences": _differences(everywhere, apart),
        "curves": {model: {"all": _curves(task, by_site, everywhere[model]["all"])} for model, by_site in sums.items()},
    }


def with_all(by_site: Mapping[str, Sums]) -> dict[str, Sums]:
    """The hospitals and, as `all`, the sums over them."""
    return {**by_site, "all": pooled([subgroups.totals(sums) for sums in by_site.values()])}


def _curves(task: Task, by_site: Mapping[str, Sums], overall: Judged) -> dict[str, Any]:
    """Of all hospitals' patients together, but for the ROC curves of models that differ by hospital: the area below
    their mean is the mean of their areas (Fawcett 2006, "An introduction to ROC analysis", section 8.1).

    Args:
        overall: the model over all hospitals; the curves are means over those that count in its AUROC.
    """
    first = {site: {name: row[:1] for name, row in subgroups.totals(sums).items()} for site, sums in by_site.items()}
    curves = task.curves(with_all(first)["all"])
    if overall.means and "roc" in curves:
        at_home = {site: task.curves(sums).get("roc", {}) for site, sums in first.items()}
        over = {name: overall.means.get(f"auroc/{name}", overall.means["auroc"]) for name in curves["roc"]}
        there = {name: [at_home[site][name] for site in over[name] if name in at_home[site]] for name in over}
        curves["roc"] = {name: _mean_curve(found) for name, found in there.items() if found}
    return curves


def _mean_curve(curves: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    fpr = np.linspace(0, 1, POINTS)
    tpr = np.mean([np.interp(fpr, curve["fpr"], curve["tpr"]) for curve in curves], axis=0)
    return {"fpr": [0.0, *fpr.tolist()], "tpr": [0.0, *tpr.tolist()]}


def _differences(found: Mapping[str, Mapping[str, Judged]], apart: Mapping[str, bool]) -> dict[str, Any]:
    """`<model>-local`, `<model>-federated` and `<model>-pooled` of every model but those of single hospitals.

    Args:
        found: model -> hospital and `all`.
        apart: model -> whether the hospitals have one each.
    """
    at = {model: {site: judged for site, judged in by.items() if site != "all"} for model, by in found.items()}
    own = {site: at[LOCAL + site][site] for site in at[FEDERATED] if site in at.get(LOCAL + site, {})}
    result = {f"{FEDERATED}-local": differences_by_hospital(at[FEDERATED], own), f"{FEDERATED}-{POOLED}": {}}
    for model in (model for model in found if not model.startswith(LOCAL)):
        if own:
            result[f"{model}-local"] = differences_by_hospital(at[model], own)
        for other in (FEDERATED, POOLED):
            if other not in found or other == model or (model, other) == (POOLED, FEDERATED):
                continue
            if apart[model] or apart[other]:
                result[f"{model}-{other}"] = differences_by_hospital(at[model], at[other])
            else:
                result[f"{model}-{other}"] = _of_one_model(found[model], found[other])
    return result


def differences_by_hospital(ours: Mapping[str, Judged], theirs: Mapping[str, Judged]) -> dict[str, Any]:
    """Differences at each hospital, where either may have a model of its own, and as `all` their plain mean over those
    that are `counted`."""
    gaps: dict[str, dict[str, NDArray[np.float64]]] = {}
    result: dict[str, dict[str, Row]] = {site: {} for site in ours if site in theirs}
    patients = patients_of(ours)
    for site, rows in result.items():
        for name, values in ours[site].metrics.items():
            gaps.setdefault(name, {})[site] = gap = values - theirs[site].metrics[name]
            rows[name] = asdict(interval(gap, patients[site]))
    if result and theirs.keys() == ours.keys():
        over = {name: counted({site: rows[name] for site, rows in result.items()}) for name in gaps}
        means = {
            name: mean_row(np.mean([gaps[name][site] for site in sites], axis=0), patients, sites)
            for name, sites in over.items()
            if sites
        }
        result |= {"all": means} if means else {}
    return result


def _of_one_model(ours: Mapping[str, Judged], theirs: Mapping[str, Judged]) -> dict[str, Any]:
    """Differences of two models that are the same everywhere, at each hospital and over all patients together."""
    return {
        site: {
            name: asdict(difference(values, theirs[site].metrics[name], [*judged.patients.values()]))
            for name, values in judged.metrics.items()
        }
        for site, judged in ours.items()
        if site in theirs and (site != "all" or ours.keys() == theirs.keys())
    }


def undefined(evaluations: Mapping[str, Any]) -> str | None:
    """One sentence that names the hospitals where the federated model's main metric has no value, and which others have
    none there; None if it has one everywhere."""
    main, *others = (name for name, info in evaluations["metrics"].items() if info["headline"])
    federated = evaluations["models"][FEDERATED]
    rows = {site: metrics[main] for site, metrics in federated.items()}
    overall = rows.pop("all")
    without = {site: row["why"] for site, row in rows.items() if row["value"] is None}
    if not without:
        return None
    label, why = evaluations["metrics"][main]["label"], next(iter(without.values()))
    alike = [name for name in others if undefined_alike(federated, main, name)]
    nor = [evaluations["metrics"][name]["label"] for name in alike]
    also = f", nor {'have' if len(nor) > 1 else 'has'} {listed(nor)}" if nor else ""
    if overall["value"] is None:
        end = "so there is none over all"
    elif overall["n"] > sum(row["n"] for row in rows.values()):
        end = f"these hospitals count in the {label} over all"
    elif "hospitals" not in overall:
        end = f"the {label} over all is of the cases of the others"
    else:
        defined = len(rows) - len(without)
        over = "the others" if overall["hospitals"] == defined else f"{overall['hospitals']} of the others"
        end = f"these hospitals do not count in the {label} over all, which is the mean over {over}"
    return f"{label} has no value at {', '.join(without)} ({why}){also}; {end}"


def undefined_alike(by_hospital: Mapping[str, Mapping[str, Any]], main: str, other: str) -> bool:
    """Whether a metric of a model has no value at the hospitals where the main one has none, for the same reason."""
    lacking = [rows for site, rows in by_hospital.items() if site != "all" and rows[main]["value"] is None]
    return all(
        other in rows and rows[other]["value"] is None and rows[other].get("why") == rows[main].get("why")
        for rows in lacking
    )
