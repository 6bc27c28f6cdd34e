"""Finished runs whose test cases are of the test's choice: the numbers of evaluations.json come from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from server.judgement import judge
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import replicate_weights
from tests.server.fabricated_run import fabricate, job

HOSPITALS = ["north", "south"]


def variant(task: str = "segmentation", seed: int = 7, **federation: Any) -> Job:
    """The fabricated job with another seed and other values in `federation`."""
    values = job(task).model_dump(mode="json")
    del values["federation"]["share"]  # the algorithm's name may say otherwise
    values["federation"] |= federation
    return Job.model_validate(values | {"seed": seed})


def dice_cases(values: Mapping[str, float]) -> list[CaseRecord]:
    """One case for each patient, both organs with the same Dice."""
    return [
        CaseRecord(
            f"case-{patient}",
            patient,
            {
                "dice": [value, value],
                "surface_dice": [value, value],
                "hd95": [10 - 9 * value] * 2,
                "missed": [0.0, 0.0],
                "false": [0.0, 0.0],
            },
        )
        for patient, value in values.items()
    ]


def class_cases(scores: Mapping[str, tuple[float, int]]) -> list[CaseRecord]:
    """One case for each patient: the probability of the second class, and which one is true."""
    return [
        CaseRecord(f"case-{patient}", patient, {"probabilities": [1 - score, score], "label": [float(truth)]})
        for patient, (score, truth) in scores.items()
    ]


def finished(folder: Path, the_job: Job, cases: list[CaseRecord], model: str = "federated") -> Path:
    """A complete run: every other case is of the first hospital, and every number is what its cases say.

    The model does the same as the federated one, which is there too.
    """
    of = {hospital: cases[place :: len(HOSPITALS)] for place, hospital in enumerate(HOSPITALS)}
    sums = {
        hospital: task_of(the_job).sums(records, replicate_weights([record.patient for record in records], 50, 1))
        for hospital, records in of.items()
    }
    fabricate(folder, the_job, judge(the_job, {"federated": sums, model: sums}), sites=HOSPITALS)
    for hospital, records in of.items():
        at = folder / "sites" / hospital / "evaluations"
        at.mkdir(parents=True)
        for name in {"federated", model}:
            (at / f"{name}.json").write_text(json.dumps([record.to_json() for record in records]))
    return folder


def dice_of(
    mean: float, patients: int = 40, spread: float = 0.05, gain: float = 0.0, noise: float = 0.0
) -> dict[str, float]:
    """A Dice for each patient, the same ones every time, plus a gain and noise of its own."""
    base = np.random.default_rng(5).normal(mean, spread, patients)
    extra = np.random.default_rng(abs(int(1000 * (gain + noise))) + 9).normal(gain, noise, patients)
    return {f"p{number:02d}": float(np.clip(value, 0.01, 1)) for number, value in enumerate(base + extra)}
