"""Pictures of synthetic images beside real ones, and beside the training images that they come nearest to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from client.pictures import WIDTH, canvas, figure_png, show_image, slice_of
from shared_models.job import Job
from shared_models.tasks import Sample
from shared_models.tasks.nearest import TrainingImages
from shared_models.tasks.shape import to_size
from shared_models.tasks.synthesis import synthesise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS, CLASSES = 8, 4  # a picture that can still be looked at
PITCH = 1.3  # height of a row, its heading and captions included, in widths of an image
TOO_NEAR, FAR = "#A33C00", "#3A4552"


@dataclass(frozen=True)
class _Row:
    heading: str
    images: Sequence[Tensor]
    captions: Sequence[str] = ()
    colours: Sequence[str] = ()


def draw_synthetic(job: Job, network: nn.Module, training: Sequence[Sample], site: str, seed: int) -> bytes:
    """A PNG with three rows for each of the first classes: real images, synthetic ones, and what these come near to.

    Below each of the last stands its distance to the synthetic image above it, see `TrainingImages`; red where it is
    too near. Volumes show their middle.

    Args:
        training: the site's prepared training cases, at least one.
        site: where they are, for the headings.
        seed: that synthetic images are judged with: then these are among those that were.
    """
    assert job.task.kind == "synthesis"
    real, each = TrainingImages(training, job.data.crop), job.task.images_per_class
    images, _ = synthesise(network, len(job.task.classes), each, seed)
    rows: list[_Row] = []
    for index, name in enumerate(job.task.classes[:CLASSES]):
        own = [at for at, label in enumerate(real.labels) if label == index][:COLUMNS]
        made = images[index * each : index * each + min(each, COLUMNS)]
        distances, nearest = real.nearest(made)
        rows += [
            _Row(f"{name}: training images of {site}{'' if own else ', which has none'}", _cut(job, training, own)),
            _Row(f"{name}: synthetic images", list(made)),
            _Row(
                f"The training image that each of these comes nearest to (too near: {real.too_near:.3f} or less)",
                _cut(job, training, nearest.tolist()),
                [f"{distance:.3f}" for distance in distances.tolist()],
                [TOO_NEAR if distance <= real.too_near else FAR for distance in distances.tolist()],
            ),
        ]

    def draw(figure: Figure) -> None:
        axes = canvas(figure, COLUMNS, PITCH * len(rows))
        for number, row in enumerate(rows):
            _draw_row(axes, row, number * PITCH)

    return figure_png(draw, WIDTH / COLUMNS * PITCH * len(rows))


def _draw_row(axes: Axes, row: _Row, top: float) -> None:
    axes.text(0.02, top + 0.1, row.heading, fontsize=8, fontweight="bold", va="center")
    for column, image in enumerate(row.images):
        values = np.asarray(image)
        spacing = (1.0,) * (values.ndim - 1)  # a synthetic image has none
        show_image(axes, values, slice_of(None, values.shape[1:]), spacing, column, top + 0.17)
        if row.captions:
            axes.text(column + 0.5, top + 1.2, row.captions[column], fontsize=7, color=row.colours[column], ha="center")


def _cut(job: Job, training: Sequence[Sample], indices: Sequence[int]) -> list[Tensor]:
    """As the generator was to learn them: padded or cropped to the centre of data.crop."""
    return [to_size(training[index]["image"], job.data.crop) for index in indices]
