"""MOON's loss against eq. 3 of Li et al. 2021, written out in numpy from the features of three networks."""

import numpy as np
import pytest
import torch

from client.training import make_optimizers, train_round
from shared_models.algorithms.local_round import LocalRound
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.weights import fingerprint, load, travelling
from shared_models.zoo import build
from tests.shared_models.algorithms.quadratics import Blank

KINDS = {
    "classification": {
        "task": {"kind": "classification", "classes": ["a", "b"]},
        "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"},
    },
    "segmentation": {
        "task": {"kind": "segmentation", "classes": ["background", "organ"]},
        "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
    },
}


def job(kind="classification", share=None, **algorithm):
    return Job.model_validate(
        {
            "name": "moon",
            **KINDS[kind],
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "training": {"local_steps": 2, "batch_size": 4, "optimizer": {"name": "sgd", "learning_rate": 0.05}},
            "federation": {"rounds": 3, "algorithm": {"name": "moon", **algorithm}, "share": share or {}},
        }
    )


def network_apart(rules, seed):
    """The job's network with other weights, as another training would have left it."""
    network = build(rules)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def copied(network):
    return {name: array.copy() for name, array in travelling(network).items()}


def batch_for(kind):
    generator = torch.Generator().manual_seed(5)
    label = torch.randint(0, 2, (6,) if kind == "classification" else (6, 1, 8, 8), generator=generator)
    return {"image": torch.randn(6, 1, 8, 8, generator=generator), "label": label}


def second_round(rules, came, last_time):
    """A site's second round, as it begins: with the global model that came and the site's own of its first round."""
    algorithm = rules.federation.algorithm
    kept = algorithm.contribution(LocalRound(last_time, rules, algorithm)).kept
    network = build(rules)
    load(network, copied(came))  # the site's own layers, where it has some, are in it by then
    local = LocalRound(network, rules, algorithm, kept={name: array.copy() for name, array in kept.items()})
    algorithm.begin(local)
    network.train()
    return local


def drift(local, rules):
    """Local steps have led the network away from the model that came."""
    load(local.network, copied(network_apart(rules, 3)))


def features(network, image):
    """What goes into the head, as the zoo marks it, (B, C), averaged over space; the network's mode is as it was."""
    caught = []
    head = next(module for module in network.modules() if getattr(module, "is_head", False))
    handle = head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    network(image)
    handle.remove()
    return caught[0] if caught[0].ndim == 2 else caught[0].mean(dim=(2, 3))


def cosine(a, b):
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("mu", "temperature"), [(1.0, 0.5), (5.0, 0.2)])
def test_the_loss_is_the_tasks_and_mu_times_equation_3(kind, mu, temperature):
    rules, batch = job(kind, mu=mu, temperature=temperature), batch_for(kind)
    came, last_time, task = network_apart(rules, 1), network_apart(rules, 2), task_of(rules)
    local = second_round(rules, came, last_time)
    drift(local, rules)
    found, own = (loss.item() for loss in rules.federation.algorithm.step_loss(local, task, batch, "network"))
    with torch.no_grad():
        plain = task.step_loss(local.network, batch, "network").item()
        z = features(local.network, batch["image"]).numpy().astype(np.float64)
        # The other two are judged models: they do not learn, and use their running statistics.
        z_glob, z_prev = (features(n.eval(), batch["image"]).numpy().astype(np.float64) for n in (came, last_time))
    near, far = np.exp(cosine(z, z_glob) / temperature), np.exp(cosine(z, z_prev) / temperature)
    contrast = -np.log(near / (near + far)).mean()
    assert found == pytest.approx(plain + mu * contrast, rel=1e-5)
    assert abs(found - plain) > 0.1  # so that it says something
    assert own == plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_down_the_contrast_brings_the_features_to_the_global_models_and_away_from_the_last_ones(kind):
    rules, batch = job(kind), batch_for(kind)
    came, last_time, task = network_apart(rules, 1), network_apart(rules, 2), task_of(rules)
    local = second_round(rules, came, last_time)
    drift(local, rules)

    def similarities():
        with torch.no_grad():
            z = features(local.network, batch["image"]).numpy()
            return [cosine(z, features(n.eval(), batch["image"]).numpy()).mean() for n in (came, last_time)]

    parameters = list(local.network.parameters())
    with_it, _ = rules.federation.algorithm.step_loss(local, task, batch, "network")
    contrast = with_it - task.step_loss(local.network, batch, "network")
    gradients = torch.autograd.grad(contrast, parameters, allow_unused=True)
    near, far = similarities()
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.sub_(0.01 * gradient)
    nearer, farther = similarities()
    assert nearer > near and farther < far


