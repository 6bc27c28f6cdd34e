"""Classification: every case gets one class (single_label) or any number of findings (multi_label).

All metrics come from sums that sites can add: histograms of the probabilities of positive and negative cases per
class, a confusion table, squared errors and calibration bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_tasks import ClassificationTask
from shared_models.tasks import calibration, histograms
from shared_models.tasks.shape import to_size
from shared_models.tasks.sums import mean_of_defined, population, ratio, weighted_sums
from shared_models.tasks.task import CaseRecord, MetricInfo, Sums, Task, check_finite

THRESHOLD = 0.5


class Classification(Task):
    """The classification task of a job; see `Task` for the methods.

    A record's `values`: "probabilities", one per class, and "label": [index] (single_label), or 0 or 1 per class.
    """

    across_classes = ("auroc", "average_precision", "balanced_accuracy")
    judged_together = 64  # bounded memory, and few enough Python steps

    def __init__(self, section: ClassificationTask) -> None:
        self.classes = section.classes
        self.outputs = len(section.classes)
        self.single = section.mode == "single_label"
        self.class_weights, self.focal_gamma = section.class_weights, section.focal_gamma
        # With two exclusive classes the first mirrors the second: only the second is ranked.
        two = self.single and self.outputs == 2
        self.ranked = list(range(self.outputs))[1:] if two else list(range(self.outputs))
        # Of several exclusive classes, a temperature may put another case first: the other classes' logits count too.
        self.ranked_sums = ("positives", "negatives") if two or not self.single else ()

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Cross entropy, or binary cross entropy over all findings, mean over the batch weighted by class.

        With a focal gamma every term counts by (1 - p)^gamma, p the probability of what is true (Lin et al. 2017,
        Focal loss for dense object detection, eq. 4 and 5).

        Args:
            logits: (B, classes), any float type.
            label: int64 (B,) for single_label, float (B, classes) of 0 and 1 for multi_label.
        """
        logits = logits.float()
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        if self.single:
            loss = F.cross_entropy(logits, label, reduction="none")
            weights = torch.ones_like(loss) if weights is None else weights[label]
        else:
            loss = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
            weights = torch.ones_like(loss) if weights is None else torch.where(label > 0, weights, 1.0)
        if self.focal_gamma:
            wrong = 1 - torch.exp(-loss)  # the exponential is the probability of what is true
            loss = loss * wrong.clamp(min=1e-6) ** self.focal_gamma  # at 0 a root has no finite gradient
        return (loss * weights).sum() / weights.sum()

    @torch.no_grad()
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """Probabilities (B, classes) of images (B, C, *spatial), padded or cropped to the centre of the job's crop."""
        network.eval()
        logits = network(to_size(images, job.data.crop)).float()
        return torch.softmax(logits, dim=1) if self.single else torch.sigmoid(logits)

    def judge(self, probabilities: Tensor, sample: dict[str, Any]) -> CaseRecord:
        """Probabilities (classes,) beside the label: an integer (single_label) or 0 and 1 (classes,)."""
        check_finite(probabilities, sample["id"])
        label = np.atleast_1d(np.asarray(sample["label"]))
        values = self.outputs if self.single else 2
        fits = label.shape == ((1,) if self.single else (self.outputs,))
        if tuple(probabilities.shape) != (self.outputs,) or not fits or label.max() >= values:
            raise BadInput(
                f"Case {sample['id']}: {tuple(probabilities.shape)} probabilities and the label {label.tolist()} do "
                f"not fit a {'single_label' if self.single else 'multi_label'} task with {self.outputs} classes."
            )
        record: dict[str, list[float | None]] = {
            "probabilities": probabilities.cpu().double().tolist(),
            "label": label.astype(float).tolist(),
        }
        return CaseRecord(sample["id"], sample["patient"], record)

    def sums(self, records: Sequence[CaseRecord], weights: np.ndarray) -> Sums:
        """For each replicate:

        "positives", "negatives" (ranked classes, cells) · "confusion" (true, predicted), or per finding (classes,
        true, predicted) for multi_label · "squared_error" () · "calibration" (n, Σ confidence, Σ correct; bins).
        """
        shape = (len(records), self.outputs)
        probabilities = np.array([record.values["probabilities"] for record in records], dtype=float).reshape(shape)
        label = np.array([record.values["label"] for record in records], dtype=float).astype(int)
        truth = np.eye(self.outputs)[label.reshape(-1)] if self.single else label.reshape(shape).astype(float)
        kinds = self._kinds(weights, probabilities[:, self.ranked], truth[:, self.ranked].astype(int))
        return population([record.patient for record in records], weights) | {
            "negatives": kinds[:, :, 0],
            "positives": kinds[:, :, 1],
            "confusion": self._confusion(weights, probabilities, truth),
            "squared_error": weighted_sums(weights, ((probabilities - truth) ** 2).mean(axis=1)),
            "calibration": self._calibration(weights, probabilities, truth),
        }

    def _kinds(self, weights: np.ndarray, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Histograms (replicates, ranked, negative and positive, cells)."""
        size = histograms.CELLS
        first = (np.arange(len(self.ranked)) * 2 + truth) * size
        cells = first[..., None] + histograms.cells_of(probabilities)
        cells = cells.reshape(len(probabilities), 2 * len(self.ranked))
        return histograms.counted(weights, cells, 2 * size * len(self.ranked)).reshape(len(weights), -1, 2, size)

    def _confusion(self, weights: np.ndarray, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Tables (replicates, true, predicted), or (replicates, classes, true, predicted) for multi_label."""
        if self.single:
            cells = truth.argmax(axis=1) * self.outputs + probabilities.argmax(axis=1)
            return histograms.counted(weights, cells[:, None], self.outputs**2).reshape(-1, self.outputs, self.outputs)
        cells = np.arange(self.outputs) * 4 + truth.astype(int) * 2 + (probabilities >= THRESHOLD)
        return histograms.counted(weights, cells, self.outputs * 4).reshape(-1, self.outputs, 2, 2)

    def _calibration(self, weights: np.ndarray, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """(replicates, 3, bins): n, Σ confidence, Σ correct; of the top class, or of all findings for multi_label."""
        if self.single:
            top = probabilities.argmax(axis=1)[:, None]
            confidence, correct = (np.take_along_axis(values, top, axis=1) for values in (probabilities, truth))
        else:
            confidence, correct = probabilities, truth
        return weighted_sums(weights, calibration.binned(confidence, correct))

    def metrics(self, sums: Sums) -> dict[str, np.ndarray]:
        """Ranking per class and its mean over the classes that have both kinds of cases, accuracies, calibration.

        brier: mean squared difference of probability and outcome over cases and classes (Brier 1950; for two classes
        the usual binary score). calibration_error: see `calibration`. For multi_label, the accuracies are means over
        findings, at a threshold of 0.5.
        """
        metrics: dict[str, np.ndarray] = {}
        kinds = [self._ordered(sums, row) for row in range(len(self.ranked))]
        for name, measure in {"auroc": histograms.auroc, "average_precision": histograms.average_precision}.items():
            by_class = np.stack([measure(*both) for both in kinds], axis=1)
            metrics[name] = mean_of_defined(by_class)
            metrics |= {f"{name}/{self.classes[k]}": by_class[:, row] for row, k in enumerate(self.ranked)}
        metrics["balanced_accuracy"], metrics["accuracy"] = self._accuracies(sums["confusion"])
        metrics["calibration_error"] = calibration.calibration_error(sums["calibration"])
        metrics["brier"] = ratio(sums["squared_error"], sums["cases"])
        return metrics

    def _ordered(self, sums: Sums, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative cases of a ranked class, (replicates, bins) from the lowest probability up."""
        return histograms.ordered(sums["positives"][:, row], sums["negatives"][:, row])

    def _accuracies(self, confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Balanced (mean recall) and plain accuracy, each (replicates,)."""
        right = np.diagonal(confusion, axis1=-2, axis2=-1)
        recall = ratio(right, confusion.sum(axis=-1))
        accuracy = ratio(right.sum(axis=-1), confusion.sum(axis=(-2, -1)))
        if self.single:
            # Of patients of one class, it would be high for who always says that class.
            several = np.isfinite(recall[0]).sum() > 1
            return mean_of_defined(recall) if several else np.full(len(recall), np.nan), accuracy
        # A finding that all cases have, or none, has no balanced accuracy: nan in one recall makes it nan.
        return mean_of_defined(recall.mean(axis=-1)), accuracy.mean(axis=-1)

    def counts(self, sums: Sums) -> dict[str, int]:
        """Cases behind every metric: all, or none for a ranking of a class without both kinds of cases."""
        judged = int(sums["cases"][0])
        return {name: judged if np.isfinite(value[0]) else 0 for name, value in self.metrics(_first(sums)).items()}

    def metric_info(self) -> dict[str, MetricInfo]:
        """Labels and directions."""
        info: dict[str, MetricInfo] = {}
        for name, label in {"auroc": "AUROC", "average_precision": "Average precision"}.items():
            info[name] = {"label": label, "larger_is_better": True, "unit": "", "headline": True}
            for k in self.ranked:
                text = f"{label}, {self.classes[k]}"
                info[f"{name}/{self.classes[k]}"] = {
                    "label": text, "larger_is_better": True, "unit": "", "headline": False,
                }  # fmt: skip
        for name, label, headline in (
            ("balanced_accuracy", "Balanced accuracy", True),
            ("accuracy", "Accuracy", False),
        ):
            info[name] = {"label": label, "larger_is_better": True, "unit": "", "headline": headline}
        return info | calibration.INFO

    def curves(self, sums: Sums) -> dict[str, Any]:
        """{"roc": {class: {"fpr", "tpr"}}, "reliability": {"confidence", "observed", "n"}}.

        Classes without both kinds of cases have no ROC curve; calibration bins without a case are left out.
        """
        roc = {}
        for row, k in enumerate(self.ranked):
            positives, negatives = self._ordered(_first(sums), row)
            if positives.any() and negatives.any():
                roc[self.classes[k]] = histograms.roc_points(positives[0], negatives[0])
        return {"roc": roc, "reliability": calibration.reliability(sums["calibration"][0])}


def _first(sums: Sums) -> Sums:
    return {name: values[:1] for name, values in sums.items()}
