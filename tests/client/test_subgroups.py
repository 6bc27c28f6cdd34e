"""Results by group of patients: what a site tells, what it keeps back, and what the door lets through."""

import csv

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.allowed import allowed_for
from client.data.manifest import Case
from client.egress import Withheld, release
from client.site import Site
from client.subgroups import group_members, subgroup_sums, suppressed
from shared_models.job import Job
from shared_models.job_file import check_meaning
from shared_models.subgroups import MOST_REPLICATES, PREFIX, groups_of, shapes, sums_of, totals
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import replicate_weights
from shared_models.weights import from_record, to_record
from tests.client.asking import Coordinator, Here
from tests.client.door import JOB, PATIENTS, POLICY


def job_with(subgroups, least=5, bootstrap=3):
    evaluation = {"bootstrap": bootstrap, "subgroups": subgroups, "subgroup_patients": least}
    return Job.model_validate(JOB.model_dump() | {"evaluation": evaluation})


def case(number, patient=None, **columns):
    return Case(f"c{number}", patient or f"p{number}", ("x",), "small", "test", columns)


def record(number, probability, label=1):
    return CaseRecord(f"c{number}", f"p{number}", {"probabilities": [1 - probability, probability], "label": [label]})


def site(tmp_path, **more):
    return Site("here", tmp_path / "m.csv", tmp_path, tmp_path, **more)


def cases_by_group(job, cases):
    groups = groups_of(job)
    members = group_members(groups, cases)
    return {(g.column, g.label): len(m) for g, m in zip(groups, members, strict=True) if m}


def test_bands_hold_their_lower_edge_and_whatever_fits_none_is_counted_as_other():
    job = job_with({"age": [0, 40, 65], "sex": ["F", "M"]})
    ages = ["0", "39.9", "40", "64", "65", "-1", "", "unknown", "nan", "1e9"]
    sexes = ["F", "M", "f", "", "M", "M", "F", "F", "F", "diverse"]
    cases = [case(n, age=age, sex=sex) for n, (age, sex) in enumerate(zip(ages, sexes, strict=True))]
    assert cases_by_group(job, cases) == {
        ("age", "0 to under 40"): 2,
        ("age", "40 to under 65"): 2,
        ("age", "other"): 6,
        ("sex", "F"): 4,
        ("sex", "M"): 3,
        ("sex", "other"): 3,
    }


def test_a_site_without_the_column_counts_all_of_its_cases_as_other():
    assert cases_by_group(job_with({"sex": ["F", "M"]}), [case(n) for n in range(3)]) == {("sex", "other"): 3}


def test_the_groups_are_the_same_to_a_job_that_travelled():
    """The canonical form of a job sorts its keys; the arrays hold the groups by place."""
    job = job_with({"sex": ["F", "M"], "age": [0, 40]})
    assert groups_of(job) == groups_of(Job.model_validate_json(job.canonical_json()))


