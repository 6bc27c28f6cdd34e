"""Pictures of translated cases: what there was, what was made of it, and what should have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from client.pictures import (
    PREDICTION,
    REFERENCE,
    WIDTH,
    canvas,
    figure_png,
    grey_window,
    line_handle,
    outline,
    plane_of,
    show_image,
    slice_of,
)
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.image_metrics import median_filtered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TARGET = "target"
PITCH = 1.2  # height of a row, its heading and captions included, in widths of an image


@dataclass(frozen=True)
class _Column:
    """One image of a case, what stands above it, and label values by the colour of their contours."""

    caption: str
    image: np.ndarray
    contours: Mapping[str, np.ndarray] = field(default_factory=dict)


def likeness_of(record: CaseRecord) -> float | None:
    """PSNR in dB of a translated case, or, without a target, of the image translated there and back."""
    return record.values["psnr" if "psnr" in record.values else "cycle_psnr"][0]


def draw_translated(job: Job, samples: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one row per case: the image, its translation, and the target or the image translated back.

    A denoised image also stands beside its median filter. All images of a row have the grey values of the target, or
    else of the image. Volumes show the axial slice where the mask is largest, or their middle.

    Args:
        samples: best first; each as `Task.present` gives it, with "title" and, as "probabilities", what `Task.infer`
            made of it.
    """
    rows = [_columns(job, sample) for sample in samples]
    number = len(rows[0])

    def draw(figure: Figure) -> None:
        axes = canvas(figure, number, PITCH * len(samples))
        for row, (sample, columns) in enumerate(zip(samples, rows, strict=True)):
            _case_row(axes, sample, columns, row * PITCH)
        if any(column.contours for column in rows[0]):
            handles = [line_handle("mask", REFERENCE, "-"), line_handle("segmenter", PREDICTION, "--")]
            figure.legend(handles=handles, loc="outside lower center", ncols=2)

    return figure_png(draw, WIDTH / number * PITCH * len(samples) + 0.3)


def _case_row(axes: Axes, sample: Mapping[str, Any], columns: Sequence[_Column], top: float) -> None:
    mask = np.asarray(sample["mask"])[0] if "mask" in sample else None
    where = slice_of(mask, columns[0].image.shape[1:])
    window = grey_window(columns[-1 if columns[-1].caption == TARGET else 0].image, where)
    axes.text(0.02, top + 0.08, sample["title"], fontsize=9, fontweight="bold", va="center")
    for number, column in enumerate(columns):
        box = show_image(axes, column.image, where, sample["spacing"], number, top + PITCH - 1, window)
        axes.text((box[0] + box[1]) / 2, box[3] - 0.015, column.caption, fontsize=7.5, color="#3A4552", ha="center")
        for colour, labels in column.contours.items():
            outline(axes, plane_of(labels, where), box, colour, "-" if colour == REFERENCE else "--", 1.2)


def _columns(job: Job, sample: Mapping[str, Any]) -> list[_Column]:
    assert job.task.kind == "translation"
    made, image = sample["probabilities"].cpu(), sample["image"].cpu()
    values = {name: found[0] for name, found in task_of(job).judge(made, dict(sample)).values.items()}
    if job.task.how.mode == "paired":
        columns = [_Column(_alike("source", values, "psnr_source", "ssim_source"), image.numpy())]
        if job.task.how.noise:
            filtered = median_filtered(image).numpy()
            columns.append(_Column(_alike("median filter", values, "psnr_median", "ssim_median"), filtered))
        columns.append(_Column(_alike("translated", values, "psnr", "ssim"), made.numpy()))
        return [*columns, _Column(TARGET, sample["label"].cpu().numpy())]
    channels, (first, second) = len(image), job.task.how.domains
    contours: list[dict[str, np.ndarray]] = [{}, {}, {}]
    if "mask" in sample:
        contours = [{REFERENCE: np.asarray(sample["mask"])[0]} for _ in range(3)]
        for drawn, labels in zip(contours, made[2 * channels :].numpy(), strict=False):
            drawn[PREDICTION] = labels
    back = _alike("and back", values, "cycle_psnr", "cycle_ssim")
    return [
        _Column(_with_dice(first, values, "dice_before"), image.numpy(), contours[0]),
        _Column(_with_dice(f"as {second}", values, "dice_after"), made[:channels].numpy(), contours[1]),
        _Column(back, made[channels : 2 * channels].numpy(), contours[2]),
    ]


def _alike(name: str, values: Mapping[str, float | None], psnr: str, ssim: str) -> str:
    decibels, similarity = values[psnr], values[ssim]
    return name if decibels is None else f"{name}: {decibels:.1f} dB, SSIM {similarity:.2f}"


def _with_dice(name: str, values: Mapping[str, float | None], key: str) -> str:
    dice = values.get(key)
    return name if dice is None else f"{name}: Dice {dice:.2f}"
