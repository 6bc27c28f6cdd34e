"""Each algorithm against a written-out reference on quadratics whose answer is known."""

import numpy as np
import pytest

from client.policy import steps_per_round
from client.training import make_optimizers, train_round
from shared_models.algorithms import Gathered
from shared_models.algorithms.algorithm import Sent
from shared_models.algorithms.fednova import path_length
from shared_models.algorithms.local_round import LocalRound
from shared_models.job import Job
from shared_models.weights import TensorInfo
from tests.shared_models.algorithms.quadratics import (
    CURVATURE,
    OPTIMA,
    RATE,
    STEPS,
    Blank,
    Federation,
    Point,
    Quadratic,
    fedavg_fixed_point,
    job,
    loss_of,
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


@pytest.mark.parametrize("steps", [(STEPS, STEPS, STEPS), (2, 5, 12)])
def test_scaffold_follows_the_paper_step_by_step(steps):
    """Algorithm 1 with option II, written out in numpy."""
    federation = Federation(job(SCAFFOLD), steps=steps)
    x, c, c_k = np.zeros(3), np.zeros(3), np.zeros((3, 3))
    for _ in range(4):
        ends, changes = [], []
        for k in range(3):
            y = x.copy()
            for _ in range(steps[k]):
                y = y - RATE * (CURVATURE[k] * (y - OPTIMA[k]) - c_k[k] + c)
            following = c_k[k] - c + (x - y) / (steps[k] * RATE)
            changes.append(following - c_k[k])
            c_k[k] = following
            ends.append(y)
        x, c = np.mean(ends, axis=0), c + np.mean(changes, axis=0)
        np.testing.assert_allclose(federation.round(), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_feddyn_follows_the_paper_step_by_step(alpha):
    federation = Federation(job({"name": "feddyn", "alpha": alpha}))
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


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_follows_the_papers_equations_with_unequal_steps_and_weights(momentum):
    """Eq. 11, with a_k as the sum over all steps of how far a constant gradient has moved the site by each of them."""
    steps, cases = (2, 5, 12), (10, 30, 60)
    federation, w = Federation(job({"name": "fednova"}, momentum=momentum), steps=steps, cases=cases), np.zeros(3)
    for _ in range(4):
        direction, mean_length = np.zeros(3), 0.0
        for k in range(3):
            y, velocity, speed, length = w.copy(), np.zeros(3), 0.0, 0.0
            for _ in range(steps[k]):
                velocity = momentum * velocity + CURVATURE[k] * (y - OPTIMA[k])
                y = y - RATE * velocity
                speed = momentum * speed + 1
                length += speed
            direction += cases[k] / 100 * (y - w) / length
            mean_length += cases[k] / 100 * length
        w = w + mean_length * direction
        np.testing.assert_allclose(federation.round(), w, rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize("q", [1.0, 2.0])
def test_qfedavg_follows_the_papers_algorithm_2(q):
    w = np.zeros(3)
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


def test_qfedavg_measures_the_loss_of_the_model_as_it_came_in_the_real_local_loop():
    rules = job({"name": "qfedavg"})
    network, task = Point(), Quadratic(rules, 1)
    before = loss_of(1, network).item()
    local = LocalRound(network, rules, rules.federation.algorithm)
    train_round(network, make_optimizers(network, rules, task), Blank(7), rules, task, "south", 1, local=local)
    assert local.initial_loss == pytest.approx(before) and loss_of(1, network).item() < before / 2


@pytest.mark.parametrize(("loss", "weight"), [(0.0, 1), (2.0, 4 * 2**16), (1e9, 2**29 - 1), (np.inf, 2**29 - 1)])
def test_qfedavg_weighs_a_site_by_a_whole_number_that_admission_takes_whatever_its_loss(loss, weight):
    rules = job({"name": "qfedavg", "q": 2.0})
    algorithm = rules.federation.algorithm
    local = LocalRound(Point(), rules, algorithm, learning_rate=RATE, initial_loss=loss)
    algorithm.begin(local)
    local.network.w.data += 1
    sent = algorithm.contribution(local)
    assert sent.weight == weight
    damping = 2 * 3 / (RATE * np.clip(loss, 1e-6, 100))
    assert sent.extra["damping"] == pytest.approx(damping)
    assert algorithm.misfit(rules, Sent(10, STEPS, sent.weight, 3**0.5, sent.extra, RATE)) is None
    if loss:
        more = {"damping": np.array(2 * damping, np.float32)}
        assert "its damping is" in str(algorithm.misfit(rules, Sent(10, STEPS, sent.weight, 3**0.5, more, RATE)))


@pytest.mark.parametrize("training", [{"local_steps": 7}, {"local_epochs": 3, "batch_size": 3}])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_fednova_sends_from_the_real_local_loop_is_what_the_server_expects(training, momentum):
    content = job({"name": "fednova"}, momentum=momentum).model_dump(mode="json")
    content["training"] |= {"local_steps": None, **training}
    rules = Job.model_validate(content)
    network, task, algorithm = Point(), Quadratic(rules, 1), rules.federation.algorithm
    local = LocalRound(network, rules, algorithm)
    done = train_round(network, make_optimizers(network, rules, task), Blank(10), rules, task, "a", 1, local=local)
    sent = algorithm.contribution(local)
    assert algorithm.misfit(rules, Sent(done.cases, done.steps, sent.weight, 1.0, sent.extra, RATE)) is None
    # In float16 a step may be left out.
    less = {"path_length": np.array(path_length(done.steps - 1, momentum), np.float32)}
    assert algorithm.misfit(rules, Sent(done.cases, done.steps - 1, sent.weight, 1.0, less, RATE)) is None
    assert algorithm.misfit(rules, Sent(done.cases, done.steps, sent.weight, 1.0, less, RATE))


def test_qfedavg_makes_losses_more_alike():
    def spread(weights: np.ndarray) -> float:
        return float(np.std((0.5 * CURVATURE * (weights - OPTIMA) ** 2).sum(axis=1)))

    fair = Federation(job({"name": "qfedavg", "q": 2.0})).run(200)
    assert spread(fair) < spread(Federation(job({"name": "qfedavg", "q": 0.0})).run(200))


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "feddyn", "fednova", "qfedavg"])
def test_the_server_half_corrects_what_is_trained_and_travels_and_no_running_statistic(name):
    tensors = [
        TensorInfo("w", "shared", (1,), "float32", travels=True),
        TensorInfo("variance", "statistic", (1,), "float32", travels=True),
        TensorInfo("head", "head", (1,), "float32", travels=False),
    ]
    algorithm = job({"name": name}).federation.algorithm
    current = {"w": np.zeros(1, np.float32), "variance": np.full(1, 4, np.float32)}
    state = algorithm.initial_state(tensors, ["north", "south"], current)
    assert state.keys() <= {"control/w", "slope/w"}
    assert algorithm.extra(tensors).keys() <= {"control/w", "path_length", "damping"}
    mean = {"w": 1.0, "variance": 2.0, "control/w": 0.5, "path_length": 3.0, "damping": 1.0}
    mean = {key: np.full(1, value, np.float32) for key, value in mean.items()}
    target, _ = algorithm.combine(current, state, Gathered(mean, 0.5, ["w"]))
    assert target["variance"] == 2.0
    # feddyn: h = 0 - 0.1 * 0.5 * 1, and 1 - h / 0.1; fednova: 3 times the way; qfedavg: half of it.
    assert target["w"] == pytest.approx({"feddyn": 1.5, "fednova": 3.0, "qfedavg": 0.5}.get(name, 1.0))


@pytest.mark.parametrize("algorithm", [SCAFFOLD, FEDDYN])
def test_the_servers_state_is_still_the_weighted_mean_when_a_hospital_comes_that_it_had_not_met(algorithm):
    """The newcomer, with 60 of then 100 cases, keeps nothing yet: what it adds to the mean is zero."""
    known, rules = Federation(job(algorithm), cases=(10, 30, 0)), job(algorithm).federation.algorithm
    for _ in range(3):
        known.round((0, 1))
    (ours,) = rules.grown(known.state, 0.4).values()
    theirs = sum(n / 100 * next(iter(known.kept[site].values())) for site, n in ((0, 10), (1, 30)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


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
    found = federation.round((0, 2))
    assert federation.state["site-2/w"].tobytes() == before.tobytes()
    models = [federation.state[f"site-{site}/w"].astype(np.float64) for site in range(3)]
    np.testing.assert_allclose(found, np.mean(models, axis=0), rtol=1e-6)  # and it counts in the mean


# --- ditto: v_k, the site's own model, starts as the global one is in the site's first round ---


def descended(start: np.ndarray, site: int, pull: float = 0.0, towards: np.ndarray | float = 0.0) -> np.ndarray:
    """Ten steps of v <- v - eta (grad f_k(v) + lambda (v - w))."""
    for _ in range(10):
        start = start - RATE * (CURVATURE[site] * (start - OPTIMA[site]) + pull * (start - towards))
    return start


def test_dittos_own_models_follow_the_papers_algorithm_1_beside_federated_averaging():
    federation, pull = Federation(job({"name": "ditto", "pull": 1.5})), 1.5
    w, own = np.zeros(3), {}
    for _ in range(4):
        ends = [descended(w, k) for k in range(3)]
        own = {k: descended(own.get(k, w), k, pull, w) for k in range(3)}  # towards w^t, as the round began
        w = np.mean(ends, axis=0)
        np.testing.assert_allclose(federation.round(), w, rtol=1e-4, atol=1e-5)
        for k in range(3):
            np.testing.assert_allclose(federation.personal[k]["w"], own[k], rtol=1e-4, atol=1e-5)


def test_ditto_without_its_pull_is_training_alone():
    together, alone = (Federation(job({"name": "ditto", "pull": 0.0})) for _ in range(2))
    v = np.zeros(3)
    for _ in range(4):
        together.round()
        alone.round((0,))
        v = descended(v, 0)
        np.testing.assert_allclose(together.personal[0]["w"], v, rtol=1e-4, atol=1e-5)
        assert together.personal[0]["w"].tobytes() == alone.personal[0]["w"].tobytes()


@pytest.mark.parametrize("pull", [0.0, 1.0, 100.0])
def test_a_site_of_ditto_ends_between_its_own_optimum_and_the_global_model_as_the_pull_says(pull):
    """At rest a_k (v - b_k) + lambda (v - w) = 0: at b_k without a pull, by w under a large one."""
    federation = Federation(job({"name": "ditto", "pull": pull}, rate=0.015))
    w = federation.run(120)
    for k in range(3):
        v = federation.personal[k]["w"]
        between = (CURVATURE[k] * OPTIMA[k] + pull * w) / (CURVATURE[k] + pull)
        np.testing.assert_allclose(v, between, atol=2e-3)
        if pull == 100.0:
            assert np.abs(v - w).max() < 0.1 * np.abs(OPTIMA[k] - w).max()


def test_a_hospital_counts_the_steps_of_both_models_of_ditto():
    assert steps_per_round(job({"name": "fedavg"}), train_cases=10) == STEPS
    assert steps_per_round(job({"name": "ditto"}), train_cases=10) == 2 * STEPS
