"""Several runs in one table: what differs between them, how each did, and whether a difference is more than chance.

Runs of one job with several seeds are one method. The first method is the reference: every other one is tested against
it. docs/researcher.md says how to read the result.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from server.judgement import FEDERATED, counted, differs_by_hospital
from server.report import comparison_tests as tests
from server.report.answer import worst_hospital
from server.report.comparison_answer import NO_SEED, OTHER_PATIENTS, answer, grave_doubts, verdict
from server.report.comparison_labels import Settings, differing, labels, settings_of
from server.report.record import RunRecord, read_record
from server.report.summary import summarise
from shared_models.errors import BadInput
from shared_models.tasks import task_of

SCHEMA = "consilium-comparison/1"

Row = dict[str, Any]


@dataclass(frozen=True)
class ReadRun:
    """A run that can be compared."""

    name: str
    record: RunRecord
    report: Row
    model: str
    metric: str
    mean_over_hospitals: bool = False
    """Whether every run's value over all is the mean over the hospitals: the metric is one across classes, and of the
    runs in the table some have a model that differs by hospital."""

    @property
    def differs(self) -> bool:
        """Whether every hospital has another model."""
        return differs_by_hospital(self.record.job, self.model)

    @property
    def seed(self) -> int:
        """The job's."""
        return self.record.job.seed

    @property
    def rows(self) -> Row:
        """Hospital (and "all") -> the metric of the model there."""
        by_hospital = self.report["models"][self.model]
        rows = {name: metrics[self.metric] for name, metrics in by_hospital.items() if self.metric in metrics}
        if self.mean_over_hospitals and not self.differs:
            rows["all"] = _mean_over_hospitals(self)[self.model][self.metric]
        return rows

    @cached_property
    def cases(self) -> tests.Groups | None:
        """Every test case of the model, or None where this run does not hold them, or others than it was judged on."""
        at = {name: row for name, row in self.rows.items() if name != "all"}
        hospitals = counted(at) if self.mean_over_hospitals else list(at)
        cases = tests.read_cases(self.record.folder, self.model, hospitals)
        told = self.rows.get("all", {}).get("value")
        if not cases or told is None:
            return None
        if not self.mean_over_hospitals:
            cases = [sorted((record for records in cases for record in records), key=lambda record: record.case)]
        found = tests.value_of(task_of(self.record.job), self.metric, cases)
        return cases if abs(found - told) <= tests.AGREES * max(abs(told), tests.AGREES) else None

    def minus(self, other: str) -> Row | None:
        """The difference of the model from `local` or `pooled` over all hospitals; None where there is none."""
        rows = {
            hospital: metrics[self.metric]
            for hospital, metrics in self.report["differences"].get(f"{self.model}-{other}", {}).items()
            if self.metric in metrics
        }
        overall: Row | None = rows.pop("all", None)
        if overall and self.mean_over_hospitals and not self.differs and other == "pooled":
            # The run has it of one ranking of all patients; its interval is not on record.
            values = [rows[hospital]["value"] for hospital in counted(rows)]
            return {"value": statistics.fmean(values) if values else None, "low": None, "high": None}
        return overall

    def numbers(self) -> Row:
        """One entry of `runs` in compare.json."""
        rows, cost, run = self.rows, self.report["cost"], self.report["run"]
        return {
            "run": self.name,
            "seed": self.seed,
            **{key: rows.get("all", {}).get(key) for key in ("value", "low", "high", "n")},
            **self._over_hospitals(),
            "worst": worst_hospital(self.report, self.model, self.metric),
            "hospitals": rows,
            **{f"minus_{other}": self.minus(other) for other in ("local", "pooled")},
            "rounds": run["rounds_finished"],
            "best_round": run["best_round"],
            "seconds": cost["seconds"]["federated"],
            "bytes": cost["bytes"]["sent_by_sites"] + cost["bytes"]["received_by_sites"],
            "exit_code": run["exit_code"],
            "job_hash": run["job_hash"],
            "split_hash": run["split_hash"],
            "doubts": [doubt for doubt in self.report["doubts"] if doubt["grave"]],
        }

    def _over_hospitals(self) -> Row:
        """Mean and spread (best minus worst) of the hospitals, with an interval where the run's evaluation has one."""
        at = {name: row for name, row in self.rows.items() if name != "all"}
        values = [at[name]["value"] for name in counted(at)]
        if not values:
            return {"mean_of_hospitals": None, "spread": None}
        # Of models that differ by hospital, "all" may be that mean.
        means = _mean_over_hospitals(self).get(self.model) or {self.metric: self.rows.get("all", {})}
        told: dict[str, tuple[float, Row]] = {
            "mean_of_hospitals": (statistics.fmean(values), means),
            "spread": (max(values) - min(values), self.report["spread"].get(self.model, {})),
        }
        if len(values) == 1:
            del told["spread"]
        found: Row = {"spread": None}
        for key, (value, rows) in told.items():
            row = rows.get(self.metric, {})
            row = row.get("range", row)
            same = row.get("value") is not None and math.isclose(row["value"], value, rel_tol=1e-6, abs_tol=1e-9)
            bounds = {bound: row.get(bound) if same else None for bound in ("low", "high")}
            found[key] = {"value": value, **bounds, "hospitals": len(values), "of": len(at)}
        return found


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seed."""

    label: str
    settings: Settings
    runs: list[ReadRun]

    def numbers(self) -> Row:
        """One entry of `methods` in compare.json: means over the runs, and the runs themselves.

        The interval is over patients: of several seeds the mean of their lower and of their upper bounds, which is at
        least as wide as the interval of their mean.
        """
        runs = [run.numbers() for run in self.runs]
        values = [run["value"] for run in runs if run["value"] is not None]
        return {
            "label": self.label,
            "settings": self.settings,
            "seeds": [run.seed for run in self.runs],
            **{key: _mean([run[key] for run in runs]) for key in ("value", "low", "high")},
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "n": runs[0]["n"] if len({run["n"] for run in runs}) == 1 else None,
            **{key: _over_runs([run[key] for run in runs]) for key in ("mean_of_hospitals", "worst", "spread")},
            "minus_local": _mean_row([run["minus_local"] for run in runs]),
            "minus_pooled": _mean_row([run["minus_pooled"] for run in runs]),
            **{key: _mean([run[key] for run in runs]) for key in ("rounds", "seconds", "bytes")},
            "runs": runs,
        }


def compare_runs(
    folders: Sequence[Path],
    metric: str | None = None,
    model: str = FEDERATED,
    left_out: Sequence[Row] = (),
    varied: Sequence[str] = (),
) -> Row:
    """The content of compare.json.

    Args:
        folders: run directories; the first one that can be compared decides what they are compared by.
        metric: by which one; the first run's headline metric if not said.
        model: which of the run's models, as in its evaluations.json.
        left_out: runs that are known to be missing: `run` and `why` of each.
        varied: dotted keys of the job that the labels say in any case.

    Raises:
        BadInput: none can be compared, a folder is no run directory, or no run knows the metric or the model.
    """
    runs, missing = _readable(folders, metric, model)
    methods = _methods(runs, varied)
    rows = [method.numbers() for method in methods]
    first = runs[0]
    comparison: Row = {
        "schema": SCHEMA,
        "task": first.report["task"],
        "split": first.report["split"],
        "model": model,
        "metric": first.metric,
        "mean_over_hospitals": first.mean_over_hospitals,
        **{key: first.report["metrics"][first.metric][key] for key in ("label", "larger_is_better", "digits")},
        "methods": rows,
        "tests": _tests(methods, first.metric, first.report["metrics"][first.metric]["larger_is_better"]),
        "left_out": [*missing, *left_out],
    }
    comparison["doubts"] = grave_doubts(rows)
    comparison["answer"] = answer(comparison)
    return comparison


def _readable(folders: Sequence[Path], metric: str | None, model: str) -> tuple[list[ReadRun], list[Row]]:
    """The runs that can be compared, and the others with a sentence each."""
    runs: list[ReadRun] = []
    missing: list[Row] = []
    for folder in folders:
        record = read_record(folder)
        report = summarise(record)
        wanted = runs[0].metric if runs else metric or report["headline_metric"]
        run = ReadRun(str(folder), record, report, model, wanted or "")
        why = _unfinished(report) or (_unlike(run, runs) if runs else None) or _lacking(run)
        if why:
            missing.append({"run": str(folder), "why": why})
        else:
            runs.append(run)
    if not runs:
        raise BadInput("\n".join(f"{row['run']} cannot be compared: {row['why']}" for row in missing))
    across_classes = task_of(runs[0].record.job).is_across_classes(runs[0].metric)
    if not across_classes or not any(run.differs for run in runs):
        return runs, missing
    unlike = {run.name for run in runs if not run.differs and run.model not in _mean_over_hospitals(run)}
    why = "another version judged it, and said nothing of the mean over the hospitals, which counts here: run it again"
    missing += [{"run": name, "why": why} for name in sorted(unlike)]
    return [replace(run, mean_over_hospitals=True) for run in runs if run.name not in unlike], missing


def _mean_over_hospitals(run: ReadRun) -> Row:
    """Model -> metric across classes -> its mean over the hospitals, of models that do not differ by hospital."""
    found: Row = (run.record.evaluations or {}).get("mean_over_hospitals", {})
    return found


def _unfinished(report: Row) -> str | None:
    """Why a run cannot be compared with any other."""
    if report["status"] != "complete":
        return f"it is not complete ({report['reason'] or report['status']})"
    if not report["models"]:
        return "it holds no evaluation on test patients"
    return None


def _lacking(run: ReadRun) -> str | None:
    """What was asked for that a run does not have."""
    report = run.report
    if run.model not in report["models"]:
        return f"it has no model '{run.model}'; it has {', '.join(report['models'])}"
    if run.metric not in report["metrics"]:
        return f"it has no metric '{run.metric}'; it has {', '.join(report['metrics'])}"
    return None


def _unlike(run: ReadRun, others: Sequence[ReadRun]) -> str | None:
    """Why a run cannot stand in one table with those before it."""
    first = others[0]
    if run.report["task"] != first.report["task"]:
        return f"its task is {run.report['task']}, that of {first.name} is {first.report['task']}"
    if _data(run) != _data(first):
        return f"it is on other data than {first.name}"
    for other in others:
        if other.seed == run.seed and settings_of(other.record.job) == settings_of(run.record.job):
            return f"it repeats {other.name}: the same job and seed"
    return None


def _data(run: ReadRun) -> Any:
    """What tells data sets apart: of a simulation its name and cases, of a deployment the hospitals."""
    if run.record.split is None:
        return sorted(run.report["run"]["sites"])
    found = run.record.split.get("dataset", {})
    return [found.get("name"), found.get("cases_sha256")]


def _methods(runs: Sequence[ReadRun], varied: Sequence[str]) -> list[Method]:
    """Runs that differ only in their seed together, in the order of their first one."""
    groups: list[tuple[Settings, list[ReadRun]]] = []
    for run in runs:
        settings = settings_of(run.record.job)
        group = next((members for known, members in groups if known == settings), None)
        if group is None:
            groups.append((settings, [run]))
        else:
            group.append(run)
    found = differing([settings for settings, _ in groups], varied)
    named = zip(labels(found), found, groups, strict=True)
    return [
        Method(label, settings, sorted(members, key=lambda run: run.seed)) for label, settings, (_, members) in named
    ]


def _tests(methods: Sequence[Method], metric: str, larger_is_better: bool) -> list[Row]:
    """Every method against the first; p values of each kind are corrected together."""
    reference, *others = methods
    found: list[Row] = [
        {
            "method": method.label,
            "reference": reference.label,
            "patients": _over_patients(method, reference, metric),
            "seeds": tests.over_seeds(_values(method), _values(reference)),
        }
        for method in others
    ]
    for kind in ("patients", "seeds"):
        for row, corrected in zip(found, tests.holm([row[kind]["p"] for row in found]), strict=True):
            row[kind]["p_holm"] = corrected
    for row in found:
        row["verdict"] = verdict(row["patients"], larger_is_better)
    return found


def _over_patients(method: Method, reference: Method, metric: str) -> Row:
    """The test over patients, or why there is none."""
    theirs = {run.seed: run for run in reference.runs}
    pairs = [(run, theirs[run.seed]) for run in method.runs if run.seed in theirs]
    why = None
    if not pairs:
        why = NO_SEED
    elif any(run.cases is None for pair in pairs for run in pair):
        without = next(run.name for pair in pairs for run in pair if run.cases is None)
        why = f"{without} holds no values of single patients that agree with its evaluation"
    else:
        pairs = [(a, b) for a, b in pairs if tests.same_cases(a.cases or [], b.cases or [])]
        if not pairs:
            why = OTHER_PATIENTS
    if why:
        none = dict.fromkeys(("difference", "low", "high", "test", "p", "sign"))
        return {"n": 0, "seeds": [], **none, "why": why}
    task = task_of(method.runs[0].record.job)
    row = tests.over_patients(task, metric, [(a.cases or [], b.cases or []) for a, b in pairs])
    return row | {"seeds": [run.seed for run, _ in pairs]}


def _values(method: Method) -> dict[int, float]:
    rows = {run.seed: run.rows.get("all", {}).get("value") for run in method.runs}
    return {seed: value for seed, value in rows.items() if value is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where any is missing: a mean over some of the seeds would be that of a silent subset."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


def _over_runs(rows: Sequence[Row | None]) -> Row | None:
    """What the hospitals of each run come to: of one run with its interval, of several with the deviation over them.

    "hospitals" is how many at the least, "most" at the most, "of" how many; of the worst one, "hospitals" is the names,
    in the order of how often it was theirs.
    """
    there = [row for row in rows if row is not None]
    if not there or len(there) < len(rows):
        return None
    values = [row["value"] for row in there]
    one = there[0] if len(there) == 1 else {}
    names = Counter(row["hospital"] for row in there if "hospital" in row)
    counts = [] if names else [row["hospitals"] for row in there]
    return {
        "value": statistics.fmean(values),
        **{key: one.get(key) for key in ("low", "high", "n")},
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "hospitals": [name for name, _ in names.most_common()] if names else min(counts),
        "most": max(counts, default=None),
        "of": None if names else there[0]["of"],
    }


def _mean_row(rows: Sequence[Row | None]) -> Row | None:
    if any(row is None for row in rows):
        return None
    return {key: _mean([row[key] for row in rows if row]) for key in ("value", "low", "high")}
