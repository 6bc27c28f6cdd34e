"""Hospitals that annotate some organs, take some images, or lack a class; and what the marginal loss makes of it."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.training import judge_cases, make_optimizers, train_round
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_file import check_meaning
from shared_models.tasks import task_of
from shared_models.zoo import build
from simulation.datasets import open_dataset
from simulation.hospitals import make_split, write_hospitals
from simulation.partial_labels import annotated_by
from simulation.run import simulate
from simulation.run_folder import SimulationRequest
from simulation.split_manifest import SplitManifest

ORGANS = {"kind": "segmentation", "classes": ["background", "round", "square"]}
CHEST = {"kind": "classification", "classes": ["normal", "pneumonia", "effusion"]}
HALVES = {"hospital-1": ["round"], "hospital-2": ["square"]}


@pytest.fixture(scope="module")
def organs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with organs.npz: 24 patients, two images each of a bright and a dark organ, and a class."""
    folder = tmp_path_factory.mktemp("organs")
    rng = np.random.default_rng(0)
    masks = np.zeros((24, 16, 16), np.uint8)
    for mask, places in zip(masks, rng.integers(0, 3, (24, 4)), strict=True):
        mask[1 + places[0] : 6 + places[0], 1 + places[1] : 6 + places[1]] = 1
        mask[9 + places[2] : 14 + places[2], 9 + places[3] : 14 + places[3]] = 2
    images = {name: 100 + 60.0 * sign * (masks == 1) - 60.0 * sign * (masks == 2) for name, sign in SIGNS.items()}
    images = {name: (values + rng.normal(0, 8, masks.shape)).astype(np.uint8) for name, values in images.items()}
    labels = np.arange(24) % 3
    np.savez(folder / "organs.npz", masks=masks, labels=labels, patient=[f"p{i}" for i in range(24)], **images)
    return folder


SIGNS = {"t1": 1, "flair": -1}


def job_for(task: dict[str, Any] = ORGANS, data: dict[str, Any] | None = None, **simulation: Any) -> Job:
    label = "masks" if task is ORGANS else "labels"
    columns = {"t1": "t1", "flair": "flair", "label": label, "patient": "patient"}
    return Job.model_validate(
        {
            "name": "parts",
            "task": task,
            "data": {"spatial_dims": 2, "channels": 2, "images": ["t1", "flair"], "crop": [16, 16], **(data or {})},
            "model": {"name": "unet" if task is ORGANS else "cnn", "arguments": {}},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {
                "dataset": {"name": "folder", "table": "organs.npz", "columns": columns},
                "partition": {"name": "iid"},
                "hospitals": 2,
                **simulation,
            },
        }
    )


def written(job: Job, data_dir: Path, folder: Path) -> tuple[SplitManifest, dict[str, list[dict[str, str]]]]:
    """The split, and the rows of every hospital's manifest."""
    cases = open_dataset(job, data_dir)
    split = make_split(job, data_dir, cases)
    manifests = write_hospitals(job, cases, split, folder)
    rows = {}
    for name, path in manifests.items():
        with path.open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    return split, rows


def refused(job: Job) -> list[str]:
    return [refusal.sentence for refusal in check_meaning(job)]


def test_each_hospital_has_its_own_organs_and_the_whole_truth_to_be_judged_by(organs: Path, tmp_path: Path) -> None:
    job = job_for(data={"annotated": "drawn"}, partly_labelled=HALVES)
    _, rows = written(job, organs, tmp_path)
    for place, (name, own) in enumerate(HALVES.items()):
        cells = {row["split"]: row["drawn"] for row in rows[name]}
        assert cells == {"train": own[0], "validation": own[0], "test": ""}
        plain = job.model_copy(update={"data": job.data.model_copy(update={"annotated": None})})
        for seen in (job, plain):  # the other organ is gone from the files, and not only hidden by the column
            data = SiteData(tmp_path / name / "manifest.csv", seen, name, CaseCache(tmp_path / "cache", 10**8))
            found = [set(sample["label"].unique().tolist()) for sample in data.samples("train")]
            assert found and all(values == {0, place + 1} for values in found)
            assert all(set(sample["label"].unique().tolist()) == {0, 1, 2} for sample in data.samples("test"))


def test_rotate_deals_the_organs_in_turn() -> None:
    assert annotated_by(job_for(partly_labelled="rotate"), ["a", "b", "c"]) == {
        "a": ["round"], "b": ["square"], "c": ["round"],
    }  # fmt: skip
    seven = {"kind": "segmentation", "classes": ["background", *"abcdefg"]}
    dealt = annotated_by(job_for(seven, partly_labelled="rotate"), ["x", "y", "z"])
    assert dealt == {"x": ["a", "d", "g"], "y": ["b", "e"], "z": ["c", "f"]}


