"""What else a job could be run with: no remedy may name what the check of a job refuses."""

from __future__ import annotations

from pydantic import ValidationError

from shared_models.job import Job
from shared_models.job_file import check_meaning

REMEDIES = {"algorithm": ("fedbn", "ditto", "fedprox"), "aggregation": ("median", "clipped_mean")}
"""By the key of `federation`: what helps hospitals that federated training harms, and against one that harms others."""


def alternatives(job: Job) -> dict[str, list[str]]:
    """`run.alternatives` of report.json: of these remedies, those that the job could have instead of its own."""
    return {key: [name for name in names if _fits(job, key, name)] for key, names in REMEDIES.items()}


def _fits(job: Job, key: str, name: str) -> bool:
    values = job.model_dump()
    federation = values["federation"]
    if federation[key]["name"] == name:
        return False
    if key == "algorithm":  # what the job's own one has filled in goes with it, and the other one's comes
        own = set(job.federation.algorithm.stays_at_home)
        federation["share"] = job.federation.share.model_dump(exclude_defaults=True, exclude=own)
    federation[key] = {"name": name}
    try:
        return not check_meaning(Job.model_validate(values))
    except ValidationError:
        return False
