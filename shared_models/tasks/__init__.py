"""Tasks: what the network is asked, and how its answer is judged; one file each."""

from collections.abc import Callable
from typing import Any

from shared_models.job import Job
from shared_models.tasks.anomaly import Anomaly
from shared_models.tasks.classification import Classification
from shared_models.tasks.segmentation import Segmentation
from shared_models.tasks.synthesis import Synthesis
from shared_models.tasks.task import Batch, CaseRecord, MetricInfo, Sample, Sums, Task
from shared_models.tasks.translation import translation

__all__ = ["TASKS", "Batch", "CaseRecord", "MetricInfo", "Sample", "Sums", "Task", "task_of"]

# From `kind` in the job file's task section to the task, built from that section.
TASKS: dict[str, Callable[[Any], Task]] = {
    "segmentation": Segmentation,
    "classification": Classification,
    "translation": translation,
    "synthesis": Synthesis,
    "anomaly": Anomaly,
}


def task_of(job: Job) -> Task:
    """The task that a job asks for."""
    return TASKS[job.task.kind](job.task)
