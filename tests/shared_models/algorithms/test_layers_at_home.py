"""FedPer, FedRep, FedBN and SiloBN as a hospital runs them: what travels, what stays, and what is trained when."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from client.app import train
from client.own_tensors import read_own
from client.site import Site
from client.training import make_optimizers, train_round
from client.warm import data_of
from server.aggregation import RunningSum
from shared_models.algorithms.local_round import LocalRound
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.tasks.classification import Classification
from shared_models.weights import fingerprint, from_record, load, to_record, travelling
from shared_models.zoo import build

HEAD = {"head.weight", "head.bias"}
SCALE_AND_SHIFT, STATISTICS = {"block1.1.weight", "block1.1.bias"}, {"block1.1.running_mean", "block1.1.running_var"}
REST = {"block1.0.weight", "block1.0.bias", "hidden.1.weight", "hidden.1.bias"}
STAYS = {"fedper": HEAD, "fedrep": HEAD, "fedbn": SCALE_AND_SHIFT | STATISTICS, "silobn": STATISTICS}


def job(name, **training):
    return Job.model_validate(
        {
            "name": "at-home",
            "seed": 3,
            "task": {"kind": "classification", "classes": ["small", "large"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"},
            "training": {"optimizer": {"learning_rate": 0.02, "weight_decay": 0.1}, "batch_size": 4, **training},
            "federation": {"rounds": 3, "algorithm": name if isinstance(name, dict) else {"name": name}},
        }
    )


@pytest.fixture
def sites(tmp_path):
    """North has eight training patients, south twelve, with other images."""
    found = []
    for name, count in (("north", 8), ("south", 12)):
        folder = tmp_path / name
        folder.mkdir()
        np.savez(folder / "data.npz", images=np.random.default_rng(count).integers(0, 255, (count, 8, 8), np.uint8))
        rows = [f"p{i},data.npz::images[{i}],{i % 2},train" for i in range(count)]
        (folder / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
        found.append(Site(name, folder / "manifest.csv", folder, folder / "cache"))
    return found


def asked(at, job, weights, number):
    """The answer to a training message: the weights, and what they count."""
    instruction = ConfigRecord({"round": number, "last_used": number - 1, "best_used": 0, "algorithm_since": 0})
    answer = train(at, job, RecordDict({"instruction": instruction, "weights": to_record(weights)}))
    sent = {name: array.copy() for name, array in from_record(answer["weights"]).items()}
    return sent, answer["numbers"]["weight"]


@pytest.mark.parametrize("name", STAYS)
def test_a_site_goes_on_with_what_is_its_own_and_the_mean_of_the_rest(sites, name):
    """Written out: every site has a whole model, of which what travels is replaced by the mean in every round."""
    rules = job(name, local_steps=4)
    whole = {site.name: {n: array.copy() for n, array in travelling(build(rules)).items()} for site in sites}
    travels = whole["north"].keys() - STAYS[name]
    assert whole["north"].keys() == HEAD | SCALE_AND_SHIFT | STATISTICS | REST
    shared = {n: whole["north"][n] for n in travels}
    for number in (1, 2, 3):
        mean = RunningSum()
        for site in sites:  # one process serves both in turn, with one network
            sent, weight = asked(site, rules, shared, number)
            network = build(rules)
            load(network, whole[site.name] | shared)
            local = LocalRound(network, rules, rules.federation.algorithm)
            optimizers = make_optimizers(network, rules, task_of(rules))
            train_round(
                network, optimizers, data_of(site, rules), rules, task_of(rules), site.name, number, local=local
            )
            whole[site.name] = {n: array.copy() for n, array in travelling(network).items()}
            kept = read_own(site, rules, number).model
            assert sent.keys() == travels and kept.keys() == STAYS[name]
            assert fingerprint(sent | kept) == fingerprint(whole[site.name])
            mean.add(site.name, sent, weight)
        shared = mean.take_mean()
    for n in STAYS[name]:
        assert not np.array_equal(whole["north"][n], whole["south"][n])


def test_layers_at_home_are_those_of_the_shared_model_where_a_site_has_a_personal_one_as_well(sites):
    """Ditto trains its personal model in the network that the shared one was in."""
    plain, ditto = (
        job({"name": name}, local_steps=4).model_dump() | {"name": f"at-home-{name}"} for name in ("fedavg", "ditto")
    )
    kept = []
    for content in (plain, ditto):
        content["federation"]["share"]["normalisation"] = "nothing"
        rules = Job.model_validate(content)
        site = replace(sites[0], own=sites[0].folder / rules.name)
        shared = travelling(build(rules), rules.federation.share)
        asked(site, rules, shared, 1)
        kept.append(read_own(site, rules, 1))
    assert kept[0].model.keys() == SCALE_AND_SHIFT | STATISTICS
    assert fingerprint(kept[0].model) == fingerprint(kept[1].model)
    assert fingerprint({n: kept[1].personal[n] for n in kept[1].model}) != fingerprint(kept[1].model)


# --- fedrep, algorithm 1: some steps of the head with the body as it came, then of the body with the new head ---


class Watched(Classification):
    """Notes the model before every step."""

    def __init__(self, section):
        super().__init__(section)
        self.seen = []

    def step_loss(self, network, batch, player):
        self.seen.append({n: array.copy() for n, array in travelling(network).items()})
        return super().step_loss(network, batch, player)


def moved(site, rules, network=None):
    """For every step of a round, the tensors that an optimiser changed in it."""
    network, task = network or build(rules), Watched(rules.task)
    local = LocalRound(network, rules, rules.federation.algorithm)
    train_round(
        network, make_optimizers(network, rules, task), data_of(site, rules), rules, task, "north", 1, local=local
    )
    models = [*task.seen, {n: array.copy() for n, array in travelling(network).items()}]
    trained = models[0].keys() - STATISTICS
    return [
        {n for n in trained if not np.array_equal(before[n], after[n])} for before, after in itertools.pairwise(models)
    ]


@pytest.mark.parametrize(
    ("steps", "share", "head_steps"),
    [(10, 0.5, 5), (10, 0.3, 3), (4, 0.9, 3), (10, 0.01, 1), (2, 0.01, 1), (2, 0.99, 1), (3, 0.99, 2)],
)
def test_fedrep_first_trains_the_head_alone_and_then_the_body_alone(sites, steps, share, head_steps):
    """Weight decay and momentum included: what is not trained now does not move at all."""
    rules = job({"name": "fedrep", "head_share": share}, local_steps=steps)
    body = SCALE_AND_SHIFT | REST
    assert moved(sites[0], rules) == [HEAD] * head_steps + [body] * (steps - head_steps)


def test_fedrep_trains_the_head_for_half_of_the_steps_where_the_job_does_not_say(sites):
    assert moved(sites[0], job("fedrep", local_steps=6)) == [HEAD] * 3 + [SCALE_AND_SHIFT | REST] * 3


def test_fedrep_trains_both_at_once_where_a_hospitals_epoch_is_a_single_step(sites):
    (both,) = moved(sites[0], job("fedrep", local_epochs=1, batch_size=8))
    assert both == HEAD | SCALE_AND_SHIFT | REST


def test_fedrep_steps_down_the_gradient_of_the_part_that_it_trains(sites):
    """Plain SGD, two steps on the whole of the data: one of the head, one of the body behind the new head."""
    optimizer = {"name": "sgd", "learning_rate": 0.1}
    rules = job("fedrep", optimizer=optimizer, local_steps=2, batch_size=8)
    sent, _ = asked(sites[0], rules, {n: a for n, a in travelling(build(rules)).items() if n not in HEAD}, 1)
    found = sent | read_own(sites[0], rules, 1).model
    network, data, task = build(rules), data_of(sites[0], rules), task_of(rules)
    samples = [data.load(case) for case in data.cases("train")]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in ("image", "label")}
    parameters = dict(network.named_parameters())
    for part in (HEAD, parameters.keys() - HEAD):
        gradients = torch.autograd.grad(task.step_loss(network, batch, "network"), list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if name in part:
                    parameter.sub_(0.1 * gradient)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), rtol=1e-4, atol=1e-6)
