"""Where public data sets have the targets, domains and masks of a translation."""

from __future__ import annotations

import csv
import json

import pytest

from client.data.manifest import read_manifest
from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import open_dataset
from simulation.hospitals import make_split, write_hospitals

DECATHLON = {"name": "decathlon", "task": "Task04_Hippocampus", "columns": "cases.csv"}
PHANTOM = {"name": "phantom", "patients_per_hospital": 4, "slices_per_patient": 1, "size": 32}
PAIRED, NOISY = {"mode": "paired"}, {"mode": "paired", "noise": 0.1}
MASKED = {"mode": "unpaired", "domains": ["old", "new"], "mask": "organ", "mask_classes": ["background", "organ"]}


def job(how, dataset, dims=3, **data):
    return Job.model_validate(
        {
            "name": "translation",
            "task": {"kind": "translation", "how": how},
            "data": {"spatial_dims": dims, "crop": [32] * dims, **data},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
            "simulation": {"dataset": dataset, "partition": {"name": "iid"}, "hospitals": 2},
        }
    )


@pytest.fixture
def decathlon(tmp_path):
    """The listing of six cases, and a table with the scanner of each; no image is opened."""
    names = [f"case_{number}" for number in range(6)]
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": pairs}))
    rows = [f"{name},{('old', 'new')[number % 2]}" for number, name in enumerate(names)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,scanner", *rows]) + "\n")
    return tmp_path


def manifests_of(the_job, cases, folder):
    paths = write_hospitals(the_job, cases, make_split(the_job, None, cases), folder)
    return [case for path in paths.values() for case in read_manifest(path, the_job)]


def test_a_domain_is_a_column_of_the_decathlon_and_its_masks_come_along(decathlon, tmp_path):
    the_job = job(MASKED, DECATHLON, label="scanner")
    found = manifests_of(the_job, open_dataset(the_job, decathlon), tmp_path / "sites")
    assert sorted((case.id, case.label) for case in found) == [
        (f"case_{number}", ("old", "new")[number % 2]) for number in range(6)
    ]
    for case in found:
        assert case.images[0].endswith(f"imagesTr/{case.id}.nii.gz")
        assert case.columns["organ"].endswith(f"labelsTr/{case.id}.nii.gz")


def test_images_of_the_decathlon_are_their_own_targets_where_noise_is_added(decathlon, tmp_path):
    the_job = job(NOISY, DECATHLON, label="image")
    for case in manifests_of(the_job, open_dataset(the_job, decathlon), tmp_path / "sites"):
        assert case.label == case.images[0] and case.label.endswith(f"imagesTr/{case.id}.nii.gz")
    with open(tmp_path / "sites" / "hospital-1" / "manifest.csv", newline="") as file:
        assert next(csv.reader(file)).count("image") == 1
    with pytest.raises(BadInput, match=r"has masks and no target images; give task\.how\.noise"):
        open_dataset(job(PAIRED, DECATHLON), decathlon)


def test_the_phantom_can_be_denoised_and_has_no_targets(tmp_path):
    the_job = job(NOISY, PHANTOM, dims=2, label="image")
    found = manifests_of(the_job, open_dataset(the_job, tmp_path), tmp_path / "sites")
    assert len(found) == 8 and all(case.label == case.images[0] and "::images[" in case.label for case in found)
    with pytest.raises(BadInput, match="the phantom is for 2D segmentation .* or for denoising in 2D"):
        open_dataset(job(PAIRED, PHANTOM, dims=2), tmp_path)
