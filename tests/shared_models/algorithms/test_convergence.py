"""Each algorithm against a written-out reference on quadratics whose answer is known."""

import numpy as np
import pytest

from shared_models.algorithms import Gathered
from shared_models.algorithms.fednova import path_length
from tests.shared_models.algorithms.quadratics import (
    CURVATURE,
    OPTIMA,
    RATE,
    Federation,
    fedavg_fixed_point,
    job,
    optimum,
)

SCAFFOLD, FEDDYN = {"name": "scaffold"}, {"name": "feddyn", "alpha": 1.0}


def test_fedavg_stalls_at_the_fixed_point_of_its_drift_and_away_from_the_optimum():
    found = Federation(job({"name": "fedavg"})).run(200)
    np.testing.assert_allclose(found, fedavg_fixed_point((10, 10, 10), (1 / 3,) * 3), atol=1e-4)
    assert np.abs(found - optimum()).max() > 0.1


@pytest.mark.parametrize("algorithm", [SCAFFOLD, FEDDYN])
def test_scaffold_and_feddyn_reach_the_optimum_where_fedavg_stalls(algorithm):
    found = Federation(job(algorithm)).run(300)
    np.testing.assert_allclose(found, optimum(), atol=1e-3)


@pytest.mark.parametrize("algorithm", [SCAFFOLD, FEDDYN])
def test_their_optimum_is_that_of_the_weighted_sum(algorithm):
    cases = (10, 30, 60)
    found = Federation(job(algorithm), cases=cases).run(300)
    np.testing.assert_allclose(found, optimum([n / 100 for n in cases]), atol=1e-3)
    found = Federation(job(algorithm, weighting="equal"), cases=cases).run(300)
    np.testing.assert_allclose(found, optimum(), atol=1e-3)


def test_scaffold_comes_closer_than_fedavg_when_two_of_three_sites_take_part_by_turns():
    turns = [(0, 1), (1, 2), (2, 0)]
    distance = {}
    for name in ("fedavg", "scaffold"):
        federation = Federation(job({"name": name}))
        tail = [federation.round(turns[number % 3]) for number in range(300)][-3:]
        distance[name] = np.abs(np.mean(tail, axis=0) - optimum()).max()
    assert distance["scaffold"] < distance["fedavg"] / 5


@pytest.mark.parametrize("algorithm", [SCAFFOLD, FEDDYN])
def test_the_servers_state_stays_the_weighted_mean_of_the_sites_whoever_takes_part(algorithm):
    cases = (10, 30, 60)
    federation = Federation(job(algorithm), cases=cases)
    for sites in ((0,), (1, 2), (0, 2), (1,), (0, 1, 2), (0,)):
        federation.round(sites)
    (ours,) = federation.state.values()
    theirs = sum(n / 100 * next(iter(federation.kept[site].values())) for site, n in enumerate(cases))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_scaffold_follows_the_paper_step_by_step():
    """Algorithm 1 with option II, written out in numpy."""
    federation = Federation(job(SCAFFOLD))
    x, c, c_k = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for _ in range(4):
        ends, changes = [], []
        for k in range(3):
            y = x.copy()
            for _ in range(10):
                y = y - RATE * (CURVATURE[k] * (y - OPTIMA[k]) - c_k[k] + c)
            following = c_k[k] - c + (x - y) / (10 * RATE)
            changes.append(following - c_k[k])
            c_k[k] = following
            ends.append(y)
        x, c = np.mean(ends, axis=0), c + np.mean(changes, axis=0)
        np.testing.assert_allclose(federation.round(), x, rtol=1e-4, atol=1e-5)


def test_feddyn_follows_the_paper_step_by_step():
    federation, alpha = Federation(job(FEDDYN)), 1.0
    theta, h, slopes = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for _ in range(4):
        ends = []
        for k in range(3):
            y = theta.copy()
            for _ in range(10):
                y = y - RATE * (CURVATURE[k] * (y - OPTIMA[k]) - slopes[k] + alpha * (y - theta))
            slopes[k] = slopes[k] - alpha * (y - theta)
            ends.append(y)
        h = h - alpha * (np.mean(ends, axis=0) - theta)
        theta = np.mean(ends, axis=0) - h / alpha
        np.testing.assert_allclose(federation.round(), theta, rtol=1e-4, atol=1e-5)


def test_fedprox_without_its_pull_is_fedavg_bit_for_bit():
    plain, prox = Federation(job({"name": "fedavg"})), Federation(job({"name": "fedprox", "mu": 0.0}))
    for _ in range(5):
        assert plain.round().tobytes() == prox.round().tobytes()


