import numpy as np
import pytest

from shared_models.errors import BadInput
from shared_models.tasks.bootstrap import Interval, difference, interval, pooled, replicate_weights


def test_first_row_is_the_data_and_other_rows_draw_whole_patients():
    patients = ["b", "a", "b", "c", "a", "b"]
    weights = replicate_weights(patients, 200, seed=1)
    assert weights.shape == (201, 6)
    assert (weights[0] == 1).all()
    for name in "abc":
        columns = weights[:, [p == name for p in patients]]
        assert (columns == columns[:, :1]).all(), "every case of a patient counts equally often"
    per_patient = weights[:, [1, 0, 3]]
    assert (per_patient.sum(axis=1) == 3).all(), "as many patients are drawn as there are"
    assert (weights[1:] == 0).any() and (weights[1:] > 1).any()


def test_weights_depend_on_patients_and_seed_only():
    patients = ["b", "a", "b", "c"]
    weights = replicate_weights(patients, 20, seed=1)
    order = [3, 1, 0, 2]
    assert (replicate_weights([patients[i] for i in order], 20, seed=1) == weights[:, order]).all()
    assert (replicate_weights(patients, 20, seed=2) != weights).any()


@pytest.mark.parametrize("replicates", [0, 5])
def test_a_site_without_cases_has_rows_without_columns(replicates):
    assert replicate_weights([], replicates, seed=1).shape == (1 + replicates, 0)


def test_interval_of_a_mean_has_the_width_that_theory_gives():
    cases = np.random.default_rng(0).normal(10.0, 2.0, size=400)
    weights = replicate_weights([str(i) for i in range(400)], 2000, seed=3)
    result = interval(weights @ cases / weights.sum(axis=1))
    assert result.value == pytest.approx(cases.mean())
    assert result.high - result.low == pytest.approx(2 * 1.96 * cases.std() / 20, rel=0.1)


def test_repeated_cases_of_a_patient_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=50)
    once = replicate_weights([str(i) for i in range(50)], 500, seed=3)
    tenfold = replicate_weights([str(i) for i in range(50) for _ in range(10)], 500, seed=3)
    alone, repeated = (
        interval(weights @ cases / weights.sum(axis=1))
        for weights, cases in ((once, values), (tenfold, values.repeat(10)))
    )
    assert repeated.low == pytest.approx(alone.low) and repeated.high == pytest.approx(alone.high)


def test_few_undefined_replicates_are_ignored_and_many_withhold_the_bounds():
    values = np.linspace(0.0, 1.0, 101)
    values[1:5] = np.nan
    assert interval(values).low is not None
    values[1:11] = np.nan
    result = interval(values)
    assert (result.value, result.low, result.high) == (0.0, None, None)
    assert "10 of 100" in result.why


def test_undefined_value_single_patient_and_no_replicates_say_why():
    assert interval(np.array([np.nan, 1.0])).value is None
    assert interval(np.array([np.nan, 1.0])).why
    assert interval(np.array([0.5])) == Interval(0.5, None, None, "no interval: no bootstrap replicates were asked for")
    assert interval(np.full(101, 0.5), patients=1).low is None
    assert interval(np.full(101, 0.5), patients=2).low == 0.5


@pytest.mark.parametrize(
    ("patients", "why"),
    [
        ([1, 1], "no interval: 2 of 2 patients are the only ones of their hospital"),
        ([1, 1, 1, 2], "no interval: 3 of 5 patients are the only ones of their hospital"),
        ([1, 1, 2], None),
        ([1, 24], None),
        ([0, 1], "no interval: one patient only"),
    ],
)
def test_hospitals_of_one_patient_each_have_no_interval_together(patients, why):
    """Each draws from its own patients, so nothing varies where there is one to draw from."""
    weights = [replicate_weights([f"p{i}" for i in range(count)], 100, seed=0) for count in patients]
    cases = [np.arange(count) / 10 + place for place, count in enumerate(patients)]
    total = sum(drawn @ of for drawn, of in zip(weights, cases, strict=True))
    found = interval(total / sum(patients), patients)
    assert found.why == why and (found.low is None) == (why is not None)


def test_difference_is_paired_by_replicate():
    a = np.random.default_rng(0).normal(size=501)
    result = difference(a + 0.25, a)
    assert (result.value, result.low, result.high) == pytest.approx((0.25, 0.25, 0.25))
    with pytest.raises(BadInput, match="500 and 10 bootstrap replicates"):
        difference(a, a[:11])


def test_sums_that_do_not_match_are_refused_by_name():
    site = {"cases": np.ones(3), "dice": np.ones((3, 2))}
    assert pooled([site, site])["dice"].tolist() == [[2, 2]] * 3
    assert site["dice"].tolist() == [[1, 1]] * 3, "the sums of a site are not changed"
    with pytest.raises(BadInput, match=r"site 2 of 2 .* dice"):
        pooled([site, {"cases": np.ones(3)}])
    with pytest.raises(BadInput, match=r"site 3 of 3 .* dice has shape \(3, 4\), expected \(3, 2\)"):
        pooled([site, site, {"cases": np.ones(3), "dice": np.ones((3, 4))}])
    with pytest.raises(BadInput, match="no site"):
        pooled([])