def test_a_groups_sums_are_those_of_its_cases_alone(tmp_path):
    job = job_with({"sex": ["F", "M"]}, least=2)
    cases = [case(n, sex="FM"[n % 2]) for n in range(8)]
    records = [record(n, probability=0.1 + 0.1 * n, label=n // 4) for n in range(8)]
    weights = replicate_weights([c.patient for c in cases], 3, 1)
    sums = subgroup_sums(site(tmp_path), job, "federated", "test", cases, records, weights)
    women = list(range(0, 8, 2))
    expected = task_of(job).sums([records[n] for n in women], weights[:, women])
    found = sums_of(0, sums)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert sums_of(1, sums)["cases"][0] == 4 and not sums_of(2, sums)["cases"].any()


@pytest.mark.parametrize(
    ("model", "split", "told"),
    [
        ("federated", "test", True),
        ("local:here", "test", True),
        ("local:there", "test", False),
        ("pooled", "test", False),
        ("federated", "validation", False),
    ],
)
def test_groups_are_told_of_the_federated_and_the_own_model_on_test_patients(tmp_path, model, split, told):
    cases, records = [case(n, sex="F") for n in range(6)], [record(n, 0.5) for n in range(6)]
    weights = np.ones((4, 6))
    sums = subgroup_sums(site(tmp_path), job_with({"sex": ["F"]}), model, split, cases, records, weights)
    assert bool(sums) == told
    assert not subgroup_sums(site(tmp_path), JOB, model, split, cases, records, weights)


def hidden_of(counts, least):
    """Which groups of one column, by number of patients, are not told."""
    job = job_with({"sex": [str(n) for n in range(len(counts) - 1)]})
    groups = groups_of(job)
    members, start = [], 0
    for count in counts:
        members.append(list(range(start, start + count)))
        start += count
    return suppressed(groups, members, [f"p{n}" for n in range(start)], least)


def test_a_small_group_takes_the_next_smallest_with_it():
    assert hidden_of([20, 9, 3, 0], least=5) == {1, 2}  # 29 told of all minus 20: that would be 3 patients, were 9 told
    assert hidden_of([20, 3, 2, 0], least=5) == {1, 2}  # five patients together, who are told of by the difference
    assert hidden_of([20, 2, 2, 7], least=5) == {1, 2, 3}
    assert hidden_of([20, 9, 5, 0], least=5) == set()
    assert hidden_of([3, 0, 0, 0], least=5) == {0}


@given(st.lists(st.integers(0, 12), min_size=2, max_size=6), st.integers(1, 8))
def test_no_difference_tells_of_too_few_patients(counts, least):
    hidden = hidden_of(counts, least)
    kept_back = sum(counts[n] for n in hidden)
    assert all(counts[n] >= least for n in range(len(counts)) if n not in hidden and counts[n])
    assert kept_back == 0 or kept_back >= least or hidden == {n for n, count in enumerate(counts) if count}


def test_patients_are_counted_and_not_their_images():
    job = job_with({"sex": ["F", "M"]})
    cases = [case(n, patient="one", sex="F") for n in range(9)] + [case(10 + n, sex="M") for n in range(9)]
    groups = groups_of(job)
    hidden = suppressed(groups, group_members(groups, cases), [c.patient for c in cases], 5)
    assert hidden == {0, 1}


# The door


def honest(job, patients=6):
    cases = [case(n, sex="F") for n in range(patients)]
    records = [record(n, 0.5) for n in range(patients)]
    weights = np.ones((4, patients))
    here = Site("here", None, None, None, own="")
    sums = task_of(job).sums(records, weights)
    return sums | subgroup_sums(here, job, "federated", "test", cases, records, weights)


def send(sums, job):
    allowed = allowed_for(
        job,
        "evaluate",
        site="here",
        policy=POLICY,
        patients=PATIENTS,
        replicates=3,
        split="test",
        model="federated",
    )
    return release(RecordDict({"sums": to_record(sums)}), allowed)


def test_the_door_lets_groups_out_that_the_job_declares():
    job = job_with({"sex": ["F", "M"]})
    sums = honest(job)
    left = from_record(send(sums, job).content["sums"])
    assert left.keys() == sums.keys()
    np.testing.assert_array_equal(left[f"{PREFIX}cases"][:, 0], 6)
    assert totals(left).keys() == task_of(job).sums([], np.zeros((1, 0))).keys()
    with pytest.raises(Withheld, match="tensors that are not declared"):
        send(sums, JOB)


def test_the_door_stops_a_group_of_too_few_patients():
    """Were suppression wrong, nothing would leave: the policy of this hospital asks for two patients."""
    job = job_with({"sex": ["F", "M"]}, least=1)
    sums = honest(job)
    for name in sums:
        if name.startswith(PREFIX):
            sums[name][:, 1] = sums[name][:, 0] * 0
    sums[f"{PREFIX}cases"][:, 1] = sums[f"{PREFIX}patients"][:, 1] = 1
    with pytest.raises(Withheld, match="rests on 1 patients, where the policy asks for 2"):
        send(sums, job)
    sums[f"{PREFIX}patients"][:, 1] = 0  # a count that is left out does not make it pass
    with pytest.raises(Withheld, match="rests on 0 patients"):
        send(sums, job)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    return Coordinator(tmp_path_factory.mktemp("federation"))


@pytest.mark.parametrize(("least", "told"), [(2, [2, 2, 0]), (3, [0, 0, 0])])
def test_the_policy_of_a_hospital_outweighs_the_job(tmp_path, coordinator, least, told):
    here = Here(tmp_path, coordinator, min_patients=least)
    with here.config.manifest.open() as file:
        header, *rows = csv.reader(file)
    with here.config.manifest.open("w", newline="") as file:
        csv.writer(file).writerows([[*header, "sex"], *([*row, "FM"[n % 2]] for n, row in enumerate(rows))])
    job = job_with({"sex": ["F", "M"]}, least=1)
    content = here.ask("evaluate", job=job)
    assert "fault" not in content
    assert from_record(content["sums"])[f"{PREFIX}patients"][0].tolist() == told


# The job


@pytest.mark.parametrize(
    ("subgroups", "sentence"),
    [
        ({"sex": []}, "at least 1"),
        ({"sex": ["F", "F"]}, "every category once"),
        ({"sex": ["F", "other"]}, "not 'other'"),
        ({"age": [40]}, "at least two rising edges"),
        ({"age": [0, 65, 40]}, "at least two rising edges"),
    ],
)
def test_groups_that_cannot_be_told_apart_are_refused(subgroups, sentence):
    with pytest.raises(ValueError, match=sentence):
        job_with(subgroups)


@pytest.mark.parametrize("column", ["image", "label", "patient", "case", "split"])
def test_a_column_with_another_role_makes_no_groups(column):
    [refusal] = check_meaning(job_with({column: ["a"]}))
    assert f"column '{column}' is " in refusal.sentence and "describes patients" in refusal.sentence


def test_at_most_so_many_replicates_are_sent_for_groups():
    job = job_with({"sex": ["F"]}, bootstrap=500)
    for replicates, rows in ((500, MOST_REPLICATES + 1), (3, 4)):
        assert {s[:2] for s in shapes(job, "here", "federated", "test", replicates).values()} == {(rows, 2)}


def test_every_group_of_the_job_is_listed():
    job = job_with({"sex": ["F", "M"], "age": [0, 1.5, 40]})
    expected = {"age": ["0 to under 1.5", "1.5 to under 40", "other"], "sex": ["F", "M", "other"]}
    assert [(g.column, g.label) for g in groups_of(job)] == [(c, g) for c, found in expected.items() for g in found]
