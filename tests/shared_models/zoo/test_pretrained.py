"""Initial weights from a file: what fits is taken, all else is said, and nothing in the file is ever run."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_file import load_job, read_job
from shared_models.zoo.pretrained import load_pretrained


def values(classes: int = 2, seed: int = 0) -> dict:
    return {
        "name": "test",
        "seed": seed,
        "task": {"kind": "classification", "classes": [f"k{i}" for i in range(classes)]},
        "data": {"spatial_dims": 2, "crop": [16, 16]},
        "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"},
        "training": {"local_steps": 1},
        "federation": {"rounds": 1},
    }


def network_for(classes: int = 2, seed: int = 0) -> torch.nn.Module:
    return zoo.build(Job.model_validate(values(classes, seed)))


def same(one: torch.nn.Module, other: torch.nn.Module) -> list[bool]:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return [torch.equal(a, b) for a, b in pairs if a.is_floating_point()]


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("weights.safetensors", None),
        ("weights.pt", lambda state: state),
        ("weights.pth", lambda state: {"state_dict": state, "epoch": 3}),
        ("weights.ckpt", lambda state: {"model": state}),
        ("weights.pt", lambda state: {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}),
        ("weights.pt", lambda state: {f"_module.{key}": tensor for key, tensor in state.items()}),
    ],
)
def test_a_file_of_the_same_network_is_taken_whole(tmp_path, name, wrap):
    trained, fresh = network_for(seed=1), network_for(seed=2)
    path = tmp_path / name
    state = trained.state_dict()
    save_file(state, path) if wrap is None else torch.save(wrap(state), path)
    matched = load_pretrained(fresh, path)
    assert all(same(trained, fresh))
    assert (matched.matched, matched.share) == (matched.tensors, 1.0)
    assert matched.missing == matched.other_shape == matched.unexpected == []
    assert (matched.file, matched.sha256) == (name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_what_does_not_fit_is_named_and_stays_as_it_was(tmp_path):
    state = network_for(classes=5, seed=1).state_dict()
    first = next(iter(state))
    del state[first]
    save_file({**state, "extra.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    fresh, untouched = network_for(seed=2), network_for(seed=2).state_dict()
    matched = load_pretrained(fresh, tmp_path / "other.safetensors")
    assert matched.missing == [first]
    assert matched.unexpected == ["extra.weight"]
    assert matched.other_shape  # the layer that gives the classes
    left = [first, *matched.other_shape]
    assert matched.matched == matched.tensors - len(left)
    after = fresh.state_dict()
    wanted = [name for name in after if after[name].is_floating_point()]
    assert matched.tensors == len(wanted)
    assert all(torch.equal(after[name], untouched[name] if name in left else state[name]) for name in wanted)
    taken = sum(after[name].numel() for name in wanted if name not in left)
    assert matched.share == pytest.approx(taken / sum(after[name].numel() for name in wanted))


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return subprocess.call, (["touch", str(self.witness)],)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    content = {"state_dict": Evil(tmp_path / "run")}
    torch.save(content, tmp_path / "torch.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("torch.pt", "pickle.pt"):
        with pytest.raises(BadInput, match="is damaged, or holds more than tensors, such as code, which is never run"):
            load_pretrained(network_for(), tmp_path / name)
    assert not (tmp_path / "run").exists()


def damaged(tmp_path: Path, name: str) -> Path:
    state = network_for().state_dict()
    path = tmp_path / name
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def other(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "other.pt")
    return tmp_path / "other.pt"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: folder / "none.pt", "none.pt cannot be read .No such file"),
        (lambda folder: damaged(folder, "cut.safetensors"), "cut.safetensors is damaged"),
        (lambda folder: damaged(folder, "cut.pt"), "cut.pt is damaged"),
        (lambda folder: other(folder, [1, 2]), "holds no tensors by name; save the network's state_dict"),
        (lambda folder: other(folder, {"epoch": 3}), "holds no tensors by name"),
        (
            lambda folder: other(folder, {"w": torch.tensor([1.0, torch.nan])}),
            "'w' in .* has values that are not finite",
        ),
        (lambda folder: other(folder, {"w": torch.zeros(2)}), "none of the 1 tensors in .* it has 'w', the network '"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_with_a_sentence(tmp_path, make, sentence):
    with pytest.raises(BadInput, match=f"model.pretrained: .*{sentence}"):
        load_pretrained(network_for(), make(tmp_path))


def job_path(tmp_path: Path, pretrained: str, **federation: object) -> Path:
    content = values()
    content["model"]["pretrained"] = pretrained
    content["federation"] |= federation
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_file_lies_beside_the_job_and_must_be_there(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=r"job.yaml:\d+: model.pretrained: there is no file .*/first.safetensors"):
        load_job(job_path(tmp_path, "first.safetensors"))
    (tmp_path / "first.safetensors").touch()
    job = load_job(job_path(tmp_path, "first.safetensors"))
    assert job.model.pretrained == str(tmp_path / "first.safetensors")
    path = job_path(tmp_path, job.model.pretrained)
    (tmp_path / "first.safetensors").unlink()
    assert read_job(path).fingerprint() == job.fingerprint()


def test_it_is_refused_where_the_sites_would_lose_its_normalisation(tmp_path):
    (tmp_path / "first.pt").touch()
    with pytest.raises(BadInput, match="federation.share.normalisation: with model.pretrained, the file's norm"):
        load_job(job_path(tmp_path, "first.pt", share={"normalisation": "nothing"}))
    assert load_job(job_path(tmp_path, "first.pt", share={"normalisation": "no_statistics"}))
