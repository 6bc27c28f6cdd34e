"""What a site makes of a model before it judges it: fine-tuned, calibrated, adapted, and the mean of several."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.site import Site
from client.training import judge_cases, make_optimizers, train_round
from client.variants import adapt_statistics, best_temperature, fine_tune, judge_ensemble, make_variant
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.weights import fingerprint, load, running_norms, travelling
from shared_models.zoo import build

TRAIN, VALIDATION = 21, 12


def job_of(normalisation=None, classes=2, batch_size=8, seed=0):
    return Job.model_validate(
        {
            "name": "variants",
            "seed": seed,
            "task": {"kind": "classification", "classes": [f"class-{k}" for k in range(classes)]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": normalisation},
            "training": {"local_epochs": 6, "batch_size": batch_size, "optimizer": {"learning_rate": 0.01}},
            "federation": {"rounds": 2},
            "evaluation": {"bootstrap": 0},
        }
    )


@pytest.fixture
def site(tmp_path) -> Site:
    """Squares, small and large, in noise that hides a few."""
    rng = np.random.default_rng(0)
    images = rng.normal(100, 40, (TRAIN + VALIDATION + 4, 16, 16))
    for i, image in enumerate(images):
        image[2 : 6 + 2 * (i % 2), 2 : 6 + 2 * (i % 2)] += 60
    np.savez(tmp_path / "data.npz", images=images.clip(0, 255).astype(np.uint8))
    splits = ["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * 4
    rows = [f"p{i},data.npz::images[{i}],{i % 2},{split}" for i, split in enumerate(splits)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
    return Site("here", manifest, tmp_path, tmp_path / "cache")


def data_of(site: Site, job: Job) -> SiteData:
    return SiteData(site.manifest, job, site.name, CaseCache(site.cache, 2**24), report_folder=site.folder)


def trained(job: Job, data: SiteData, rounds: int = 1) -> nn.Module:
    network, task = build(job), task_of(job)
    for number in range(1, rounds + 1):
        train_round(network, make_optimizers(network, job, task), data, job, task, "here", number)
    return network


def probabilities(network: nn.Module, data: SiteData, job: Job, split: str = "validation") -> np.ndarray:
    records = judge_cases(network, data, data.cases(split), job, task_of(job))
    return np.array([record.values["probabilities"] for record in records])


# --- adapted ---


def first_pair(network: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return convolution, running_norms(network)[0]


@pytest.mark.parametrize("batch_size", [TRAIN, TRAIN // 3])
def test_adapted_statistics_are_the_mean_and_variance_over_the_sites_own_images(site, batch_size):
    job = job_of("batch", batch_size=batch_size)
    data, network = data_of(site, job), build(job)
    convolution, norm = first_pair(network)
    images = torch.stack([data.load(case)["image"] for case in data.cases("train")])
    with torch.no_grad():
        before = convolution(images)  # what the first normalisation layer sees
    adapt_statistics(network, data, site, job)
    # Batches of equal size: the mean of their means is the mean of all, however they were drawn.
    torch.testing.assert_close(norm.running_mean, before.mean(dim=(0, 2, 3)))
    if batch_size == TRAIN:
        torch.testing.assert_close(norm.running_var, before.var(dim=(0, 2, 3)))
    else:
        assert not torch.allclose(norm.running_var, torch.ones(4))


def test_adapting_changes_statistics_alone_and_leaves_the_layers_as_they_were(site):
    job = job_of("batch")
    data, network = data_of(site, job), build(job)
    before = {name: array.copy() for name, array in travelling(network).items()}
    adapt_statistics(network, data, site, job)
    changed = {name for name, array in travelling(network).items() if not np.array_equal(array, before[name])}
    assert changed == {name for name in before if "running_" in name}
    assert all(norm.momentum == 0.1 and not norm.training for norm in running_norms(network))
    first = fingerprint(travelling(network))
    adapt_statistics(network, data, site, job)
    assert fingerprint(travelling(network)) == first  # nothing is left of what was there before


def test_adapting_does_not_look_at_masks(tmp_path):
    job = Job.model_validate(
        {
            "name": "masks",
            "task": {"kind": "segmentation", "classes": ["background", "square"]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}, "normalisation": "batch"},
            "training": {"local_steps": 1, "batch_size": 4},
            "federation": {"rounds": 1},
        }
    )
    rng, found = np.random.default_rng(0), []
    images = rng.integers(0, 255, (8, 32, 32), dtype=np.uint8)
    for corner in (0, 28):
        folder = tmp_path / str(corner)
        folder.mkdir()
        masks = np.zeros((8, 32, 32), np.uint8)
        masks[:, corner : corner + 4, corner : corner + 4] = 1
        np.savez(folder / "data.npz", images=images, masks=masks)
        rows = [f"p{i},data.npz::images[{i}],data.npz::masks[{i}],train" for i in range(8)]
        (folder / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
        here, network = Site("here", folder / "manifest.csv", folder, folder / "cache"), build(job)
        adapt_statistics(network, data_of(here, job), here, job)
        found.append(fingerprint(travelling(network)))
    assert found[0] == found[1]


def test_a_network_without_running_statistics_cannot_be_adapted(site):
    job = job_of("instance")
    with pytest.raises(Fault, match="no running statistics"):
        make_variant("adapted", build(job), data_of(site, job), site, job, task_of(job), 1)


# --- temperature ---


def negative_log_likelihood(found: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(found[np.arange(len(labels)), labels]).mean())


def surer(network: nn.Module, times: float) -> None:
    """Multiplies the logits."""
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.mul_(times)


def test_a_temperature_lowers_the_loss_on_validation_and_changes_no_decision(site):
    mislabelled = f"p{TRAIN},data.npz::images[{TRAIN}]"  # there is a temperature only where someone is wrong
    site.manifest.write_text(site.manifest.read_text().replace(f"{mislabelled},1", f"{mislabelled},0"))
    job = job_of()
    data = data_of(site, job)
    network = trained(job, data, rounds=2)
    surer(network, 30)
    before = probabilities(network, data, job)
    tempered = make_variant("temperature", network, data, site, job, task_of(job), 1)
    after = probabilities(tempered, data, job)
    labels = np.array([int(case.label) for case in data.cases("validation")])
    assert (before.argmax(axis=1) != labels).any()
    assert negative_log_likelihood(after, labels) < negative_log_likelihood(before.clip(1e-12), labels)
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_temperature_that_made_probabilities_wrong_is_found(exclusive):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    if exclusive:
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = (chances.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    else:
        labels = (rng.random((4000, 3)) < 1 / (1 + np.exp(-logits))).astype(float)
    for wrong in (0.5, 1.0, 3.0):
        found = best_temperature(torch.tensor(logits * wrong), torch.tensor(labels))
        assert found == pytest.approx(wrong, rel=0.07)


@pytest.mark.parametrize("sign", [1, -1])
def test_validation_patients_that_are_all_right_or_all_wrong_give_no_temperature(site, sign):
    """Else every probability of the site's test patients would become 0 or 1, or all would be the same."""
    job = job_of()
    data = data_of(site, job)
    network = trained(job, data, rounds=4)
    labels = np.array([int(case.label) for case in data.cases("validation")])
    assert (probabilities(network, data, job).argmax(axis=1) == labels).all()
    surer(network, sign * 0.1)
    with pytest.raises(Fault, match="no temperature is best") as fault:
        make_variant("temperature", network, data, site, job, task_of(job), 1)
    assert fault.value.parameters == {"reason": "no_temperature"}


