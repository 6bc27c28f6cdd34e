"""Anomaly detection: a network that has seen normal images only cannot reconstruct what is not normal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_tasks import AnomalyTask
from shared_models.tasks import histograms
from shared_models.tasks.shape import tiled
from shared_models.tasks.sums import population, ratio, weighted_sums
from shared_models.tasks.task import Batch, CaseRecord, MetricInfo, Sample, Sums, Task, check_finite

LOWEST_ERROR, HIGHEST_ERROR = 1e-6, 1e3
"""Of the histograms, in squared units of the normalised intensities: errors beyond them fall into the last bins."""
BINS = 512
_EDGES = np.geomspace(LOWEST_ERROR, HIGHEST_ERROR, BINS + 1)[1:-1]  # a bin is 4 % wide


class Anomaly(Task):
    """Autoencoders (Baur et al. 2021, "Autoencoders for unsupervised anomaly segmentation in brain MR images").

    The network gives a reconstruction (B, C, *crop) in evaluation mode; in training (reconstruction, mean,
    log-variance), the last two None for an autoencoder that is not variational. It is trained on the cases of the first
    class alone, and the score of a case is the mean squared error of its reconstruction: the higher, the less normal.

    A record's `values`: "error", [mean squared error], and "label", [index].
    """

    across_classes = ("auroc", "average_precision")
    judged_together = 16

    def __init__(self, section: AnomalyTask) -> None:
        self.classes, self.divergence_weight = section.classes, section.divergence_weight

    def trains_on(self, label: str) -> bool:
        """Whether it is the first class, by name or by index."""
        return label == self.classes[0] or (label not in self.classes and label.isdecimal() and int(label) == 0)

    def step_loss(self, network: nn.Module, batch: Batch, player: str) -> Tensor:
        """Mean squared error, and for a variational autoencoder the divergence of its code (Kingma & Welling 2014).

        The divergence of eq. 10, summed over the code and divided by the voxels of an image, counts
        divergence_weight: the loss is the bound of eq. 10 for a decoder whose variance is half of that weight.

        Args:
            batch: "image" (B, C, *crop); the label is not looked at.
        """
        images = batch["image"]
        reconstruction, mean, log_variance = network(images)
        loss = F.mse_loss(reconstruction.float(), images)
        if mean is None:
            return loss
        mean, log_variance = mean.float(), log_variance.float()
        divergence: Tensor = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()
        return loss + self.divergence_weight * divergence / images[0].numel()

    @torch.no_grad()
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """The reconstructions, (B, C, *spatial) like the images; larger ones than data.crop in windows."""
        network.eval()
        return tiled(network, images, job.data.crop).float()

    def judge(self, probabilities: Tensor, sample: Sample) -> CaseRecord:
        """The error of one case.

        Args:
            probabilities: the reconstruction (C, *spatial).
            sample: "image" (C, *spatial), "label", "id" and "patient".
        """
        image = sample["image"].cpu()
        if probabilities.shape != image.shape:
            raise BadInput(
                f"Case {sample['id']}: the reconstruction has shape {tuple(probabilities.shape)}, the image "
                f"{tuple(image.shape)}; expected is a network that gives back images as they come."
            )
        check_finite(probabilities, sample["id"])
        error = float(squared_error(probabilities, image).mean())
        return CaseRecord(sample["id"], sample["patient"], {"error": [error], "label": [float(sample["label"])]})

    def sums(self, records: Sequence[CaseRecord], weights: np.ndarray) -> Sums:
        """By class: "errors", histograms (replicates, classes, bins), and "error", Σ (replicates, classes)."""
        classes = len(self.classes)
        error = np.array([record.values["error"][0] for record in records], dtype=float)
        label = np.array([record.values["label"][0] for record in records], dtype=float).astype(int)
        cells = label * BINS + np.searchsorted(_EDGES, error, side="right")
        errors = histograms.counted(weights, cells[:, None], classes * BINS)
        by_class = np.eye(classes)[label] * np.minimum(error, HIGHEST_ERROR)[:, None]
        return population([record.patient for record in records], weights) | {
            "errors": errors.reshape(-1, classes, BINS),
            "error": weighted_sums(weights, by_class),
        }

    def metrics(self, sums: Sums) -> dict[str, np.ndarray]:
        """How errors rank normal cases against all others and against each class, and mean errors by class."""
        normal, others = sums["errors"][:, 0], sums["errors"][:, 1:]
        together = others.sum(axis=1)
        metrics = {
            "auroc": histograms.auroc(together, normal),
            "average_precision": histograms.average_precision(together, normal),
        }
        for k, name in enumerate(self.classes[1:]):
            metrics[f"auroc/{name}"] = histograms.auroc(others[:, k], normal)
        errors = ratio(sums["error"], sums["errors"].sum(axis=2))
        return metrics | {f"error/{name}": errors[:, k] for k, name in enumerate(self.classes)}

    def counts(self, sums: Sums) -> dict[str, int]:
        """Cases of the classes that a metric is about; none where it is undefined."""
        n = sums["errors"][0].sum(axis=1)
        counts = {"auroc": n.sum(), "average_precision": n.sum()}
        counts |= {f"auroc/{name}": n[0] + n[k] for k, name in enumerate(self.classes) if k}
        counts |= {f"error/{name}": n[k] for k, name in enumerate(self.classes)}
        defined = self.metrics({name: values[:1] for name, values in sums.items()})
        return {name: int(counts[name]) if np.isfinite(value[0]) else 0 for name, value in defined.items()}

    def metric_info(self) -> dict[str, MetricInfo]:
        """Labels and directions; only the error of normal cases is the better, the smaller."""
        rows = [("auroc", "AUROC", True, True), ("average_precision", "Average precision", True, True)]
        rows += [(f"auroc/{name}", f"AUROC, {name}", True, False) for name in self.classes[1:]]
        rows += [(f"error/{name}", f"Mean squared error, {name}", k > 0, False) for k, name in enumerate(self.classes)]
        return {
            name: {"label": label, "larger_is_better": larger, "unit": "", "headline": headline}
            for name, label, larger, headline in rows
        }

    def curves(self, sums: Sums) -> dict[str, Any]:
        """{"roc": {"all but NORMAL": {"fpr", "tpr"}}}, without what has no cases of both kinds."""
        normal, others = sums["errors"][0, 0], sums["errors"][0, 1:].sum(axis=0)
        if not (normal.any() and others.any()):
            return {}
        return {"roc": {f"all but {self.classes[0]}": histograms.roc_points(others, normal)}}


def squared_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The map whose mean is the score of a case, float64, of the shape of the image."""
    return (reconstruction.double() - image.double()) ** 2
