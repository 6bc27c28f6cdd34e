"""What MONAI's transformers do otherwise than one expects, put right, and the two that MONAI has not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.weights import load, schema, travelling
from shared_models.zoo.swin_unet_network import PatchExpand

SMALL = {
    "vit": {"hidden_size": 12, "mlp_dim": 24, "num_layers": 2},
    "unetr": {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12},
    "swin_unetr": {"window_size": 2, "depths": [1, 1, 1, 1]},
    "swin_unet": {"embed_dim": 12, "window_size": 3},
    "transunet": {
        "channels": [4, 4, 8, 8],
        "hidden_size": 12,
        "mlp_dim": 12,
        "num_layers": 2,
        "decoder_channels": [8, 4, 4, 4],
    },
}


def job_for(name, arguments=None, *, crop=(64, 64), normalisation=None):
    kind = "segmentation" if "segmentation" in zoo.MODELS[name].tasks else "classification"
    return Job.model_validate(
        {
            "name": "test",
            "task": {"kind": kind, "classes": ["a", "b", "c"]},
            "data": {"spatial_dims": len(crop), "crop": list(crop)},
            "model": {
                "name": name,
                "arguments": SMALL[name] if arguments is None else arguments,
                "normalisation": normalisation,
            },
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


def test_the_logits_of_a_vit_come_alone_and_are_not_squashed():
    network = zoo.build(job_for("vit", crop=(16, 16)))
    with torch.no_grad():
        network.classification_head.bias.fill_(7.0)
        assert network(torch.rand(2, 1, 16, 16)).min() > 5


@pytest.mark.parametrize("name", ["vit", "unetr", "transunet"])
def test_the_norm_that_monai_never_uses_is_gone(name):
    names = [entry.name for entry in schema(zoo.build(job_for(name)))]
    assert any("blocks.1.norm2" in name for name in names)
    assert [name for name in names if "cross_attn" in name] == []


@pytest.mark.parametrize("name", ["swin_unetr", "swin_unet"])
def test_the_index_buffers_of_swin_stay_at_home_and_are_the_same_everywhere(name):
    job = job_for(name)
    sender, receiver = zoo.build(job), zoo.build(job)
    expected = {key: tensor.clone() for key, tensor in sender.state_dict().items() if "position_index" in key}
    assert expected
    assert {entry.name for entry in schema(sender) if entry.kind == "constant"} == set(expected)
    assert set(travelling(sender)).isdisjoint(expected)
    load(receiver, {key: array + 1 for key, array in travelling(sender).items()})
    assert all(torch.equal(receiver.state_dict()[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "crop", "patches"), [("vit", (8, 16), 8), ("unetr", (32, 64), 8), ("transunet", (32, 64), 8)]
)
def test_a_position_is_learned_for_every_patch_of_the_crop_and_for_no_other_size(name, crop, patches):
    network = zoo.build(job_for(name, crop=crop))
    positions = [p for key, p in network.named_parameters() if key.endswith("position_embeddings")]
    assert [tuple(p.shape) for p in positions] == [(1, patches, 12)]
    assert network(torch.rand(2, 1, *crop)).shape[:2] == (2, 3)
    with pytest.raises(RuntimeError, match="must match the size"):
        network(torch.rand(2, 1, 2 * crop[0], crop[1]))


@pytest.mark.parametrize("name", ["unetr", "swin_unetr", "transunet"])
def test_instance_norm_is_affine_and_travels(name):
    network = zoo.build(job_for(name))
    layers = [module for module in network.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert layers
    assert all(layer.affine for layer in layers)


@pytest.mark.parametrize("name", SMALL)
def test_layer_norm_stays_whatever_the_job_chooses(name):
    kinds = [
        sum(isinstance(module, nn.LayerNorm) for module in zoo.build(job_for(name, normalisation=choice)).modules())
        for choice in ("instance", "batch", "none")
    ]
    assert kinds[0] > 0
    assert len(set(kinds)) == 1


@pytest.mark.parametrize("name", SMALL)
def test_a_step_in_mixed_precision_is_finite(name):
    network = zoo.build(job_for(name)).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.rand(2, 1, 64, 64))
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_every_parameter_of_the_second_swin_unetr_is_trained():
    network = zoo.build(job_for("swin_unetr", SMALL["swin_unetr"] | {"use_v2": True}))
    network(torch.rand(1, 1, 64, 64)).sum().backward()
    assert any("layers1c" in key for key, _ in network.named_parameters())
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def test_an_expanded_patch_stays_where_it_was():
    expand = PatchExpand(8, 4, scale=2)
    patches = torch.zeros(1, 3, 5, 8)
    patches[0, 1, 3] = torch.rand(8)
    finer = expand(patches)
    assert finer.shape == (1, 6, 10, 4)
    assert (finer[0].abs().sum(-1) > 0).nonzero().tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]


def test_the_decoder_of_a_transunet_gets_every_token_back_in_its_place():
    class NoTransformer(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2), []

    network = zoo.build(job_for("transunet", SMALL["transunet"] | {"hidden_size": 8, "num_heads": 2}, crop=(32, 64)))
    network.transformer = NoTransformer()
    seen = []
    network.stages[-1].register_forward_hook(lambda _, __, deepest: seen.append(deepest))
    network.bridge.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(torch.rand(1, 1, 32, 64))
    assert seen[0].shape == (1, 8, 2, 4)
    assert torch.equal(*seen)


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("vit", (28, 28)),
        ("vit", (32, 48, 32)),
        ("unetr", (96, 96)),
        ("unetr", (32, 48, 32)),
        ("swin_unetr", (96, 96)),
        ("swin_unetr", (32, 64, 32)),
        ("swin_unet", (96, 96)),
        ("transunet", (96, 96)),
    ],
)
def test_the_defaults_fit_the_public_data_sets_and_a_cpu(name, crop):
    network = zoo.build(job_for(name, {}, crop=crop))
    assert 1e6 < sum(parameter.numel() for parameter in network.parameters()) < 7e6


@pytest.mark.parametrize(
    ("name", "arguments", "crop", "sentence"),
    [
        ("unetr", {}, (32, 40), "every axis must be a multiple of 16, the size of a patch"),
        ("unetr", {"num_heads": 5}, (32, 32), "hidden_size 96 must be a multiple of num_heads 5"),
        ("swin_unetr", {}, (32, 48, 32), "every axis must be a multiple of 32, as the image is halved five times"),
        ("swin_unetr", {}, (32, 32, 32), "one voxel is left at the deepest layer, too few for instance norm"),
        ("swin_unetr", {"feature_size": 20}, (64, 64), "model.arguments.feature_size: .*multiple of 12, found 20"),
        ("swin_unetr", {"num_heads": [3, 5, 3, 3]}, (64, 64), "stage 2 is 24 wide, which num_heads 5 does not divide"),
        ("swin_unet", {}, (48, 48), "every axis must be a multiple of 32: patches of 4, halved behind every stage"),
        ("swin_unet", {"depths": [2, 2]}, (64, 64), "2 depths need as many num_heads, found 4"),
        ("transunet", {}, (24, 32), "every axis must be a multiple of 16"),
        ("transunet", {}, (16, 16), "one voxel is left at the deepest layer, too few for instance norm"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(name, arguments, crop, sentence):
    with pytest.raises(BadInput, match=sentence):
        zoo.check(job_for(name, arguments, crop=crop))


@pytest.mark.parametrize(("name", "crop"), [("swin_unetr", (32, 32, 32)), ("transunet", (16, 16))])
def test_one_voxel_at_the_deepest_layer_is_enough_for_group_norm(name, crop):
    network = zoo.build(job_for(name, crop=crop, normalisation="group"))
    assert network(torch.rand(2, 1, *crop)).shape == (2, 3, *crop)
