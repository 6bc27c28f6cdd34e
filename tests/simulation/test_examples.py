"""The examples on their real data: who gets which patient."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest

from shared_models.job_file import load_job
from simulation.datasets import open_dataset
from simulation.hospitals import make_split, write_hospitals

EXAMPLES = Path(__file__).parents[2] / "examples"
DATA = {"hippocampus": "hippocampus", "pneumonia": "pneumoniamnist", "chest_xray": "nih_cxr"}


@pytest.mark.parametrize("example", sorted(DATA))
def test_no_patient_is_at_two_hospitals_or_on_two_sides_of_a_split(example, shared_data, tmp_path):
    job = load_job(EXAMPLES / f"{example}.yaml")
    cases = open_dataset(job, shared_data / DATA[example])
    manifests = write_hospitals(job, cases, make_split(job, None, cases), tmp_path)
    places = defaultdict(set)
    rows = 0
    for hospital, manifest in manifests.items():
        with manifest.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                places[row["patient"]].add((hospital, row["split"]))
                rows += 1
    assert rows == len(cases)
    assert [patient for patient, where in places.items() if len(where) > 1] == []
    if example == "chest_xray":
        assert len(places) == 682 and rows == 1000  # several images of a patient, all in one place
