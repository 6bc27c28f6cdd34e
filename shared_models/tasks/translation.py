"""Translation: every image becomes another one, by a generator that a discriminator is trained against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_tasks import PairedTranslation, TranslationTask, UnpairedTranslation
from shared_models.seeds import derive_seed
from shared_models.tasks.adversarial import cross_entropy, not_trained
from shared_models.tasks.image_metrics import MeanOverCases, likeness, median_filtered
from shared_models.tasks.segmenter import mean_dice, task_for, trained_segmenter
from shared_models.tasks.shape import tiled
from shared_models.tasks.task import Batch, CaseRecord, MetricInfo, Sample, Task, check_finite


def translation(section: TranslationTask) -> Task:
    """The task of a job's section."""
    return Paired(section.how) if section.how.mode == "paired" else Unpaired(section.how)


class Paired(MeanOverCases):
    """Pix2Pix (Isola et al. 2017, "Image-to-image translation with conditional adversarial networks").

    The network has the children `generator`, images (B, C, *crop) to images, and `discriminator`, an image and its
    translation stacked (B, 2C, *crop) to logits. With `noise`, the image that is translated is made of its target
    (the denoising of additive white Gaussian noise): in training with a new draw each time, and in judging with one
    that belongs to the case, so that all models and rounds are judged on the same images.

    A record's `values` hold "psnr" (dB), "ssim" and "l1" of the translated image, the same with `_source` of the image
    as it was, and, with noise, with `_median` of a median filter three voxels wide: what a model has to beat.
    """

    def __init__(self, section: PairedTranslation) -> None:
        self.noise, self.l1_weight = section.noise, section.l1_weight
        names = {"": "", "_source": ", untouched source"}
        if self.noise:
            names["_median"] = ", median filter"
        self.measures = {f"{m}{end}": _likeness(m, name, not end) for end, name in names.items() for m in _LIKENESS}

    def players(self, network: nn.Module) -> dict[str, list[nn.Parameter]]:
        """The generator first: the discriminator's step looks at what it has made."""
        return {name: list(network.get_submodule(name).parameters()) for name in ("generator", "discriminator")}

    def step_loss(self, network: nn.Module, batch: Batch, player: str) -> Tensor:
        """Isola et al. 2017, eq. 4, where the generator goes up log D instead of down log(1 - D), and the
        discriminator's objective is halved (section 3.3).

        Args:
            batch: "image" and "label", the target, both (B, C, *crop); with noise the image is not looked at.
        """
        discriminator = network.get_submodule("discriminator")
        if player == "generator":
            target = batch["label"]
            batch["source"] = target + self.noise * torch.randn_like(target) if self.noise else batch["image"]
            translated = network.get_submodule("generator")(batch["source"])
            batch["translated"] = translated.detach()
            with not_trained(discriminator):
                logits = discriminator(torch.cat([batch["source"], translated], dim=1))
            return cross_entropy(logits, 1.0) + self.l1_weight * F.l1_loss(translated.float(), target)
        real = discriminator(torch.cat([batch["source"], batch["label"]], dim=1))
        made = discriminator(torch.cat([batch["source"], batch["translated"]], dim=1))
        return (cross_entropy(real, 1.0) + cross_entropy(made, 0.0)) / 2

    def present(self, sample: Sample) -> Sample:
        """With noise, the image is the target with the noise that belongs to this case."""
        if not self.noise:
            return sample
        generator = torch.Generator().manual_seed(derive_seed(0, "noise", sample["id"]))
        target = sample["label"]
        return {**sample, "image": target + self.noise * torch.randn(target.shape, generator=generator)}

    @torch.no_grad()
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """The translated images, (B, C, *spatial) like the images; larger ones than data.crop in windows."""
        network.eval()
        return tiled(network.get_submodule("generator"), images, job.data.crop).float()

    def judge(self, probabilities: Tensor, sample: Sample) -> CaseRecord:
        """PSNR, SSIM and L1 of one case.

        Args:
            probabilities: the translated image (C, *spatial).
            sample: "image", as it was presented, and "label", the target, both (C, *spatial); "id" and "patient".
        """
        target = sample["label"].cpu()
        _check_shape(probabilities, tuple(target.shape), sample["id"])
        check_finite(probabilities, sample["id"])
        compared = {"": probabilities, "_source": sample["image"].cpu()}
        if self.noise:
            compared["_median"] = median_filtered(compared["_source"])
        values: dict[str, list[float | None]] = {
            f"{measure}{end}": [value]
            for end, image in compared.items()
            for measure, value in likeness(image, target).items()
        }
        return CaseRecord(sample["id"], sample["patient"], values)


