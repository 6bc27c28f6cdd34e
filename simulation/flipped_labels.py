"""A hospital with flipped labels: the classes of its training and validation cases in reverse order.

Of masks the classes of the foreground are reversed, and the background stays. Test patients keep the data set's labels,
so that every model is judged by the same truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from shared_models.job import Job
from simulation.datasets.source import SourceCase
from simulation.rewritten import Redraw


def with_flipped_classes(
    cases: Sequence[SourceCase], splits: Mapping[str, str], job: Job, hospital: str
) -> list[SourceCase]:
    """The cases of a hospital; their classes are flipped where the job says so.

    Args:
        splits: patient -> train, validation or test.
    """
    if not _is_flipped(job, hospital) or job.task.label != "class":
        return list(cases)
    return [
        case if splits[case.patient] == "test" else replace(case, label=_flipped(case.label, job.task.classes))
        for case in cases
    ]


def redraws(job: Job, hospital: str) -> list[Redraw]:
    """How the hospital's masks differ: one step, or none where they are not flipped."""
    if not _is_flipped(job, hospital) or job.task.label != "mask":
        return []
    return [lambda case, mask: _flipped_mask(mask, len(job.task.classes))]


def _is_flipped(job: Job, hospital: str) -> bool:
    fault = job.simulation.faulty.get(hospital) if job.simulation else None
    return fault is not None and fault.kind == "label_flip"


def _flipped(label: str, classes: Sequence[str]) -> str:
    """Every class or finding of a label, by name or number, reversed; what is no class stays, for preflight to find."""
    numbers = {name: number for number, name in enumerate(classes)}
    known = {**{str(number): number for number in numbers.values()}, **numbers}
    found = [text.strip() for text in label.split(";")]
    return ";".join(classes[-1 - known[text]] if text in known else text for text in found)


def _flipped_mask(mask: np.ndarray, classes: int) -> np.ndarray:
    """Label values 1 to classes - 1 in reverse order; 0, and what is no class, stay."""
    foreground = (mask >= 1) & (mask < classes)
    return np.where(foreground, classes - mask.astype(np.int64), mask).astype(mask.dtype)
