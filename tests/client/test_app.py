"""What a site answers, and that no exception's text leaves it."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app
from client.app import app
from shared_models.job import Job
from shared_models.weights import from_record, to_record, travelling
from shared_models.zoo import build

JOB = Job.model_validate(
    {
        "name": "squares",
        "task": {"kind": "classification", "classes": ["small", "large"]},
        "data": {"spatial_dims": 2, "crop": [16, 16]},
        "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}},
        "training": {"local_epochs": 1},
        "federation": {"rounds": 1},
        "evaluation": {"bootstrap": 10},
    }
)


TRAIN = {"round": 1, "best_used": 0, "last_used": 0, "algorithm_since": 0}


@pytest.fixture
def node(tmp_path):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 255, (12, 16, 16), dtype=np.uint8))
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4
    rows = [f"p{i},data.npz::images[{i}],{i % 2},{split}" for i, split in enumerate(splits)]
    (tmp_path / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
    folder = str(tmp_path)
    return {"site": "here", "manifest": f"{folder}/manifest.csv", "folder": folder, "cache": f"{folder}/cache"}


def ask(node, kind, weights=None, **instruction):
    content = RecordDict({"instruction": ConfigRecord({"job": JOB.canonical_json(), **instruction})})
    if weights is not None:
        content["weights"] = to_record(weights)
    return app(Message(content, 1, kind), Context(1, 1, dict(node), RecordDict(), {})).content


def test_prepare_answers_with_counts(node):
    summary = json.loads(ask(node, "query.prepare")["prepared"]["summary"])
    assert summary["cases"] == {"train": 6, "validation": 2, "test": 4}
    assert summary["quarantined"] == {}


def test_train_answers_with_the_tensors_that_travel_and_numbers_and_nothing_else(node):
    weights = travelling(build(JOB))
    content = ask(node, "train", weights, **TRAIN)
    assert set(content) == {"weights", "numbers"}
    assert set(content["weights"]) == set(weights)
    assert set(content["numbers"]) == {"weight", "cases", "skipped", "steps", "loss", "seconds", "went_on_from"}
    assert content["numbers"]["cases"] == 6


def test_evaluate_answers_with_sums_that_hold_no_case(node):
    asked = {"split": "test", "replicates": 10, "model": "federated", "round": 1, "last_used": 0, "variant": ""}
    content = ask(node, "evaluate", travelling(build(JOB)), **asked)
    assert set(content) == {"sums"} and isinstance(content["sums"], ArrayRecord)
    sums = from_record(content["sums"])
    assert all(array.shape[0] == 11 for array in sums.values())
    assert sums["cases"][0] == 4
    assert len(json.loads((Path(node["folder"]) / "evaluations" / "federated.json").read_text())) == 4


def test_the_text_of_an_unforeseen_error_stays_at_the_site(node, monkeypatch):
    def secret(*_):
        raise RuntimeError("/data/patients/Jane Doe 1956.nii")

    monkeypatch.setattr(client.app, "data_of", secret)
    content = ask(node, "train", travelling(build(JOB)), **TRAIN)
    assert content["fault"]["sentence"] == "RuntimeError; the site's errors.log has the whole story"
    assert "Jane Doe" in (Path(node["folder"]) / "errors.log").read_text()


def test_a_message_that_makes_no_sense_is_answered_with_a_sentence(node):
    assert "'round' is None" in ask(node, "train", travelling(build(JOB)))["fault"]["sentence"]
    assert "no record 'weights'" in ask(node, "train", **TRAIN)["fault"]["sentence"]
    wrong = {"other": np.zeros(1, np.float32)}
    assert "not of this model" in ask(node, "train", wrong, **TRAIN)["fault"]["sentence"]
