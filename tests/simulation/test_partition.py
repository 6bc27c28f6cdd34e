"""Who gets which patient: whole patients, every patient once, alike in every official split, the same every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import SourceCase, open_dataset
from simulation.partition import partition, unassigned

NIH = {
    "name": "folder",
    "table": "nih_cxr/nih_cxr_1000x96.npz",
    "columns": {"image": "images", "label": "labels", "split": "is_test"},
}
PARTITIONS: list[dict[str, Any]] = [
    {"name": "iid"},
    {"name": "quantity", "alpha": 0.5},
    {"name": "dirichlet", "alpha": 0.3},
    {"name": "pathological", "classes_per_hospital": 1},
]


def job_for(
    setting: dict[str, Any], hospitals: int | None = 4, seed: int = 0, dataset: dict[str, Any] | None = None
) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "seed": seed,
            "task": {"kind": "classification", "classes": ["normal", "pneumonia"]},
            "data": {"spatial_dims": 2, "crop": [28, 28]},
            "model": {"name": "any"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {"dataset": dataset or NIH, "partition": setting, "hospitals": hospitals},
        }
    )


def case(number: int, patient: str, label: str = "", split: str = "", **columns: str) -> SourceCase:
    return SourceCase(f"case-{number}", patient, ("image.png",), label, split, label, columns)


def cases_of(patients: int, classes: int = 2) -> list[SourceCase]:
    return [case(number, f"p{number}", str(number % classes)) for number in range(patients)]


def assert_every_patient_once(cases: Sequence[SourceCase], hospitals: dict[str, list[str]]) -> None:
    everybody = [patient for patients in hospitals.values() for patient in patients]
    assert len(everybody) == len(set(everybody)), "no patient is in two hospitals"
    assert set(everybody) == {case.patient for case in cases}, "no patient is left out"


@pytest.fixture(scope="module")
def nih(shared_data: Path) -> list[SourceCase]:
    return open_dataset(job_for({"name": "iid"}), shared_data)


@pytest.mark.parametrize("setting", PARTITIONS, ids=lambda setting: setting["name"])
def test_real_patients_are_never_divided(nih: list[SourceCase], setting: dict[str, Any]) -> None:
    for seed in range(3):
        job = job_for(setting, seed=seed)
        hospitals = partition(nih, job)
        assert list(hospitals) == [f"hospital-{number}" for number in range(1, 5)]
        assert_every_patient_once(nih, hospitals)
        assert partition(nih, job) == hospitals
    assert partition(nih, job_for(setting, seed=9)) != hospitals


@pytest.mark.parametrize("setting", PARTITIONS, ids=lambda setting: setting["name"])
def test_a_hospital_is_tested_on_the_mixture_it_trains_on(shared_data: Path, setting: dict[str, Any]) -> None:
    job = job_for(setting, hospitals=8, dataset={"name": "medmnist", "flag": "pneumoniamnist"})
    # The two official sets of the same class have other shares of pneumonia (.74 and .62): compare class by class.
    cases = open_dataset(job, shared_data)
    kind = {case.patient: (case.label, case.split) for case in cases}
    total = Counter(kind.values())
    for patients in partition(cases, job).values():
        own = Counter(kind[patient] for patient in patients)
        for label in ("0", "1"):
            shares = [own[label, split] / total[label, split] for split in ("train", "validation", "test")]
            slack = 0.1 if setting["name"] in ("iid", "quantity") else 0.011
            assert max(shares) - min(shares) < slack


def test_dirichlet_skews_and_a_large_alpha_does_not(nih: list[SourceCase]) -> None:
    label = {case.patient: case.label_key for case in nih}

    def spread(alpha: float) -> float:
        hospitals = partition(nih, job_for({"name": "dirichlet", "alpha": alpha}, seed=3))
        return float(np.std([np.mean([label[patient] == "1" for patient in ids]) for ids in hospitals.values()]))

    assert spread(0.2) > 0.15 > 0.05 > spread(1000.0)


def test_pathological_hospitals_see_so_many_classes_and_every_class_is_somewhere() -> None:
    cases = cases_of(200, classes=8)
    hospitals = partition(cases, job_for({"name": "pathological", "classes_per_hospital": 3}, hospitals=5))
    label = {case.patient: case.label_key for case in cases}
    seen = [{label[patient] for patient in patients} for patients in hospitals.values()]
    assert [len(classes) for classes in seen] == [3] * 5
    assert set.union(*seen) == set(label.values())
    assert_every_patient_once(cases, hospitals)
    # The case of the literature: two classes each, nothing shared.
    ten = cases_of(200, classes=10)
    disjoint = partition(ten, job_for({"name": "pathological", "classes_per_hospital": 2}, hospitals=5))
    assert [len(patients) for patients in disjoint.values()] == [40] * 5
    assert_every_patient_once(ten, disjoint)


def test_iid_hospitals_are_equal_and_quantity_ones_are_not(nih: list[SourceCase]) -> None:
    sizes = [len(patients) for patients in partition(nih, job_for({"name": "iid"})).values()]
    assert sum(sizes) == 682 and max(sizes) - min(sizes) <= 1
    skewed = {"name": "quantity", "alpha": 0.3, "min_patients": 30}
    sizes = [len(patients) for patients in partition(nih, job_for(skewed, hospitals=6)).values()]
    assert sum(sizes) == 682 and min(sizes) >= 30 and max(sizes) > 3 * min(sizes)


def test_a_column_says_who_is_where_and_chance_where_it_says_nothing(shared_data: Path) -> None:
    dataset = {"name": "decathlon", "task": "hippocampus", "columns": "cases.csv", "unpaired": "dirty_cases"}
    job = job_for({"name": "natural", "column": "acquisition_group"}, None, dataset=dataset)
    cases = open_dataset(job, shared_data)
    hospitals = partition(cases, job)
    assert_every_patient_once(cases, hospitals)
    lost = unassigned(cases, job)
    assert lost == ["hippocampus_010", "hippocampus_118", "hippocampus_281"]
    known = {name: len(set(patients) - set(lost)) for name, patients in hospitals.items()}
    assert sorted(known.values()) == [43, 55, 162] and "uint8" in known


def test_names_of_hospitals_are_names_of_folders() -> None:
    values = ["St. Mary/East", "St. Mary East", "pooled", "../..", "Zürich"]
    cases = [case(number, f"p{number}", site=value) for number, value in enumerate(values)]
    names = list(partition(cases, job_for({"name": "natural", "column": "site"}, None)))
    assert len(set(names)) == 5 and "pooled" not in names
    assert sorted(names) == ["St.-Mary-East", "St.-Mary-East-2", "Zurich", "hospital", "hospital-pooled"]


def test_a_patient_of_two_scanners_is_where_most_of_the_images_are() -> None:
    scanners = ["ge", "siemens", "siemens"]
    cases = [case(number, "p", scanner=scanner) for number, scanner in enumerate(scanners)]
    cases.append(case(9, "q", scanner="ge"))
    assert partition(cases, job_for({"name": "natural", "column": "scanner"}, None)) == {"ge": ["q"], "siemens": ["p"]}


@pytest.mark.parametrize(
    ("cases", "setting", "hospitals", "sentence"),
    [
        (cases_of(30), {"name": "dirichlet", "alpha": 1.0}, 4, "at least 10 patients need 40 .* lower min_patients"),
        (cases_of(3), {"name": "iid"}, 4, "4 hospitals of at least 1 patients need 4 patients, .* 3"),
        (cases_of(40), {"name": "dirichlet", "alpha": 0.001}, 4, r"Dirichlet\(0\.001\) gave no division"),
        (cases_of(40), {"name": "pathological", "classes_per_hospital": 3}, 4, "can be 1 to 2"),
        (cases_of(40, 9), {"name": "pathological", "classes_per_hospital": 2}, 4, "do not fit 9 classes"),
        (cases_of(8, 4), {"name": "pathological", "classes_per_hospital": 4}, 4, "class '0' has 2 patients for the 4"),
        (cases_of(40, 1), {"name": "dirichlet", "alpha": 1.0}, 2, "patients of at least two classes"),
        (cases_of(40), {"name": "natural", "column": "site"}, None, "nothing in a column 'site'"),
        ([case(1, "p", split="train"), case(2, "p", split="test")], {"name": "iid"}, 1, "'p' is in train and test"),
    ],
)  # fmt: skip
def test_what_cannot_be_divided_is_one_sentence(
    cases: list[SourceCase], setting: dict[str, Any], hospitals: int | None, sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        partition(cases, job_for(setting, hospitals))


@st.composite
def data_sets(draw: st.DrawFn) -> list[SourceCase]:
    """Patients with one to four images each, of mixed classes, some with an official split."""
    count = draw(st.integers(30, 80))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    official = draw(st.booleans())
    cases = []
    for patient in range(count):
        split = str(generator.choice(["train", "validation", "test"], p=[0.6, 0.2, 0.2])) if official else ""
        for _ in range(generator.integers(1, 5)):
            cases.append(case(len(cases), f"p{patient}", str(generator.integers(3)), split))
    return [cases[index] for index in generator.permutation(len(cases))]


@settings(max_examples=40, deadline=None)
@given(
    cases=data_sets(),
    setting=st.sampled_from(
        [
            {"name": "iid"},
            {"name": "quantity", "alpha": 0.2, "min_patients": 2},
            {"name": "dirichlet", "alpha": 1.0, "min_patients": 2},
            {"name": "pathological", "classes_per_hospital": 2},
        ]
    ),
    hospitals=st.integers(2, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_patients_are_divided_once(
    cases: list[SourceCase], setting: dict[str, Any], hospitals: int, seed: int
) -> None:
    result = partition(cases, job_for(setting, hospitals, seed))
    assert len(result) == hospitals
    assert_every_patient_once(cases, result)
    assert min(map(len, result.values())) >= setting.get("min_patients", 1)
    assert partition(cases, job_for(setting, hospitals, seed)) == result
