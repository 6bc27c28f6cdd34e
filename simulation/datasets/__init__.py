"""Public data sets and formats, each read into the same list of `SourceCase`.

A new data set is one file with ``cases(job, dataset, data_dir) -> list[SourceCase]``, its section in
``shared_models/job.py`` and one line in `READERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import decathlon, folder, medmnist, phantom
from simulation.datasets.source import SourceCase

__all__ = ["READERS", "SourceCase", "open_dataset"]

READERS: dict[str, Callable[[Job, Any, Path | None], list[SourceCase]]] = {
    "decathlon": decathlon.cases,
    "folder": folder.cases,
    "medmnist": medmnist.cases,
    "phantom": phantom.cases,
}


def open_dataset(job: Job, data_dir: Path | None) -> list[SourceCase]:
    """All cases of the data set that ``job.simulation.dataset`` names.

    Args:
        job: the job; it must have a `simulation` section.
        data_dir: where an already downloaded copy lies; None reads the cache, which is filled from the public source.

    Raises:
        BadInput: the data set is not there, cannot be fetched, or is not what the job says it is.
    """
    if job.simulation is None:
        raise BadInput(f"job {job.name!r} has no `simulation` section, so there is no data set to divide")
    if data_dir is not None and not data_dir.is_dir():
        raise BadInput(f"--data-dir {data_dir} is not a folder; name the folder that holds the data set")
    dataset = job.simulation.dataset
    cases = READERS[dataset.name](job, dataset, data_dir.absolute() if data_dir else None)
    if not cases:
        raise BadInput(f"data set {dataset.name!r} has no cases")
    case, count = Counter(case.id for case in cases).most_common(1)[0]
    if count > 1:
        raise BadInput(f"data set {dataset.name!r} has {count} cases named {case!r}; case names must be unique")
    expected = len(job.data.images)
    if len(cases[0].images) != expected:
        raise BadInput(
            f"data set {dataset.name!r} has {len(cases[0].images)} image(s) a case, but data.images of the job names "
            f"{expected}: {', '.join(job.data.images)}"
        )
    return cases
