"""Every network of the zoo: takes what it says, gives what its task needs, is fully trained, and travels whole."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from server.aggregation import RunningSum
from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.weights import NORM_MODULES, fingerprint, from_record, load, schema, to_record, travelling
from shared_models.zoo.normalisation import normalise


@dataclass(frozen=True)
class Small:
    """A form of an entry that makes its tests quick: arguments, and the size of an image along every axis."""

    arguments: dict[str, Any] = field(default_factory=dict)
    crop: int = 16


# One line for every entry; what follows a colon tells two forms of one entry apart.
SMALL: dict[str, Small] = {
    "cnn": Small({"channels": [4, 8], "hidden": 8}),
    "unet": Small({"channels": [4, 8, 16], "strides": [2, 2]}),
    "unet:plain": Small({"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 0}),
    "residual_unet": Small({"init_filters": 4, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}),
    "dynunet": Small({"filters": [4, 4, 8, 8], "strides": [[2], [2], [2]]}),
    "dynunet:deep": Small({"filters": [4, 4, 8, 8, 8], "strides": [[2], [2], [2], [1]], "deep_supervision": True}),
    "attention_unet": Small({"channels": [4, 8, 16], "strides": [2, 2]}),
    "unet_plus_plus": Small({"features": [4, 4, 4, 8, 8, 4]}, crop=32),
    "unet_plus_plus:deep": Small({"features": [4, 4, 4, 8, 8, 4], "deep_supervision": True}, crop=32),
    "vnet": Small(crop=32),
    "resnet18": Small({"widen_factor": 0.125}),
    "resnet34": Small({"widen_factor": 0.125}),
    "resnet50": Small({"widen_factor": 0.125}),
    "resnet101": Small({"widen_factor": 0.125}),
    "seresnet50": Small(),
    "resnet_unet": Small(crop=32),
    "densenet121": Small({"init_features": 8, "growth_rate": 4}, crop=32),
    "densenet169": Small({"init_features": 8, "growth_rate": 4}, crop=32),
    "densenet201": Small({"init_features": 8, "growth_rate": 4}, crop=32),
    "vit": Small({"hidden_size": 12, "mlp_dim": 24, "num_layers": 2}),
    "unetr": Small({"feature_size": 2, "hidden_size": 12, "mlp_dim": 12}),
    "swin_unetr": Small({"window_size": 2, "depths": [1, 1, 1, 1]}, crop=64),
    "swin_unet": Small({"embed_dim": 12, "patch_size": 2, "window_size": 3}),
    "transunet": Small(
        {
            "channels": [4, 4, 8, 8],
            "hidden_size": 12,
            "mlp_dim": 12,
            "num_layers": 2,
            "decoder_channels": [8, 4, 4, 4],
        },
        crop=32,
    ),
    "pix2pix": Small({"channels": [4, 8, 8], "discriminator_channels": 4, "discriminator_layers": 2}),
    "cyclegan": Small({"channels": 4, "blocks": 1, "discriminator_channels": 4, "discriminator_layers": 2}),
    "dcgan": Small({"latent": 4, "channels": 4}),
    "autoencoder": Small({"latent": 4, "channels": 4}),
    "vae": Small({"latent": 4, "channels": 4}),
}

TASKS = {
    "segmentation": {"kind": "segmentation", "classes": ["a", "b", "c"]},
    "classification": {"kind": "classification", "classes": ["a", "b", "c"]},
    "paired translation": {"kind": "translation", "how": {"mode": "paired"}},
    "unpaired translation": {"kind": "translation", "how": {"mode": "unpaired", "domains": ["a", "b"]}},
    "synthesis": {"kind": "synthesis", "classes": ["a", "b", "c"]},
    "reconstruction": {"kind": "anomaly", "classes": ["a", "b", "c"]},
}


def entry_of(form: str) -> type[zoo.Entry]:
    return zoo.MODELS[form.partition(":")[0]]


in_one_dimensionality = pytest.mark.parametrize("form", SMALL)
in_2d_and_3d = pytest.mark.parametrize(
    ("form", "dims"), [(form, dims) for form in SMALL for dims in sorted(entry_of(form).spatial_dims)]
)


def job_for(form: str, dims: int | None = None, crop: int | None = None, **model: Any) -> Job:
    small, entry = SMALL[form], entry_of(form)
    dims = dims or min(entry.spatial_dims)
    return Job.model_validate(
        {
            "name": "test",
            "task": TASKS[min(entry.tasks)],
            "data": {"spatial_dims": dims, "crop": [crop or small.crop] * dims, "channels": 2},
            "model": {"name": form.partition(":")[0], "arguments": small.arguments} | model,
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


def batch_for(job: Job) -> dict[str, torch.Tensor]:
    """Two images with the labels that the job's task has."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, job.data.channels, *job.data.crop, generator=generator)
    label = {
        "mask": torch.randint(0, 3, (2, 1, *job.data.crop), generator=generator),
        "class": torch.tensor([0, 1]),
        "image": torch.rand(images.shape, generator=generator),
    }[job.task.label]
    return {"image": images, "label": label}


