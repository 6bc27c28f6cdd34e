"""Several runs in one table: what differs between them, how each did, and whether a difference is more than chance.

Runs of one job with several seeds are one method. The first method is the reference: every other one is tested against
it. docs/researcher.md says how to read the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from server.judgement import FEDERATED
from server.report import comparison_tests as tests
from server.report.answer import worst_hospital
from server.report.comparison_labels import Settings, differing, labels, settings_of
from server.report.record import RunRecord, read_record
from server.report.summary import summarise
from shared_models.errors import BadInput
from shared_models.page import fixed, interval_text, listed, plural
from shared_models.tasks import CaseRecord, task_of

SCHEMA = "consilium-comparison/1"
SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR, UNTESTED = "better", "worse", "no clear difference", "not tested"

Row = dict[str, Any]


@dataclass(frozen=True)
class ReadRun:
    """A run that can be compared."""

    name: str
    record: RunRecord
    report: Row
    model: str
    metric: str

    @property
    def seed(self) -> int:
        """The job's."""
        return self.record.job.seed

    @property
    def rows(self) -> Row:
        """Hospital (and "all") -> the metric of the model there."""
        by_hospital = self.report["models"][self.model]
        return {name: metrics[self.metric] for name, metrics in by_hospital.items() if self.metric in metrics}

    @cached_property
    def cases(self) -> list[CaseRecord] | None:
        """Every test case of the model, or None where this run does not hold them, or others than it was judged on."""
        hospitals = [name for name in self.rows if name != "all"]
        cases = tests.read_cases(self.record.folder, self.model, hospitals)
        told = self.rows.get("all", {}).get("value")
        if not cases or told is None:
            return None
        found = tests.value_of(task_of(self.record.job), self.metric, cases)
        return cases if abs(found - told) <= tests.AGREES * max(abs(told), tests.AGREES) else None

    def numbers(self) -> Row:
        """One entry of `runs` in compare.json."""
        rows, cost, run = self.rows, self.report["cost"], self.report["run"]
        values = [row["value"] for name, row in rows.items() if name != "all" and row["value"] is not None]
        differences = self.report["differences"]
        against = {
            f"minus_{other}": differences.get(f"{self.model}-{other}", {}).get("all", {}).get(self.metric)
            for other in ("local", "pooled")
        }
        return {
            "run": self.name,
            "seed": self.seed,
            **{key: rows.get("all", {}).get(key) for key in ("value", "low", "high", "n")},
            "mean_of_hospitals": statistics.fmean(values) if values else None,
            "worst": worst_hospital(self.report, self.model, self.metric),
            "spread": max(values) - min(values) if values else None,
            "hospitals": rows,
            **against,
            "rounds": run["rounds_finished"],
            "best_round": run["best_round"],
            "seconds": cost["seconds"]["federated"],
            "bytes": cost["bytes"]["sent_by_sites"] + cost["bytes"]["received_by_sites"],
            "exit_code": run["exit_code"],
            "job_hash": run["job_hash"],
            "split_hash": run["split_hash"],
        }


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
        worst = [run["worst"] for run in runs if run["worst"]]
        places = list(dict.fromkeys(row["hospital"] for row in worst))
        return {
            "label": self.label,
            "settings": self.settings,
            "seeds": [run.seed for run in self.runs],
            **{
                key: _mean([run[key] for run in runs])
                for key in ("value", "low", "high", "mean_of_hospitals", "spread")
            },
            "sd": statistics.stdev(values) if len(values) > 1 else None,
            "n": runs[0]["n"] if len({run["n"] for run in runs}) == 1 else None,
            "worst": {"value": _mean([row["value"] for row in worst]), "hospitals": places} if worst else None,
            "minus_local": _mean_row([run["minus_local"] for run in runs]),
            "minus_pooled": _mean_row([run["minus_pooled"] for run in runs]),
            **{key: _mean([run[key] for run in runs]) for key in ("rounds", "seconds", "bytes")},
            "runs": runs,
        }


def compare_runs(
    folders: Sequence[Path], metric: str | None = None, model: str = FEDERATED, left_out: Sequence[Row] = ()
) -> Row:
    """The content of compare.json.

    Args:
        folders: run directories; the first one that can be compared decides what they are compared by.
        metric: by which one; the first run's headline metric if not said.
        model: which of the run's models, as in its evaluations.json.
        left_out: runs that are known to be missing: `run` and `why` of each.

    Raises:
        BadInput: none can be compared, a folder is no run directory, or no run knows the metric or the model.
    """
    runs, missing = _readable(folders, metric, model)
    methods = _methods(runs)
    rows = [method.numbers() for method in methods]
    first = runs[0]
    comparison: Row = {
        "schema": SCHEMA,
        "task": first.report["task"],
        "split": first.report["split"],
        "model": model,
        "metric": first.metric,
        **{key: first.report["metrics"][first.metric][key] for key in ("label", "larger_is_better", "digits")},
        "methods": rows,
        "tests": _tests(methods, first.metric, first.report["metrics"][first.metric]["larger_is_better"]),
        "left_out": [*missing, *left_out],
    }
    comparison["answer"] = _answer(comparison)
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
    return runs, missing


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


