"""What a site makes of a model before it judges it, with nothing leaving: see `shared_models.comparisons.VARIANTS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save
from torch import Tensor, nn

from client.data.dataset import SiteData
from client.data.manifest import Case
from client.data.patches import random_patch
from client.own_tensors import personal_model
from client.site import Site
from client.training import infer_cases, make_optimizers, memory_layout, train_round
from shared_models.faults import Fault
from shared_models.files import whole_file
from shared_models.job import Job
from shared_models.seeds import derive_seed
from shared_models.tasks import CaseRecord, Task
from shared_models.weights import Weights, fingerprint, load, running_norms, travelling

LARGEST_TEMPERATURE = 100.0


def make_variant(
    variant: str, network: nn.Module, data: SiteData, site: Site, job: Job, task: Task, last_used: int
) -> nn.Module:
    """What is judged in the place of a network, which may be changed in place.

    Args:
        variant: a key of VARIANTS; "" is the network as it is.
        last_used: see `load_own`.

    Raises:
        Fault: this site cannot make it.
    """
    if variant == "fine_tuned":
        fine_tune(network, data, site, job, task)
    elif variant == "personalised":
        personal = personal_model(site, job, last_used)
        if personal is None:
            raise Fault("this site has no personal model: it was in no round yet", "variant", reason="no_personal")
        load(network, personal)
    elif variant == "adapted":
        adapt_statistics(network, data, site, job)
    elif variant == "temperature":
        return Tempered(network, fit_temperature(network, data, job, task))
    elif variant:
        raise Fault(f"there is no variant {variant!r} of a model", "message")
    return network


def keep_model(network: nn.Module, site: Site, job: Job, variant: str) -> None:
    """Writes the model that the do-no-harm gate chose for this site, whole: `kept.safetensors`."""
    weights = travelling(network)
    notes = {"job_hash": job.fingerprint(), "variant": variant, "fingerprint": fingerprint(weights)}
    _write(site.own / "kept.safetensors", weights, notes)


def fine_tune(network: nn.Module, data: SiteData, site: Site, job: Job, task: Task) -> None:
    """One more round of local steps on this site's own training patients, without an algorithm's correction.

    The learning rate is that of the middle round: a schedule's last is too small to tune with. Whether it did any good
    is for the do-no-harm gate to see. What comes out is kept at the site until another model is tuned, so that the same
    one is not trained again when it is judged on another split.
    """
    start = {name: array.copy() for name, array in travelling(network).items()}
    path = site.own / f"fine-tuned-{fingerprint(start)[:16]}.safetensors"
    if path.exists():
        load(network, load_safetensors(path.read_bytes()))
        return
    middle = (job.federation.rounds + 1) // 2
    train_round(network, make_optimizers(network, job, task), data, job, task, site.name, middle)
    network.zero_grad(set_to_none=True)
    for other in site.own.glob("fine-tuned-*.safetensors"):  # or who asks with many models fills the disk
        other.unlink()
    _write(path, travelling(network), {})


@torch.no_grad()
def adapt_statistics(network: nn.Module, data: SiteData, site: Site, job: Job) -> None:
    """Replaces the running statistics of normalisation layers by those of this site's own training images.

    Li et al. 2016, "Revisiting batch normalization for practical domain adaptation" (AdaBN), algorithm 1. One pass in
    batches of equal size; a layer's mean and variance are the plain means of those of the batches. Labels are not
    looked at, and everything but the normalisation is as when the network is judged.
    """
    norms = running_norms(network)
    if not norms:
        raise Fault("this network has no running statistics", "variant", reason="no_statistics")
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain mean of all batches
        norm.train()
    rng = np.random.default_rng(derive_seed(job.seed, "adapted", site.name))
    device = next(network.parameters()).device
    for batch in _batches(data.cases("train"), max(2, job.training.batch_size), rng):
        images = torch.stack([_unlabelled_patch(data, case, job, rng) for case in batch])
        network(images.to(device, memory_format=memory_layout(job)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def _batches(cases: Sequence[Case], size: int, rng: np.random.Generator) -> list[list[Case]]:
    """All cases once, in batches of nearly equal size."""
    order = rng.permutation(len(cases))
    parts = np.array_split(order, max(1, round(len(cases) / size)))
    return [[cases[index] for index in part] for part in parts]


def _unlabelled_patch(data: SiteData, case: Case, job: Job, rng: np.random.Generator) -> Tensor:
    """(C, *crop): as for training, but at a position that no mask has a say in."""
    sample = data.load(case)
    if job.task.label == "mask":
        sample = {**sample, "label": torch.zeros_like(sample["label"])}
    image: Tensor = random_patch(sample, job, rng)["image"]
    return image


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature: Guo et al. 2017, "On calibration of modern neural
    networks", section 4.2. The most probable class stays the same.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images, both as the network has them."""
        logits: Tensor = self.network(images) / self.temperature
        return logits


