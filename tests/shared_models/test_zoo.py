"""Every network of the zoo: builds, gives logits of the right shape, is fully trained, and travels whole."""

import subprocess
import sys

import pytest
import torch

from server.aggregation import RunningSum
from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.weights import fingerprint, from_record, load, schema, to_record, travelling

SMALL = {
    "cnn": {},
    "unet": {"channels": [4, 8, 16], "strides": [2, 2]},
    "resnet18": {},
    "resnet34": {},
    "resnet50": {"norm": "batch"},
    "vit": {"hidden_size": 12, "mlp_dim": 24, "num_layers": 2},
}


def job_for(name, dims, arguments=None):
    segmentation = "segmentation" in zoo.MODELS[name].tasks
    return Job.model_validate(
        {
            "name": "test",
            "task": {"kind": "segmentation" if segmentation else "classification", "classes": ["a", "b", "c"]},
            "data": {"spatial_dims": dims, "crop": [16] * dims, "channels": 2},
            "model": {"name": name, "arguments": SMALL[name] if arguments is None else arguments},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_a_network_gives_logits_and_every_parameter_is_trained(name, dims):
    job = job_for(name, dims)
    network = zoo.build(job)
    logits = network(torch.rand(2, 2, *[16] * dims))
    expected = (2, 3, *[16] * dims) if job.task.kind == "segmentation" else (2, 3)
    assert logits.shape == expected
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_identical_sites_give_the_global_model_back_bit_for_bit(name):
    network = zoo.build(job_for(name, 2))
    sent, total = travelling(network), RunningSum()
    for cases in (3, 17, 1009):
        total.add(from_record(to_record(sent)), cases)
    mean, expected = total.take_mean(), fingerprint(sent)
    assert fingerprint(mean) == expected
    load(network, mean)
    assert fingerprint(travelling(network)) == expected


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_the_same_seed_gives_the_same_network_and_leaves_torch_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fingerprint(travelling(zoo.build(job_for(name, 2))))
    assert torch.equal(torch.rand(1), expected)
    assert fingerprint(travelling(zoo.build(job_for(name, 2)))) == first


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norm_reaches_every_layer_of_a_resnet(norm):
    network = zoo.build(job_for("resnet18", 2, {"norm": norm}))
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(entry.kind in ("shared", "norm") for entry in schema(network))
    assert sum(entry.kind == "norm" for entry in schema(network)) == 40


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("unet", {"chanels": [4, 8]}, "model.arguments.chanels: 'unet' has no such argument; did you mean 'channels'?"),
        ("unet", {"channels": "many"}, "model.arguments.channels: .*found 'many'"),
        ("unet", {"channels": [4, 8, 16], "strides": [2]}, "3 channels need 2 strides, found 1"),
        ("unet", {"channels": [4, 8], "strides": [3]}, "every axis must be a multiple of 3"),
        ("vit", {"patch_size": 5}, "every axis must be a multiple of patch_size 5"),
        ("vit", {"hidden_size": 13}, "hidden_size 13 must be a multiple of num_heads 3"),
    ],
)
def test_wrong_arguments_are_refused_by_name(name, arguments, sentence):
    with pytest.raises(BadInput, match=sentence.replace("?", r"\?")):
        zoo.check(job_for(name, 2, arguments))


def test_unknown_models_and_wrong_tasks_say_what_fits():
    job = job_for("unet", 2)
    with pytest.raises(BadInput, match="there is no model 'unett'; the zoo has cnn, resnet18"):
        zoo.check(job.model_copy(update={"model": job.model.model_copy(update={"name": "unett"})}))
    with pytest.raises(BadInput, match="'cnn' cannot do segmentation; models that can: unet"):
        zoo.check(job.model_copy(update={"model": job.model.model_copy(update={"name": "cnn", "arguments": {}})}))


def test_reading_a_job_imports_neither_torch_nor_monai():
    code = "import sys, shared_models.zoo; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
