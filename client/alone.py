"""A site on its own: the baseline that every federation has to beat."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from torch import nn

from client.data.dataset import SiteData
from client.training import judge_cases, make_optimizers, train_round
from shared_models.job import Job
from shared_models.tasks import Task
from shared_models.weights import Weights, travelling


def train_alone(
    network: nn.Module, data: SiteData, job: Job, task: Task, site: str, steps: int | None
) -> tuple[Weights, dict[str, float], list[dict[str, Any]]]:
    """As many rounds as the federation, with one optimiser throughout, keeping the best round by the same rule.

    Args:
        steps: optimiser steps a round; None takes the job's.

    Returns:
        The best weights, with those that stay at home in a federation; numbers (steps, seconds, best_round); the
        validation metrics round by round.
    """
    began, total = time.monotonic(), 0
    optimizers = make_optimizers(network, job, task)
    validation = data.cases("validation")
    best, best_value, best_round, curve = None, float("-inf"), job.federation.rounds, []
    for number in range(1, job.federation.rounds + 1):
        total += train_round(network, optimizers, data, job, task, site, number, steps).steps
        every = job.evaluation.every
        if not validation or not (number == job.federation.rounds or (every and number % every == 0)):
            continue
        sums = task.sums(judge_cases(network, data, validation, job, task), np.ones((1, len(validation))))
        metrics = {name: float(values[0]) for name, values in task.metrics(sums).items()}
        curve.append({"round": number, "metrics": {k: v if np.isfinite(v) else None for k, v in metrics.items()}})
        value = metrics.get(job.selection_metric(), float("nan"))
        if value > best_value:
            best = {name: array.copy() for name, array in travelling(network).items()}
            best_value, best_round = value, number
    numbers = {"steps": total, "seconds": time.monotonic() - began, "best_round": best_round}
    return best if best is not None else travelling(network), numbers, curve
