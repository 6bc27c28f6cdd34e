"""Checkpoints: whole or not there, and a damaged one is said."""

import json

import numpy as np
import pytest

from server.checkpoint import CheckpointStore, RunState, load_weights, save_weights, write_atomically
from shared_models.errors import BadInput, RunStopped
from shared_models.weights import fingerprint


def state(number, best=None):
    weights = {"a": np.full((3, 2), number, np.float32), "b": np.array(0.5, np.float32)}
    moments = {"first": {"a": np.full((3, 2), -number, np.float32)}}
    control = {"control/a": weights["a"] + np.float32(1)}
    return RunState(weights, moments, number, fingerprint(weights), best, 0.75, without_better=2, algorithm=control)


def fail(sentence):
    raise AssertionError(sentence)


def test_what_was_saved_comes_back(tmp_path):
    store = CheckpointStore(tmp_path, "job")
    assert store.load(fail) is None
    store.save(state(1), 10)
    store.save(state(2, best=1), 20)
    found = store.load(fail)
    assert found is not None
    loaded, events_size = found
    assert (loaded.round, loaded.best_round, loaded.best_value, events_size) == (2, 1, 0.75, 20)
    assert fingerprint(loaded.weights) == fingerprint(state(2).weights)
    np.testing.assert_array_equal(loaded.moments["first"]["a"], state(2).moments["first"]["a"])
    assert loaded.moments.keys() == state(2).moments.keys() and loaded.without_better == 2
    np.testing.assert_array_equal(loaded.algorithm["control/a"], state(2).algorithm["control/a"])


def test_the_last_two_and_the_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, "job")
    for number in range(1, 7):
        store.save(state(number, best=2 if number >= 2 else None), 0)
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == ["round-00002", "round-00005", "round-00006"]
    np.testing.assert_array_equal(store.weights_of(2)["a"], state(2).weights["a"])


def test_going_back_one_round_finds_the_best_of_then(tmp_path):
    store = CheckpointStore(tmp_path, "job")
    for number, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        store.save(state(number, best), 0)
    (tmp_path / "round-00004.safetensors").write_bytes(b"")
    again = CheckpointStore(tmp_path, "job")
    loaded, _ = again.load(lambda sentence: None)
    assert (loaded.round, loaded.best_round) == (3, 1)
    np.testing.assert_array_equal(again.weights_of(1)["a"], state(1).weights["a"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "note", "another note"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(tmp_path, damage):
    store = CheckpointStore(tmp_path, "job")
    store.save(state(1), 10)
    store.save(state(2), 20)
    path, note = tmp_path / "round-00002.safetensors", tmp_path / "round-00002.json"
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    elif damage == "note":
        note.write_text(note.read_text()[:20])
    else:
        note.write_text("null")
    said = []
    loaded, events_size = store.load(said.append)
    assert (loaded.round, events_size) == (1, 10)
    assert len(said) == 1 and "round-00002" in said[0] and "damaged" in said[0]


def test_when_all_are_damaged_the_run_says_so(tmp_path):
    store = CheckpointStore(tmp_path, "job")
    store.save(state(1), 10)
    (tmp_path / "round-00001.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match="none of the 1 checkpoints in .* can be read"):
        store.load(lambda sentence: None)


def test_a_checkpoint_of_another_job_is_refused(tmp_path):
    CheckpointStore(tmp_path, "one job").save(state(1), 0)
    with pytest.raises(BadInput, match="of another job"):
        CheckpointStore(tmp_path, "another job").load(fail)


def test_a_checkpoint_of_another_version_is_refused_and_not_called_damaged(tmp_path):
    CheckpointStore(tmp_path, "job").save(state(1), 0)
    path = tmp_path / "round-00001.json"
    note = json.loads(path.read_text())
    del note["format"], note["members"]
    path.write_text(json.dumps(note))
    with pytest.raises(BadInput, match=r"round-00001\.json was written by another version of Consilium"):
        CheckpointStore(tmp_path, "job").load(fail)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunStopped, match="the disk that holds .* is full.*resume the run"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_models_are_safetensors_with_notes(tmp_path):
    save_weights(tmp_path / "m.safetensors", state(3).weights, round=3)
    assert fingerprint(load_weights(tmp_path / "m.safetensors")) == fingerprint(state(3).weights)
    (tmp_path / "m.safetensors").write_bytes(b"not a model")
    with pytest.raises(BadInput, match="cannot be read as a model"):
        load_weights(tmp_path / "m.safetensors")
