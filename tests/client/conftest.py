"""An honest site behind the door, and what it answers."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from shared_models.weights import to_record
from tests.client.door import ASKED, JOB, WEIGHTS, serialised


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    """A site with six training patients, one of whom has an image that is constant."""
    folder = tmp_path_factory.mktemp("site")
    images = np.random.default_rng(0).integers(0, 255, (12, 16, 16), dtype=np.uint8)
    images[0] = 7
    np.savez(folder / "data.npz", images=images)
    splits = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4
    rows = [f"JaneDoe{i},data.npz::images[{i}],{i % 2},{split}" for i, split in enumerate(splits)]
    (folder / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
    return {"site": "here", "manifest": f"{folder}/manifest.csv", "folder": str(folder), "cache": f"{folder}/cache"}


@pytest.fixture(scope="module")
def replies(small_site):
    """An honest reply to each question, as bytes, so that every test can have one of its own."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    found = {}
    for question, (kind, fields) in ASKED.items():
        content = RecordDict({"instruction": ConfigRecord({"job": JOB.canonical_json(), **fields})})
        if question != "prepare":
            content["weights"] = to_record(WEIGHTS)
        reply = app(Message(content, 1, kind), Context(1, 1, dict(small_site), RecordDict(), {})).content
        assert "fault" not in reply
        found[question] = serialised(reply)
    return found
