"""Server optimisers against the formulas of Reddi et al. 2021."""

import numpy as np
import pytest

from server.optimizers import step
from shared_models.algorithms import ServerOptimizer

CURRENT = {"w": np.array([1.0, -2.0, 0.5], np.float32), "running_var": np.array([1.0], np.float32)}
TARGET = {"w": np.array([1.5, -2.0, 0.0], np.float32), "running_var": np.array([0.2], np.float32)}


def run(name, rounds, **settings):
    spec, weights, moments = ServerOptimizer(name=name, **settings), CURRENT, {}
    for _ in range(rounds):
        target = {key: weights[key] + (TARGET[key] - CURRENT[key]) for key in weights}
        weights, moments = step(spec, ["w"], weights, target, moments)
    return weights, moments


def test_none_takes_the_average_as_it_is():
    weights, moments = run("none", 1)
    np.testing.assert_array_equal(weights["w"], TARGET["w"])
    assert moments == {}


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "adagrad"])
def test_two_steps_follow_the_paper(name):
    delta = (TARGET["w"] - CURRENT["w"]).astype(np.float64)
    x, m, v = CURRENT["w"].astype(np.float64), 0.0, np.full(3, 0.01**2)
    for _ in range(2):
        m = 0.9 * m + (delta if name == "momentum" else 0.1 * delta)
        v = {
            "momentum": lambda v: v,
            "adagrad": lambda v: v + delta**2,
            "yogi": lambda v: v - 0.05 * delta**2 * np.sign(v - delta**2),
            "adam": lambda v: 0.95 * v + 0.05 * delta**2,
        }[name](v)
        x = x + 0.3 * (m if name == "momentum" else m / (np.sqrt(v) + 0.01))
    weights, _ = run(name, 2, learning_rate=0.3, momentum=0.9, second_momentum=0.95, adaptivity=0.01)
    np.testing.assert_allclose(weights["w"], x, rtol=1e-5)
    assert weights["w"].dtype == np.float32


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "adagrad"])
def test_running_statistics_are_averaged_and_never_stepped(name):
    weights = CURRENT
    moments: dict = {}
    for _ in range(30):  # sites report 0.2 each round; an adaptive step would overshoot below zero
        weights, moments = step(ServerOptimizer(name=name), ["w"], weights, TARGET, moments)
        assert weights["running_var"] == np.float32(0.2)


@pytest.mark.parametrize("name", ["none", "momentum", "adam", "yogi", "adagrad"])
def test_sites_that_did_not_move_do_not_move_the_model(name):
    weights, _ = step(ServerOptimizer(name=name), ["w"], CURRENT, CURRENT, {})
    assert weights["w"].tobytes() == CURRENT["w"].tobytes()


@pytest.mark.parametrize("size", [1e-4, 3e-3, 3e-2])
@pytest.mark.parametrize("name", ["none", "momentum", "adam", "yogi", "adagrad"])
def test_the_first_step_at_the_defaults_is_not_far_longer_than_the_update(name, size):
    update = np.random.default_rng(0).normal(0, size, 10000).astype(np.float32)
    start = {"w": np.zeros(10000, np.float32)}
    weights, _ = step(ServerOptimizer(name=name), ["w"], start, {"w": update}, {})
    assert 0.01 < np.linalg.norm(weights["w"]) / np.linalg.norm(update) < 3
