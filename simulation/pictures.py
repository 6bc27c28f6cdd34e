"""The picture of a simulated run's partition: who has what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.data.manifest import SPLITS, Case, read_manifest
from client.data.preflight import PreflightReport
from client.data.preprocess import prepare
from client.pictures import (
    REFERENCE,
    WIDTH,
    canvas,
    class_handles,
    class_style,
    figure_png,
    outline,
    plane_of,
    show_image,
    slice_of,
)
from server.checkpoint import write_atomically
from shared_models.job import Job
from shared_models.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT_COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
HOSPITALS_WITH_EXAMPLES = 12


def draw_partition(
    job: Job, manifests: Mapping[str, Path], preflights: Mapping[str, PreflightReport], out: Path
) -> None:
    """Write a PNG with the labels and sizes of every hospital as bars, and a row of example images of each.

    Examples are training cases drawn at random (from the job's seed), masks as contours; three-dimensional images
    show the slice with the largest mask, or the middle one. Only the first dozen hospitals get examples.

    Args:
        manifests: hospital -> its manifest.csv.
        preflights: hospital -> what preflight found there; quarantined cases are neither counted nor shown.

    Raises:
        BadInput: a manifest or an image that preflight found usable cannot be read any more.
    """
    shown = list(manifests)[:HOSPITALS_WITH_EXAMPLES]
    columns = 6 if len(shown) <= 4 else 8
    samples = {site: _examples(job, site, manifests[site], preflights[site], columns) for site in shown}
    pitch = 1.14 if job.task.label == "class" else 1.0
    tall_bars = 0.95 + 0.27 * len(preflights)
    tall_rows = (WIDTH - 1.0) / columns * pitch * 1.03 * len(shown) + 0.25

    def draw(figure: Figure) -> None:
        parts: Any = figure.subfigures(2, 1, height_ratios=[tall_bars, tall_rows], hspace=0.03)
        bars, examples = parts
        if job.task.label == "class":
            _class_bars(bars, job, preflights)
        else:
            _size_bars(bars, preflights)
        axes = canvas(examples, columns, len(shown) * pitch)
        for row, site in enumerate(shown):
            _example_row(axes, job, samples[site], row * pitch + pitch - 1)
        axes.set_yticks([(row + 1) * pitch - 0.5 for row in range(len(shown))], shown)
        if len(shown) < len(manifests):
            axes.set_xlabel(f"Examples of the first {len(shown)} of {len(manifests)} hospitals")

    write_atomically(out, figure_png(draw, tall_bars + tall_rows))


def _examples(job: Job, site: str, manifest: Path, report: PreflightReport, number: int) -> list[tuple[Case, Any]]:
    cases = [case for case in read_manifest(manifest, job, site) if case.id not in report.quarantined]
    cases = [case for case in cases if case.split == "train"] or cases
    draw = np.random.default_rng(derive_seed(job.seed, "example images", site))
    chosen = sorted(draw.choice(len(cases), min(number, len(cases)), replace=False))
    return [(cases[index], prepare(cases[index], manifest.parent, job)) for index in chosen]


def _class_bars(figure: Any, job: Job, preflights: Mapping[str, PreflightReport]) -> None:
    """Stacked bars of the cases of each class, one panel per split that has cases."""
    names = {"train": "Training", "validation": "Validation", "test": "Test"}
    splits = [split for split in SPLITS if any(report.classes.get(split) for report in preflights.values())]
    many = getattr(job.task, "mode", "") == "multi_label"
    panels = figure.subplots(1, len(splits), sharey=True, squeeze=False, width_ratios=[1.6, *[1] * (len(splits) - 1)])
    for axes, split in zip(panels[0], splits, strict=True):
        left = np.zeros(len(preflights))
        for index, name in enumerate(job.task.classes):
            counts = np.array([report.classes.get(split, {}).get(name, 0) for report in preflights.values()])
            axes.barh(range(len(preflights)), counts, left=left, height=0.72, **class_style(index))
            left += counts
        axes.set_xlabel(f"{names[split]} {'findings' if many else 'cases'}")
        _hospital_axis(axes, list(preflights), int(left.max()))
        if not many:
            _write_totals(axes, [int(total) for total in left])
    figure.legend(
        handles=class_handles(job.task.classes), loc="outside upper left", ncols=min(len(job.task.classes), 6)
    )


def _size_bars(figure: Any, preflights: Mapping[str, PreflightReport]) -> None:
    axes = figure.subplots()
    left = np.zeros(len(preflights))
    for split in SPLITS:
        counts = np.array([report.splits.get(split, {}).get("cases", 0) for report in preflights.values()])
        name = "training" if split == "train" else split
        axes.barh(range(len(preflights)), counts, left=left, height=0.62, color=SPLIT_COLOURS[split], label=name)
        for row, (start, count) in enumerate(zip(left, counts, strict=True)):
            if count > 0.03 * sum(counts):
                colour = "white" if split != "validation" else "black"
                axes.text(start + count / 2, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        left += counts
    axes.set_xlabel("Cases")
    _hospital_axis(axes, list(preflights), int(left.max()))
    figure.legend(loc="outside upper left", ncols=3)


def _hospital_axis(axes: Axes, sites: list[str], largest: int) -> None:
    axes.set_yticks(range(len(sites)), sites)
    axes.set_ylim(len(sites) - 0.4, -0.6)
    axes.set_xlim(0, max(largest, 1) * 1.12)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _write_totals(axes: Axes, totals: list[int]) -> None:
    for row, total in enumerate(totals):
        axes.annotate(str(total), (total, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)


def _example_row(axes: Axes, job: Job, examples: list[tuple[Case, Any]], top: float) -> None:
    for column, (case, sample) in enumerate(examples):
        image, label = np.asarray(sample["image"]), np.asarray(sample["label"])
        mask = label[0] if job.task.label == "mask" else None
        where = slice_of(mask, image.shape[1:])
        box = show_image(axes, image, where, sample["spacing"], column, top)
        if mask is not None:
            outline(axes, plane_of(mask, where), box, REFERENCE, "-", 0.9)
        elif job.task.label == "class":
            text = _class_text(case.label, job.task.classes)
            axes.text(column + 0.5, top + 0.01, text, fontsize=6.5, color="#3A4552", ha="center", va="bottom")


def _class_text(label: str, classes: Sequence[str]) -> str:
    """What a manifest says of a case's class or findings, short enough to stand above a small image."""
    parts = [part.strip() for part in label.split(";") if part.strip()]
    names = [classes[int(part)] if part.isdigit() and part not in classes else part for part in parts]
    text = ", ".join(names) or "none"
    return text if len(text) <= 20 else f"{text[:19]}\u2026"
