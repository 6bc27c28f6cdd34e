"""The choice of normalisation layers reaches all of a network and changes nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_models.zoo.normalisation import normalise


def network_of(*layers: nn.Module) -> nn.Module:
    """Layers deep inside, under names that say nothing."""
    return nn.Sequential(nn.Conv2d(1, 12, 1), nn.ModuleDict({"adn": nn.Sequential(*layers)}))


EVERY_KIND = (
    nn.BatchNorm1d(12),
    nn.BatchNorm2d(12),
    nn.BatchNorm3d(12),
    nn.InstanceNorm1d(12),
    nn.InstanceNorm2d(12),
    nn.InstanceNorm3d(12, affine=True),
)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("batch", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"] * 2),
        ("instance", ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"] * 2),
        ("group", ["GroupNorm"] * 6),
        ("none", ["Identity"] * 6),
    ],
)
def test_every_layer_is_replaced_by_one_of_as_many_dimensions(choice, expected):
    network = normalise(network_of(*EVERY_KIND), choice, 2)
    assert [type(layer).__name__ for layer in network[1]["adn"]] == expected


def test_group_norm_becomes_a_layer_of_the_images_dimensions():
    network = normalise(network_of(nn.GroupNorm(4, 12)), "instance", 3)
    assert isinstance(network[1]["adn"][0], nn.InstanceNorm3d)


def test_instance_norm_can_be_trained():
    layer = normalise(nn.InstanceNorm2d(5), "instance", 2)
    assert [tuple(parameter.shape) for parameter in layer.parameters()] == [(5,), (5,)]


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 3), (8, 8), (12, 6), (13, 1), (16, 8), (20, 5)])
def test_groups_are_the_most_up_to_eight_that_divide_the_channels(channels, groups):
    layer = normalise(nn.BatchNorm2d(channels), "group", 2)
    assert (layer.num_groups, layer.num_channels) == (groups, channels)


def test_layer_norms_and_all_other_weights_stay():
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
    kept = [network[0].weight, network[1], network[2].weight]
    normalise(network, "group", 2)
    assert network[0].weight is kept[0] and network[1] is kept[1] and network[2].weight is kept[2]


def test_a_block_under_two_names_stays_one_block():
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network = normalise(nn.ModuleDict({"first": block, "again": nn.Sequential(block)}), "instance", 2)
    assert network["first"] is network["again"][0]
    assert isinstance(network["first"][1], nn.InstanceNorm2d)


@pytest.mark.parametrize("choice", ["instance", "group", "none"])
def test_what_replaces_batch_norm_judges_an_image_alone(choice):
    network = normalise(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), choice, 2)
    images = torch.rand(3, 1, 8, 8)
    together = network(images)
    assert torch.allclose(together[:1], network(images[:1]), atol=1e-6)
    assert torch.equal(network.eval()(images), together)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="a normalisation is one of batch, instance, group, none, found 'layer'"):
        normalise(nn.BatchNorm2d(4), "layer", 2)
