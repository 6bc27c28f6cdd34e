"""Sums over cases that add up exactly over sites, and the means taken from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Terms of a sum are rounded to this grid: below 5e8, sums are then exact in float64, so that neither the order of
# sites and cases nor the number of threads can show in a metric.
GRID = 2.0**-24


def weighted_sums(weights: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Σ weight · term over cases: weights (replicates, cases), terms (cases, ...) -> (replicates, ...).

    An undefined term (nan) counts as nothing.
    """
    on_grid = np.round(np.nan_to_num(terms, nan=0.0) / GRID) * GRID
    return np.tensordot(weights, on_grid, axes=1)


def population(patients: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """The sums "cases" and "patients", each (replicates,)."""
    first_case = np.unique(np.asarray(patients, dtype=str), return_index=True)[1]
    return {"cases": weights.sum(axis=1), "patients": weights[:, first_case].sum(axis=1)}


def ratio(total: np.ndarray, number: np.ndarray) -> np.ndarray:
    """total / number, nan where the number is 0."""
    quotient: np.ndarray = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return quotient


def mean_of_defined(by_class: np.ndarray) -> np.ndarray:
    """Mean over the classes that are defined in row 0, the data as they are: (replicates, classes) -> (replicates,).

    A class that no case has is left out. A replicate without the few cases of a class that the data do have is
    undefined, too: the mean over its other classes is another number, and would jump.
    """
    of_data = by_class[:, np.isfinite(by_class[0])]
    return ratio(of_data.sum(axis=1), np.full(len(of_data), of_data.shape[1]))
