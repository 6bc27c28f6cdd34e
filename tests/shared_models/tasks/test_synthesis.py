"""Synthesis: what synthetic images are worth, and whether they are copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.tasks.nearest import TrainingImages
from shared_models.tasks.synthesis import synthesise
from shared_models.zoo import build

SIZE = 16


def job_with(**task: Any) -> Job:
    return Job.model_validate(
        {
            "name": "synthesis",
            "task": {"kind": "synthesis", "classes": ["fine", "coarse"], "classifier_steps": 60, **task},
            "data": {"spatial_dims": 2, "crop": [SIZE, SIZE], "normalisation": "none"},
            "model": {"name": "dcgan", "arguments": {"latent": 4, "channels": 4}},
            "training": {"local_steps": 1, "batch_size": 8},
            "federation": {"rounds": 1},
        }
    )


def textures(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 1, 16, 16) of waves with a random phase and much noise: three periods in class 1, four in class 0."""
    phase = 6.28 * torch.rand(len(classes), 1, 1, 1, generator=generator)
    periods = torch.where(classes == 1, 3.0, 4.0)[:, None, None, None]
    wave = torch.sin(phase + torch.arange(SIZE) * 6.28 / SIZE * periods).expand(-1, 1, SIZE, SIZE)
    return wave + 0.7 * torch.randn(wave.shape, generator=generator)


def samples(number: int, seed: int) -> list[dict[str, Any]]:
    """Cases of a patient each, of both classes in turn."""
    classes = torch.arange(number) % 2
    images = textures(classes, torch.Generator().manual_seed(seed))
    return [
        {"image": image, "label": label, "id": f"{seed}-{i}", "patient": f"patient {seed}-{i}"}
        for i, (image, label) in enumerate(zip(images, classes, strict=True))
    ]


