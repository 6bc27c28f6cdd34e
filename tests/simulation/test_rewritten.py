"""The files of hospitals that differ, as a site finds them: images, masks and classes, in every kind of file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.data.manifest import Case, read_manifest
from client.data.preflight import preflight
from client.data.preprocess import decode, prepare
from client.data.readers import read
from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import SourceCase, open_dataset
from simulation.hospitals import make_split, write_hospitals, write_pooled
from simulation.shift import scanners_of

SEGMENTATION = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
CLASSIFICATION = {"kind": "classification", "classes": ["normal", "pneumonia"]}
HIPPOCAMPUS = {"name": "decathlon", "task": "hippocampus", "columns": "cases.csv", "unpaired": "dirty_cases"}
PNEUMONIA = {"name": "medmnist", "flag": "pneumoniamnist"}
TABLE = {"name": "folder", "table": "table.csv"}
INVERTED = {"kind": "inverted"}
COARSE = {"kind": "resolution", "factor": 2.0}
NEAR = {"kind": "field_of_view", "share": 0.6}


def job_of(
    task: dict[str, Any], dataset: dict[str, Any], dims: int, data: dict[str, Any] | None = None, **differences: Any
) -> Job:
    return Job.model_validate(
        {
            "name": "rewritten",
            "task": task,
            "data": {"spatial_dims": dims, "crop": [16] * dims, **(data or {})},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
            "evaluation": {"validation_share": 0.2, "test_share": 0.3},
            "simulation": {"dataset": dataset, "partition": {"name": "iid"}, "hospitals": 2, **differences},
        }
    )


def scanners(*chain: dict[str, Any]) -> dict[str, Any]:
    return {"by_hospital": {"hospital-2": list(chain)}}


def written(job: Job, cases: list[SourceCase], folder: Path) -> dict[str, list[Case]]:
    manifests = write_hospitals(job, cases, make_split(job, None, cases), folder)
    return {name: read_manifest(path, job, name) for name, path in manifests.items()}


def some(job: Job, data: Path, number: int) -> tuple[list[SourceCase], dict[str, SourceCase]]:
    """A few cases of a real data set, in their order and by name."""
    cases = open_dataset(job, data)[:number]
    return cases, {case.id: case for case in cases}


def test_without_differences_every_hospital_reads_the_data_set_itself(shared_data: Path, tmp_path: Path) -> None:
    job = job_of(SEGMENTATION, HIPPOCAMPUS, 3, scanners=scanners(INVERTED))
    cases, source = some(job, shared_data, 12)
    found = written(job, cases, tmp_path)
    assert all(case.images == source[case.id].images for case in found["hospital-1"])
    assert not (tmp_path / "hospital-1" / "images").exists()
    assert all(Path(case.images[0]).parent == tmp_path / "hospital-2" / "images" for case in found["hospital-2"])
    assert all(case.label == source[case.id].label for case in found["hospital-2"]), "no mask needs to change"


def test_nifti_images_and_masks_get_the_scanners_grid_in_every_split(shared_data: Path, tmp_path: Path) -> None:
    job = job_of(SEGMENTATION, HIPPOCAMPUS, 3, scanners=scanners(COARSE, INVERTED))
    cases, source = some(job, shared_data, 12)
    found = written(job, cases, tmp_path)["hospital-2"]
    assert {case.split for case in found} == {"train", "validation", "test"}
    for case in found:
        image, mask = (nibabel.load(path) for path in (case.images[0], case.label))
        assert image.shape == mask.shape and np.array_equal(image.affine, mask.affine)
        assert all(1.8 < zoom < 2.2 for zoom in image.header.get_zooms())
        before = nibabel.load(source[case.id].images[0])
        assert image.get_data_dtype() == before.get_data_dtype()
        sample = prepare(case, tmp_path, job)
        assert sample["image"].shape == sample["label"].shape and set(np.unique(sample["label"])) == {0, 1, 2}
        at_home = prepare(
            Case(**{**vars(case), "images": source[case.id].images, "label": source[case.id].label}), tmp_path, job
        )
        organ, was = (one["image"][one["label"] > 0].mean() for one in (sample, at_home))
        assert organ * was < 0, "what was darker than its surroundings is brighter"


def test_a_broken_case_keeps_its_own_reason(shared_data: Path, tmp_path: Path) -> None:
    job = job_of(
        SEGMENTATION, HIPPOCAMPUS, 3, scanners={"set": "strong"}, annotators={"hospital-1": {"masks": "larger"}}
    )
    everything = open_dataset(job, shared_data)
    cases = [*everything[:10], *everything[-3:]]
    plain = job_of(SEGMENTATION, HIPPOCAMPUS, 3)
    reasons = []
    for one, folder in ((plain, tmp_path / "plain"), (job, tmp_path / "strong")):
        quarantined: dict[str, str] = {}
        for name, found in written(one, cases, folder).items():
            quarantined |= preflight(found, folder / name, one).quarantined
        reasons.append(quarantined)
    assert len(reasons[0]) == 3 and reasons[0] == reasons[1]


def test_rows_of_an_npz_become_one_npz_a_hospital(shared_data: Path, tmp_path: Path) -> None:
    job = job_of(CLASSIFICATION, PNEUMONIA, 2, scanners=scanners(INVERTED))
    everything = open_dataset(job, shared_data)
    cases = [*everything[:40], *everything[4708:4718], *everything[-20:]]
    source = {case.id: case for case in cases}
    found = written(job, cases, tmp_path)["hospital-2"]
    archive = tmp_path / "hospital-2" / "images" / "rows.npz"
    assert [path.name for path in archive.parent.iterdir()] == ["rows.npz"]
    assert {case.split for case in found} == {"train", "validation", "test"}
    for case in found:
        assert case.images[0].startswith(f"{archive}::")
        seen, was = (read(one.images[0], tmp_path, 2, 1).values for one in (case, source[case.id]))
        assert seen.dtype == np.uint8
        assert np.array_equal(seen.astype(int), int(was.min()) + int(was.max()) - was.astype(int))
    manifests = {name: tmp_path / name / "manifest.csv" for name in ("hospital-1", "hospital-2")}
    pooled = {case.id: case for case in read_manifest(write_pooled(manifests, tmp_path), job)}
    assert len(pooled) == 70 and all(pooled[case.id].images == case.images for case in found)


def test_archives_of_one_name_may_differ_in_shape(tmp_path: Path) -> None:
    """One npz a patient, all called scan.npz."""
    rng = np.random.default_rng(0)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["patient", "image", "label"])
        for number in range(12):
            (tmp_path / f"p{number}").mkdir()
            image = rng.integers(0, 255, (1, 16 + number, 20)).astype(np.uint8)
            np.savez(tmp_path / f"p{number}" / "scan.npz", image=image)
            rows.writerow([f"p{number}", f"p{number}/scan.npz::image[0]", "normal" if number % 2 else "pneumonia"])
    job = job_of(CLASSIFICATION, TABLE, 2, scanners=scanners(INVERTED))
    cases = open_dataset(job, tmp_path)
    source = {case.id: case for case in cases}
    for case in written(job, cases, tmp_path / "sites")["hospital-2"]:
        seen, was = (read(one.images[0], tmp_path, 2, 1).values.astype(int) for one in (case, source[case.id]))
        assert np.array_equal(seen, was.min() + was.max() - was)


def retina(shared_data: Path, tmp_path: Path, number: int) -> None:
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "patient", "image", "label"])
        for path in sorted((shared_data / "chase_retina").glob("*_image.jpg"))[:number]:
            name = path.name[:3]
            rows.writerow([name, name[:2], path, path.with_name(f"{name}_mask.png")])


def test_pictures_become_lossless_pictures_with_their_masks(shared_data: Path, tmp_path: Path) -> None:
    retina(shared_data, tmp_path, 12)
    task = {"kind": "segmentation", "classes": ["background", "vessel"]}
    chain = [NEAR, {"kind": "colour"}]
    job = job_of(task, TABLE, 2, {"channels": 3}, scanners=scanners(*chain))
    cases = open_dataset(job, tmp_path)
    source = {case.id: case for case in cases}
    found = written(job, cases, tmp_path / "sites")["hospital-2"]
    scanner = scanners_of(job, ["hospital-1", "hospital-2"])["hospital-2"]
    for case in found[:2]:
        assert case.images[0].endswith(".png") and case.label.endswith(".png")
        expected = scanner.image(read(source[case.id].images[0], tmp_path, 2, 3), f"{case.id}/image").values
        assert np.array_equal(read(case.images[0], tmp_path, 2, 3).values, expected)
        decoded = decode(case, tmp_path, job)
        assert decoded.image.shape[1:] == decoded.label.shape[1:] == (480, 500)
        assert (
            decoded.label.mean()
            != decode(Case(**{**vars(case), "label": source[case.id].label}), tmp_path, job).label.mean()
        )


@pytest.mark.parametrize(
    ("shape", "dims", "channels"), [((20, 18, 1), 2, 1), ((20, 18, 1, 2), 2, 2), ((12, 10, 8, 2), 3, 2)],
    ids=["a slice", "a slice of two channels", "a volume of two channels"],
)  # fmt: skip
def test_every_nifti_comes_back_as_it_was_kept(
    tmp_path: Path, shape: tuple[int, ...], dims: int, channels: int
) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["patient", "image", "label"])
        for number in range(8):
            values = rng.integers(0, 1000, shape).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / f"{number}.nii.gz")
            rows.writerow([f"p{number}", f"{number}.nii.gz", "normal" if number % 2 else "pneumonia"])
    job = job_of(CLASSIFICATION, TABLE, dims, {"channels": channels}, scanners=scanners(INVERTED))
    cases = open_dataset(job, tmp_path)
    source = {case.id: case for case in cases}
    for case in written(job, cases, tmp_path / "sites")["hospital-2"]:
        seen, was = (read(one.images[0], tmp_path, dims, channels) for one in (case, source[case.id]))
        assert seen.values.dtype == np.int16 and np.array_equal(
            seen.values, was.values.min() + was.values.max() - was.values
        )
        assert seen.affine is not None and np.allclose(seen.affine, affine)


def test_the_same_job_writes_the_same_bytes(shared_data: Path, tmp_path: Path) -> None:
    job = job_of(
        SEGMENTATION, HIPPOCAMPUS, 3, scanners={"set": "strong"}, annotators={"hospital-1": {"masks": "noisier"}}
    )
    cases, _ = some(job, shared_data, 8)
    bytes_of = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        written(job, cases, folder)
        bytes_of.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.nii.gz")})
    first, second = bytes_of
    assert len(first) >= 8 and first == second


def test_an_annotator_draws_training_and_validation_patients_and_no_test_patient(
    shared_data: Path, tmp_path: Path
) -> None:
    job = job_of(SEGMENTATION, HIPPOCAMPUS, 3, annotators={"hospital-2": {"masks": "larger", "voxels": 1}})
    cases, source = some(job, shared_data, 14)
    found = written(job, cases, tmp_path)
    assert all(case.label == source[case.id].label for case in found["hospital-1"])
    for case in found["hospital-2"]:
        drawn, was = (read(one.label, tmp_path, 3, None).values > 0 for one in (case, source[case.id]))
        assert case.images == source[case.id].images, "the images are nobody's to draw"
        if case.split == "test":
            assert np.array_equal(drawn, was)
        else:
            assert (drawn >= was).all() and drawn.sum() > 1.2 * was.sum()


def test_a_share_of_training_and_validation_cases_is_mislabelled_and_no_test_case(
    shared_data: Path, tmp_path: Path
) -> None:
    job = job_of(CLASSIFICATION, PNEUMONIA, 2, annotators={"hospital-1": {"mislabelled": 0.3}})
    cases = open_dataset(job, shared_data)
    source = {case.id: case.label for case in cases}
    found = written(job, cases, tmp_path)
    names = {"0": "normal", "1": "pneumonia", "normal": "normal", "pneumonia": "pneumonia"}
    wrong = {
        name: [case for case in hospital if names[case.label] != names[source[case.id]]]
        for name, hospital in found.items()
    }
    learnt = sum(case.split != "test" for case in found["hospital-1"])
    assert len(wrong["hospital-1"]) == round(0.3 * learnt) and not wrong["hospital-2"]
    assert {case.split for case in wrong["hospital-1"]} == {"train", "validation"}


def test_a_hospital_that_a_natural_partition_does_not_have_is_refused_with_the_list(
    shared_data: Path, tmp_path: Path
) -> None:
    natural = {"partition": {"name": "natural", "column": "acquisition_group"}, "hospitals": None}
    job = job_of(SEGMENTATION, HIPPOCAMPUS, 3, annotators={"uint-8": {"masks": "larger"}}, **natural)
    cases = open_dataset(job, shared_data)
    with pytest.raises(
        BadInput, match=r"simulation.annotators: there is no hospital 'uint-8'; .*float_gt4095, .*uint8"
    ):
        written(job, cases, tmp_path)
    assert not list(tmp_path.iterdir())


def test_masks_that_only_judge_and_targets_of_a_translation_follow_the_scanner(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["patient", "image", "label", "target", "mask"])
        for number in range(8):
            for name, high in (("image", 255), ("target", 255), ("mask", 2)):
                values = rng.integers(0, high, (16, 14, 12)).astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}{number}.nii.gz")
            files = [f"{name}{number}.nii.gz" for name in ("target", "mask")]
            rows.writerow([f"p{number}", f"image{number}.nii.gz", "ge" if number % 2 else "siemens", *files])
    unpaired = {"mode": "unpaired", "domains": ["ge", "siemens"], "mask": "mask", "mask_classes": ["nothing", "organ"]}
    for task, label in (
        ({"kind": "translation", "how": unpaired}, "label"),
        ({"kind": "translation", "how": {"mode": "paired"}}, "target"),
    ):
        job = job_of(task, TABLE, 3, {"label": label}, scanners=scanners(COARSE, INVERTED))
        found = written(job, open_dataset(job, tmp_path), tmp_path / label)["hospital-2"]
        report = preflight(found, tmp_path, job)
        assert not report.quarantined and report.shape == [[8, 7, 6], [8, 7, 6]]
