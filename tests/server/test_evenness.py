"""How evenly a model serves: its spread over hospitals, and its results by group pooled over the hospitals."""

import numpy as np
import pytest

from server.evenness import evenness
from server.judgement import with_all
from shared_models.job import Job
from shared_models.subgroups import PREFIX, groups_of
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import replicate_weights
from tests.server.fabricated_run import job

JOB = Job.model_validate(
    job().model_dump() | {"evaluation": {"bootstrap": 50, "subgroups": {"sex": ["F", "M"]}, "subgroup_patients": 3}}
)
TASK = task_of(JOB)


def records(dice, hd95=2.0):
    return [
        CaseRecord(
            f"c{n}",
            f"p{n}",
            {
                "dice": [value, value],
                "surface_dice": [value, value],
                "hd95": [hd95, hd95],
                "missed": [0.0, 0.0],
                "false": [0.0, 0.0],
            },
        )
        for n, value in enumerate(dice)
    ]


def site_sums(dice, groups=None, seed=0):
    """Sums of a site whose cases have these values of Dice.

    Args:
        groups: the cases of F, of M and of neither that it tells of; without, all are of neither.
    """
    found = records(dice)
    weights = replicate_weights([record.patient for record in found], 50, seed)
    sums = TASK.sums(found, weights)
    for number, chosen in enumerate(groups or [[], [], list(range(len(dice)))]):
        own = TASK.sums([found[n] for n in chosen], weights[:, chosen])
        for name, values in own.items():
            place = (len(weights), len(groups_of(JOB)), *values.shape[1:])
            sums.setdefault(PREFIX + name, np.zeros(place))[:, number] = values
    return sums


def test_spread_is_that_of_the_hospitals_values_with_its_interval():
    federated = {"a": site_sums([0.7] * 6), "b": site_sums([0.8] * 6), "c": site_sums([0.9] * 5 + [0.3])}
    found = evenness(JOB, {"federated": federated})["spread"]["federated"]["dice"]
    assert found["hospitals"] == 3
    assert found["range"]["value"] == pytest.approx(0.1)
    assert found["deviation"]["value"] == pytest.approx(np.std([0.7, 0.8, 0.8]))
    # The third hospital's mean moves with its one bad patient: in the replicates the range does too.
    assert found["range"]["low"] < 0.17 < found["range"]["high"] < 0.4
    assert found["range"]["low"] >= 0.1 - 1e-6  # of the two that do not move


def test_the_spread_of_local_models_is_that_of_each_at_home():
    at = {"a": site_sums([0.7] * 6), "b": site_sums([0.7] * 6)}
    local = {
        "local:a": {"a": site_sums([0.6] * 6), "b": site_sums([0.1] * 6)},
        "local:b": {"a": site_sums([0.2] * 6), "b": site_sums([0.65] * 6)},
    }
    found = evenness(JOB, {"federated": at, **local})["spread"]
    assert found.keys() == {"federated", "local"}
    assert found["local"]["dice"]["range"]["value"] == pytest.approx(0.05)


def test_the_spread_of_single_patients_has_no_interval():
    found = evenness(JOB, {"federated": {"a": site_sums([0.7]), "b": site_sums([0.8])}})["spread"]["federated"]["dice"]
    assert found["range"]["value"] == pytest.approx(0.1)
    assert found["range"]["low"] is found["deviation"]["low"] is None
    assert "2 of 2 patients are the only ones of their hospital" in found["range"]["why"]


def test_a_hospital_without_an_interval_is_in_no_spread():
    federated = {"a": site_sums([0.7] * 6), "b": site_sums([0.8] * 6), "c": site_sums([0.01])}
    found = evenness(JOB, {"federated": federated})["spread"]["federated"]["dice"]
    assert found["range"]["value"] == pytest.approx(0.1) and found["range"]["low"] is not None
    assert (found["hospitals"], found["of"]) == (2, 3)


def test_one_hospital_has_no_spread():
    assert evenness(JOB, {"federated": {"a": site_sums([0.7] * 6)}})["spread"] == {"federated": {}}


def test_groups_are_pooled_over_the_hospitals_that_tell_of_them():
    dice = [0.5] * 4 + [0.9] * 4
    both, women = [[0, 1, 2, 3], [4, 5, 6, 7], []], [[0, 1, 2, 3], [], []]
    federated = {"a": site_sums(dice, both), "b": site_sums(dice, women)}
    own = {
        "local:a": {"a": site_sums([value - 0.1 for value in dice], both)},
        "local:b": {"b": site_sums([value - 0.3 for value in dice], women)},
    }
    female, male, other = evenness(JOB, {"federated": federated, **own})["subgroups"]
    assert (female["column"], female["group"]) == ("sex", "F")
    assert (female["patients"], female["cases"], female["hospitals"]) == (8, 8, ["a", "b"])
    assert female["metrics"]["dice"]["value"] == pytest.approx(0.5)
    assert female["metrics"]["dice"]["n"] == 8
    assert female["federated-local"]["dice"]["value"] == pytest.approx(0.2)
    assert (male["hospitals"], male["withheld"], male["patients"]) == (["a"], ["b"], 4)
    # The first hospital has told of all of its cases, so nobody there is in the last group.
    assert (other["hospitals"], other["withheld"], other["metrics"]) == ([], ["b"], {})


def test_sums_by_group_do_not_get_in_the_way_of_the_others():
    """Only a hospital's own local model has them at that hospital."""
    by_site = {"a": site_sums([0.5] * 4, [[0, 1, 2, 3], [], []]), "b": site_sums([0.7] * 4)}
    assert with_all(by_site)["all"]["cases"][0] == 8
    assert not any(name.startswith(PREFIX) for name in with_all(by_site)["all"])