class Stand(nn.Module):
    """A network whose generator is given: noise and classes to images."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.generator = Generator(make)


class Generator(nn.Module):
    latent = 2

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make, self.weight = make, nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        return self.make(classes)


def judged(make: Any, training: list[dict[str, Any]], **task: Any) -> dict[str, float]:
    """Metrics of a generator on 120 held-out cases."""
    job = job_with(**task)
    held_out, the_task = samples(120, seed=1), task_of(job)
    ready = the_task.ready(Stand(make), training, job, seed=5)
    said = the_task.infer(ready, torch.stack([sample["image"] for sample in held_out]), job)
    records = [the_task.judge(row, sample) for row, sample in zip(said, held_out, strict=True)]
    sums = the_task.sums(records, np.ones((1, len(records))))
    assert the_task.counts(sums)["memorised"] == len(records)
    return {name: float(values[0]) for name, values in the_task.metrics(sums).items()}


def test_right_images_are_worth_something_and_noise_is_not() -> None:
    """Noise beside few images regularises a little, by 0.03 on average here: it must stay far below right images."""
    torch.set_num_threads(1)
    generator, right, noise = torch.Generator().manual_seed(7), [], []
    for site in (10, 11, 12):
        few = samples(12, seed=site)
        right.append(judged(lambda classes: textures(classes, generator), few))
        noise.append(judged(lambda classes: torch.randn(len(classes), 1, SIZE, SIZE, generator=generator), few))
        assert right[-1]["auroc_without_synthetic"] == noise[-1]["auroc_without_synthetic"], "the first is the same"
    gains = [float(np.mean([found["auroc_gain"] for found in of])) for of in (right, noise)]
    assert gains[0] > 0.2 and gains[1] < gains[0] / 4
    with_right, without = (
        np.mean([found[f"balanced_accuracy_{arm}"] for found in right])
        for arm in ("with_synthetic", "without_synthetic")
    )
    assert with_right > without + 0.1


def test_wrong_labels_do_harm() -> None:
    generator = torch.Generator().manual_seed(7)
    swapped = judged(lambda classes: textures(1 - classes, generator), samples(60, seed=0), classifier_steps=120)
    assert swapped["auroc_gain"] < -0.05


def test_a_generator_that_repeats_training_images_is_found_out_and_one_that_makes_new_ones_is_not() -> None:
    generator, training = torch.Generator().manual_seed(7), samples(200, seed=0)
    images = torch.stack([sample["image"] for sample in training])

    def repeat(classes: Tensor) -> Tensor:
        of_class = 2 * torch.randint(100, classes.shape, generator=generator) + classes
        return images[of_class] + 0.01 * torch.randn(len(classes), 1, SIZE, SIZE, generator=generator)

    copies = judged(repeat, training, classifier_steps=1)
    new = judged(lambda classes: textures(classes, generator), training, classifier_steps=1)
    assert copies["memorised"] == 1.0 and copies["nearest_synthetic"] < 0.02
    assert new["memorised"] < 0.06 and new["memorised_control"] == copies["memorised_control"] < 0.06
    assert new["nearest_synthetic"] == pytest.approx(new["nearest_real"], rel=0.05)


def test_what_is_too_near_is_what_real_images_of_different_patients_do_not_come() -> None:
    training = samples(40, seed=0)
    for first, second in zip(training[::2], training[1::2], strict=True):  # a patient's two images are all but equal
        second |= {"patient": first["patient"], "image": first["image"] + 0.001}
    real = TrainingImages(training, [SIZE, SIZE])
    distances, indices = real.nearest(torch.stack([training[3]["image"], training[8]["image"] - 0.25]))
    assert indices.tolist() == [3, 8]
    assert distances.tolist() == pytest.approx([0, 0.25], abs=1e-6)
    assert real.too_near > 0.3, "another image of the same patient is no measure"
    one = [sample | {"patient": "the only one"} for sample in training]
    assert np.isnan(TrainingImages(one, [SIZE, SIZE]).too_near)


def test_sums_of_two_sites_are_those_of_both_together_and_the_gain_is_paired() -> None:
    task, rng = task_of(job_with(images_per_class=3)), np.random.default_rng(0)
    records = []
    for sample in samples(30, seed=0):
        p, q = rng.random(2)
        row = torch.tensor([p, 1 - p, q, 1 - q, rng.random(), 0.3, *rng.random(6)], dtype=torch.float32)
        records.append(task.judge(row, sample))
    weights = rng.integers(0, 3, (5, 30)).astype(float)
    both, one, two = (
        task.sums([records[i] for i in chosen], weights[:, chosen]) for chosen in (range(30), range(11), range(11, 30))
    )
    assert all(np.array_equal(both[name], one[name] + two[name]) for name in both)
    metrics = task.metrics(both)
    gained = metrics["auroc_with_synthetic"] - metrics["auroc_without_synthetic"]
    assert np.array_equal(metrics["auroc_gain"], gained) and len(set(gained)) > 1
    assert len(set(metrics["memorised"])) > 1, "the share of memorised images has an interval"


def test_at_a_site_with_one_patient_memorisation_is_undefined() -> None:
    task = task_of(job_with(images_per_class=1))
    row = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.2, float("nan"), 0.1, 0.1])
    record = task.judge(row, samples(1, seed=0)[0])
    assert record.values["memorised"] == [None]
    sums = task.sums([record], np.ones((1, 1)))
    assert np.isnan(task.metrics(sums)["memorised"][0]) and task.counts(sums)["memorised"] == 0
    assert task.counts(sums)["nearest_synthetic"] == 1


def test_each_player_trains_its_own_network_and_the_zoo_fits() -> None:
    job = job_with()
    task, network = task_of(job), build(job)
    network.train()
    batch = {"image": torch.rand(4, 1, SIZE, SIZE), "label": torch.tensor([0, 1, 1, 0])}
    assert list(task.players(network)) == ["generator", "discriminator"]
    for player in task.players(network):
        network.zero_grad()
        task.step_loss(network, batch, player).backward()
        trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
        assert trained == {player}
    images, classes = synthesise(network, 2, 3, seed=1)
    assert images.shape == (6, 1, SIZE, SIZE) and classes.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images, synthesise(network, 2, 3, seed=1)[0])
    assert not torch.equal(images, synthesise(network, 2, 3, seed=2)[0])


def test_every_metric_is_shown_and_counted_and_the_first_one_selects() -> None:
    job = job_with()
    task = task_of(job)
    sums = task.sums([], np.ones((4, 0)))
    metrics, info = task.metrics(sums), task.metric_info()
    assert set(metrics) == set(info) == set(task.counts(sums))
    assert all(len(values) == 4 and np.isnan(values).all() for values in metrics.values())
    assert next(iter(info)) == job.selection_metric() and info[job.selection_metric()]["larger_is_better"]
