"""Synthesis: a generator makes labelled images, judged by what they are worth to a site and by what they give away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_tasks import ClassificationTask, SynthesisTask
from shared_models.seeds import derive_seed
from shared_models.tasks.adversarial import cross_entropy, not_trained
from shared_models.tasks.classification import Classification
from shared_models.tasks.classifiers import trained_classifiers
from shared_models.tasks.nearest import TrainingImages
from shared_models.tasks.sums import ratio, weighted_sums
from shared_models.tasks.task import Batch, CaseRecord, MetricInfo, Sample, Sums, Task, check_finite

ARMS = {"without_synthetic": "without synthetic images", "with_synthetic": "with synthetic images"}
DISTANCES = ("nearest_real", "nearest_synthetic", "memorised", "memorised_control")
_AT_ONCE = 64


class Synthesis(Task):
    """Images by class, from a generative adversarial network (Goodfellow et al. 2014, Mirza & Osindero 2014).

    The network has the children `generator`, with the length of its noise as `latent`, noise (B, latent) and classes
    (B,) to images (B, C, *crop), and `discriminator`, images and classes to logits (B,). It makes images as the job
    normalises them: minmax and percentile suit a generator whose output ends at 0 and 1.

    Whenever a model is judged, it makes `images_per_class` images of every class at the site, the same ones at all
    sites. Two small classifiers are trained on the site's training cases, one without and one with these images, and
    say of every judged case what it is: what the images are worth is the difference. With few real images even noise
    regularises a classifier a little, so that a gain of a few hundredths is no proof of good images. Pooled over
    sites, the AUROC is that of cases each of which the classifier of its own site has judged.

    Whether the generator repeats training images is a question to images, not to cases. So every judged case stands
    beside one synthetic image of its class, drawn by the id of the case, and of both it is recorded how near they come
    to the nearest training image of this site (see `TrainingImages`); the interval of the answer is then that of so
    many draws. A site only knows its own training images: a copy of another site's is found there.

    A record's `values`: "without_synthetic" and "with_synthetic", the probabilities of both classifiers, one per class;
    "label", [index]; "nearest_real" and "nearest_synthetic", the distances of the case and of the synthetic image to
    the nearest training image; "memorised" and "memorised_control", 1 where these are too near, else 0, and None at a
    site with one patient.
    """

    judged_together = 64

    def __init__(self, section: SynthesisTask) -> None:
        self.classes, self.section = section.classes, section
        self._classification = Classification(ClassificationTask(kind="classification", classes=section.classes))

    def players(self, network: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The generator first: the discriminator's step looks at what it has made."""
        return {name: list(network.get_submodule(name).parameters()) for name in ("generator", "discriminator")}

    def step_loss(self, network: nn.Module, batch: Batch, player: str) -> Tensor:
        """Goodfellow et al. 2014, eq. 1, given the class (Mirza & Osindero 2014, eq. 2).

        The generator goes up log D instead of down log(1 - D) (section 3 of the former). It makes images of the
        classes of the batch; the discriminator's loss is the mean over real and made ones.

        Args:
            batch: "image" (B, C, *crop) and "label" (B,), int64.
        """
        discriminator, classes = network.get_submodule("discriminator"), batch["label"]
        if player == "generator":
            generator = network.get_submodule("generator")
            noise = torch.randn(len(classes), cast(int, generator.latent), device=classes.device)
            made = generator(noise, classes)
            batch["made"] = made.detach()
            with not_trained(discriminator):
                return cross_entropy(discriminator(made, classes), 1.0)
        real, made = discriminator(batch["image"], classes), discriminator(batch["made"], classes)
        return (cross_entropy(real, 1.0) + cross_entropy(made, 0.0)) / 2

    def ready(self, network: nn.Module, training: Sequence[Sample], job: Job, seed: int) -> nn.Module:
        """The two classifiers, and how near synthetic images come to those of the site."""
        real = TrainingImages(training, job.data.crop)
        images, classes = synthesise(network, len(self.classes), self.section.images_per_class, seed)
        device, steps = next(network.parameters()).device, self.section.classifier_steps
        classifiers = trained_classifiers(training, real.labels, (images, classes), job, steps, seed, device)
        return _Judge(classifiers, real, real.nearest(images)[0])

    @torch.no_grad()
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """What both classifiers say of images (B, C, *spatial), and how near they come to training images.

        Args:
            network: what `ready` gave.

        Returns:
            (B, 2 classes + 2 + classes · images_per_class), float32: the probabilities of both classifiers; the
            distance to the nearest training image; what is too near; and, the same for all, the distances of the
            synthetic images to theirs, class by class.
        """
        assert isinstance(network, _Judge)
        probabilities = [self._classification.infer(classifier, images, job) for classifier in network.classifiers]
        distance = network.real.nearest(images)[0][:, None]
        same = torch.cat([distance.new_tensor([network.real.too_near]), network.synthetic]).expand(len(images), -1)
        return torch.cat([*(each.cpu().float() for each in probabilities), distance.float(), same.float()], dim=1)

    def judge(self, probabilities: Tensor, sample: Sample) -> CaseRecord:
        """What the classifiers say of one case, and whether it and a synthetic image are too near to a training image.

        Args:
            probabilities: of one case, as `infer` gives it.
            sample: "label", "id" and "patient".
        """
        count, each = len(self.classes), self.section.images_per_class
        if tuple(probabilities.shape) != (2 * count + 2 + count * each,) or not 0 <= int(sample["label"]) < count:
            raise BadInput(
                f"Case {sample['id']}: {tuple(probabilities.shape)} values and the label {sample['label']} do not fit "
                f"a synthesis task with {count} classes and {each} images of each."
            )
        said, (real, too_near), made = probabilities.double().split([2 * count, 2, count * each])
        check_finite(torch.cat([said, real[None], made]), sample["id"])
        drawn = derive_seed(0, "synthetic image", sample["id"]) % each
        synthetic = made[int(sample["label"]) * each + drawn]
        values: dict[str, list[float | None]] = {
            **{arm: part.tolist() for arm, part in zip(ARMS, said.split(count), strict=True)},
            "label": [float(sample["label"])],
            "nearest_real": [float(real)],
            "nearest_synthetic": [float(synthetic)],
            "memorised": [_flag(synthetic, too_near)],
            "memorised_control": [_flag(real, too_near)],
        }
        return CaseRecord(sample["id"], sample["patient"], values)

    def sums(self, records: Sequence[CaseRecord], weights: np.ndarray) -> Sums:
        """For each replicate and classifier the sums of `Classification`, behind its name and a slash.

        Also Σ and, with `_n`, the number of cases of `DISTANCES`, each (replicates,).
        """
        sums: Sums = {}
        for arm in ARMS:
            said = [_classified(record, arm) for record in records]
            for name, values in self._classification.sums(said, weights).items():
                sums[name if name in ("cases", "patients") else f"{arm}/{name}"] = values
        for name in DISTANCES:
            terms = np.array([record.values[name][0] for record in records], dtype=float)
            sums[name] = weighted_sums(weights, terms)
            sums[f"{name}_n"] = weighted_sums(weights, np.isfinite(terms).astype(float))
        return sums

    def metrics(self, sums: Sums) -> dict[str, np.ndarray]:
        """AUROC and balanced accuracy of both classifiers, what the first gains, and the memorisation check.

        The gain is taken replicate by replicate: its interval is that of a paired comparison. nearest_synthetic and
        nearest_real are mean distances. memorised is the share of synthetic images that are too near to a training
        image; memorised_control that of held-out real ones, which is 1 % but for chance and for what differs between
        training and held-out patients.
        """
        judged = {arm: self._classification.metrics(_of_arm(sums, arm)) for arm in ARMS}
        metrics = {f"{name}_{arm}": judged[arm][name] for name in ("auroc", "balanced_accuracy") for arm in ARMS}
        metrics["auroc_gain"] = metrics["auroc_with_synthetic"] - metrics["auroc_without_synthetic"]
        return metrics | {name: ratio(sums[name], sums[f"{name}_n"]) for name in DISTANCES}

    def counts(self, sums: Sums) -> dict[str, int]:
        """Judged cases, or none for an AUROC without both kinds of cases."""
        first = {name: values[:1] for name, values in sums.items()}
        counts = {}
        for name, value in self.metrics(first).items():
            cases = sums[f"{name}_n" if name in DISTANCES else "cases"][0]
            counts[name] = int(cases) if np.isfinite(value[0]) else 0
        return counts

    def metric_info(self) -> dict[str, MetricInfo]:
        """Labels and directions."""
        rows: list[tuple[str, str, bool, bool]] = [
            ("auroc_with_synthetic", f"AUROC {ARMS['with_synthetic']}", True, True),
            ("auroc_without_synthetic", f"AUROC {ARMS['without_synthetic']}", True, True),
            ("auroc_gain", "AUROC gained by synthetic images", True, True),
            *((f"balanced_accuracy_{arm}", f"Balanced accuracy {text}", True, False) for arm, text in ARMS.items()),
            ("memorised", "Synthetic images too near to a training image (1 % of real ones are)", False, True),
            ("memorised_control", "Held-out images too near to a training image", False, False),
            ("nearest_synthetic", "Distance of synthetic images to the nearest training image", True, False),
            ("nearest_real", "Distance of held-out images to the nearest training image", True, False),
        ]
        return {
            name: {"label": label, "larger_is_better": larger, "unit": "", "headline": headline}
            for name, label, larger, headline in rows
        }