def test_fedprox_follows_its_equation_and_drifts_less():
    federation, mu, w = Federation(job({"name": "fedprox", "mu": 2.0})), 2.0, np.zeros(3)
    for _ in range(4):
        ends = []
        for k in range(3):
            y = w.copy()
            for _ in range(10):
                y = y - RATE * (CURVATURE[k] * (y - OPTIMA[k]) + mu * (y - w))
            ends.append(y)
        w = np.mean(ends, axis=0)
        np.testing.assert_allclose(federation.round(), w, rtol=1e-4, atol=1e-5)
    prox, plain = federation.run(200), Federation(job({"name": "fedavg"})).run(200)
    assert np.abs(prox - optimum()).max() < np.abs(plain - optimum()).max()


def test_fednova_with_unequal_steps_is_unbiased_and_fedavg_is_not():
    """At a small rate the drift within a round is small, and what is left is how much each site's steps count."""
    steps, rate, distance = (1, 4, 10), 0.004, {}
    for name in ("fedavg", "fednova"):
        found = Federation(job({"name": name}, rate=rate), steps=steps).run(500)
        distance[name] = np.abs(found - optimum()).max()
    assert distance["fednova"] < distance["fedavg"] / 5
    assert distance["fednova"] < 0.15


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_path_length_is_that_of_sgd_with_a_constant_gradient(momentum):
    velocity = length = 0.0
    for _ in range(7):
        velocity = momentum * velocity + 1
        length += velocity
    assert path_length(7, momentum) == pytest.approx(length)


def test_qfedavg_with_q_zero_is_the_plain_mean_of_the_sites():
    plain = Federation(job({"name": "fedavg"}, weighting="equal"), cases=(1, 50, 7))
    fair = Federation(job({"name": "qfedavg", "q": 0.0}), cases=(1, 50, 7))
    for _ in range(5):
        np.testing.assert_allclose(fair.round(), plain.round(), rtol=1e-6)


def test_qfedavg_follows_the_papers_algorithm_2():
    q, w = 1.0, np.zeros(3)
    federation = Federation(job({"name": "qfedavg", "q": q}))
    for _ in range(4):
        numerator, denominator = np.zeros(3), 0.0
        for k in range(3):
            y, loss = w.copy(), 0.5 * (CURVATURE[k] * (w - OPTIMA[k]) ** 2).sum()
            for _ in range(10):
                y = y - RATE * CURVATURE[k] * (y - OPTIMA[k])
            delta = (w - y) / RATE
            numerator += loss**q * delta
            denominator += q * loss ** (q - 1) * (delta**2).sum() + loss**q / RATE
        w = w - numerator / denominator
        np.testing.assert_allclose(federation.round(), w, rtol=1e-3, atol=1e-4)


def test_qfedavg_makes_losses_more_alike():
    def spread(weights: np.ndarray) -> float:
        return float(np.std((0.5 * CURVATURE * (weights - OPTIMA) ** 2).sum(axis=1)))

    fair = Federation(job({"name": "qfedavg", "q": 2.0})).run(200)
    assert spread(fair) < spread(Federation(job({"name": "qfedavg", "q": 0.0})).run(200))


def test_cyclic_ends_where_the_last_site_of_the_round_took_it():
    federation, w = Federation(job({"name": "cyclic"})), np.zeros(3)
    for _ in range(3):
        for k in range(3):
            for _ in range(10):
                w = w - RATE * CURVATURE[k] * (w - OPTIMA[k])
        np.testing.assert_allclose(federation.round(), w, rtol=1e-4, atol=1e-5)


def test_a_ring_hands_every_model_on_and_gives_their_mean():
    federation = Federation(job({"name": "ring"}))
    models = [np.zeros(3)] * 3
    for _ in range(4):
        trained = []
        for k, model in enumerate(models):
            for _ in range(10):
                model = model - RATE * CURVATURE[k] * (model - OPTIMA[k])
            trained.append(model)
        models = [trained[-1], *trained[:-1]]
        np.testing.assert_allclose(federation.round(), np.mean(trained, axis=0), rtol=1e-4, atol=1e-5)


def test_a_hospital_that_comes_late_enters_the_ring_and_counts_in_its_mean():
    algorithm = job({"name": "ring"}).federation.algorithm
    state = algorithm.initial_state([], ["a", "c"], {"w": np.zeros(1, np.float32)})
    updates = {name: {"w": np.full(1, value, np.float32)} for name, value in (("a", 1.0), ("b", 5.0), ("c", 3.0))}
    assert algorithm.starts(state, "b") is None
    mean, state = algorithm.combine({"w": np.zeros(1, np.float32)}, state, Gathered({}, 1.0, ["w"], updates))
    assert mean["w"] == 3.0
    assert {key: float(array[0]) for key, array in state.items()} == {"b/w": 1.0, "c/w": 5.0, "a/w": 3.0}


def test_in_a_ring_the_model_of_an_absent_site_goes_on_untrained():
    federation = Federation(job({"name": "ring"}))
    federation.round()
    before = federation.state["site-1/w"]
    federation.round((0, 2))
    assert federation.state["site-2/w"].tobytes() == before.tobytes()
