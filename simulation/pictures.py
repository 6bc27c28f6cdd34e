"""The pictures of a simulated run: who has what, and how well the model does on single cases."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.data.manifest import SPLITS, Case, read_manifest
from client.data.preflight import PreflightReport
from client.data.preprocess import prepare
from server.checkpoint import write_atomically
from shared_models.job import Job
from shared_models.seeds import derive_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
CLASS_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C6D1F"]
SPLIT_COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
REFERENCE, PREDICTION = "#56B4E9", "#FF9D00"
HOSPITALS_WITH_EXAMPLES = 12
CASE_PITCH = 1.3  # height of a row of `draw_cases`, its heading included, in widths of an image
WIDTH = 9.0
DOTS_PER_INCH = 130


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
    pitch = 1.0 if job.task.kind == "segmentation" else 1.14
    tall_bars = 0.95 + 0.27 * len(preflights)
    tall_rows = (WIDTH - 1.0) / columns * pitch * 1.03 * len(shown) + 0.25

    def draw(figure: Figure) -> None:
        parts: Any = figure.subfigures(2, 1, height_ratios=[tall_bars, tall_rows], hspace=0.03)
        bars, examples = parts
        if job.task.kind == "classification":
            _class_bars(bars, job, preflights)
        else:
            _size_bars(bars, preflights)
        axes = _canvas(examples, columns, len(shown) * pitch)
        for row, site in enumerate(shown):
            _example_row(axes, job, samples[site], row * pitch + pitch - 1)
        axes.set_yticks([(row + 1) * pitch - 0.5 for row in range(len(shown))], shown)
        if len(shown) < len(manifests):
            axes.set_xlabel(f"Examples of the first {len(shown)} of {len(manifests)} hospitals")

    _save(draw, tall_bars + tall_rows, out)


def draw_cases(job: Job, samples: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write a PNG with one row per segmented case: image, reference, prediction, and the contours of both.

    Volumes show the axial slice where the reference (or else the prediction) is largest; the Dice in a row's heading
    is that of the whole case, class by class.

    Args:
        samples: best first; each with "image" float (C, *spatial), "label" integer (1, *spatial), "title" such as
            "Best: patient 12 at north-clinic", optionally "spacing" (mm per axis), and either "probabilities"
            (classes, *spatial) or "prediction", label values (*spatial).
    """

    def draw(figure: Figure) -> None:
        axes = _canvas(figure, 4, CASE_PITCH * len(samples))
        for row, sample in enumerate(samples):
            _case_row(axes, job, sample, row * CASE_PITCH)
        handles = _class_handles(job.task.classes[1:])
        handles += [_line_handle("reference", REFERENCE, "-"), _line_handle("prediction", PREDICTION, "--")]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))

    _save(draw, WIDTH / 4 * CASE_PITCH * len(samples) + 0.4, out)


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
            axes.barh(range(len(preflights)), counts, left=left, height=0.72, **_class_style(index))
            left += counts
        axes.set_xlabel(f"{names[split]} {'findings' if many else 'cases'}")
        _hospital_axis(axes, list(preflights), int(left.max()))
        if not many:
            _write_totals(axes, [int(total) for total in left])
    figure.legend(
        handles=_class_handles(job.task.classes), loc="outside upper left", ncols=min(len(job.task.classes), 6)
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


def _class_style(index: int) -> dict[str, Any]:
    """Colour and, from the ninth class on, hatching."""
    hatch = ["", "///", "...", "xxx"][index // len(CLASS_COLOURS) % 4]
    return {"color": CLASS_COLOURS[index % len(CLASS_COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}


def _class_handles(classes: Sequence[str]) -> list[Any]:
    from matplotlib.patches import Patch

    handles = []
    for index, name in enumerate(classes):
        style = _class_style(index)
        handles.append(Patch(facecolor=style.pop("color"), label=name, **style))
    return handles


def _line_handle(label: str, colour: str, dash: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, linewidth=2, label=label)


def _canvas(figure: Any, columns: float, rows: float) -> Axes:
    """One set of axes, without any, in which every image gets a square of side 1: far faster than axes per image."""
    axes = figure.subplots()
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], autoscale_on=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def _example_row(axes: Axes, job: Job, examples: list[tuple[Case, Any]], top: float) -> None:
    for column, (case, sample) in enumerate(examples):
        image, label = _array(sample["image"]), _array(sample["label"])
        mask = label[0] if job.task.kind == "segmentation" else None
        where = _slice_of(mask, image.shape[1:])
        box = _show(axes, image, where, sample["spacing"], column, top)
        if mask is not None:
            _outline(axes, _plane(mask, where), box, REFERENCE, "-", 0.9)
        else:
            text = _class_text(case.label, job.task.classes)
            axes.text(column + 0.5, top + 0.01, text, fontsize=6.5, color="#3A4552", ha="center", va="bottom")


def _class_text(label: str, classes: Sequence[str]) -> str:
    """What a manifest says of a case's class or findings, short enough to stand above a small image."""
    parts = [part.strip() for part in label.split(";") if part.strip()]
    names = [classes[int(part)] if part.isdigit() and part not in classes else part for part in parts]
    text = ", ".join(names) or "none"
    return text if len(text) <= 20 else f"{text[:19]}\u2026"


def _case_row(axes: Axes, job: Job, sample: Mapping[str, Any], top: float) -> None:
    image, reference = _array(sample["image"]), _array(sample["label"])[0]
    prediction = _array(sample["prediction"] if "prediction" in sample else sample["probabilities"].argmax(0))
    where = _slice_of(reference if reference.any() else prediction, image.shape[1:])
    spacing = sample.get("spacing", (1.0,) * reference.ndim)
    axes.text(0.02, top + 0.08, sample["title"], fontsize=9, fontweight="bold", va="center")
    axes.text(0.02, top + 0.19, _dice_text(reference, prediction, job.task.classes), color="#3A4552", va="center")
    ours, theirs = _plane(prediction, where), _plane(reference, where)
    boxes = [_show(axes, image, where, spacing, column, top + CASE_PITCH - 1) for column in range(4)]
    _fill(axes, theirs, boxes[1])
    _fill(axes, ours, boxes[2])
    _outline(axes, theirs, boxes[3], REFERENCE, "-", 1.4)
    _outline(axes, ours, boxes[3], PREDICTION, "--", 1.4)
    for box, name in zip(boxes, ("image", "reference", "prediction", "both contours"), strict=True):
        axes.text((box[0] + box[1]) / 2, box[3] - 0.015, name, fontsize=7.5, color="#3A4552", ha="center")


def _dice_text(reference: np.ndarray, prediction: np.ndarray, classes: Sequence[str]) -> str:
    """Dice of every foreground class over the whole case; a class that is in neither has none."""
    parts = []
    for value, name in enumerate(classes[1:], start=1):
        ours, theirs = prediction == value, reference == value
        size = int(ours.sum() + theirs.sum())
        parts.append(f"{name} {2 * (ours & theirs).sum() / size:.3f}" if size else f"{name} absent")
    return f"Dice: {', '.join(parts)}"


def _slice_of(mask: np.ndarray | None, spatial: Sequence[int]) -> int | None:
    """Index along the last axis of a volume: the largest area of the mask, or the middle; None for a 2D image."""
    if len(spatial) == 2:
        return None
    if mask is not None and mask.any():
        return int((mask > 0).sum(axis=(0, 1)).argmax())
    return spatial[2] // 2


def _plane(values: np.ndarray, where: int | None) -> np.ndarray:
    """A 2D image as it is; of a volume (right, front, top) one slice with the front up."""
    return values if where is None else values[..., where].T[::-1]


def _show(
    axes: Axes, image: np.ndarray, where: int | None, spacing: Sequence[float], left: float, top: float
) -> tuple[float, float, float, float]:
    """Draw an image, as large as fits, into the square of side 1 at (left, top); returns left, right, bottom, top.

    Grey values from the 1st to the 99th percentile; three channels are shown as colours, of others the first one.
    """
    planes = [_plane(channel, where) for channel in (image if len(image) == 3 else image[:1])]
    rows, columns = planes[0].shape
    high, wide = (spacing[0], spacing[1]) if where is None else (spacing[1], spacing[0])
    scale = 0.95 / max(rows * high, columns * wide)
    wide, high = columns * wide * scale, rows * high * scale
    left, top = left + (1 - wide) / 2, top + (1 - high) / 2
    box = (left, left + wide, top + high, top)
    shown = np.stack([_stretched(plane) for plane in planes], axis=-1)
    shown = shown if len(planes) == 3 else shown[..., 0]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=box, aspect="equal")
    return box


def _stretched(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, (1, 99))
    if high <= low:
        low, high = plane.min(), plane.max()
    return np.clip((plane - low) / max(high - low, 1e-12), 0, 1)


def _fill(axes: Axes, plane: np.ndarray, box: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import to_rgba

    colours = np.zeros((*plane.shape, 4))
    for value in np.unique(plane[plane > 0]):
        colours[plane == value] = to_rgba(CLASS_COLOURS[(int(value) - 1) % len(CLASS_COLOURS)], 0.62)
    axes.imshow(colours, interpolation="nearest", extent=box, aspect="equal")


def _outline(
    axes: Axes, plane: np.ndarray, box: tuple[float, float, float, float], colour: str, dash: str, width: float
) -> None:
    """The contour of every class, closed at the image's border too."""
    left, right, bottom, top = box
    rows, columns = plane.shape
    x = left + (np.arange(-1, columns + 1) + 0.5) * (right - left) / columns
    y = top + (np.arange(-1, rows + 1) + 0.5) * (bottom - top) / rows
    for value in np.unique(plane[plane > 0]):
        inside = np.pad((plane == value).astype(float), 1)
        axes.contour(x, y, inside, [0.5], colors=colour, linestyles=dash, linewidths=width)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values)


def _save(draw: Callable[[Figure], None], height: float, out: Path) -> None:
    """Draw on a figure of WIDTH x `height` inches and write it as PNG, whole or not at all."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 8.5,
        "figure.titlesize": 9,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "axes.edgecolor": "#8A94A0",
        "xtick.color": "#8A94A0",
        "xtick.labelcolor": "#3A4552",
        "axes.labelcolor": "#3A4552",
        "text.parse_math": False,
    }
    target = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(target, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(out, target.getvalue())