class _Judge(nn.Module):
    """What cases are judged with at a site."""

    def __init__(self, classifiers: tuple[nn.Module, nn.Module], real: TrainingImages, synthetic: Tensor) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)
        self.real, self.synthetic = real, synthetic


@torch.no_grad()
def synthesise(network: nn.Module, classes: int, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """As many images of each class, (classes · number, C, *crop), class by class, and their classes; on the CPU.

    Args:
        network: with the child `generator`, which is switched to evaluation mode.
    """
    generator = network.get_submodule("generator").eval()
    device = next(generator.parameters()).device
    labels = torch.arange(classes).repeat_interleave(number)
    noise = torch.randn(len(labels), cast(int, generator.latent), generator=torch.Generator().manual_seed(seed))
    parts = zip(noise.split(_AT_ONCE), labels.split(_AT_ONCE), strict=True)
    return torch.cat([generator(z.to(device), k.to(device)).float().cpu() for z, k in parts]), labels


def _flag(distance: Tensor, too_near: Tensor) -> float | None:
    return None if too_near.isnan() else float(distance <= too_near)


def _classified(record: CaseRecord, arm: str) -> CaseRecord:
    values = {"probabilities": record.values[arm], "label": record.values["label"]}
    return CaseRecord(record.case, record.patient, values)


def _of_arm(sums: Sums, arm: str) -> Sums:
    own = {name.removeprefix(f"{arm}/"): values for name, values in sums.items() if name.startswith(f"{arm}/")}
    return {"cases": sums["cases"], **own}
