"""Which cases of a task are worth a look, the best, the middle and the worst, and how they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.anomaly_pictures import draw_reconstructed, fidelity
from client.pictures import draw_cases, mean_dice
from client.translation_pictures import draw_translated, likeness_of
from shared_models.job import Job
from shared_models.tasks import CaseRecord


@dataclass(frozen=True)
class Ranking:
    """How the judged cases of a task are ranked and drawn.

    Attributes:
        score: of a record, larger is better; None leaves the case out.
        text: the score in a heading.
        draw: a PNG of samples, best first, each with "title" and "probabilities", what `Task.infer` gave.
    """

    score: Callable[[CaseRecord], float | None]
    text: Callable[[float], str]
    draw: Callable[[Job, Sequence[Mapping[str, Any]]], bytes]


# By `kind` in the job file's task section.
RANKINGS: dict[str, Ranking] = {
    "segmentation": Ranking(mean_dice, "mean Dice {:.2f}".format, draw_cases),
    "translation": Ranking(likeness_of, "PSNR {:.1f} dB".format, draw_translated),
    "anomaly": Ranking(fidelity, lambda score: f"mean squared error {-score:.2g}", draw_reconstructed),
}
