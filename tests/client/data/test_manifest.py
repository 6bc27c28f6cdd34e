"""Reading a site's manifest, and what a hospital is told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.manifest import assign_splits, read_manifest
from shared_models.errors import BadInput
from tests.client.data.conftest import CHEST, make_job

JOB = make_job(CHEST)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_becomes_a_case_with_its_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffpatient,image,label,split,scanner,case\nA,a.png,1,val,"Siemens, 3 T",first\n')
    [case] = read_manifest(path, JOB)
    assert (case.id, case.patient, case.images, case.label) == ("first", "A", ("a.png",), "1")
    assert case.split == "validation"
    assert case.columns == {"scanner": "Siemens, 3 T"}


def test_rows_without_case_ids_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,image,label\nA,a.png,1\n\nB,b.png,0\n")
    assert [case.id for case in read_manifest(path, JOB)] == ["row-000001", "row-000002"]


def test_several_image_columns_keep_the_order_of_the_job(tmp_path: Path) -> None:
    path = write(tmp_path, "patient,t2,label,t1\nA,second.nii,1,first.nii\n")
    [case] = read_manifest(path, make_job(CHEST, images=["t1", "t2"], channels=2))
    assert case.images == ("first.nii", "second.nii")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["is empty"]),
        ("patient,image,label\n", ["no case"]),
        ("Patient,image,label\nA,a.png,1\n", ["line 1", "'patient'", "nearest is 'Patient'"]),
        ("patient,image,lable\nA,a.png,1\n", ["line 1", "'label'", "nearest is 'lable'"]),
        ("patient;image;label\nA;a.png;1\n", ["semicolons"]),
        ("patient,image,label,image\nA,a.png,1,b.png\n", ["line 1", "'image'", "twice"]),
        ("patient,image,label\nA,a.png,1\n,b.png,0\n", ["line 3", "'patient' is empty"]),
        ("patient,image,label\nA,a.png\n", ["line 2", "2 cells", "3 columns"]),
        ("patient,image,label,case\nA,a.png,1,x\nB,b.png,1,x\n", ["line 3", "'x'", "line 2"]),
        ("patient,image,label,split\nA,a.png,1,training\n", ["line 2", "'training'", "train, validation or test"]),
        ("patient,image,label,split\nA,a.png,1,train\nA,b.png,1,test\n", ["line 3", "'A'", "line 2", "one split"]),
        ('patient,image,label\nA,"a.png"x,1\n', ["line 2", "CSV"]),
    ],
)
def test_a_wrong_manifest_is_refused_with_file_and_line(tmp_path: Path, text: str, told: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInput) as error:
        read_manifest(path, JOB)
    for part in [str(path), *told]:
        assert part in str(error.value)


def test_a_missing_or_binary_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_manifest(tmp_path / "none.csv", JOB)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BadInput, match="UTF-8"):
        read_manifest(tmp_path / "binary.csv", JOB)


def test_without_a_split_column_whole_patients_are_assigned(tmp_path: Path) -> None:
    rows = "".join(f"P{number % 10},{number}.png,1\n" for number in range(40))
    cases = read_manifest(write(tmp_path, "patient,image,label\n" + rows), JOB, "north")
    by_patient = {case.patient: {other.split for other in cases if other.patient == case.patient} for case in cases}
    assert all(len(splits) == 1 for splits in by_patient.values())
    counts = [sum(splits == {name} for splits in by_patient.values()) for name in ("train", "validation", "test")]
    assert counts == [7, 1, 2]


@given(patients=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=60), site=st.text(max_size=5))
def test_splits_cover_everybody_once_and_ignore_order(patients: list[str], site: str) -> None:
    splits = assign_splits(patients, JOB, site)
    assert set(splits) == set(patients)
    assert splits == assign_splits(patients[::-1], JOB, site)
    assert "train" in splits.values()
    if len(splits) >= 3:
        assert set(splits.values()) == {"train", "validation", "test"}
