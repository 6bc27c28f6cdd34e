"""Hospitals that lack a part of the data set: organs that they do not annotate, images they do not take, classes.

Organs and classes are missing from training and validation patients only. Test patients keep the data set's whole
masks and classes, so that every model is judged by the same truth; an image that a hospital does not take is missing
from them, too, as it would be when the model is used there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets.source import SourceCase
from simulation.rewritten import Redraw


def columns(job: Job) -> list[str]:
    """The manifest columns that are written here beside those of the data set."""
    assert job.simulation is not None
    return [job.data.annotated] if job.data.annotated is not None and job.simulation.partly_labelled else []


def annotated_by(job: Job, hospitals: Sequence[str]) -> dict[str, list[str]]:
    """The organs that each hospital annotates; a hospital that is not named annotates all.

    `rotate` deals the organs in turn: each hospital gets every n-th one, n being the smaller of the numbers of
    hospitals and organs, so that every organ is annotated somewhere.
    """
    assert job.simulation is not None
    said, organs = job.simulation.partly_labelled, job.task.classes[1:]
    if said != "rotate":
        return dict(said)
    turns = min(len(hospitals), len(organs))
    return {name: organs[place % turns :: turns] for place, name in enumerate(hospitals)}


def redraws(job: Job, organs: Sequence[str] | None) -> list[Redraw]:
    """How the masks of a hospital that annotates only these organs differ from the data set's; None annotates all."""
    if organs is None:
        return []
    kept = [place for place, name in enumerate(job.task.classes) if name in organs]

    def only_annotated(case: SourceCase, mask: np.ndarray) -> np.ndarray:
        return np.where(np.isin(mask, kept), mask, 0).astype(mask.dtype)

    return [only_annotated]


def with_missing_cells(
    cases: Iterable[SourceCase],
    splits: Mapping[str, str],
    job: Job,
    hospital: str,
    organs: Sequence[str] | None,
) -> list[SourceCase]:
    """The cases of a hospital with empty cells for the images it lacks, and in data.annotated what it annotates.

    Args:
        splits: patient -> train, validation or test.
        organs: what it annotates; None for all.

    Raises:
        BadInput: the data set's own column says already what is annotated.
    """
    assert job.simulation is not None
    lacking, written = job.simulation.missing_channels.get(hospital, ()), columns(job)
    result = []
    for case in cases:
        images = ["" if name in lacking else image for name, image in zip(job.data.images, case.images, strict=True)]
        case = replace(case, images=tuple(images))
        for column in written:
            if case.columns.get(column):
                raise BadInput(
                    f"simulation.partly_labelled: the data set's column '{column}' says already what case {case.id} "
                    f"annotates ({case.columns[column]}); leave partly_labelled out, or rename data.annotated"
                )
            own = () if organs is None or splits[case.patient] == "test" else organs
            case = replace(case, columns={**case.columns, column: ";".join(own)})
        result.append(case)
    return result


def of_missing_classes(cases: Iterable[SourceCase], splits: Mapping[str, str], job: Job, hospital: str) -> list[str]:
    """The hospital's training and validation patients with a case of a class that it lacks.

    Args:
        splits: patient -> train, validation or test, of the hospital; they come back in its order.
    """
    assert job.simulation is not None
    names = job.simulation.missing_classes.get(hospital, ())
    spellings = {*names, *(str(job.task.classes.index(name)) for name in names)}
    lacking = {case.patient for case in cases if spellings & {part.strip() for part in case.label.split(";")}}
    return [patient for patient, split in splits.items() if split != "test" and patient in lacking]
