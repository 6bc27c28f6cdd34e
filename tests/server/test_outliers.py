"""Who stands out of a round: a minority against hospitals that agree, and nobody among hospitals that differ."""

import numpy as np
import pytest

from server.aggregation import BLOCK
from server.outliers import Lineup
from server.report.record import read_record
from server.report.summary import summarise
from tests.server.fabricated_run import SITES, fabricate, job

SIZE = 3 * BLOCK // 2  # more than a block, and no multiple of the buckets with the second tensor's 77
START = {"a": np.ones(SIZE, np.float32), "b": np.zeros((7, 11), np.float32), "statistic": np.zeros(5, np.float32)}


def steps(common, own, sites=5, seed=0):
    """(sites, values): what hospitals learn, `common` parts alike and `own` parts of noise."""
    rng = np.random.default_rng(seed)
    alike = rng.normal(size=SIZE + 77)
    return [common * alike + own * rng.normal(size=SIZE + 77) for _ in range(sites)]


def as_update(step):
    step = step.astype(np.float32)
    return {
        "a": START["a"] + step[:SIZE],
        "b": START["b"] + step[SIZE:].reshape(7, 11),
        "statistic": np.full(5, 1e9, np.float32),
    }


def lineup(updates, number=1):
    found = Lineup(job(), number, ["a", "b"])
    for place, step in enumerate(updates):
        found.add(f"site-{place}", as_update(step), START)
    return found


def standing_out(updates, number=1):
    return {site: score.why for site, score in lineup(updates, number).finish().items() if score.why}


def test_the_norm_is_that_of_the_trained_tensors():
    (step,) = steps(1, 0, sites=1)
    assert Lineup(job(), 1, ["a", "b"]).add("x", as_update(step), START) == pytest.approx(
        np.linalg.norm(step), rel=1e-4
    )


@pytest.mark.parametrize("own", [0.3, 1.0, 3.0])
def test_sketches_keep_lengths_and_angles(own):
    one, other = steps(1, own, sites=2)
    scores = lineup([one, other]).finish()
    assert [s.norm for s in scores.values()] == pytest.approx([np.linalg.norm(one), np.linalg.norm(other)], rel=1e-4)
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert [s.direction for s in scores.values()] == pytest.approx([cosine, cosine], abs=0.1)


@pytest.mark.parametrize("culprit", [0, 3])
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda step, rng: -step, "away"),
        (lambda step, rng: 10 * step, "long"),
        (lambda step, rng: 10 * rng.normal(size=step.size), "long"),
        (lambda step, rng: rng.normal(size=step.size), "away"),
    ],
)
def test_one_of_five_is_found(culprit, fault, why):
    updates = steps(1, 1)
    updates[culprit] = fault(updates[culprit], np.random.default_rng(9))
    assert standing_out(updates) == {f"site-{culprit}": why}


def test_two_of_eight_are_found():
    updates = steps(1, 1, sites=8)
    updates[2], updates[5] = -updates[2], 20 * updates[5]
    assert standing_out(updates) == {"site-2": "away", "site-5": "long"}


def test_hospitals_that_all_differ_accuse_nobody():
    assert not standing_out(steps(0, 1, sites=8))


def test_two_camps_accuse_nobody():
    """As under label skew: some hospitals have the one disease, some the other."""
    updates = steps(1, 0.3, sites=8)
    assert not standing_out([-u if place < 3 else u for place, u in enumerate(updates)])
    assert not standing_out([50 * u if place < 3 else u for place, u in enumerate(updates)])


def test_of_three_nobody_can_stand_out():
    updates = steps(1, 1, sites=3)
    assert not standing_out([-100 * updates[0], *updates[1:]])


def test_updates_that_are_nothing_are_no_trouble():
    scores = lineup([np.zeros(SIZE + 77)] * 5).finish()
    assert all(np.isfinite([s.norm, s.length, s.direction]).all() and s.why is None for s in scores.values())
    assert Lineup(job(), 1, ["a"]).finish() == {}


def test_neither_order_nor_chance_of_the_round_decides():
    updates = steps(1, 1)
    updates[1] = -updates[1]
    one, other = Lineup(job(), 4, ["a", "b"]), Lineup(job(), 4, ["b", "a"])
    for place in range(5):
        one.add(f"site-{place}", as_update(updates[place]), START)
    for place in reversed(range(5)):
        update = dict(reversed(as_update(updates[place]).items()))
        other.add(f"site-{place}", update, START)
    assert one.finish() == other.finish()
    assert all(standing_out(updates, number) == {"site-1": "away"} for number in range(1, 20))


def stood_out(folder, *events):
    extra = [{"event": "stood_out", "round": n, "site": site, "why": why, "ratio": x} for n, site, why, x in events]
    return summarise(read_record(fabricate(folder, extra=extra)))


def test_a_hospital_that_stands_out_is_named(tmp_path):
    north, riverside, university = SITES
    often = [(number, riverside, "away", -0.4) for number in range(1, 7)]
    seldom = [(number, university, "away", -0.4) for number in range(1, 5)]  # half of the rounds: chance, or patients
    report = stood_out(tmp_path / "run", *often, *seldom, (3, north, "long", 12.3))
    named = [doubt["text"] for doubt in report["doubts"] if doubt["kind"] == "update_out_of_line"]
    assert named == [
        "riverside stood out in 6 of 8 rounds: its update pointed away from the others'.",
        "north-clinic stood out in 1 of 8 rounds: its update was up to 12 times as long as the median.",
    ]
    assert report["stood_out"][university] == {"long": 0, "away": 4, "of": 8, "longest": None}
