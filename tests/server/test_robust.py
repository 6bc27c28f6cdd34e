"""Robust aggregation: against written-out references, bit for bit where it must be, and under attack over rounds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import minimize

from server.aggregation import BLOCK
from server.robust import aggregator
from shared_models.job import Job

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
ROBUST = [
    {"name": "median"},
    {"name": "trimmed_mean", "trim": 0.2},
    {"name": "krum", "faulty": 1},
    {"name": "krum", "faulty": 1, "keep": 3},
    {"name": "geometric_median"},
    {"name": "clipped_mean"},
    {"name": "clipped_mean", "norm": 1e38},
]
SURVIVES = [how for how in ROBUST if how["name"] != "clipped_mean"]


def name_of(how):
    return "-".join(str(value) for value in how.values())


def job_with(aggregation):
    return Job.model_validate(
        {
            "name": "robust",
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1, "aggregation": aggregation},
        }
    )


def combine(aggregation, updates, current=None, trainable=("w",)):
    """The result and the notes; `updates` are (site, tensors, weight)."""
    if current is None:
        current = {name: np.zeros_like(tensor) for name, tensor in updates[0][1].items()}
    total = aggregator(job_with(aggregation), current, trainable)
    for site, tensors, weight in updates:
        total.add(site, tensors, weight)
    assert (total.sites, total.weight) == (len(updates), sum(weight for *_, weight in updates))
    return total.take_mean(), total.notes


def rows(*values, weights=None):
    """One update a row, of sites a, b, c ..."""
    weights = weights or [1] * len(values)
    return [
        (site, {"w": np.array(row, np.float32)}, weight)
        for site, row, weight in zip("abcdefghijklmnop", values, weights, strict=False)
    ]


# --- written-out references ---


def test_the_median_of_an_odd_and_of_an_even_number_of_sites():
    odd, _ = combine({"name": "median"}, rows([1, 9], [5, 2], [100, 4], weights=[1, 1, 1000]))
    np.testing.assert_array_equal(odd["w"], np.array([5, 4], np.float32))
    even, _ = combine({"name": "median"}, rows([1, 9], [5, 2], [100, 4], [6, 3]))
    np.testing.assert_array_equal(even["w"], np.array([5.5, 3.5], np.float32))


@pytest.mark.parametrize("count", [24, 25])
def test_the_median_of_many_sites_is_the_median(count):
    values = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    result, _ = combine({"name": "median"}, [(f"{i:03}", {"w": row}, 1) for i, row in enumerate(values)])
    np.testing.assert_allclose(result["w"], np.median(values, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("trim", "count", "cut"),
    [(0.2, 5, 1), (0.2, 4, 1), (0.2, 6, 2), (0.07, 100, 7), (0.49, 4, 1), (0.01, 3, 1)],
)
def test_the_trimmed_mean_leaves_out_its_share_rounded_up_and_never_everything(trim, count, cut):
    values = np.random.default_rng(count).normal(size=(count, 3)).astype(np.float32)
    updates = [(f"{i:03}", {"w": row}, 1) for i, row in enumerate(values)]
    result, notes = combine({"name": "trimmed_mean", "trim": trim}, updates)
    middle = np.sort(values, axis=0)[cut : count - cut].astype(np.float64)
    np.testing.assert_array_equal(result["w"], (middle.sum(axis=0) / len(middle)).astype(np.float32))
    assert notes == {"left_out_at_either_end": cut}


def test_krum_takes_the_update_with_the_nearest_neighbours():
    # n = 6, f = 1: three neighbours. Squared distances on a line, by hand:
    # 0: 1 + 4 + 9 = 14, 1: 1 + 1 + 4 = 6, 2: 1 + 1 + 4 = 6, 3: 1 + 4 + 9 = 14, 10: 49 + 64 + 81, 100: ...
    updates = rows([0], [1], [2], [3], [10], [100])
    result, notes = combine({"name": "krum", "faulty": 1}, updates)
    assert notes["scores"] == {"a": 14, "b": 6, "c": 6, "d": 14, "e": 194, "f": 90**2 + 97**2 + 98**2}
    assert notes["kept"] == ["b"] and result["w"] == [1]  # of two with the same score, the first by name
    updates = rows([0], [1], [2], [3], [10], [100], weights=[900, 1, 1, 1, 1, 1])  # what is kept counts alike
    result, notes = combine({"name": "krum", "faulty": 1, "keep": 4}, updates)
    assert notes["kept"] == ["a", "b", "c", "d"] and result["w"] == [1.5]


def test_the_geometric_median_is_the_point_with_the_least_sum_of_distances():
    rng = np.random.default_rng(3)
    points, weights = rng.normal(size=(7, 4)).astype(np.float32), [1, 5, 2, 2, 7, 3, 4]
    points[6] += 1000

    def cost(point):
        return sum(w * math.dist(point, p) for w, p in zip(weights, points, strict=True))

    expected = minimize(cost, points.mean(axis=0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    result, notes = combine({"name": "geometric_median"}, rows(*points, weights=weights))
    np.testing.assert_allclose(result["w"], expected.x, atol=1e-4)
    assert cost(result["w"].astype(np.float64)) <= expected.fun * (1 + 1e-6)
    assert sum(notes["shares"].values()) == pytest.approx(1) and notes["shares"]["g"] < 0.01


def test_a_majority_in_one_place_is_the_geometric_median():
    result, _ = combine({"name": "geometric_median"}, rows([2, 2], [2, 2], [2, 2], [-8, 100], [50, 3]))
    np.testing.assert_allclose(result["w"], [2, 2], atol=1e-3)


def test_the_clipped_mean_cuts_what_a_site_changed():
    current = {"w": np.array([1, 1], np.float32)}
    updates = rows([4, 5], [1, 2], weights=[1, 3])  # moved by (3, 4), of length 5, and by (0, 1)
    result, notes = combine({"name": "clipped_mean", "norm": 2.5}, updates, current)
    np.testing.assert_allclose(result["w"], [(2.5 + 3 * 1) / 4, (3 + 3 * 2) / 4])
    assert notes == {"norm": 2.5, "lengths": {"a": 5, "b": 1}}
    result, notes = combine({"name": "clipped_mean"}, updates, current)
    assert notes["norm"] == 3
    np.testing.assert_allclose(result["w"], [(1 + 3 * 0.6 + 3 * 1) / 4, (1 + 4 * 0.6 + 3 * 2) / 4], rtol=1e-6)


def test_a_norm_that_nobody_reaches_is_the_weighted_mean():
    updates = rows([0.1, 0.7], [0.3, -0.2], [0.25, 9], weights=[3, 1, 8])
    clipped, mean = combine({"name": "clipped_mean", "norm": 100.0}, updates)[0], combine({"name": "mean"}, updates)[0]
    assert clipped["w"].tobytes() == mean["w"].tobytes()


# --- what holds for all ---


@pytest.mark.parametrize("aggregation", ROBUST, ids=name_of)
@settings(max_examples=25, deadline=None)
@given(values=arrays.arrays(np.float32, (6,), elements=FLOATS), weights=st.lists(st.integers(1, 10**6), min_size=5))
def test_identical_updates_give_the_model_back_bit_for_bit(aggregation, values, weights):
    values = values + np.float32(0)  # -0 and 0 are the same number
    updates = [(f"site-{i:03}", {"w": values, "s": values[:2]}, weight) for i, weight in enumerate(weights[:9])]
    result, _ = combine(aggregation, updates)
    assert result["w"].dtype == np.float32 and result["w"].tobytes() == values.tobytes()
    assert result["s"].tobytes() == values[:2].tobytes()


@pytest.mark.parametrize("aggregation", ROBUST, ids=name_of)
def test_the_order_of_arrival_cannot_be_seen(aggregation):
    rng = np.random.default_rng(0)
    updates = [(site, {"w": rng.normal(size=50).astype(np.float32)}, i + 1) for i, site in enumerate("abcde")]
    found = [combine(aggregation, order) for order in itertools.islice(itertools.permutations(updates), 0, 120, 7)]
    assert len({result["w"].tobytes() for result, _ in found}) == 1
    assert all(notes == found[0][1] and list(notes) == list(found[0][1]) for _, notes in found)


@pytest.mark.parametrize("aggregation", ROBUST, ids=name_of)
def test_tensors_larger_than_a_block_are_as_their_parts(aggregation):
    """A rule by coordinates sees no blocks; one by distances sees all tensors together."""
    rng = np.random.default_rng(1)
    wholes = [rng.normal(size=(3, BLOCK)).astype(np.float32) for _ in range(5)]
    whole, _ = combine(aggregation, [(s, {"w": w}, 1) for s, w in zip("abcde", wholes, strict=True)])
    parts, _ = combine(
        aggregation,
        [(s, {"w": w[0], "v": w[1:]}, 1) for s, w in zip("abcde", wholes, strict=True)],
        trainable=("w", "v"),
    )
    np.testing.assert_allclose(whole["w"], np.vstack([parts["w"][None], parts["v"]]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("aggregation", [{"name": "mean"}, *ROBUST], ids=name_of)
def test_running_statistics_of_one_site_move_the_mean_only(aggregation):
    """Their scale is that of the images: what a distance would make of it must not hide an attack, or be one."""
    honest = [np.float32(1e6 + i) for i in range(4)]
    updates = [
        (s, {"w": np.ones(2, np.float32), "mean": np.array([v])}, 1) for s, v in zip("abcd", honest, strict=True)
    ]
    updates.append(("e", {"w": np.ones(2, np.float32), "mean": np.array([-1e12], np.float32)}, 1))
    result, _ = combine(aggregation, updates)
    np.testing.assert_array_equal(result["w"], np.ones(2, np.float32))
    assert (1e6 <= result["mean"][0] <= 1e6 + 3) == (aggregation["name"] != "mean")


@pytest.mark.parametrize("aggregation", SURVIVES, ids=name_of)
def test_too_few_updates_are_never_a_silent_mean(aggregation):
    fewest = job_with(aggregation).federation.aggregation.fewest
    updates = rows(*[[i] for i in range(fewest)])
    combine(aggregation, updates)
    with pytest.raises(ValueError, match=f"{fewest - 1} updates, of the {fewest} that"):
        combine(aggregation, updates[1:])


# --- under attack: every site k has the loss |w - optimum_k|² / 2, and takes two steps down it a round ---

SITES, HOSTILE, ROUNDS = 9, 2, 25
OPTIMA = 3 + np.random.default_rng(5).normal(scale=0.3, size=(SITES, 20)).astype(np.float32)
BEST = OPTIMA[HOSTILE:].mean(axis=0)  # of the honest sites together


def sign_flip(current, honest):
    return current - 4 * (honest - current)


def huge(current, honest):
    return current + 1e6 * np.sign(honest - current)


def colluding(current, honest):
    """All of them the same, close enough to look like a site and always on one side."""
    return current - np.float32(2) * np.ones_like(current)


def federated(aggregation, attack):
    """The global model after the rounds, through the real aggregator."""
    model = {"w": np.zeros(20, np.float32)}
    for _ in range(ROUNDS):
        total = aggregator(job_with(aggregation), model, ["w"])
        for site in range(SITES):
            local = model["w"]
            for _ in range(2):
                local = local - np.float32(0.2) * (local - OPTIMA[site])
            sent = attack(model["w"], local) if attack and site < HOSTILE else local
            total.add(f"site-{site}", {"w": sent.astype(np.float32)}, 10)
        model = total.take_mean()
    return model["w"]


def error(model):
    """Distance to the optimum of the honest sites, in lengths of it."""
    return float(np.linalg.norm(model - BEST) / np.linalg.norm(BEST))


ATTACKED = [
    {"name": "median"},
    {"name": "trimmed_mean", "trim": 0.25},
    {"name": "krum", "faulty": HOSTILE},
    {"name": "krum", "faulty": HOSTILE, "keep": 5},
    {"name": "geometric_median"},
]


@pytest.mark.parametrize("attack", [sign_flip, huge, colluding])
@pytest.mark.parametrize("aggregation", ATTACKED, ids=name_of)
def test_two_hostile_sites_of_nine_do_not_carry_the_model_away(aggregation, attack):
    assert error(federated(aggregation, None)) < 0.12
    assert error(federated(aggregation, attack)) < 0.15


@pytest.mark.parametrize("attack", [sign_flip, huge, colluding])
def test_and_they_do_with_the_mean(attack):
    assert error(federated({"name": "mean"}, None)) < 0.05
    assert error(federated({"name": "mean"}, attack)) > 0.4


def test_clipping_bounds_what_a_hostile_site_can_do_in_a_round():
    clean, attacked = (error(federated({"name": "clipped_mean"}, attack)) for attack in (None, huge))
    assert clean < 0.05 and attacked < 0.3
