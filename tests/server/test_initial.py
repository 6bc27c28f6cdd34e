"""The network that a run starts from: read from the file once, the same ever after."""

from __future__ import annotations

import torch

from server.initial import initial_network
from shared_models.job import Job
from shared_models.weights import fingerprint, travelling
from shared_models.zoo import build


def job_for(pretrained: str | None, seed: int = 0) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "seed": seed,
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "pretrained": pretrained},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


def test_without_a_file_it_is_made_of_the_seed_and_nothing_is_kept(tmp_path):
    network, note = initial_network(job_for(None), tmp_path)
    assert note is None and not any(tmp_path.iterdir())
    assert fingerprint(travelling(network)) == fingerprint(travelling(build(job_for(None))))


def test_a_resumed_run_begins_with_the_same_weights_without_the_file(tmp_path):
    file, run = tmp_path / "first.pt", tmp_path / "run"
    trained = build(job_for(None, seed=7))
    torch.save(trained.state_dict(), file)
    job = job_for(str(file))
    network, note = initial_network(job, run)
    assert fingerprint(travelling(network)) == fingerprint(travelling(trained))
    assert note["file"] == "first.pt" and note["matched"] == note["tensors"]
    file.unlink()
    again, same_note = initial_network(job, run)
    assert fingerprint(travelling(again)) == fingerprint(travelling(trained))
    assert same_note == note