def test_an_image_that_a_hospital_does_not_take_has_an_empty_cell(organs: Path, tmp_path: Path) -> None:
    job = job_for(data={"missing_channels": "zeros"}, missing_channels={"hospital-2": ["flair"]})
    _, rows = written(job, organs, tmp_path)
    assert all(row["flair"] and row["t1"] for row in rows["hospital-1"])
    assert all(row["t1"] and not row["flair"] for row in rows["hospital-2"])
    data = SiteData(tmp_path / "hospital-2/manifest.csv", job, "two", CaseCache(tmp_path / "cache", 10**8))
    assert not data.report.quarantined and not any(sample["image"][1].any() for sample in data.samples("test"))


def test_a_scanner_leaves_an_image_alone_that_is_not_there(organs: Path, tmp_path: Path) -> None:
    noise = {"by_hospital": {"hospital-2": [{"kind": "gaussian_noise"}]}}
    missing = {"hospital-2": ["flair"]}
    job = job_for(data={"missing_channels": "zeros"}, missing_channels=missing, scanners=noise)
    _, rows = written(job, organs, tmp_path)
    assert all(str(tmp_path) in row["t1"] and row["flair"] == "" for row in rows["hospital-2"])


def test_a_missing_class_is_on_record_and_its_test_patients_stay(organs: Path, tmp_path: Path) -> None:
    job = job_for(CHEST, missing_classes={"hospital-2": ["effusion"]})
    split, rows = written(job, organs, tmp_path)
    everywhere, _ = written(job_for(CHEST), organs, tmp_path / "all")
    lacking = {f"p{i}" for i in range(24) if i % 3 == 2}
    before = everywhere.hospitals["hospital-2"]
    assert split.left_out == {"hospital-2": [p for p, where in before.items() if p in lacking and where != "test"]}
    assert split.left_out["hospital-2"] and split.hospitals["hospital-1"] == everywhere.hospitals["hospital-1"]
    labels = {kind: {row["label"] for row in rows["hospital-2"] if row["split"] == kind} for kind in ("train", "test")}
    assert labels["train"] == {"0", "1"} and "2" in labels["test"]
    split.save(tmp_path / "split.json")
    replayed = SplitManifest.load(tmp_path / "split.json")
    assert replayed == split and replayed.hash != everywhere.hash
    write_hospitals(job, open_dataset(job, organs), replayed, tmp_path / "again")
    with pytest.raises(BadInput, match=r"made without simulation\.missing_classes"):
        write_hospitals(job, open_dataset(job, organs), everywhere, tmp_path / "never")


def test_a_split_file_without_left_out_patients_is_as_it_always_was(organs: Path, tmp_path: Path) -> None:
    """Files that were published before there was such a key keep their hash."""
    split, _ = written(job_for(CHEST), organs, tmp_path)
    split.save(tmp_path / "split.json")
    text = (tmp_path / "split.json").read_text()
    assert '"left_out": {},' in text
    (tmp_path / "old.json").write_text(text.replace('"left_out": {},', ""))
    assert SplitManifest.load(tmp_path / "old.json") == split


def test_a_hospital_without_a_training_patient_left_is_refused(organs: Path, tmp_path: Path) -> None:
    two = {"kind": "classification", "classes": ["normal", "pneumonia", "effusion"]}
    partition = {"name": "pathological", "classes_per_hospital": 2}
    job = job_for(two, partition=partition)
    _, rows = written(job, organs, tmp_path)
    names = sorted({two["classes"][int(row["label"])] for row in rows["hospital-1"]})
    with pytest.raises(BadInput, match="hospital-1 has no training patient left"):
        make_split(job_for(two, partition=partition, missing_classes={"hospital-1": names}), organs)


@pytest.mark.parametrize(
    ("simulation", "data", "expected"),
    [
        ({"partly_labelled": {"hospital-3": ["round"]}}, {}, "no hospital 'hospital-3'"),
        ({"partly_labelled": {"hospital-1": ["liver"]}}, {}, "'liver' is not a class beside the background"),
        ({"partly_labelled": {"hospital-1": []}}, {}, "the list is empty"),
        ({"partly_labelled": {name: ["round"] for name in HALVES}}, {}, "no hospital annotates square"),
        ({"missing_channels": {"hospital-1": ["flair"]}}, {}, "set data.missing_channels to zeros"),
        ({"missing_channels": {"hospital-1": ["t2"]}}, {"missing_channels": "zeros"}, "'t2' is not one of data.images"),
        ({"missing_channels": {"hospital-1": ["t1", "flair"]}}, {"missing_channels": "zeros"}, "nothing is left of"),
        ({"missing_classes": {"hospital-1": ["round"]}}, {}, "a segmentation task has no class for a case"),
        ({}, {"annotated": "label"}, "column 'label' is data.label already"),
    ],
)
def test_what_makes_no_sense_is_refused_when_the_job_is_read(
    simulation: dict[str, Any], data: dict[str, Any], expected: str
) -> None:
    assert any(expected in sentence for sentence in refused(job_for(data=data, **simulation)))


