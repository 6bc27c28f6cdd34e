"""What a task is: its loss, its inference, how it judges a case and which sums of that judgement may leave a site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypedDict

import numpy as np
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.job import Job

Sample = dict[str, Any]
"""A prepared case: "image" (C, *spatial), "label", "spacing" in mm per axis, "id" and "patient"."""
Batch = dict[str, Tensor]
Sums = dict[str, np.ndarray]
"""Named float64 arrays (replicates, ...); the sums of two sites, added, are the sums of both together."""


@dataclass(frozen=True)
class CaseRecord:
    """What one model did on one case. It stays at the site; only sums over records leave.

    `values` holds lists of numbers, None where a number is undefined; each task says which.
    """

    case: str
    patient: str
    values: dict[str, list[float | None]]

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CaseRecord:
        """The inverse of `to_json`. Raises BadInput when a key is missing or unknown."""
        expected = {"case", "patient", "values"}
        if set(content) != expected:
            raise BadInput(
                f"A case record has the keys {sorted(content)}; expected {sorted(expected)}. "
                "The file was written by another version or edited: evaluate the model again."
            )
        return cls(**content)


class MetricInfo(TypedDict):
    """How a metric is shown."""

    label: str
    larger_is_better: bool
    unit: str  # "", "mm" or "dB"
    headline: bool  # belongs in the summary table; the first such metric tells the story


class Task(ABC):
    """One task with its classes. Add one: a file in this folder, an entry in `TASKS`, a section in `job_tasks.py`.

    A subclass says `loss`, `infer`, `judge` and the sums; the other methods suit a task with one network and one loss.
    """

    judged_together: ClassVar[int] = 1
    """Cases of equal shape that go through the network at once when they are judged."""

    mixes_labels: ClassVar[bool] = False
    """Whether every training batch holds the entries of the label column in their proportions, not by chance."""

    across_classes: ClassVar[tuple[str, ...]] = ()
    """Metrics that hold cases of one class against those of others. Where hospitals have a model each, they are no
    metrics of all patients together: these would reward a model that only knows which hospital it stands in."""

    ranked_sums: tuple[str, ...] = ()
    """The sums that say how cases rank, if a temperature changes no ranking."""

    def is_across_classes(self, metric: str) -> bool:
        """Whether a metric is one of `across_classes`, or one of these for a single class, such as `auroc/ill`."""
        return metric.split("/")[0] in self.across_classes

    def loss(self, outputs: Any, label: Tensor) -> Tensor:
        """Mean over the batch, a float32 scalar.

        Args:
            outputs: what the network gave: logits, or a list of them (the main output first) with deep supervision.
        """
        raise NotImplementedError

    def trains_on(self, label: str) -> bool:
        """Whether a training case with this entry in the label column is trained on."""
        return True

    def players(self, network: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Who is trained in turn in every step, each with an optimiser of its own: name -> parameters."""
        return {"network": [parameter for parameter in network.parameters() if parameter.requires_grad]}

    def step_loss(self, network: nn.Module, batch: Batch, player: str) -> Tensor:
        """The loss that one player's step goes down, a float32 scalar.

        Args:
            batch: "image" (B, C, *crop) and "label"; a player may leave in it what the next one needs.
            player: a key of `players`.
        """
        return self.loss(network(batch["image"]), batch["label"])

    def present(self, sample: Sample) -> Sample:
        """A prepared case as the network gets to see it when it is judged."""
        return sample

    def ready(self, network: nn.Module, training: Sequence[Sample], job: Job, seed: int) -> nn.Module:
        """What cases are inferred with: the network itself, or what has to be made with it at the site first.

        Args:
            training: the site's prepared training cases, each read when it is asked for.
        """
        return network

    @abstractmethod
    def infer(self, network: nn.Module, images: Tensor, job: Job) -> Tensor:
        """Probabilities of images (B, C, *spatial): (B, classes, *spatial) or (B, classes), float32, no gradient.

        Images lie on the network's device. Switches the network to evaluation mode and leaves it there. A task without
        classes gives what its `judge` compares.
        """

    @abstractmethod
    def judge(self, probabilities: Tensor, sample: dict[str, Any]) -> CaseRecord:
        """Compares the probabilities of one case (no batch axis) with its label.

        `sample` holds "label", "id", "patient" and "spacing" as the site's data pipeline prepares them. Raises
        BadInput when the probabilities are not finite or do not fit the label.
        """

    @abstractmethod
    def sums(self, records: Sequence[CaseRecord], weights: np.ndarray) -> Sums:
        """Sums over cases, one row per replicate, of weights (replicates, cases); always with "cases", "patients"."""

    @abstractmethod
    def metrics(self, sums: Sums) -> dict[str, np.ndarray]:
        """Metrics (replicates,) of a site's or of pooled sums; nan where undefined."""

    @abstractmethod
    def counts(self, sums: Sums) -> dict[str, int]:
        """For every metric the number of cases behind its value (row 0 of the sums)."""

    @abstractmethod
    def metric_info(self) -> dict[str, MetricInfo]:
        """For every metric how to show it, the most important first."""

    def curves(self, sums: Sums) -> dict[str, Any]:
        """Curves to draw, from row 0 of the sums, as lists and numbers; {} where a task has none."""
        return {}


def check_finite(probabilities: Tensor, case: str) -> None:
    """Raises BadInput when a network gave NaN or infinity for a case."""
    if not bool(probabilities.isfinite().all()):
        raise BadInput(
            f"Case {case}: the network's output has values that are not finite. Its weights have diverged: "
            "lower the learning rate, or look for extreme intensities in this image."
        )
