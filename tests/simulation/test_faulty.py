"""What becomes of an honest update, fault by fault."""

import numpy as np
import pytest

from shared_models.job import Job
from simulation.faulty import tampered
from tests.simulation.conftest import JOB

RNG = np.random.default_rng(0)
SENT = {"a": RNG.normal(size=(40, 50)).astype(np.float32), "b": np.zeros(30, np.float32)}
UPDATE = {name: array + RNG.normal(0.5, 0.1, array.shape).astype(np.float32) for name, array in SENT.items()}


def sent_by(tmp_path, fault, site="hospital-2", number=1, update=None, start=None, faulty=("hospital-2",)):
    simulation = {**JOB["simulation"], "faulty": dict.fromkeys(faulty, fault)}
    job = Job.model_validate({**JOB, "simulation": simulation})
    return tampered(job, site, number, start or SENT, update or UPDATE, tmp_path)


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def rms(array):
    return float(np.sqrt(np.mean(np.square(array))))


@pytest.mark.parametrize(("kind", "factor"), [("sign_flip", -2), ("scaling", 2)])
def test_a_sign_is_flipped_and_an_update_scaled_by_its_formula(tmp_path, kind, factor):
    found = sent_by(tmp_path, {"kind": kind, "strength": 2.0})
    for name, w in SENT.items():
        np.testing.assert_allclose(found[name], w + factor * (UPDATE[name] - w), rtol=1e-5)
        assert found[name].dtype == np.float32


def test_an_honest_hospital_and_an_early_round_are_left_alone(tmp_path):
    fault = {"kind": "scaling", "from_round": 3}
    assert equal(sent_by(tmp_path, fault, site="hospital-1", number=3), UPDATE)
    assert equal(sent_by(tmp_path, fault, number=2), UPDATE)
    assert not equal(sent_by(tmp_path, fault, number=3), UPDATE)


def test_noise_is_as_long_as_the_strength_says_and_another_in_every_round(tmp_path):
    fault = {"kind": "noise", "strength": 4.0}
    found = sent_by(tmp_path, fault)
    assert rms(found["a"] - SENT["a"]) == pytest.approx(4 * rms(UPDATE["a"] - SENT["a"]), rel=0.05)
    assert equal(found, sent_by(tmp_path, fault))
    assert not equal(found, sent_by(tmp_path, fault, number=2))
    both = ("hospital-1", "hospital-2")
    assert not equal(found, sent_by(tmp_path, fault, site="hospital-1", faulty=both))


def test_a_stale_hospital_sends_its_first_update_for_ever_also_after_a_restart(tmp_path):
    fault = {"kind": "stale", "from_round": 2}
    first = sent_by(tmp_path, fault, number=2)
    assert equal(first, UPDATE)
    later = {name: array + 1 for name, array in UPDATE.items()}
    assert equal(sent_by(tmp_path, fault, number=3, update=later), first)
    assert equal(sent_by(tmp_path, fault, number=9, update=later), first)


def test_hospitals_that_collude_send_the_very_same(tmp_path):
    both, fault = ("hospital-1", "hospital-2"), {"kind": "colluding", "strength": 0.5}
    other = {name: array * 3 for name, array in UPDATE.items()}
    one = sent_by(tmp_path, fault, site="hospital-1", faulty=both)
    assert equal(one, sent_by(tmp_path, fault, site="hospital-2", update=other, faulty=both))
    assert rms(one["a"] - SENT["a"]) == pytest.approx(0.5 * rms(SENT["a"]), rel=0.05)