@pytest.mark.parametrize("value", ["turns", ["round"], {"hospital-1": "round"}])
def test_there_are_two_ways_to_say_who_annotates_what(value: Any) -> None:
    with pytest.raises(ValidationError, match="expected rotate, or lists of classes by hospital") as caught:
        job_for(partly_labelled=value)
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("simulation", "data", "expected"),
    [
        ({"partly_labelled": "rotate"}, {}, "expected a segmentation task with at least two classes"),
        ({"missing_classes": {"hospital-1": ["covid"]}}, {}, "'covid' is not one of task.classes"),
        ({"missing_classes": {"hospital-1": CHEST["classes"]}}, {}, "nothing is left of"),
        ({"missing_classes": {name: ["effusion"] for name in HALVES}}, {}, "no hospital is left with effusion"),
        ({}, {"annotated": "drawn"}, "only masks are annotated in part"),
        ({}, {"images": ["t1"], "channels": 1, "missing_channels": "zeros"}, "zeros needs several data.images"),
    ],
)
def test_what_makes_no_sense_for_a_class_is_refused_when_the_job_is_read(
    simulation: dict[str, Any], data: dict[str, Any], expected: str
) -> None:
    assert any(expected in sentence for sentence in refused(job_for(CHEST, data, **simulation)))


def dice_of_federation(job: Job, folder: Path) -> dict[str, float]:
    """The Dice of every organ over the whole masks of all test patients, after three rounds of plain averaging."""
    torch.manual_seed(0)
    network, task = build(job), task_of(job)
    cache = CaseCache(folder / "cache", 10**8)
    sites = {name: SiteData(folder / name / "manifest.csv", job, name, cache) for name in HALVES}
    for number in (1, 2, 3):
        ends = []
        for name, data in sites.items():
            own = copy.deepcopy(network)
            train_round(own, make_optimizers(own, job, task), data, job, task, name, number, steps=12)
            ends.append(own.state_dict())
        network.load_state_dict({key: torch.stack([end[key] for end in ends]).mean(dim=0) for key in ends[0]})
    records = [
        record
        for data in sites.values()
        for record in judge_cases(network, data, data.cases("test"), job, task)
    ]  # fmt: skip
    metrics = task.metrics(task.sums(records, np.ones((1, len(records)))))
    return {organ: float(metrics[f"dice/{organ}"][0]) for organ in ("round", "square")}


@pytest.mark.system
def test_two_hospitals_that_label_one_organ_each_learn_both_only_with_the_marginal_loss(
    organs: Path, tmp_path: Path
) -> None:
    changes = {
        "model": {"name": "unet", "arguments": {"channels": [8, 16], "strides": [2], "num_res_units": 1}},
        "training": {"local_steps": 1, "batch_size": 8, "optimizer": {"learning_rate": 0.02}},
    }
    content = job_for(data={"annotated": "drawn"}, partly_labelled=HALVES).model_dump(mode="json")
    marginal = Job.model_validate(content | changes)
    ordinary = Job.model_validate(content | changes | {"data": content["data"] | {"annotated": None}})
    written(marginal, organs, tmp_path)
    learnt, not_learnt = (dice_of_federation(job, tmp_path) for job in (marginal, ordinary))
    assert min(learnt.values()) > 0.7
    assert min(not_learnt.values()) < 0.3


def test_a_hospital_that_annotates_one_organ_keeps_the_federated_model(organs: Path, tmp_path: Path) -> None:
    """Its own model looks better on its validation masks, and has never learnt the other organ."""
    changes = {
        "model": {"name": "unet", "arguments": {"channels": [8, 16], "strides": [2], "num_res_units": 1}},
        "training": {"local_steps": 8, "batch_size": 8, "optimizer": {"learning_rate": 0.02}},
        "federation": {"rounds": 2},
    }
    job = job_for(data={"annotated": "drawn"}, partly_labelled={"hospital-1": ["round"]})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json") | changes))
    out = tmp_path / "run"
    simulate(SimulationRequest(tmp_path / "job.yaml", organs, out, workers=1, compare=("local", "fine_tuned")))
    choices = json.loads((out / "evaluations.json").read_text())["choices"]
    values = choices["hospital-1"]["validation"]
    assert max(values.values()) > values["federated"], "or the test shows nothing"
    assert choices["hospital-1"]["kept"] == "federated"
    assert choices["hospital-1"]["why"] == (
        "its validation masks have no square, so they cannot tell which model is best"
    )
    assert choices["hospital-2"]["why"] is None
    assert "1 of 2 hospitals had no choice but the federated model (hospital-1)" in (out / "report.html").read_text()


def test_a_run_says_how_many_patients_take_no_part(
    write_job: Callable[..., Path], squares: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load(write_job().read_text())
    simulation = {**content["simulation"], "missing_classes": {"hospital-2": ["large"]}}
    path = write_job(federation={"rounds": 1}, evaluation={"bootstrap": 0}, simulation=simulation)
    simulate(SimulationRequest(path, squares, tmp_path / "run", workers=1, compare=()))
    left_out = json.loads((tmp_path / "run" / "split.json").read_text())["left_out"]
    assert set(left_out) == {"hospital-2"} and len(left_out["hospital-2"]) > 1
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    warnings = [event["text"] for event in events if event["event"] == "warning"]
    said = f"simulation.missing_classes: {len(left_out['hospital-2'])} patients of hospital-2 take no part in this run"
    assert said in warnings
    assert any("Every training case is of one class: small." in text for text in map(str, events))
