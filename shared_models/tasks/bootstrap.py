"""Patient-level bootstrap whose replicates pool over sites without a patient's value leaving its site.

Every site draws its own patients with replacement (a bootstrap stratified by site; Davison and Hinkley 1997,
section 3.2) and sends, per replicate, the sums of its metrics. Adding the sums of all sites replicate by replicate
gives the replicates of the federation, and from them the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared_models.errors import BadInput

UNDEFINED_TOLERATED = 0.05
ALONE_TOLERATED = 0.5
"""Of the patients, the share that may be the only ones of their hospital."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; None where undefined, and then `why` says so."""

    value: float | None
    low: float | None
    high: float | None
    why: str | None = None


def replicate_weights(patients: Sequence[str], replicates: int, seed: int) -> np.ndarray:
    """How often each case counts in each replicate: (1 + replicates, cases), float64.

    Row 0 is all ones, the data as they are; in every other row as many patients as there are were drawn with
    replacement, each with all of its cases. `patients` names the patient of each case; equal patients, number and
    seed give equal rows whatever the model, so that differences between models are paired.
    """
    names, patient_of_case = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    count = len(names)
    weights = np.ones((1 + replicates, len(patients)))
    if count and replicates:
        drawn = np.random.default_rng(seed).integers(count, size=(replicates, count))
        drawn += np.arange(replicates)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=replicates * count).reshape(replicates, count)
        weights[1:] = times[:, patient_of_case]
    return weights


def pooled(sums_by_site: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Adds the sums of several sites; the order of the sites does not matter.

    Raises BadInput when there is no site, or sites differ in the names or shapes of their sums.
    """
    if not sums_by_site:
        raise BadInput("There are no sums to pool: no site has answered.")
    first = sums_by_site[0]
    for number, sums in enumerate(sums_by_site[1:], start=2):
        _check_alike(first, sums, number, len(sums_by_site))
    total = {name: values.copy() for name, values in first.items()}
    for sums in sums_by_site[1:]:
        for name, values in sums.items():
            total[name] += values
    return total


def interval(values: np.ndarray, patients: float | Sequence[float] | None = None) -> Interval:
    """Row 0 with the percentile interval (2.5 % to 97.5 %) of the other rows.

    No bounds are given when more than 5 % of the replicates are undefined. Nor are they where more than half of the
    patients are the only ones of their hospital: each hospital draws from its own, and one that has a single patient
    always draws that one, which would show a certainty that is not there. Where fewer are alone, the interval is still
    somewhat too narrow.

    Args:
        patients: how many stand behind the values, at each hospital where there are several; None where that is not
            known, and then not looked at.
    """
    value, drawn = values[0], values[1:]
    if not np.isfinite(value):
        return Interval(None, None, None, "undefined: no case, or no case of the class, that the metric needs")
    if len(drawn) == 0:
        return Interval(float(value), None, None, "no interval: no bootstrap replicates were asked for")
    if patients is not None and (why := _too_few_to_draw_from(np.atleast_1d(np.asarray(patients, dtype=float)))):
        return Interval(float(value), None, None, why)
    finite = drawn[np.isfinite(drawn)]
    undefined = len(drawn) - len(finite)
    if undefined > UNDEFINED_TOLERATED * len(drawn):
        why = f"no interval: undefined in {undefined} of {len(drawn)} bootstrap replicates (too few cases of a class)"
        return Interval(float(value), None, None, why)
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _too_few_to_draw_from(patients: np.ndarray) -> str | None:
    """Why resampling these patients, of each hospital, says nothing of chance; None where it does."""
    alone, everybody = int((patients == 1).sum()), int(patients.sum())
    if everybody < 2:
        return "no interval: one patient only"
    if alone > ALONE_TOLERATED * everybody:
        return f"no interval: {alone} of {everybody} patients are the only ones of their hospital"
    return None


def difference(values_a: np.ndarray, values_b: np.ndarray, patients: float | Sequence[float] | None = None) -> Interval:
    """The interval of a - b, paired by replicate. Raises BadInput when the numbers of replicates differ."""
    if values_a.shape != values_b.shape:
        raise BadInput(
            f"Two models were judged with {len(values_a) - 1} and {len(values_b) - 1} bootstrap replicates; a paired "
            "difference needs the same number: evaluate both with the same job."
        )
    return interval(values_a - values_b, patients)


def _check_alike(first: dict[str, np.ndarray], sums: dict[str, np.ndarray], number: int, sites: int) -> None:
    where = f"The sums of site {number} of {sites} cannot be added to those of the first"
    if set(sums) != set(first):
        odd = ", ".join(sorted(set(sums) ^ set(first)))
        raise BadInput(f"{where}: only one of the two has {odd}. Both must judge the same job with the same version.")
    for name, values in sums.items():
        if values.shape != first[name].shape:
            raise BadInput(
                f"{where}: {name} has shape {values.shape}, expected {first[name].shape}. "
                "Both must use the classes and the number of bootstrap replicates of the same job."
            )
