"""The networks that make images: GANs, whose parts are what their tasks expect, and autoencoders."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_federation import Share
from shared_models.weights import schema
from shared_models.zoo import pyramid
from shared_models.zoo.adversarial import Adversarial

TASKS = {
    "pix2pix": {"kind": "translation", "how": {"mode": "paired"}},
    "cyclegan": {"kind": "translation", "how": {"mode": "unpaired", "domains": ["a", "b"]}},
    "dcgan": {"kind": "synthesis", "classes": ["dark", "bright"]},
    "autoencoder": {"kind": "anomaly", "classes": ["normal", "other"]},
    "vae": {"kind": "anomaly", "classes": ["normal", "other"]},
}
SMALL = {
    "pix2pix": {"channels": [4, 8, 8], "discriminator_channels": 4, "discriminator_layers": 2},
    "cyclegan": {"channels": 4, "blocks": 1, "discriminator_channels": 4, "discriminator_layers": 2},
    "dcgan": {"latent": 4, "channels": 4},
    "autoencoder": {"latent": 4, "channels": 4},
    "vae": {"latent": 4, "channels": 4},
}


def job_for(name, arguments=None, *, crop=(16, 16), normalisation=None):
    return Job.model_validate(
        {
            "name": "test",
            "task": TASKS[name],
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


@pytest.mark.parametrize(
    ("name", "generators", "discriminators"),
    [
        ("pix2pix", ("generator",), ("discriminator",)),
        ("cyclegan", ("generator_ab", "generator_ba"), ("discriminator_a", "discriminator_b")),
        ("dcgan", ("generator",), ("discriminator",)),
    ],
)
def test_a_gan_names_its_networks_and_can_keep_its_discriminators_at_home(name, generators, discriminators):
    network = zoo.build(job_for(name))
    assert isinstance(network, Adversarial)
    assert (network.generators, network.discriminators) == (generators, discriminators)
    assert {key for key, _ in network.named_children()} == {*generators, *discriminators}
    entries = schema(network, Share(networks="generators"))
    assert {entry.name.split(".")[0] for entry in entries if entry.travels} == set(generators)
    assert {entry.name.split(".")[0] for entry in entries if not entry.travels} == set(discriminators)


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan", "dcgan"])
def test_the_weights_of_a_gan_begin_as_in_the_papers(name):
    network = zoo.build(job_for(name, {}, crop=(32, 32)))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.weight.numel() > 1000:
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("name", "first"), [("pix2pix", "generator"), ("cyclegan", "generator_ab")])
def test_a_translating_gan_translates_by_its_first_generator_to_any_intensity(name, first):
    network = zoo.build(job_for(name)).eval()
    generator, images = network.get_submodule(first), torch.randn(2, 1, 16, 16)
    assert torch.equal(network(images), generator(images))
    with torch.no_grad():
        list(generator.parameters())[-1].fill_(-5.0)  # the bias of the last convolution: no tanh is behind it
        assert network(images).mean() < -3


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan"])
def test_a_discriminator_judges_patches_of_70_pixels_as_in_the_papers_by_one_tensor_of_logits(name):
    job = job_for(name, SMALL[name] | {"discriminator_layers": 3}, crop=(128, 128), normalisation="none")
    discriminator = zoo.build(job).get_submodule(zoo.build(job).discriminators[0])
    images = torch.rand(1, 2 if name == "pix2pix" else 1, 128, 128, requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (1, 1, 14, 14)
    assert logits.min() < 0
    (logits[0, 0, 7, 7] * 1e6).backward()
    assert (images.grad[0, 0].abs().sum(0) > 0).sum() == 70


def test_the_generator_of_a_dcgan_listens_to_noise_and_class_and_keeps_to_its_range():
    noise, dark, bright = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    images = {}
    for output in ("sigmoid", "linear"):
        network = zoo.build(job_for("dcgan", SMALL["dcgan"] | {"output": output})).eval()
        assert network.generator.latent == 4
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(30)
        images[output] = network.generator(noise, dark)
        assert images[output].shape == (3, 1, 16, 16)
        assert not torch.equal(images[output], network.generator(noise, bright))
        assert not torch.equal(images[output], network.generator(noise + 1, dark))
        logits = network.discriminator(images[output], dark)
        assert logits.shape == (3,)
        assert not torch.equal(logits, network.discriminator(images[output], bright))
    assert 0 <= images["sigmoid"].min() <= images["sigmoid"].max() <= 1
    assert images["linear"].min() < 0


def test_a_dcgan_learns_which_class_is_bright():
    network = zoo.build(job_for("dcgan", {"latent": 4, "channels": 16}))
    generator, discriminator = network.generator, network.discriminator
    steps = [torch.optim.Adam(part.parameters(), 2e-3, betas=(0.5, 0.999)) for part in (generator, discriminator)]
    torch.manual_seed(0)
    classes = torch.arange(16) % 2
    for _ in range(200):
        images = 0.2 + 0.6 * classes.view(-1, 1, 1, 1) + 0.05 * torch.rand(16, 1, 16, 16)
        made = generator(torch.randn(16, 4), classes)
        for player, step in enumerate(steps):
            if player == 0:
                loss = F.softplus(-discriminator(made, classes)).mean()
            else:
                made = made.detach()
                loss = (F.softplus(-discriminator(images, classes)) + F.softplus(discriminator(made, classes))).mean()
            step.zero_grad()
            loss.backward()
            step.step()
    with torch.no_grad():
        means = generator(torch.randn(16, 4), classes).mean((1, 2, 3))
    assert means[classes == 0].max() < 0.4
    assert means[classes == 1].min() > 0.6


def test_an_autoencoder_learns_what_it_is_shown_and_gives_no_distribution():
    network = zoo.build(job_for("autoencoder", {"latent": 8, "channels": 8}))
    images = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)).repeat_interleave(4, 2)
    images = images.repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(80):
        reconstruction, mean, log_variance = network.train()(images)
        assert mean is None
        assert log_variance is None
        loss = F.mse_loss(reconstruction, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert F.mse_loss(network.eval()(images), images) < 0.1 * images.var()


def test_a_vae_draws_in_training_and_judges_by_the_mean():
    network, images = zoo.build(job_for("vae")), torch.rand(2, 1, 16, 16)
    first, second = network.train()(images), network(images)
    assert not torch.equal(first[0], second[0])
    assert first[1].shape == first[2].shape == (2, 4)
    assert torch.equal(first[1], second[1])
    network.eval()
    assert torch.equal(network(images), network.decoder(first[1]))
    with torch.no_grad():  # the log-variance is that of the draws
        network.log_variance.bias.fill_(-60.0)
        assert torch.allclose(network.train()(images)[0], network.decoder(first[1]), atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_a_step_in_mixed_precision_is_finite(name):
    network, images, classes = zoo.build(job_for(name)).train(), torch.rand(2, 1, 16, 16), torch.tensor([0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        if name == "pix2pix":
            outputs = [network.discriminator(torch.cat([images, network(images)], 1))]
        elif name == "cyclegan":
            outputs = [network.discriminator_b(network(images)), network.discriminator_a(network.generator_ba(images))]
        elif name == "dcgan":
            outputs = [network.discriminator(network.generator(torch.randn(2, 4), classes), classes)]
        else:
            outputs = [output for output in network(images) if output is not None]
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("crop", "levels", "deepest"),
    [
        ((16, 16), 2, [4, 4]),
        ((28, 28), 2, [7, 7]),
        ((96, 96), 4, [6, 6]),
        ((32, 48, 32), 3, [4, 6, 4]),
        ((512, 512), 7, [4, 4]),
    ],
)
def test_an_image_is_halved_down_to_a_few_voxels(crop, levels, deepest):
    widths = pyramid.widths(crop, 3)
    assert widths == [3, 6, 12, 24, 24, 24, 24][:levels]
    assert pyramid.deepest(crop, widths) == deepest


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("pix2pix", (96, 96)),
        ("cyclegan", (96, 96)),
        ("cyclegan", (32, 48, 32)),
        ("dcgan", (96, 96)),
        ("dcgan", (32, 48, 32)),
        ("autoencoder", (32, 48, 32)),
        ("vae", (96, 96)),
    ],
)
def test_the_defaults_fit_the_public_data_sets_and_a_cpu(name, crop):
    network = zoo.build(job_for(name, {}, crop=crop))
    assert 5e5 < sum(parameter.numel() for parameter in network.parameters()) < 7e6


@pytest.mark.parametrize(
    ("name", "arguments", "crop", "sentence"),
    [
        (
            "pix2pix",
            {},
            (28, 28),
            "every axis must be a multiple of 16: the image is halved between two of the channels",
        ),
        ("pix2pix", {}, (16, 16), "one voxel is left at the deepest layer, too few for instance norm"),
        ("pix2pix", {"channels": [4, 8]}, (16, 32), "3 discriminator_layers need at least 24 voxels along every axis"),
        ("cyclegan", {}, (30, 32), "every axis must be a multiple of 4, as the generators halve the image twice"),
        ("cyclegan", {}, (16, 32), "3 discriminator_layers need at least 24 voxels along every axis"),
        ("dcgan", {}, (30, 32), "every axis must be a multiple of 4 and at least 16"),
        ("vae", {}, (12, 32), "every axis must be a multiple of 4 and at least 16"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(name, arguments, crop, sentence):
    with pytest.raises(BadInput, match=sentence):
        zoo.check(job_for(name, arguments, crop=crop))


@pytest.mark.parametrize(
    ("name", "arguments", "crop"),
    [
        ("pix2pix", {"channels": [4, 8, 8]}, (28, 28)),
        ("cyclegan", SMALL["cyclegan"] | {"discriminator_layers": 1}, (8, 8)),
        ("dcgan", SMALL["dcgan"], (28, 28)),
    ],
)
def test_small_images_are_reached_by_arguments(name, arguments, crop):
    network = zoo.build(job_for(name, arguments, crop=crop))
    given = (torch.randn(2, 4), torch.tensor([0, 1])) if name == "dcgan" else (torch.rand(2, 1, *crop),)
    assert network(*given).shape == (2, 1, *crop)
    if name != "dcgan":
        channels = 2 if name == "pix2pix" else 1
        discriminator = network.get_submodule(network.discriminators[0])
        assert discriminator(torch.rand(2, channels, *crop)).isfinite().all()
