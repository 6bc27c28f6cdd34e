"""Is one method better than another, or was it chance? Tests over patients and over seeds, both paired.

Over patients: what if other patients of the same hospitals had been tested? Over seeds: what if the networks had been
initialised, and in a simulation the patients divided, otherwise? A claim about a method needs both.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_models.errors import BadInput
from shared_models.page import plural
from shared_models.seeds import derive_seed
from shared_models.tasks import CaseRecord, Task

Row = dict[str, Any]
Array = NDArray[np.float64]
Groups = Sequence[Sequence[CaseRecord]]
"""A model's cases: those of one group are judged together, and the value is the mean over the groups. There is one
group, but for metrics across classes of models that differ by hospital: then every hospital is one."""

REPLICATES = 1000
BLOCK = 100  # replicates at a time: bounded memory, however many patients there are
FEWEST_SEEDS = 3
ROUNDING = 1e-12  # of the values: differences nearer to each other than this are the same
AGREES = 0.01  # of the value: so near must the mean of the patients' own values come


def read_cases(run: Path, model: str, hospitals: Sequence[str]) -> list[list[CaseRecord]] | None:
    """What a model of a run did on every test case of each hospital, as the virtual hospitals keep it.

    None where a hospital's file is not there, as in a run on real hospitals, whose patients' values stay with them.

    Raises:
        BadInput: a file cannot be read.
    """
    records: list[list[CaseRecord]] = []
    for hospital in hospitals:
        path = run / "sites" / hospital / "evaluations" / f"{model.replace(':', '-')}.json"
        if not path.is_file():
            return None
        try:
            found = [CaseRecord.from_json(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise BadInput(f"{path}: not the cases of a model ({error}); bring it back from a copy") from error
        records.append(sorted(found, key=lambda record: record.case))
    return records


def same_cases(ours: Groups, theirs: Groups) -> bool:
    """Whether two models were judged on the same cases of the same patients, at whichever hospital these are."""
    first, second = ({(record.case, record.patient) for record in _all(groups)} for groups in (ours, theirs))
    return first == second


def value_of(task: Task, metric: str, groups: Groups) -> float:
    """The metric as the cases are; nan where undefined."""
    patients = sorted({record.patient for record in _all(groups)})
    return float(_values(task, metric, groups, patients, [np.ones((1, len(patients)))])[0])


def over_patients(task: Task, metric: str, pairs: Sequence[tuple[Groups, Groups]]) -> Row:
    """Ours minus theirs on the same patients, as the mean over the seeds.

    The interval is the percentile interval of a paired bootstrap: in each of 1,000 replicates as many patients as
    there are are drawn with replacement, each with all of its cases and in all seeds. p is two-sided: of Wilcoxon's
    signed-rank test (Wilcoxon 1945) on the patients' own values where the metric is a mean of them; of a ranking such
    as AUROC, that no single patient has, by inverting the bootstrap interval (Efron and Tibshirani 1993, section 16.4).
    "sign" is the side that the test favours, 1 or -1: by Wilcoxon's ranks it may be another than that of the mean.

    Args:
        pairs: for each seed the cases of ours and of theirs, `same_cases` of each other.
    """
    patients = sorted({record.patient for ours, _ in pairs for record in _all(ours)})
    gaps = np.mean([_value_gaps(task, metric, pair, patients) for pair in pairs], axis=0)
    value, drawn = float(gaps[0]), gaps[1:][np.isfinite(gaps[1:])]
    row: Row = {"n": len(patients), "difference": value, **dict.fromkeys(("low", "high", "test", "p", "sign"))}
    if not np.isfinite(value) or len(drawn) < 0.95 * REPLICATES or len(patients) < 2:
        return row | {"difference": None, "why": f"{metric} is undefined on too many draws of these patients"}
    row["low"], row["high"] = map(float, np.percentile(drawn, [2.5, 97.5]))
    own = _own_gaps(task, metric, pairs)
    if own is None:
        tail = min((1 + (drawn <= 0).sum()) / (1 + len(drawn)), (1 + (drawn >= 0).sum()) / (1 + len(drawn)))
        return row | {"test": "paired bootstrap", "p": min(1.0, 2 * float(tail)), "sign": _sign(value), "why": None}
    return row | {"test": "Wilcoxon signed-rank", "p": _wilcoxon(own), "sign": _favoured(own), "why": None}


def over_seeds(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Row:
    """Ours minus theirs, each seed a pair: paired t test with its interval, and Wilcoxon's signed-rank test beside it.

    Args:
        ours, theirs: seed -> value over all patients.
    """
    from scipy import stats

    seeds = sorted(ours.keys() & theirs.keys())
    row: Row = {
        "seeds": seeds,
        "difference": None,
        "sd": None,
        "low": None,
        "high": None,
        "p": None,
        "p_wilcoxon": None,
    }
    if not seeds:
        return row | {"why": "no seed in common"}
    gaps = np.array([ours[seed] - theirs[seed] for seed in seeds])
    row["difference"] = float(gaps.mean())
    if len(seeds) < FEWEST_SEEDS:
        return row | {"why": f"{plural(len(seeds), 'seed')} in common; a test needs {FEWEST_SEEDS}"}
    row["sd"] = float(gaps.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * row["sd"] / len(seeds) ** 0.5
    row["low"], row["high"] = row["difference"] - half, row["difference"] + half
    same = ROUNDING * max(abs(values[seed]) for values in (ours, theirs) for seed in seeds)
    if np.ptp(gaps) <= same:
        p = 1.0 if abs(row["difference"]) <= same else None
        return row | {"p": p, "why": "every seed gave the same difference"}
    row["p"] = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    return row | {"p_wilcoxon": _wilcoxon(gaps), "why": None}


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for how many there are (Holm 1979); None stays None and is not counted."""
    there = sorted((value, index) for index, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, index) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - rank) * value))
        corrected[index] = largest
    return corrected


