"""Virtual hospitals on the disk: manifests that a site can read, and a split that can be published and replayed."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from client.data.manifest import read_manifest
from shared_models.errors import BadInput
from shared_models.job import Evaluation, Job
from simulation.datasets import SourceCase, open_dataset
from simulation.hospitals import make_split, write_hospitals, write_pooled
from simulation.split_manifest import SplitManifest

NIH = {
    "name": "folder",
    "table": "nih_cxr/nih_cxr_1000x96.npz",
    "columns": {"image": "images", "label": "labels", "split": "is_test"},
}
WITHOUT_SPLIT = NIH | {"columns": {"image": "images", "label": "labels"}}
PNEUMONIA = {"name": "medmnist", "flag": "pneumoniamnist"}
HIPPOCAMPUS = {"name": "decathlon", "task": "hippocampus", "columns": "cases.csv", "unpaired": "dirty_cases"}


def job_for(dataset: dict[str, Any], setting: dict[str, Any], hospitals: int | None = 4, seed: int = 0) -> Job:
    segmentation = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
    classification = {"kind": "classification", "classes": ["normal", "pneumonia"]}
    dims = 3 if dataset is HIPPOCAMPUS else 2
    return Job.model_validate(
        {
            "name": "test",
            "seed": seed,
            "task": segmentation if dataset is HIPPOCAMPUS else classification,
            "data": {"spatial_dims": dims, "crop": [32] * dims},
            "model": {"name": "any"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {"dataset": dataset, "partition": setting, "hospitals": hospitals},
        }
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("dataset", [NIH, WITHOUT_SPLIT], ids=["official split", "no split"])
@pytest.mark.parametrize(
    "setting", [{"name": "iid"}, {"name": "dirichlet", "alpha": 0.5}, {"name": "quantity", "alpha": 0.5}],
    ids=lambda setting: setting["name"],
)  # fmt: skip
def test_no_patient_of_nih_cxr_is_on_two_sides_of_anything(
    shared_data: Path, tmp_path: Path, dataset: dict[str, Any], setting: dict[str, Any]
) -> None:
    cases = open_dataset(job_for(dataset, setting), shared_data)
    for seed in range(3):
        job = job_for(dataset, setting, seed=seed)
        manifests = write_hospitals(job, cases, make_split(job, shared_data, cases), tmp_path / str(seed))
        places: dict[str, set[tuple[str, str]]] = {}
        rows = [(name, case) for name, path in manifests.items() for case in read_manifest(path, job)]
        for name, found in rows:
            places.setdefault(found.patient, set()).add((name, found.split))
        assert all(len(where) == 1 for where in places.values())
        assert len(places) == 682 and len({found.id for _, found in rows}) == len(rows) == 1000
        for name in manifests:
            assert {split for where in places.values() for site, split in where if site == name} == {
                "train",
                "validation",
                "test",
            }
        if dataset is NIH:
            official = {source.id for source in cases if source.split == "test"}
            assert {found.id for _, found in rows if found.split == "test"} == official


def test_the_official_test_set_of_pneumoniamnist_is_covered_exactly_once(shared_data: Path, tmp_path: Path) -> None:
    job = job_for(PNEUMONIA, {"name": "dirichlet", "alpha": 0.3}, hospitals=8)
    cases = open_dataset(job, shared_data)
    split = make_split(job, shared_data, cases)
    manifests = write_hospitals(job, cases, split, tmp_path)
    images = Counter(row["image"] for path in manifests.values() for row in rows_of(path) if row["split"] == "test")
    archive = shared_data / "pneumoniamnist" / "pneumoniamnist.npz"
    assert images == Counter(f"{archive}::test_images[{index}]" for index in range(624))
    assert split.dataset["sources"] == {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert str(shared_data) not in json.dumps(split.dataset), "a published split names no folder of this machine"

    pooled = read_manifest(write_pooled(manifests, tmp_path), job)
    assert len(pooled) == 5856 and Counter(case.split for case in pooled)["test"] == 624


def test_hippocampus_keeps_its_groups_and_says_whom_chance_placed(shared_data: Path, tmp_path: Path) -> None:
    job = job_for(HIPPOCAMPUS, {"name": "natural", "column": "acquisition_group"}, None)
    cases = open_dataset(job, shared_data)
    split = make_split(job, shared_data, cases)
    assert split.unassigned == ["hippocampus_010", "hippocampus_118", "hippocampus_281"]
    manifests = write_hospitals(job, cases, split, tmp_path)
    assert manifests["uint8"] == tmp_path / "uint8" / "manifest.csv"
    for name, path in manifests.items():
        found = read_manifest(path, job)
        groups = {case.columns["acquisition_group"] for case in found if case.patient not in split.unassigned}
        assert len(groups) == 1 and groups.pop() == name
        share = Counter(case.split for case in found)["test"] / len(found)
        assert 0.17 < share < 0.23
        assert all(Path(case.images[0]).is_absolute() for case in found)


def test_a_saved_split_gives_identical_manifests(shared_data: Path, tmp_path: Path) -> None:
    job = job_for(NIH, {"name": "dirichlet", "alpha": 0.5}, seed=1)
    cases = open_dataset(job, shared_data)
    split = make_split(job, shared_data)
    split.save(tmp_path / "split.json")
    replayed = SplitManifest.load(tmp_path / "split.json")
    assert replayed == split and replayed.hash == split.hash
    # The split says who is where, also for a job that has another seed and would divide anew.
    other = job_for(NIH, {"name": "iid"}, seed=2)
    first = write_hospitals(job, cases, split, tmp_path / "first")
    second = write_hospitals(other, cases, replayed, tmp_path / "second")
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in second.values()]
    assert make_split(job, shared_data).hash == split.hash


def small_split(tmp_path: Path) -> tuple[list[SourceCase], Path]:
    cases = [SourceCase(f"c{n}", f"p{n}", (f"/{n}.png",), str(n % 2), "", str(n % 2)) for n in range(40)]
    path = tmp_path / "split.json"
    make_split(job_for(PNEUMONIA, {"name": "iid"}, 2), None, cases).save(path)
    return cases, path


@pytest.mark.parametrize(
    ("subgroups", "sentence"),
    [
        ({"sex": ["F", "M"], "age": [0, 40, 120]}, None),
        ({"sex": ["F", "unknown"]}, None),
        ({"sex": ["F", "M", "m"]}, None),
        ({"gender": ["F", "M"]}, "no column 'gender'; its columns are age, sex"),
        ({"sexe": ["F", "M"]}, "no column 'sexe'; its columns are age, sex; did you mean 'sex'?"),
        ({"sex": ["female", "male"]}, r"subgroups\.sex: no case is in female, male; the column has 'F', 'M'"),
        ({"sex": ["F", "m"]}, r"subgroups\.sex: no case is in m; the column has 'F', 'M'"),
        (
            {"age": [200, 300]},
            r"subgroups\.age: no case is in 200 to under 300; the column has '20', '21', .* and 35 more",
        ),
    ],
)
def test_groups_that_no_case_is_in_are_refused(
    tmp_path: Path, subgroups: dict[str, list[Any]], sentence: str | None
) -> None:
    cases = [
        SourceCase(f"c{n}", f"p{n}", (f"/{n}.png",), "0", "", "0", {"sex": "FM"[n % 2], "age": str(20 + n)})
        for n in range(40)
    ]
    job = job_for(PNEUMONIA, {"name": "iid"}, 2)
    job = job.model_copy(update={"evaluation": Evaluation(subgroups=subgroups)})
    split = make_split(job, None, cases)
    if sentence is None:
        assert write_hospitals(job, cases, split, tmp_path).keys() == {"hospital-1", "hospital-2"}
    else:
        with pytest.raises(BadInput, match=sentence):
            write_hospitals(job, cases, split, tmp_path)


def test_a_split_that_was_changed_is_refused(tmp_path: Path) -> None:
    _, path = small_split(tmp_path)
    content = json.loads(path.read_text())
    patient = next(iter(content["hospitals"]["hospital-1"]))
    content["hospitals"]["hospital-1"][patient] = (
        "train" if content["hospitals"]["hospital-1"][patient] == "test" else "test"
    )
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="was changed after it was saved"):
        SplitManifest.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hospitals": {"a": {"p1": "train"}, "b": {"p1": "train"}}}, "patient 'p1' in two hospitals, a and b"),
        ({"hospitals": {"a": {"p1": "tset"}}}, "has a split 'tset'; expected train, validation, test"),
        ({"hospitals": {"../../etc": {"p1": "train"}}}, "cannot be the name of a folder"),
    ],
)
def test_a_split_that_could_not_be_is_refused_whatever_its_hash(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    content: dict[str, Any] = {"dataset": {}, "partition": {}, "seed": 0, "unassigned": []}
    SplitManifest(**content | change).save(tmp_path / "split.json")
    with pytest.raises(BadInput, match=sentence):
        SplitManifest.load(tmp_path / "split.json")


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 1, "hospitals": [1]}', '{"schema": 7}'])
def test_what_is_no_split_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(BadInput, match=r"split\.json"):
        SplitManifest.load(tmp_path / "split.json")


def test_a_split_of_other_data_is_refused(tmp_path: Path) -> None:
    cases, path = small_split(tmp_path)
    split = SplitManifest.load(path)
    job = job_for(PNEUMONIA, {"name": "iid"}, 2)
    with pytest.raises(BadInput, match="1 patients of the split manifest are not in the data set, first 'p0'"):
        write_hospitals(job, cases[1:], split, tmp_path)
    more = [*cases, SourceCase("c99", "p99", ("/99.png",), "0", "", "0")]
    with pytest.raises(BadInput, match="1 patients of the data set are not in the split manifest, first 'p99'"):
        write_hospitals(job, more, split, tmp_path)
    relabelled = [SourceCase(case.id, case.patient, case.images, "0", "", "0") for case in cases]
    with pytest.raises(BadInput, match="another copy of the data set"):
        write_hospitals(job, relabelled, split, tmp_path)
    assert not (tmp_path / "hospital-1").exists()


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        (("train", "validation"), "no test patients"),
        (("test", "validation"), "no train"),
        (("train", ""), "have no split"),
    ],
)
def test_half_a_split_is_refused(splits: tuple[str, str], sentence: str) -> None:
    cases = [SourceCase(f"c{n}", f"p{n}", ("/i.png",), "0", splits[n % 2], "0") for n in range(20)]
    with pytest.raises(BadInput, match=sentence):
        make_split(job_for(PNEUMONIA, {"name": "iid"}, 2), None, cases)