def _methods(runs: Sequence[ReadRun]) -> list[Method]:
    """Runs that differ only in their seed together, in the order of their first one."""
    groups: list[tuple[Settings, list[ReadRun]]] = []
    for run in runs:
        settings = settings_of(run.record.job)
        group = next((members for known, members in groups if known == settings), None)
        if group is None:
            groups.append((settings, [run]))
        else:
            group.append(run)
    found = differing([settings for settings, _ in groups])
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
        row["verdict"] = _verdict(row["patients"], larger_is_better)
    return found


def _over_patients(method: Method, reference: Method, metric: str) -> Row:
    """The test over patients, or why there is none."""
    theirs = {run.seed: run for run in reference.runs}
    pairs = [(run, theirs[run.seed]) for run in method.runs if run.seed in theirs]
    why = None
    if not pairs:
        why = "no seed in common"
    elif any(run.cases is None for pair in pairs for run in pair):
        without = next(run.name for pair in pairs for run in pair if run.cases is None)
        why = f"{without} holds no values of single patients that agree with its evaluation"
    else:
        pairs = [(a, b) for a, b in pairs if tests.same_cases(a.cases or [], b.cases or [])]
        if not pairs:
            why = "the test patients are not the same"
    if why:
        none = dict.fromkeys(("difference", "low", "high", "test", "p"))
        return {"n": 0, "seeds": [], **none, "why": why}
    task = task_of(method.runs[0].record.job)
    row = tests.over_patients(task, metric, [(a.cases or [], b.cases or []) for a, b in pairs])
    return row | {"seeds": [run.seed for run, _ in pairs]}


def _verdict(row: Row, larger_is_better: bool) -> str:
    if row["p_holm"] is None:
        return UNTESTED
    if row["p_holm"] >= SIGNIFICANT:
        return UNCLEAR
    return BETTER if (row["difference"] > 0) == larger_is_better else WORSE


def _values(method: Method) -> dict[int, float]:
    rows = {run.seed: run.rows.get("all", {}).get("value") for run in method.runs}
    return {seed: value for seed, value in rows.items() if value is not None}


def _answer(comparison: Row) -> list[str]:
    """The sentences at the top."""
    pick: Callable[..., Row] = max if comparison["larger_is_better"] else min
    there = [method for method in comparison["methods"] if method["value"] is not None]
    if not there:
        return [f"{comparison['label']} has no value in any of these runs."]
    best = pick(there, key=lambda method: method["value"])
    digits = comparison["digits"]
    facts = [interval_text(best, digits), *([f"n = {best['n']} cases"] if best["n"] is not None else [])]
    facts += [f"mean of {len(best['seeds'])} seeds"] if len(best["seeds"]) > 1 else []
    value = f"{comparison['label']} {fixed(best['value'], digits)} ({', '.join(facts)})"
    if len(comparison["methods"]) == 1:
        return [f"{value}; there is one method only, and nothing to test it against.", *_missing(comparison)]
    sentences = [f"{best['label']} has the best {value}."]
    reference = comparison["methods"][0]["label"]
    for word, text in (
        (BETTER, "Better than {} on the same patients: {}."),
        (WORSE, "Worse than {} on the same patients: {}."),
        (UNCLEAR, "No clear difference from {} on the same patients: {}."),
        (UNTESTED, "Not tested against {} on the same patients: {}."),
    ):
        names = [test["method"] for test in comparison["tests"] if test["verdict"] == word]
        if names:
            sentences.append(text.format(reference, listed(names)))
    return sentences + _about_seeds(comparison) + _missing(comparison)


def _about_seeds(comparison: Row) -> list[str]:
    """Whether a difference over patients may have been chance in training."""
    sentences = []
    lucky = [
        test["method"]
        for test in comparison["tests"]
        if test["verdict"] in (BETTER, WORSE) and (test["seeds"]["p_holm"] or 0.0) >= SIGNIFICANT
    ]
    if lucky:
        sentences.append(f"Over the seeds that is not certain for {listed(lucky)}: it may be chance in training.")
    few = [test["method"] for test in comparison["tests"] if test["seeds"]["p"] is None]
    if few:
        who = "" if len(few) == len(comparison["tests"]) else f" for {listed(few)}"
        sentences.append(f"Chance in training was not tested{who}: that needs {tests.FEWEST_SEEDS} seeds in common.")
    return sentences


def _missing(comparison: Row) -> list[str]:
    count = len(comparison["left_out"])
    return [f"{plural(count, 'run')} left out; the reasons are listed below."] if count else []


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where any is missing: a mean over some of the seeds would be that of a silent subset."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there and len(there) == len(values) else None


def _mean_row(rows: Sequence[Row | None]) -> Row | None:
    if any(row is None for row in rows):
        return None
    return {key: _mean([row[key] for row in rows if row]) for key in ("value", "low", "high")}