def _all(groups: Groups) -> list[CaseRecord]:
    return [record for records in groups for record in records]


def _value_gaps(task: Task, metric: str, pair: tuple[Groups, Groups], patients: Sequence[str]) -> Array:
    """(1 + REPLICATES,): row 0 as the patients are, then in the draws, which are the same for every seed and model."""
    ours, theirs = (_values(task, metric, groups, patients, _draws(patients)) for groups in pair)
    return ours - theirs


def _values(task: Task, metric: str, groups: Groups, patients: Sequence[str], draws: Iterable[Array]) -> Array:
    """The metric in every draw: the mean over the groups that have it where every patient counts once.

    Args:
        patients: those that a draw's columns are of.
        draws: how often each patient counts, (rows, patients); the first row is of ones.
    """
    place = {patient: index for index, patient in enumerate(patients)}
    columns = [[place[record.patient] for record in records] for records in groups]
    rows = [
        [task.metrics(task.sums(records, times[:, of]))[metric] for records, of in zip(groups, columns, strict=True)]
        for times in draws
    ]
    by_group = np.concatenate(rows, axis=1)
    defined = by_group[np.isfinite(by_group[:, 0])]
    return np.asarray((defined if len(defined) else by_group).mean(axis=0), dtype=float)


def _draws(patients: Sequence[str]) -> Iterator[Array]:
    """How often each patient counts: rows of ones, then of the replicates, a block of rows at a time.

    The same patients are always drawn alike, so that a comparison made twice gives the same numbers.
    """
    yield np.ones((1, len(patients)))
    generator = np.random.default_rng(derive_seed(0, "comparison", *patients))
    shares = np.full(len(patients), 1 / len(patients))
    for _ in range(0, REPLICATES, BLOCK):
        yield generator.multinomial(len(patients), shares, size=BLOCK).astype(float)


def _own_gaps(task: Task, metric: str, pairs: Sequence[tuple[Groups, Groups]]) -> Array | None:
    """Each patient's own difference, mean over the seeds; None where the metric is not a mean of patients' values."""
    gaps: dict[str, list[float]] = {}
    for pair in pairs:
        (ours, is_mean), (theirs, is_too) = (_own_values(task, metric, groups) for groups in pair)
        if not (is_mean and is_too):
            return None
        for patient in ours.keys() & theirs.keys():
            gaps.setdefault(patient, []).append(ours[patient] - theirs[patient])
    return np.array([np.mean(gaps[patient]) for patient in sorted(gaps)])


def _own_values(task: Task, metric: str, groups: Groups) -> tuple[dict[str, float], bool]:
    """The metric of each patient alone where it is defined, and whether their mean over cases is the metric of all."""
    by_patient: dict[str, list[CaseRecord]] = {}
    for record in sorted(_all(groups), key=lambda record: record.case):
        by_patient.setdefault(record.patient, []).append(record)
    values: dict[str, float] = {}
    for names in np.array_split(np.array(sorted(by_patient), dtype=object), -(-len(by_patient) // BLOCK)):
        cases = [record for name in names for record in by_patient[name]]
        weights = np.array([[record.patient == name for record in cases] for name in names], dtype=float)
        found = task.metrics(task.sums(cases, weights))[metric]
        values |= {name: float(value) for name, value in zip(names, found, strict=True) if np.isfinite(value)}
    if len(values) < 0.9 * len(by_patient):
        return values, False
    mean = np.average([*values.values()], weights=[len(by_patient[name]) for name in values])
    return values, abs(mean - value_of(task, metric, groups)) <= AGREES * abs(mean)


def _favoured(gaps: Array) -> int:
    """The side with the larger sum of Wilcoxon's ranks; 0 for neither."""
    from scipy import stats

    there = gaps[gaps != 0]
    return _sign(float((stats.rankdata(np.abs(there)) * np.sign(there)).sum()))


def _sign(value: float) -> int:
    return int(np.sign(value))


def _wilcoxon(gaps: Array) -> float:
    from scipy import stats

    if not gaps.any():
        return 1.0
    with warnings.catch_warnings():  # many ties: the normal approximation, corrected for them, is what is wanted
        warnings.simplefilter("ignore")
        return float(stats.wilcoxon(gaps).pvalue)
