"""Pictures of reconstructed cases: where does an image differ from what the network could make of it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from client.pictures import WIDTH, canvas, figure_png, grey_window, show_image, slice_of
from shared_models.job import Job
from shared_models.tasks import CaseRecord
from shared_models.tasks.anomaly import squared_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("image", "reconstruction", "squared error")
PITCH = 1.24  # height of a row, its heading included, in widths of an image


def fidelity(record: CaseRecord) -> float | None:
    """The mean squared error of a reconstruction, negative: larger is better."""
    error = record.values["error"][0]
    return None if error is None else -error


def draw_reconstructed(job: Job, samples: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one row per case: image, reconstruction, and the map of squared errors.

    The maps of all cases share one scale, so that a bright map is a large error. Volumes show the axial slice with the
    largest mean error.

    Args:
        samples: each with "image" (C, *spatial), "label", "spacing", "title" and, as "probabilities", the
            reconstruction.
    """
    maps = [squared_error(sample["probabilities"].cpu(), sample["image"].cpu()).mean(0).numpy() for sample in samples]
    brightest = max(float(np.percentile(errors, 99.5)) for errors in maps)

    def draw(figure: Figure) -> None:
        axes = canvas(figure, len(COLUMNS), PITCH * len(samples))
        for row, (sample, errors) in enumerate(zip(samples, maps, strict=True)):
            _case_row(axes, job, sample, errors, brightest, row * PITCH)

    return figure_png(draw, WIDTH / len(COLUMNS) * PITCH * len(samples))


def _case_row(
    axes: Axes, job: Job, sample: Mapping[str, Any], errors: np.ndarray, brightest: float, top: float
) -> None:
    image, made = sample["image"].cpu().numpy(), sample["probabilities"].cpu().numpy()
    where = slice_of(None, errors.shape) if errors.ndim == 2 else int(errors.mean(axis=(0, 1)).argmax())
    window = grey_window(image, where)
    label = job.task.classes[int(sample["label"])]
    axes.text(0.02, top + 0.06, sample["title"], fontsize=9, fontweight="bold", va="center")
    axes.text(0.02, top + 0.13, f"is {label}", color="#3A4552", va="center")
    shown = ((image, window), (made, window), (errors[None], [(0.0, brightest)]))
    for column, ((values, limits), name) in enumerate(zip(shown, COLUMNS, strict=True)):
        box = show_image(axes, values, where, sample["spacing"], column, top + PITCH - 1, limits)
        axes.text((box[0] + box[1]) / 2, box[3] - 0.015, name, fontsize=7.5, color="#3A4552", ha="center")