@pytest.mark.parametrize("labels", [[0, 1, 0], [[1, 0], [0, 1], [1, 0]]])
def test_a_temperature_is_finite_as_soon_as_one_patient_is_wrong(labels):
    right, wrong = torch.tensor([[2.0, -2.0], [-2.0, 2.0], [2.0, -2.0]]), torch.tensor([[-1.0, 1.0]])
    truth = torch.tensor(labels)
    with pytest.raises(Fault):
        best_temperature(right.double(), truth)
    assert 0.1 < best_temperature(torch.cat([right, wrong]).double(), torch.cat([truth, truth[:1]])) < 10


def test_a_temperature_needs_validation_patients(site):
    site.manifest.write_text(site.manifest.read_text().replace(",validation", ",test"))
    job = job_of()
    with pytest.raises(Fault, match="no validation patients"):
        make_variant("temperature", build(job), data_of(site, job), site, job, task_of(job), 1)


# --- fine-tuned ---


def test_fine_tuning_trains_once_and_is_found_again(site):
    job = job_of()
    data, network = data_of(site, job), build(job)
    start = {name: array.copy() for name, array in travelling(network).items()}
    fine_tune(network, data, site, job, task_of(job))
    tuned = fingerprint(travelling(network))
    assert tuned != fingerprint(start)
    [path] = site.own.glob("fine-tuned-*.safetensors")
    assert fingerprint(load_file(path)) == tuned
    save_file({name: np.zeros_like(array) for name, array in start.items()}, path)
    load(network, start)
    fine_tune(network, data, site, job, task_of(job))
    assert not any(array.any() for array in travelling(network).values())  # read, not trained
    other = build(job_of(seed=1))
    fine_tune(other, data, site, job, task_of(job))
    [of_other] = site.own.glob("fine-tuned-*.safetensors")  # another model is tuned for itself, and takes its place
    assert of_other != path and fingerprint(load_file(of_other)) == fingerprint(travelling(other))


def test_a_schedule_that_ends_at_nothing_leaves_something_to_tune_with(site):
    job = Job.model_validate(
        {
            **job_of().model_dump(),
            "training": {"local_steps": 3, "optimizer": {"name": "sgd", "learning_rate": 0.1, "schedule": "cosine"}},
            "federation": {"rounds": 40},
        }
    )
    data, network, last = data_of(site, job), build(job), build(job)
    start = travelling(build(job))
    fine_tune(network, data, site, job, task_of(job))
    train_round(last, make_optimizers(last, job, task_of(job)), data, job, task_of(job), site.name, 40)
    moved = [max(np.abs(array - start[n]).max() for n, array in travelling(net).items()) for net in (network, last)]
    assert moved[0] > 10 * moved[1]


# --- ensemble ---


def test_an_ensemble_is_the_mean_of_its_members_probabilities(site):
    job = job_of(classes=3)
    data, networks = data_of(site, job), [build(job_of(classes=3, seed=seed)) for seed in (1, 2, 3)]
    members = [{name: array.copy() for name, array in travelling(network).items()} for network in networks]
    records = judge_ensemble(build(job), members, data, data.cases("test"), job, task_of(job))
    found = np.array([record.values["probabilities"] for record in records])
    singles = [probabilities(network, data, job, "test") for network in networks]
    assert not np.allclose(singles[0], singles[1], atol=1e-3)
    np.testing.assert_allclose(found, np.mean(singles, axis=0), atol=1e-6)
    assert [record.case for record in records] == [case.id for case in data.cases("test")]