@torch.no_grad()
def outputs_of(network: nn.Module, job: Job) -> torch.Tensor:
    """In evaluation. Of a network that makes images out of noise: what its other half says about given ones."""
    network.eval()
    batch = batch_for(job)
    if job.task.kind == "synthesis":
        return network.get_submodule("discriminator")(batch["image"], batch["label"])
    return network(batch["image"])


def shape_of_outputs(job: Job) -> tuple[int, ...]:
    if job.task.kind == "synthesis":
        return (2,)
    outputs = job.task.outputs(job.data.channels)
    return (2, outputs) if job.task.kind == "classification" else (2, outputs, *job.data.crop)


def perturbed(network: nn.Module) -> nn.Module:
    """As after some training: no float tensor is what the job's seed makes it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=generator))
    return network


def test_every_entry_has_a_small_form():
    assert {form.partition(":")[0] for form in SMALL} == set(zoo.MODELS)


@in_2d_and_3d
def test_in_evaluation_it_gives_one_tensor_of_the_right_shape(form, dims):
    job = job_for(form, dims)
    outputs = outputs_of(zoo.build(job), job)
    assert outputs.shape == shape_of_outputs(job)
    assert outputs.isfinite().all()


@in_2d_and_3d
def test_every_parameter_is_trained_by_the_task(form, dims):
    job = job_for(form, dims)
    network, task, batch = zoo.build(job), task_of(job), batch_for(job)
    network.train()
    for player in task.players(network):
        task.step_loss(network, batch, player).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@in_one_dimensionality
def test_identical_sites_give_the_global_model_back_bit_for_bit(form):
    network = perturbed(zoo.build(job_for(form)))
    sent, total = travelling(network), RunningSum()
    for cases in (3, 17, 1009):
        total.add(f"site with {cases}", from_record(to_record(sent)), cases)
    mean, expected = total.take_mean(), fingerprint(sent)
    assert fingerprint(mean) == expected
    load(network, mean)
    assert fingerprint(travelling(network)) == expected


@in_one_dimensionality
def test_a_site_that_gets_the_record_predicts_the_same(form):
    job = job_for(form, normalisation="batch")  # which has statistics and constants beside what is trained
    sender, receiver = perturbed(zoo.build(job)), zoo.build(job)
    assert not torch.equal(outputs_of(sender, job), outputs_of(receiver, job))
    load(receiver, from_record(to_record(travelling(sender))))
    assert torch.equal(outputs_of(sender, job), outputs_of(receiver, job))
    states = sender.state_dict(), receiver.state_dict()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


@in_one_dimensionality
def test_the_bytes_on_the_wire_are_those_of_its_float_tensors_once(form):
    network = zoo.build(job_for(form, normalisation="batch"))
    state = {tensor.data_ptr(): tensor for tensor in network.state_dict().values() if tensor.is_floating_point()}
    payload = 4 * sum(tensor.numel() for tensor in state.values())
    record = to_record(travelling(network))
    assert len(record) == len(state)
    header = 128  # of a numpy file
    assert sum(len(array.data) for array in record.values()) == payload + header * len(record)


@in_one_dimensionality
def test_the_same_seed_gives_the_same_network_and_leaves_torch_alone(form):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fingerprint(travelling(zoo.build(job_for(form))))
    assert torch.equal(torch.rand(1), expected)
    assert fingerprint(travelling(zoo.build(job_for(form)))) == first


@in_one_dimensionality
def test_the_choice_of_normalisation_reaches_every_layer(form):
    job = job_for(form, normalisation="batch")
    network = zoo.build(job)
    kinds = {
        "batch": (nn.BatchNorm2d, nn.BatchNorm3d),
        "instance": (nn.InstanceNorm2d, nn.InstanceNorm3d),
        "group": nn.GroupNorm,
    }
    counts = []
    for choice, expected in kinds.items():
        normalise(network, choice, job.data.spatial_dims)
        layers = [m for m in network.modules() if isinstance(m, NORM_MODULES) and not isinstance(m, nn.LayerNorm)]
        assert [layer for layer in layers if not isinstance(layer, expected) or layer.weight is None] == []
        counts.append(len(layers))
    assert all(first == second for first, second in pairwise(counts))
    assert {entry.kind for entry in schema(network)} <= {"shared", "norm", "head", "constant", "alias"}


@in_one_dimensionality
def test_its_heads_end_in_the_outputs(form):
    job = job_for(form)
    network = zoo.build(job)
    outputs = job.task.outputs(job.data.channels)
    for name in entry_of(form).heads:
        widths = [
            getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
            for layer in network.get_submodule(name).modules()
            if layer._parameters.get("weight") is not None and not isinstance(layer, (*NORM_MODULES, nn.PReLU))
        ]
        assert not widths or widths[-1] == outputs
    heads = {entry.name for entry in schema(network) if entry.kind == "head"}
    assert bool(heads) == bool(entry_of(form).heads)


@in_one_dimensionality
@pytest.mark.parametrize("normalisation", ["instance", "group"])
def test_a_size_that_it_accepts_can_be_trained_on_and_any_other_is_refused_with_a_sentence(form, normalisation):
    def fits(size: int) -> str | None:
        try:
            zoo.check(job_for(form, crop=size, normalisation=normalisation))
        except BadInput as refusal:
            return str(refusal)
        return None

    refusals = {size: fits(size) for size in range(1, 65)}
    accepted = [size for size, refusal in refusals.items() if refusal is None]
    assert accepted
    for size in accepted[:2]:  # the smallest, and one that is no power of two where there is one
        job = job_for(form, crop=size, normalisation=normalisation)
        network, task, batch = zoo.build(job), task_of(job), batch_for(job)
        for player in task.players(network):
            assert task.step_loss(network, batch, player).isfinite()
        assert outputs_of(network, job).shape == shape_of_outputs(job)
    for size, refusal in refusals.items():
        assert refusal is None or f"does not fit data.crop [{size}, " in refusal


@in_one_dimensionality
def test_the_blocks_that_can_be_computed_again_are_run_lie_side_by_side_and_leave_what_they_get_alone(form):
    job = job_for(form, normalisation="none")  # without a copy by a norm, activations in place reach what a block gets
    network, runs = zoo.build(job), set()
    blocks = list(entry_of(form).model_validate(SMALL[form].arguments).checkpointed(network))
    parts = [id(part) for block in blocks for part in block.modules()]
    assert len(parts) == len(set(parts))

    def before(block: nn.Module, given: tuple[Any, ...]) -> None:
        block.given = [value.clone() for value in given if torch.is_tensor(value)]

    def after(block: nn.Module, given: tuple[Any, ...], _: object) -> None:
        tensors = [value for value in given if torch.is_tensor(value)]
        assert all(torch.equal(*pair) for pair in zip(tensors, block.given, strict=True))
        runs.add(block)

    for block in blocks:
        block.register_forward_pre_hook(before)
        block.register_forward_hook(after)
    task, batch = task_of(job), batch_for(job)
    for player in task.players(network):
        task.step_loss(network, batch, player)
    assert runs == set(blocks)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("unet", {"chanels": [4, 8]}, "model.arguments.chanels: 'unet' has no such argument; did you mean 'channels'?"),
        ("unet", {"channels": "many"}, "model.arguments.channels: .*found 'many'"),
        ("unet", {"channels": [4, -8, 16]}, "model.arguments.channels.1: .*found -8"),
        ("unet", {"channels": [4, 8, 16], "strides": [2]}, "3 channels need 2 strides, found 1"),
        ("unet", {"channels": [4, 8], "strides": [3]}, "every axis must be a multiple of 3"),
        ("unet", {"channels": [4, 8], "strides": [16]}, "one voxel is left at the deepest layer, too few for instance"),
        ("residual_unet", {"blocks_down": [1, 1]}, "2 blocks_down need 1 blocks_up, found 3"),
        ("dynunet", {"filters": [4, 8, 8]}, "3 filters need 2 strides, found 4"),
        (
            "dynunet",
            {"filters": [4, 8, 8], "strides": [[2], [2, 2, 1]]},
            r"a stride has 1 or 2 numbers, found \[2, 2, 1\]",
        ),
        ("dynunet", {"filters": [4, 8, 8], "strides": [[2], [1, 3]]}, "every axis must be a multiple of 6"),
        ("vit", {"patch_size": 5}, "every axis must be a multiple of patch_size 5"),
        ("vit", {"hidden_size": 13}, "hidden_size 13 must be a multiple of num_heads 3"),
    ],
)
def test_wrong_arguments_are_refused_by_name(name, arguments, sentence):
    with pytest.raises(BadInput, match=sentence.replace("?", r"\?")):
        zoo.check(job_for(name, crop=16, arguments=arguments))


def test_unknown_models_and_wrong_tasks_say_what_fits():
    job = job_for("unet", 2)
    with pytest.raises(BadInput, match="there is no model 'unett'; the zoo has attention_unet, "):
        zoo.check(job.model_copy(update={"model": job.model.model_copy(update={"name": "unett"})}))
    with pytest.raises(BadInput, match="'cnn' cannot do segmentation in 2D; models that can: attention_unet, "):
        zoo.check(job.model_copy(update={"model": job.model.model_copy(update={"name": "cnn", "arguments": {}})}))


def test_reading_a_job_imports_neither_torch_nor_monai():
    code = "import sys, shared_models.zoo; sys.exit(bool({'torch', 'monai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
