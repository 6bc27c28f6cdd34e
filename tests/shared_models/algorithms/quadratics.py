"""A small convex federation with a known answer: site k has f_k(w) = ½ Σ a_k (w − b_k)², a and b one number each.

The sites' own optima b_k differ, and so do their curvatures a_k: several local steps drift. The optimum of Σ p_k f_k is
Σ p_k a_k b_k / Σ p_k a_k. Both halves of an algorithm run as they do in a federation, on a network of one parameter
tensor; the round is the server's own aggregation. A site's own model beside the global one is trained by the code that
a hospital runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from client.app import _train_personal
from client.data.manifest import Case
from server.aggregation import RunningSum
from shared_models.algorithms import Gathered
from shared_models.algorithms.algorithm import trainable_names
from shared_models.algorithms.local_round import LocalRound
from shared_models.job import Job
from shared_models.tasks.classification import Classification
from shared_models.weights import Weights, load, schema

CURVATURE = np.array([[1.0, 4.0, 0.5], [3.0, 0.5, 2.0], [0.5, 2.0, 6.0]])
OPTIMA = np.array([[4.0, -2.0, 1.0], [-1.0, 3.0, 2.0], [2.0, 1.0, -3.0]])
RATE = 0.05
STEPS = 10


def job(algorithm: dict[str, object], rate: float = RATE, momentum: float = 0.0, **federation: object) -> Job:
    return Job.model_validate(
        {
            "name": "quadratics",
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn"},
            "training": {
                "local_steps": STEPS,
                "optimizer": {"name": "sgd", "learning_rate": rate, "momentum": momentum},
            },
            "federation": {"rounds": 1, "algorithm": algorithm, **federation},
        }
    )


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))


def loss_of(site: int, point: nn.Module) -> torch.Tensor:
    """f_k."""
    curvature, best = torch.tensor(CURVATURE[site]).float(), torch.tensor(OPTIMA[site]).float()
    return 0.5 * (curvature * (point.w - best) ** 2).sum()


class Quadratic(Classification):
    """f_k as a task, whatever the images."""

    def __init__(self, job: Job, site: int) -> None:
        super().__init__(job.task)
        self.site = site

    def step_loss(self, network: nn.Module, batch: dict[str, torch.Tensor], player: str) -> torch.Tensor:
        return loss_of(self.site, network)


@dataclass(frozen=True)
class Blank:
    """The training data of a site, as `SiteData` gives it, with nothing on the images."""

    count: int

    def cases(self, split: str) -> list[Case]:
        return [Case(f"row-{number}", f"patient-{number}", (), "a", split) for number in range(self.count)]

    def load(self, case: Case) -> dict[str, Any]:
        return {"image": torch.zeros(1, 8, 8), "label": torch.tensor(0)}


def optimum(shares: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> np.ndarray:
    weighted = np.array(shares)[:, None] * CURVATURE
    return (weighted * OPTIMA).sum(axis=0) / weighted.sum(axis=0)


@dataclass
class Federation:
    """Runs rounds; every site's memory and the server's state are kept from one to the next."""

    job: Job
    steps: Sequence[int] = (STEPS, STEPS, STEPS)
    cases: Sequence[int] = (10, 10, 10)
    weights: Weights = field(default_factory=lambda: {"w": np.zeros(3, np.float32)})
    state: Weights = field(default_factory=dict)
    kept: dict[int, Weights] = field(default_factory=dict)
    personal: dict[int, Weights] = field(default_factory=dict)
    begun: bool = False

    def round(self, sites: Sequence[int] = (0, 1, 2)) -> np.ndarray:
        algorithm = self.job.federation.algorithm
        tensors = schema(Point(), self.job.federation.share)
        names = [f"site-{site}" for site in range(3)]
        if not self.begun:
            self.state, self.begun = algorithm.initial_state(tensors, names, self.weights), True
        total, updates, model = RunningSum(), {}, self.weights
        for site in sites:
            start = algorithm.starts(self.state, names[site]) or model
            local = self._local(site, start, algorithm.sends(self.state))
            sent = local.algorithm.contribution(local)
            self.kept[site] = sent.kept
            assert {n: a.shape for n, a in sent.extra.items()} == algorithm.extra(tensors)
            assert {n: a.shape for n, a in local.received.items()} == algorithm.receives(tensors)
            if algorithm.relays:
                total, model = RunningSum(), {name: array.copy() for name, array in sent.weights.items()}
            total.add(names[site], {n: a.copy() for n, a in (sent.weights | sent.extra).items()}, sent.weight)
            if algorithm.hands_on:
                updates[names[site]] = {name: array.copy() for name, array in sent.weights.items()}
            if algorithm.personal():  # last: it is trained in the network that the weights above are views of
                data, task = Blank(self.cases[site]), Quadratic(self.job, site)
                own = self.personal.get(site, start)
                self.personal[site] = _train_personal(local, own, data, task, names[site], 1)
        weights = self.cases if self.job.federation.weighting == "cases" else (1, 1, 1)
        answered = sum(weights[site] for site in sites) / sum(weights)
        gathered = Gathered(total.take_mean(), answered, trainable_names(tensors), updates)
        self.weights, self.state = algorithm.combine(self.weights, self.state, gathered)
        return self.weights["w"]

    def run(self, rounds: int) -> np.ndarray:
        for _ in range(rounds):
            self.round()
        return self.weights["w"]

    def _local(self, site: int, start: Weights, received: Weights) -> LocalRound:
        network = Point()
        load(network, start)
        algorithm = self.job.federation.algorithm
        local = LocalRound(network, self.job, algorithm, received, self.kept.get(site, {}))
        spec = self.job.training.optimizer
        local.cases, local.planned_steps, local.learning_rate = self.cases[site], self.steps[site], spec.learning_rate
        local.initial_loss = loss_of(site, network).item()
        algorithm.begin(local)
        optimizer = torch.optim.SGD(network.parameters(), lr=spec.learning_rate, momentum=spec.momentum)
        for _ in range(self.steps[site]):
            optimizer.zero_grad()
            loss_of(site, network).backward()
            with torch.no_grad():
                algorithm.correct_gradients(local)
            optimizer.step()
            local.steps += 1
        return local


def fedavg_fixed_point(steps: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """Where averaging stands still: Σ p_k (1 − (1 − η a_k)^τ_k) (b_k − w) = 0."""
    pull = np.array(shares)[:, None] * (1 - (1 - RATE * CURVATURE) ** np.array(steps)[:, None])
    return (pull * OPTIMA).sum(axis=0) / pull.sum(axis=0)