def fit_temperature(network: nn.Module, data: SiteData, job: Job, task: Task) -> float:
    """The temperature with the least negative log-likelihood on this site's validation patients.

    Raises:
        Fault: it has none, or see `best_temperature`.
    """
    cases, found = data.cases("validation"), []
    if not cases:
        raise Fault("there are no validation patients to fit a temperature on", "variant", reason="no_validation")
    hook = network.register_forward_hook(lambda module, inputs, logits: found.append(logits.detach().cpu().double()))
    try:
        labels = [torch.as_tensor(sample["label"]) for sample, _ in infer_cases(network, data, cases, job, task)]
    finally:
        hook.remove()
    return best_temperature(torch.cat(found), torch.stack(labels))


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Minimises the negative log-likelihood, which is convex in 1 / temperature.

    Args:
        logits: (N, classes), float64.
        labels: (N,) integers for exclusive classes, (N, classes) of 0 and 1 otherwise.

    Raises:
        Fault: there is no best one. Where every case is right, a smaller one is always better, and every probability
            would become 0 or 1; where the right classes' logits are no higher than the others on average, a larger one.
    """
    from scipy.optimize import minimize_scalar

    exclusive = labels.ndim == 1
    margins = logits.gather(1, labels[:, None]) - logits if exclusive else logits * (2 * labels - 1)
    if (margins >= 0).all() or margins.mean() <= 0:  # at 1 / temperature = 0 the slope of the loss is minus their mean
        text = "no temperature is best for these validation patients: all are right, or they are no better than chance"
        raise Fault(text, "variant", reason="no_temperature")

    def loss(inverse: float) -> float:
        if exclusive:
            return float(nn.functional.cross_entropy(logits * inverse, labels))
        return float(nn.functional.binary_cross_entropy_with_logits(logits * inverse, labels.double()))

    bounds = (1 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE)
    return 1 / float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def judge_ensemble(
    network: nn.Module, members: Sequence[Weights], data: SiteData, cases: Sequence[Case], job: Job, task: Task
) -> list[CaseRecord]:
    """What the mean of the members' probabilities does on each case, in order.

    A few cases at a time, so that no more than their probabilities are in memory.
    """
    records: list[CaseRecord] = []
    for start in range(0, len(cases), task.judged_together):
        some = cases[start : start + task.judged_together]
        samples, total = [], [torch.zeros(()) for _ in some]
        for weights in members:
            load(network, weights)
            found = list(infer_cases(network, data, some, job, task))
            samples = [sample for sample, _ in found]
            total = [sum_ + probabilities for sum_, (_, probabilities) in zip(total, found, strict=True)]
        records += [task.judge(sum_ / len(members), sample) for sum_, sample in zip(total, samples, strict=True)]
    return records


def _write(path: Path, weights: Weights, notes: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(save(weights, metadata=notes))
