"""Server-side optimisers: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2.

They step trainable tensors only. Running statistics take the average as it is: an adaptive step can drive a running
variance below zero.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from shared_models.algorithms import ServerOptimizer
from shared_models.weights import Weights

Moments = dict[str, Weights]  # "first" and "second" moment -> tensor name -> values


def step(
    spec: ServerOptimizer, trainable: Collection[str], current: Weights, target: Weights, moments: Moments
) -> tuple[Weights, Moments]:
    """The next global model and the next moments.

    Args:
        trainable: names that the optimiser steps; the others take the target's value.
        current: the global model that the round began with.
        target: the average of the sites; `target - current` is the pseudo-gradient's negative.
        moments: what the last step returned; empty before the first.
    """
    if spec.name == "none":
        return target, {}
    result, first, second = dict(target), {}, {}
    for name in trainable:
        delta = target[name] - current[name]
        first[name] = _first_moment(spec, delta, moments.get("first", {}).get(name))
        direction = first[name]
        if spec.name != "momentum":
            second[name] = _second_moment(spec, delta, moments.get("second", {}).get(name))
            direction = (direction / (np.sqrt(second[name]) + spec.adaptivity)).astype(np.float32)
        result[name] = (current[name] + spec.learning_rate * direction).astype(np.float32)
    return result, {"first": first, "second": second} if second else {"first": first}


def _first_moment(
    spec: ServerOptimizer, delta: NDArray[np.float32], before: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    beta = spec.momentum
    if before is None:
        before = np.zeros_like(delta)
    if spec.name == "momentum":  # FedAvgM, Hsu et al. 2019: the velocity is not damped by 1 - beta
        return beta * before + delta
    return beta * before + (1 - beta) * delta


def _second_moment(
    spec: ServerOptimizer, delta: NDArray[np.float32], before: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    beta, square = spec.second_momentum, delta * delta
    if before is None:
        before = np.full_like(delta, spec.adaptivity**2)  # v_{-1} >= tau^2, as in the paper
    if spec.name == "adagrad":
        return before + square
    if spec.name == "yogi":
        return before - (1 - beta) * square * np.sign(before - square)
    return beta * before + (1 - beta) * square
