"""Public data sets read as they lie on the disk: real copies, and small ones made here to be wrong in one way."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import SourceCase, decathlon, medmnist, open_dataset

SEGMENTATION = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
CLASSIFICATION = {"kind": "classification", "classes": ["normal", "pneumonia"]}


def job_for(dataset: dict[str, Any], task: dict[str, Any] = CLASSIFICATION, dims: int = 2, **data: Any) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "task": task,
            "data": {"spatial_dims": dims, "crop": [28] * dims, **data},
            "model": {"name": "any"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {"dataset": dataset, "partition": {"name": "iid"}, "hospitals": 2},
        }
    )


def row_of(reference: str) -> np.ndarray:
    file, row = reference.split("::")
    array, index = row.rstrip("]").split("[")
    return np.load(file)[array][int(index)]


# --- decathlon


@pytest.mark.parametrize("task", ["hippocampus", "Task04_Hippocampus"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_decathlon_task_is_found_by_either_name(shared_data: Path, task: str, inside: bool) -> None:
    job = job_for({"name": "decathlon", "task": task}, SEGMENTATION, 3)
    cases = open_dataset(job, shared_data / "hippocampus" if inside else shared_data)
    assert len(cases) == 260
    assert cases[0].id == cases[0].patient == "hippocampus_001"
    assert all(Path(case.images[0]).is_file() and Path(case.label).is_file() for case in cases)


def test_hippocampus_comes_with_its_columns_and_its_dirty_cases(shared_data: Path) -> None:
    dataset = {"name": "decathlon", "task": "hippocampus", "columns": "cases.csv", "unpaired": "dirty_cases"}
    cases = {case.id: case for case in open_dataset(job_for(dataset, SEGMENTATION, 3), shared_data)}
    assert len(cases) == 263
    groups = Counter(case.columns.get("acquisition_group") for case in cases.values())
    assert sorted(groups.values()) == [3, 43, 55, 162] and groups[None] == 3
    for name, files in {"118": (True, False), "010": (False, True), "281": (False, True)}.items():
        case = cases[f"hippocampus_{name}"]
        assert (Path(case.images[0]).is_file(), Path(case.label).is_file()) == files


def test_a_decathlon_table_may_name_the_patients(tmp_path: Path) -> None:
    names = [{"image": f"./imagesTr/a_{n}.nii.gz", "label": f"./labelsTr/a_{n}.nii.gz"} for n in "12"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": names}))
    (tmp_path / "cases.csv").write_text("case,patient,scanner\na_1,P7,ge\na_2,P7,siemens\n")
    dataset = {"name": "decathlon", "task": "own", "columns": "cases.csv"}
    cases = open_dataset(job_for(dataset, SEGMENTATION, 3), tmp_path)
    assert [(case.id, case.patient, case.columns["scanner"]) for case in cases] == [
        ("a_1", "P7", "ge"),
        ("a_2", "P7", "siemens"),
    ]


def test_a_broken_listing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"training": ["a.nii.gz"]}')
    with pytest.raises(BadInput, match=r"dataset\.json is no Decathlon listing"):
        open_dataset(job_for({"name": "decathlon", "task": "own"}, SEGMENTATION, 3), tmp_path)


def test_a_task_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"no task 'Task09_Spleen' in {tmp_path}"):
        open_dataset(job_for({"name": "decathlon", "task": "Task09_Spleen"}, SEGMENTATION, 3), tmp_path)
    with pytest.raises(BadInput, match="no task 'Task11_Toe'; it has Task01_BrainTumour"):
        open_dataset(job_for({"name": "decathlon", "task": "Task11_Toe"}, SEGMENTATION, 3), None)
    with pytest.raises(BadInput, match=r"--data-dir .* is not a folder"):
        open_dataset(job_for({"name": "decathlon", "task": "Task09_Spleen"}, SEGMENTATION, 3), tmp_path / "none")


# --- medmnist


def test_pneumoniamnist_keeps_its_official_split(shared_data: Path) -> None:
    cases = open_dataset(job_for({"name": "medmnist", "flag": "pneumoniamnist"}), shared_data)
    assert Counter(case.split for case in cases) == {"train": 4708, "validation": 524, "test": 624}
    assert Counter(case.label for case in cases if case.split == "test") == {"0": 234, "1": 390}
    assert len({case.patient for case in cases}) == len(cases)
    with np.load(shared_data / "pneumoniamnist" / "pneumoniamnist.npz") as arrays:
        assert np.array_equal(row_of(cases[4708 + 3].images[0]), arrays["val_images"][3])


def write_medmnist(path: Path, labels: np.ndarray, **changed: np.ndarray) -> None:
    images = np.zeros((len(labels), 28, 28, 28), np.uint8)
    parts = {f"{split}_{kind}": array for split in ("train", "val", "test") for kind, array in
             (("images", images), ("labels", labels))}  # fmt: skip
    np.savez(path, **parts | changed)


def test_several_findings_are_joined_and_the_rarest_is_the_stratum(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "chestmnist.npz", np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0]]))
    task = {"kind": "classification", "classes": ["a", "b", "c"], "mode": "multi_label"}
    cases = open_dataset(job_for({"name": "medmnist", "flag": "chestmnist"}, task), tmp_path)[:4]
    assert [case.label for case in cases] == ["0", "0;2", "", "0"]
    assert [case.label_key for case in cases] == ["0", "2", "none", "0"]


def test_a_3d_set_in_a_larger_size_has_its_own_file(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "organmnist3d_64.npz", np.array([[1], [10]]))
    cases = open_dataset(job_for({"name": "medmnist", "flag": "organmnist3d", "size": 64}, dims=3), tmp_path)
    assert [case.label for case in cases[:2]] == ["1", "10"] and len(cases) == 6


def test_medmnist_files_that_are_wrong(tmp_path: Path) -> None:
    job = job_for({"name": "medmnist", "flag": "breastmnist"})
    with pytest.raises(BadInput, match=r"no breastmnist\.npz in .*zenodo\.org"):
        open_dataset(job, tmp_path)
    (tmp_path / "breastmnist.npz").write_bytes(b"not a zip")
    with pytest.raises(BadInput, match=r"breastmnist\.npz cannot be read as an npz"):
        open_dataset(job, tmp_path)
    write_medmnist(tmp_path / "breastmnist.npz", np.array([[1], [0]]), val_images=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(BadInput, match="3 val_images but 2 val_labels"):
        open_dataset(job, tmp_path)
    with pytest.raises(BadInput, match="no set 'catmnist' of size 28"):
        open_dataset(job_for({"name": "medmnist", "flag": "catmnist"}), None)
    with pytest.raises(BadInput, match="no set 'organmnist3d' of size 128"):
        open_dataset(job_for({"name": "medmnist", "flag": "organmnist3d", "size": 128}), None)


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "breastmnist.npz", np.array([[1]]), train_labels=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadInput, match="'train_labels' cannot be read"):
        open_dataset(job_for({"name": "medmnist", "flag": "breastmnist"}), tmp_path)


def test_every_listed_archive_has_a_whole_md5() -> None:
    hashes = [*decathlon.MD5.values(), *(value for values in medmnist.MD5.values() for value in values)]
    assert len(medmnist.MD5) == 18 and len(set(hashes)) == len(hashes) == 10 + 12 * 4 + 6 * 2
    assert all(len(value) == 32 and int(value, 16) for value in hashes)


# --- folder

NIH = {
    "name": "folder",
    "table": "nih_cxr_1000x96.npz",
    "columns": {"image": "images", "label": "labels", "split": "is_test"},
}


@pytest.mark.parametrize("inside", [True, False])
def test_nih_cxr_is_read_from_its_arrays(shared_data: Path, inside: bool) -> None:
    table = NIH["table"] if inside else f"nih_cxr/{NIH['table']}"
    cases = open_dataset(job_for(NIH | {"table": table}), shared_data / "nih_cxr" if inside else shared_data)
    assert len(cases) == 1000 and len({case.patient for case in cases}) == 682
    with np.load(shared_data / "nih_cxr" / "nih_cxr_1000x96.npz") as arrays:
        tests = arrays["is_test"]
        assert [case.split == "test" for case in cases] == tests.tolist()
        assert [int(case.label) for case in cases] == arrays["labels"].tolist()
        assert np.array_equal(row_of(cases[417].images[0]), arrays["images"][417])
    assert cases[0].patient == "00000061"


def test_an_npz_may_hold_more_than_columns(tmp_path: Path) -> None:
    def save(**changed: np.ndarray) -> None:
        arrays = {
            "image": np.zeros((3, 8, 8)),
            "label": np.array([0.0, 1.0, 1.0]),
            "patient": np.array(["a", "b", "b"]),
        }
        np.savez(tmp_path / "t.npz", **arrays | changed)

    job = job_for({"name": "folder", "table": "t.npz"})
    save(
        age=np.array([63.5, np.nan, 7.0]),
        names=np.array(["normal", "pneumonia"]),
        other=np.zeros((3, 4)),
        n=np.array(3),
    )
    cases = open_dataset(job, tmp_path)
    assert [(case.label, case.columns) for case in cases] == [
        ("0", {"age": "63.5"}),
        ("1", {"age": ""}),
        ("1", {"age": "7"}),
    ]
    save(label=np.array([0, 1]))
    with pytest.raises(BadInput, match="'label' has 2 rows, but 'patient' has 3"):
        open_dataset(job, tmp_path)
    save(patient=np.array("a"))
    with pytest.raises(BadInput, match="'image' has 3 rows, but 'patient' has 0"):
        open_dataset(job, tmp_path)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_csv_names_files_relative_to_itself(shared_data: Path, tmp_path: Path) -> None:
    retina = shared_data / "chase_retina"
    rows = [
        {"photo": str(photo), "vessels": str(photo)[:-9] + "mask.png", "child": photo.name[:2], "eye": photo.name[2]}
        for photo in sorted(retina.glob("*_image.jpg"))
    ]
    write_table(tmp_path / "retina.csv", rows)
    dataset = {"name": "folder", "table": "retina.csv",
               "columns": {"image": "photo", "label": "vessels", "patient": "child", "case": "photo"}}  # fmt: skip
    cases = open_dataset(job_for(dataset, {"kind": "segmentation", "classes": ["background", "vessel"]}), tmp_path)
    assert len(cases) == len(rows) and len({case.patient for case in cases}) == 14
    assert all(Path(case.images[0]).is_file() and Path(case.label).is_file() for case in cases)
    assert cases[0].columns == {"eye": "L"}

    write_table(tmp_path / "relative.csv", [{"image": "scans/1.png", "label": "normal", "patient": "p", "age": "63"}])
    (case,) = open_dataset(job_for({"name": "folder", "table": "relative.csv"}), tmp_path)
    assert case == SourceCase(
        "row-000001", "p", (str(tmp_path / "scans/1.png"),), "normal", "", "normal", {"age": "63"}
    )


def test_several_modalities_follow_the_job(tmp_path: Path) -> None:
    write_table(
        tmp_path / "t.csv", [{"t1": "1.nii.gz", "t2": "2.nii.gz", "flair": "3.nii.gz", "label": "m", "patient": "p"}]
    )
    job = job_for({"name": "folder", "table": "t.csv"}, SEGMENTATION, 3, images=["t2", "t1"], channels=2)
    (case,) = open_dataset(job, tmp_path)
    assert [Path(image).name for image in case.images] == ["2.nii.gz", "1.nii.gz"]
    assert case.columns == {"flair": "3.nii.gz"}


def test_a_split_that_tears_patients_apart_is_refused_and_can_be_left_out(tmp_path: Path) -> None:
    rows = [
        {"image": f"{n}.png", "label": "0", "patient": "p", "split": split} for n, split in enumerate(("train", "val"))
    ]
    write_table(tmp_path / "t.csv", rows)
    with pytest.raises(BadInput, match=r"1 patients in two splits \(first 'p'\).*leave it out"):
        open_dataset(job_for({"name": "folder", "table": "t.csv"}), tmp_path)
    left_out = open_dataset(job_for({"name": "folder", "table": "t.csv", "columns": {"split": ""}}), tmp_path)
    assert [case.split for case in left_out] == ["", ""]
    assert all("split" not in case.columns for case in left_out)


@pytest.mark.parametrize(
    ("row", "columns", "sentence"),
    [
        ({"image": "a", "label": "0", "pacient": "p"}, {}, "no column 'patient'.*did you mean 'pacient'"),
        ({"image": "a", "label": "0", "patient": ""}, {}, "`patient` is empty in 1 rows, first in row 1"),
        ({"image": "a", "label": "0", "patient": "p", "split": "tset"}, {}, "`split` says 'tset'"),
        ({"image": "a", "label": "0", "patient": "p"}, {"hospital": "site"}, "no column 'site', needed as `hospital`"),
    ],
)
def test_a_table_that_is_wrong(tmp_path: Path, row: dict[str, str], columns: dict[str, str], sentence: str) -> None:
    write_table(tmp_path / "t.csv", [row])
    with pytest.raises(BadInput, match=sentence):
        open_dataset(job_for({"name": "folder", "table": "t.csv", "columns": columns}), tmp_path)


def test_a_table_that_is_not_there_or_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no table 'none\.csv': looked for \S+/none\.csv$"):
        open_dataset(job_for({"name": "folder", "table": "none.csv"}), tmp_path)
    with pytest.raises(BadInput, match="--data-dir"):
        open_dataset(job_for({"name": "folder", "table": "none.csv"}), None)
    with pytest.raises(BadInput, match="give its `sha256`"):
        open_dataset(job_for({"name": "folder", "table": "t.csv", "url": "http://127.0.0.1:1/t.csv"}), None)


def test_case_names_must_be_unique(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"case": "a", "image": f"{n}", "label": "0", "patient": "p"} for n in "12"])
    with pytest.raises(BadInput, match="2 cases named 'a'"):
        open_dataset(job_for({"name": "folder", "table": "t.csv"}), tmp_path)