class Unpaired(MeanOverCases):
    """CycleGAN (Zhu et al. 2017, "Unpaired image-to-image translation using cycle-consistent adversarial networks").

    The network has the children `generator_ab`, `generator_ba`, `discriminator_a` and `discriminator_b`; a is the
    first domain, b the second. The paper's pool of 50 earlier translations (section 4) is left out: it would have to
    stay at the site from round to round. Batches hold both domains in their proportions. A batch (at a site with one
    scanner, every batch) that has one domain only trains what can be trained with it: both generators, the
    discriminator of this domain on real images, and that of the other on translated ones.

    A record's `values` hold, for cases of the first domain, "cycle_psnr" (dB) and "cycle_ssim" of the image
    translated there and back; with masks also "dice_before" and "dice_after", the mean Dice over classes of a
    segmenter of the second domain on the image and on its translation. "dice_second" is that of the segmenter on
    cases of its own domain, which no translation can be expected to pass. None for the cases of the other domain, and
    Dice at a site without training cases of the second domain: there is no segmenter.
    """

    mixes_labels = True

    def __init__(self, section: UnpairedTranslation) -> None:
        first, second = section.domains
        self.section = section
        self.measures = {
            "cycle_psnr": _metric(f"PSNR of {first}, there and back", True, True, "dB"),
            "cycle_ssim": _metric(f"SSIM of {first}, there and back", True, True),
        }
        if section.mask:
            self.measures |= {
                "dice_after": _metric(f"Dice of a segmenter of {second} on translated {first}", True, True),
                "dice_before": _metric(f"Dice of a segmenter of {second} on {first}", True, True),
                "dice_second": _metric(f"Dice of a segmenter of {second} on {second}", True, False),
            }

    def players(self, network: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Both generators together, then both discriminators, which look at what those have made."""
        children = {
            "generators": ("generator_ab", "generator_ba"),
            "discriminators": ("discriminator_a", "discriminator_b"),
        }
        return {
            player: [parameter for name in names for parameter in network.get_submodule(name).parameters()]
            for player, names in children.items()
        }

    def step_loss(self, network: nn.Module, batch: Batch, player: str) -> Tensor:
        """Zhu et al. 2017, eq. 3 with the least squares of section 4 and the identity loss of section 5.2.

        Every image counts the same: with as many of one domain as of the other, the sum is the paper's.

        Args:
            batch: "image" (B, C, *crop) and "label" (B,), 0 for the first domain and 1 for the second.
        """
        total = torch.zeros((), device=batch["image"].device)
        for index, (own, other) in enumerate((("a", "b"), ("b", "a"))):
            images = batch["image"][batch["label"] == index]
            if not len(images):
                continue
            if player == "generators":
                loss, batch[f"translated_{other}"] = self._generators_loss(network, images, own, other)
            else:
                real = network.get_submodule(f"discriminator_{own}")(images)
                made = network.get_submodule(f"discriminator_{other}")(batch[f"translated_{other}"])
                loss = (_squares(real, 1.0) + _squares(made, 0.0)) / 2
            total = total + loss * (2 * len(images) / len(batch["image"]))
        return total

    def _generators_loss(self, network: nn.Module, images: Tensor, own: str, other: str) -> tuple[Tensor, Tensor]:
        """The loss of one direction, and what was made of the images (detached)."""
        there, back = (network.get_submodule(f"generator_{way}") for way in (own + other, other + own))
        discriminator = network.get_submodule(f"discriminator_{other}")
        translated = there(images)
        with not_trained(discriminator):
            loss = _squares(discriminator(translated), 1.0)
        loss = loss + self.section.cycle_weight * F.l1_loss(back(translated).float(), images)
        if self.section.identity_weight:
            loss = loss + self.section.identity_weight * F.l1_loss(back(images).float(), images)
        return loss, translated.detach()

    def ready(self, network: nn.Module, training: Sequence[Sample], job: Job, seed: int) -> nn.Module:
        """With masks, the network and a segmenter trained on the site's training cases of the second domain."""
        if not self.section.mask:
            return network
        second = [sample for sample in training if int(sample["label"]) == 1]
        if not second:
            return network
        device = next(network.parameters()).device
        steps, classes = self.section.segmenter_steps, self.section.mask_classes
        return _Judged(network, trained_segmenter(second, classes, job, steps, seed, device))

    @torch.no_grad()
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """Images translated as if they were of the first domain, and what there is to judge them by.

        Returns:
            (B, 2C, *spatial): translated, and translated back. With a segmenter (B, 2C + 2, *spatial): behind these
            the label values that it finds in the image and in the translated image.
        """
        network.eval()
        of = network.network if isinstance(network, _Judged) else network
        translated = tiled(of.get_submodule("generator_ab"), images, job.data.crop)
        parts = [translated, tiled(of.get_submodule("generator_ba"), translated, job.data.crop)]
        if isinstance(network, _Judged):
            segmentation = task_for(self.section.mask_classes)
            for seen in (images, translated):
                parts.append(segmentation.infer(network.segmenter, seen, job).argmax(dim=1, keepdim=True))
        return torch.cat([part.float() for part in parts], dim=1)

    def judge(self, probabilities: Tensor, sample: Sample) -> CaseRecord:
        """What is defined for the domain of one case, see the class.

        Args:
            probabilities: of one case, as `infer` gives it.
            sample: "image" (C, *spatial), "label", the domain, with masks "mask" (1, *spatial), "id" and "patient".
        """
        image = sample["image"].cpu()
        segmented = len(probabilities) == 2 * len(image) + 2
        _check_shape(probabilities, (2 * len(image) + 2 * segmented, *image.shape[1:]), sample["id"])
        check_finite(probabilities, sample["id"])
        found: dict[str, float | None] = {}
        first = int(sample["label"]) == 0
        if first:
            likely = likeness(probabilities[len(image) : 2 * len(image)], image)
            found |= {"cycle_psnr": likely["psnr"], "cycle_ssim": likely["ssim"]}
        if segmented:
            mask = sample["mask"][0].cpu()
            before, after = (mean_dice(labels, mask) for labels in probabilities[-2:])
            found |= {"dice_before": before, "dice_after": after} if first else {"dice_second": before}
        return CaseRecord(sample["id"], sample["patient"], {name: [found.get(name)] for name in self.measures})


class _Judged(nn.Module):
    """A network, and the segmenter that judges what it makes."""

    def __init__(self, network: nn.Module, segmenter: nn.Module) -> None:
        super().__init__()
        self.network, self.segmenter = network, segmenter


def _squares(logits: Tensor, answer: float) -> Tensor:
    """Least squares (Mao et al. 2017): the discriminator's output is held against the answer as it is."""
    return ((logits.float() - answer) ** 2).mean()


def _check_shape(found: Tensor, expected: tuple[int, ...], case: str) -> None:
    if tuple(found.shape) != expected:
        raise BadInput(f"Case {case}: the network's output has shape {tuple(found.shape)}, expected {expected}.")


_LIKENESS: dict[str, tuple[str, bool, str]] = {
    "psnr": ("PSNR", True, "dB"),
    "ssim": ("SSIM", True, ""),
    "l1": ("L1", False, ""),
}


def _likeness(measure: str, of: str, headline: bool) -> MetricInfo:
    label, larger, unit = _LIKENESS[measure]
    return _metric(f"{label}{of}", larger, headline and measure != "l1", unit)


def _metric(label: str, larger_is_better: bool, headline: bool, unit: str = "") -> MetricInfo:
    return {"label": label, "larger_is_better": larger_is_better, "unit": unit, "headline": headline}
