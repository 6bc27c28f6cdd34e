"""What MONAI's convolutional networks do otherwise than their names promise, put right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.weights import load, schema, travelling


def job_for(name, arguments=None, *, crop=(32, 32), channels=1, normalisation=None):
    segmentation = "segmentation" in zoo.MODELS[name].tasks
    return Job.model_validate(
        {
            "name": "test",
            "task": {"kind": "segmentation" if segmentation else "classification", "classes": ["a", "b", "c"]},
            "data": {"spatial_dims": len(crop), "crop": list(crop), "channels": channels},
            "model": {"name": name, "arguments": arguments or {}, "normalisation": normalisation},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 20), ("seresnet50", 53), ("resnet_unet", 27), ("attention_unet", 30), ("vnet", 24)],
)
def test_no_batch_norm_is_left_where_another_is_chosen(name, layers):
    network = zoo.build(job_for(name, normalisation="group"))
    assert [entry.name for entry in schema(network) if entry.kind in ("statistic", "constant")] == []
    assert sum(isinstance(module, nn.GroupNorm) for module in network.modules()) == layers


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18", 18),
        ("resnet34", 34),
        ("resnet50", 50),
        ("resnet101", 101),
        ("seresnet50", 50),
        ("densenet121", 121),
        ("densenet169", 169),
        ("densenet201", 201),
    ],
)
def test_the_number_in_a_name_is_the_depth_of_the_paper(name, depth):
    layers = [
        path
        for path, module in zoo.build(job_for(name)).named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and not any(part in path for part in ("downsample", "project", "se_layer"))
    ]
    assert len(layers) == depth


@pytest.mark.parametrize("crop", [(32, 32), (32, 32, 32)])
def test_the_shortcuts_of_a_resnet_unet_give_what_monais_give_and_a_gradient_too(crop):
    encoder = zoo.build(job_for("resnet_unet", crop=crop)).encoder
    images = torch.rand(2, 64, *[8] * len(crop), requires_grad=True)
    shortcut = encoder.layer2[0].downsample
    made = shortcut(images)
    assert torch.equal(made, encoder._downsample_basic_block(images, **shortcut.keywords))
    made.sum().backward()
    assert images.grad.sum() == images.numel() / 2 ** len(crop)


def test_dropout_of_a_2d_vnet_drops_feature_maps_and_never_whole_images():
    network = zoo.build(job_for("vnet", {"dropout": 0.5}))
    dropped = []
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            assert module.p == 0.5
            module.register_forward_hook(lambda _, __, out: dropped.append((out == 0).flatten(2).all(dim=2)))
    torch.manual_seed(0)
    network.train()(torch.rand(4, 1, 32, 32))
    assert len(dropped) == 8
    for maps in dropped:  # (images, feature maps)
        assert 0 < maps.float().mean() < 1
        assert not maps.all(dim=1).any()


def test_a_vnet_refuses_channels_that_it_cannot_add():
    with pytest.raises(BadInput, match="data.channels must divide 16; found 3"):
        zoo.check(job_for("vnet", channels=3))


def test_a_dynunet_has_every_tensor_twice_and_sends_it_once():
    job = job_for("dynunet", {"filters": [4, 8, 8, 8], "strides": [[2], [2], [2]], "deep_supervision": True})
    network = zoo.build(job)
    kinds = [entry.kind for entry in schema(network)]
    assert kinds.count("alias") == len(travelling(network)) - 2  # the output is the one block with one name
    load(network, {name: array + 1 for name, array in travelling(network).items()})
    state = network.state_dict()
    assert torch.equal(state["input_block.conv1.conv.weight"], state["skip_layers.downsample.conv1.conv.weight"])


def test_a_dynunet_takes_strides_by_axis_for_thick_slices():
    job = job_for("dynunet", {"filters": [4, 8, 8], "strides": [[1, 2, 2], [2]]}, crop=(6, 16, 16))
    assert zoo.build(job).eval()(torch.rand(1, 1, 6, 16, 16)).shape == (1, 3, 6, 16, 16)
    with pytest.raises(BadInput, match="every axis must be a multiple of 2"):
        zoo.check(job_for("dynunet", {"filters": [4, 8, 8], "strides": [[1, 2, 2], [2]]}, crop=(5, 16, 16)))


@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("dynunet", {"filters": [4, 8, 8, 8, 8]}, [32, 16, 8]),
        ("unet_plus_plus", {"features": [4, 4, 8, 8, 8, 4]}, [32, 32, 32, 32]),
    ],
)
def test_deep_supervision_gives_a_list_in_training_whose_first_is_the_output(name, arguments, sizes):
    network = zoo.build(job_for(name, arguments | {"deep_supervision": True}))
    images = torch.rand(2, 1, 32, 32)
    outputs = network.train()(images)
    assert isinstance(outputs, list)
    assert [tuple(output.shape) for output in outputs] == [(2, 3, size, size) for size in sizes]
    output = network.eval()(images)
    assert torch.equal(output, outputs[0])
    assert not any(torch.equal(output, other) for other in outputs[1:])
    plain = zoo.build(job_for(name, arguments))
    assert torch.is_tensor(plain.train()(images))


def test_the_main_output_of_a_unet_plus_plus_is_that_of_its_deepest_node():
    network = zoo.build(job_for("unet_plus_plus", {"features": [4, 4, 8, 8, 8, 4], "deep_supervision": True}))
    deepest = []
    network.final_conv_0_4.register_forward_hook(lambda _, __, output: deepest.append(output))
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(network.eval()(images), deepest[0])
    assert torch.equal(network.train()(images)[0], deepest[1])


def test_a_dynunet_keeps_nothing_of_a_step():
    network = zoo.build(
        job_for("dynunet", {"filters": [4, 8, 8, 8], "strides": [[2], [2], [2]], "deep_supervision": True})
    )
    network.train()(torch.rand(1, 1, 32, 32))
    copied = copy.deepcopy(network)  # torch refuses to copy what hangs on a graph
    assert all(head.numel() == 0 for head in copied.heads)


def test_an_even_first_kernel_or_no_width_is_refused():
    with pytest.raises(BadInput, match="conv1_t_size must be odd, found 4"):
        zoo.check(job_for("resnet18", {"conv1_t_size": 4}))
    with pytest.raises(BadInput, match="widen_factor 0.01 leaves nothing of 64 channels"):
        zoo.check(job_for("resnet50", {"widen_factor": 0.01}))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "seresnet50"])
def test_a_small_image_is_taken_with_group_norm_and_refused_with_instance_norm(name):
    assert zoo.check(job_for(name, crop=(29, 29) if name == "densenet121" else (16, 16)))
    with pytest.raises(BadInput, match="one voxel is left at the deepest layer, too few for instance norm"):
        zoo.check(job_for(name, crop=(29, 29) if name == "densenet121" else (16, 16), normalisation="instance"))


def test_the_head_of_a_cnn_has_one_name_whatever_its_depth():
    for channels in ([4], [4, 8, 8]):
        heads = [e.name for e in schema(zoo.build(job_for("cnn", {"channels": channels}))) if e.kind == "head"]
        assert heads == ["head.weight", "head.bias"]
