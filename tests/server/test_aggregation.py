"""The running sum: exact for identical sites, blind to the order of arrival, of constant size."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from server.aggregation import BLOCK, RunningSum, squared_distance

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def mean_of(updates):
    total = RunningSum()
    for tensors, weight in updates:
        total.add("a site", tensors, weight)
    return total.take_mean()


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (7,), elements=FLOATS),
    st.lists(st.integers(1, 2**20), min_size=1, max_size=9),
)
def test_identical_sites_give_the_model_back_bit_for_bit(values, weights):
    mean = mean_of([({"x": values}, weight) for weight in weights])["x"]
    assert mean.dtype == np.float32
    assert mean.tobytes() == (values + np.float32(0)).tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(arrays.arrays(np.float32, (3,), elements=FLOATS), st.integers(1, 10_000)), min_size=4, max_size=4
    )
)
def test_the_order_of_arrival_cannot_be_seen(sites):
    means = {
        mean_of([({"x": values}, weight) for values, weight in order])["x"].tobytes()
        for order in itertools.permutations(sites)
    }
    assert len(means) == 1


def test_order_of_arrival_where_plain_float64_would_show_it():
    values = [np.float32(1e16), np.float32(1.0), np.float32(-1e16), np.float32(3e-8)]
    plain = {float(np.float32(sum(float(v) for v in order))) for order in itertools.permutations(values)}
    assert len(plain) > 1
    ours = {
        float(mean_of([({"x": np.array([v], np.float32)}, 1) for v in order])["x"][0])
        for order in itertools.permutations(values)
    }
    assert len(ours) == 1


def test_the_mean_is_weighted_by_cases():
    mean = mean_of([({"x": np.array([1.0, 2.0], np.float32)}, 1), ({"x": np.array([5.0, 2.0], np.float32)}, 3)])
    np.testing.assert_array_equal(mean["x"], np.array([4.0, 2.0], np.float32))


def test_tensors_larger_than_a_block_and_scalars():
    rng = np.random.default_rng(1)
    sites = [
        ({"big": rng.normal(size=(3, BLOCK)).astype(np.float32), "one": np.array(i, np.float32)}, i) for i in (1, 2)
    ]
    mean = mean_of(sites)
    expected = (sites[0][0]["big"].astype(np.float64) + 2.0 * sites[1][0]["big"]) / 3
    np.testing.assert_array_equal(mean["big"], expected.astype(np.float32))
    assert mean["one"].shape == () and mean["one"] == np.float32(5 / 3)


def test_no_updates_have_no_mean():
    with pytest.raises(ValueError, match="no updates"):
        RunningSum().take_mean()


def test_a_distance_does_not_depend_on_the_order_of_the_tensors():
    rng = np.random.default_rng(0)
    a = {f"t{i}": (10.0 ** (i % 9) * rng.normal(size=37)).astype(np.float32) for i in range(40)}
    b = {name: rng.normal(size=37).astype(np.float32) for name in a}
    one_by_one = [squared_distance(a, b, [name]) for name in a]
    assert np.cumsum(one_by_one)[-1] != np.cumsum(one_by_one[::-1])[-1]  # as they come, the order would show
    assert squared_distance(a, b, list(a)) == squared_distance(a, b, list(reversed(a)))