def test_in_a_sites_first_round_the_loss_is_the_tasks_alone_and_its_model_stays_for_the_next():
    rules, batch = job(), batch_for("classification")
    algorithm, task, network = rules.federation.algorithm, task_of(rules), network_apart(rules, 1)
    local = LocalRound(network, rules, algorithm)
    algorithm.begin(local)
    found, own = algorithm.step_loss(local, task, batch, "network")
    assert found.item() == own.item() == task.step_loss(network, batch, "network").item()
    sent = algorithm.contribution(local)
    assert not sent.extra
    assert {name.removeprefix("previous/") for name in sent.kept} == travelling(network).keys()
    assert fingerprint({n.removeprefix("previous/"): a for n, a in sent.kept.items()}) == fingerprint(copied(network))


def test_what_stays_is_the_whole_model_as_it_was_sent_also_where_layers_are_a_sites_own():
    rules, batch = job(share={"heads": "nothing", "normalisation": "nothing"}), batch_for("classification")
    last_time = network_apart(rules, 2)
    algorithm, before = rules.federation.algorithm, copied(last_time)
    sent = algorithm.contribution(LocalRound(last_time, rules, algorithm))
    load(last_time, copied(network_apart(rules, 3)))  # the process trains another site's model in the same network
    assert sent.weights.keys() < before.keys()
    assert fingerprint({n.removeprefix("previous/"): a for n, a in sent.kept.items()}) == fingerprint(before)
    local = second_round(rules, network_apart(rules, 1), last_time)
    with_it, _ = algorithm.step_loss(local, task_of(rules), batch, "network")
    assert with_it.item() > task_of(rules).step_loss(local.network, batch, "network").item()


def test_the_two_models_that_it_compares_with_stay_as_they_are_while_the_site_trains():
    rules = job(mu=5.0)
    came, last_time = network_apart(rules, 1), network_apart(rules, 2)
    local = second_round(rules, came, last_time)
    task = task_of(rules)
    optimizers = make_optimizers(local.network, rules, task)
    train_round(local.network, optimizers, Blank(8), rules, task, "north", 2, local=local)
    others = [fingerprint(travelling(other)) for other in local.memory["others"]]
    assert others == [fingerprint(copied(came)), fingerprint(copied(last_time))]
    assert fingerprint(travelling(local.network)) not in others
    kept = rules.federation.algorithm.contribution(local).kept
    assert fingerprint({n.removeprefix("previous/"): a for n, a in kept.items()}) == fingerprint(copied(local.network))


def test_what_is_reported_is_the_tasks_loss_and_what_is_stepped_down_is_both():
    came, last_time = network_apart(job(), 1), network_apart(job(), 2)

    def one_step(mu):
        rules = job(mu=mu)
        local, task = second_round(rules, came, last_time), task_of(rules)
        optimizers = make_optimizers(local.network, rules, task)
        progress = train_round(local.network, optimizers, Blank(8), rules, task, "north", 2, steps=1, local=local)
        return progress.loss, fingerprint(travelling(local.network))

    (loss, weights), (plain, without_it) = one_step(mu=5.0), one_step(mu=0.0)
    assert loss == plain and weights != without_it
