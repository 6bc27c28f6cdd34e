"""Pictures of single cases: what a model makes of them, drawn where the images are."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shared_models.job import Job
from shared_models.tasks import CaseRecord
from shared_models.tasks.classification import THRESHOLD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
CLASS_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8C6D1F"]
REFERENCE, PREDICTION = "#56B4E9", "#FF9D00"
CASE_PITCH = 1.3  # height of a row of `draw_cases`, its heading included, in widths of an image
GRID_PITCH = 1.62  # the same of a row of `draw_classified`, its heading and captions included
WIDTH = 9.0
CAPTION_LETTERS = 22

Ranked = TypeVar("Ranked")
DOTS_PER_INCH = 130


def mean_dice(record: CaseRecord) -> float | None:
    """Mean over the classes that the case or its prediction has; a missed one counts as 0. None if there is none."""
    dice = [value for value in record.values["dice"] if value is not None]
    return sum(dice) / len(dice) if dice else None


def best_to_worst(ranked: Sequence[Ranked]) -> dict[str, Ranked]:
    """The first, the middle and the last of cases ranked best first, by what they are called; fewer of fewer cases."""
    if len(ranked) < 3:
        return dict(zip(("Best", "Worst") if len(ranked) == 2 else ("Only",), ranked, strict=False))
    return {"Best": ranked[0], "Median": ranked[round(0.5 * (len(ranked) - 1))], "Worst": ranked[-1]}


def draw_cases(job: Job, samples: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG with one row per segmented case: image, reference, prediction, and the contours of both.

    Volumes show the axial slice where the reference (or else the prediction) is largest; the Dice in a row's heading
    is that of the whole case, class by class.

    Args:
        samples: best first; each with "image" float (C, *spatial), "label" integer (1, *spatial), "title" such as
            "Best: patient 12 at north-clinic", optionally "spacing" (mm per axis), and either "probabilities"
            (classes, *spatial) or "prediction", label values (*spatial).
    """

    def draw(figure: Figure) -> None:
        axes = canvas(figure, 4, CASE_PITCH * len(samples))
        for row, sample in enumerate(samples):
            _case_row(axes, job, sample, row * CASE_PITCH)
        handles = class_handles(job.task.classes[1:])
        handles += [line_handle("reference", REFERENCE, "-"), line_handle("prediction", PREDICTION, "--")]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))

    return figure_png(draw, WIDTH / 4 * CASE_PITCH * len(samples) + 0.4)


def draw_classified(job: Job, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """A PNG with one row of classified cases per heading: image, case, label, and what the model said.

    Below an image stands the class with the highest probability (single_label), or the finding that the probability
    is furthest off (multi_label), behind a tick if the prediction is right, else a cross. Volumes show their middle.

    Args:
        rows: heading -> at least one sample each, with "image" float (C, *spatial), "id", "label" as the site's data
            pipeline prepares it, "spacing" (mm per axis) and "probabilities", one per class.
    """
    columns = max(4, *map(len, rows.values()))  # the images of a few cases are not blown up

    def draw(figure: Figure) -> None:
        axes = canvas(figure, columns, GRID_PITCH * len(rows))
        for row, (heading, samples) in enumerate(rows.items()):
            top = row * GRID_PITCH
            axes.text(0.02, top + 0.1, heading, fontsize=9, fontweight="bold", va="center")
            for column, sample in enumerate(samples):
                _classified_case(axes, job, sample, column, top + 0.2)

    return figure_png(draw, WIDTH / columns * GRID_PITCH * len(rows))


def draw_curve(points: Sequence[tuple[int, float]], rounds: int, label: str) -> bytes:
    """A PNG with one metric over the rounds 1 to `rounds`.

    Args:
        points: (round, value), at least one.
    """
    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), color=CLASS_COLOURS[0], marker="o", markersize=3.5, linewidth=1.6)
        axes.set(xlabel="Round", ylabel=label)
        axes.set_xlim(0.5, max(rounds, 2) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="#E3E7EC", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)

    return figure_png(draw, 2.4)


def _case_row(axes: Axes, job: Job, sample: Mapping[str, Any], top: float) -> None:
    image, reference = np.asarray(sample["image"]), np.asarray(sample["label"])[0]
    prediction = np.asarray(sample["prediction"] if "prediction" in sample else sample["probabilities"].argmax(0))
    where = slice_of(reference if reference.any() else prediction, image.shape[1:])
    spacing = sample.get("spacing", (1.0,) * reference.ndim)
    axes.text(0.02, top + 0.08, sample["title"], fontsize=9, fontweight="bold", va="center")
    axes.text(0.02, top + 0.19, _dice_text(reference, prediction, job.task.classes), color="#3A4552", va="center")
    ours, theirs = plane_of(prediction, where), plane_of(reference, where)
    boxes = [show_image(axes, image, where, spacing, column, top + CASE_PITCH - 1) for column in range(4)]
    _fill(axes, theirs, boxes[1])
    _fill(axes, ours, boxes[2])
    outline(axes, theirs, boxes[3], REFERENCE, "-", 1.4)
    outline(axes, ours, boxes[3], PREDICTION, "--", 1.4)
    for box, name in zip(boxes, ("image", "reference", "prediction", "both contours"), strict=True):
        axes.text((box[0] + box[1]) / 2, box[3] - 0.015, name, fontsize=7.5, color="#3A4552", ha="center")


def _classified_case(axes: Axes, job: Job, sample: Mapping[str, Any], left: float, top: float) -> None:
    image = np.asarray(sample["image"])
    show_image(axes, image, slice_of(None, image.shape[1:]), sample["spacing"], left, top)
    truth, said, right = _classification_texts(job, np.asarray(sample["label"]), np.asarray(sample["probabilities"]))
    mark, colour_of_mark = ("\u2713", "#00664B") if right else ("\u2717", "#A33C00")
    lines = ((sample["id"], "#1B2530"), (truth, "#3A4552"), (f"{mark} {said}", colour_of_mark))
    for number, (text, colour) in enumerate(lines):
        axes.text(
            left + 0.5, top + 1.04 + 0.11 * number, _short(text), fontsize=7, color=colour, ha="center", va="center"
        )


def _classification_texts(job: Job, label: np.ndarray, probabilities: np.ndarray) -> tuple[str, str, bool]:
    """What a case is, what the model says of it, and whether that is right."""
    classes = job.task.classes
    if label.ndim == 0:
        top = int(probabilities.argmax())
        return f"is {classes[int(label)]}", f"{classes[top]} {probabilities[top]:.2f}", top == int(label)
    found = [name for name, there in zip(classes, label, strict=True) if there]
    worst = int(np.abs(probabilities - label).argmax())
    right = bool(((probabilities >= THRESHOLD) == (label > 0)).all())
    return f"is {', '.join(found) or 'without findings'}", f"{classes[worst]} {probabilities[worst]:.2f}", right


def _short(text: str) -> str:
    """Narrow enough to stand below a small image; the end of a word goes, not the number behind it."""
    if len(text) <= CAPTION_LETTERS:
        return text
    start, _, number = text.rpartition(" ")
    if start and number.replace(".", "").isdigit():
        return f"{start[: CAPTION_LETTERS - len(number) - 2]}\u2026 {number}"
    return f"{text[: CAPTION_LETTERS - 1]}\u2026"


def _dice_text(reference: np.ndarray, prediction: np.ndarray, classes: Sequence[str]) -> str:
    """Dice of every foreground class over the whole case; a class that is in neither has none."""
    parts = []
    for value, name in enumerate(classes[1:], start=1):
        ours, theirs = prediction == value, reference == value
        size = int(ours.sum() + theirs.sum())
        parts.append(f"{name} {2 * (ours & theirs).sum() / size:.3f}" if size else f"{name} absent")
    return f"Dice: {', '.join(parts)}"


def class_style(index: int) -> dict[str, Any]:
    """Colour and, from the ninth class on, hatching."""
    hatch = ["", "///", "...", "xxx"][index // len(CLASS_COLOURS) % 4]
    return {"color": CLASS_COLOURS[index % len(CLASS_COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}


def class_handles(classes: Sequence[str]) -> list[Any]:
    """Entries of a legend."""
    from matplotlib.patches import Patch

    handles = []
    for index, name in enumerate(classes):
        style = class_style(index)
        handles.append(Patch(facecolor=style.pop("color"), label=name, **style))
    return handles


def line_handle(label: str, colour: str, dash: Any) -> Any:
    """An entry of a legend for a contour."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, linewidth=2, label=label)


def canvas(figure: Any, columns: float, rows: float) -> Axes:
    """One set of axes, without any, in which every image gets a square of side 1: far faster than axes per image."""
    axes = figure.subplots()
    axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], autoscale_on=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def slice_of(mask: np.ndarray | None, spatial: Sequence[int]) -> int | None:
    """Index along the last axis of a volume: the largest area of the mask, or the middle; None for a 2D image."""
    if len(spatial) == 2:
        return None
    if mask is not None and mask.any():
        return int((mask > 0).sum(axis=(0, 1)).argmax())
    return spatial[2] // 2


def plane_of(values: np.ndarray, where: int | None) -> np.ndarray:
    """A 2D image as it is; of a volume (right, front, top) one slice with the front up."""
    return values if where is None else values[..., where].T[::-1]


def show_image(
    axes: Axes,
    image: np.ndarray,
    where: int | None,
    spacing: Sequence[float],
    left: float,
    top: float,
    window: Sequence[tuple[float, float]] = (),
) -> tuple[float, float, float, float]:
    """Draw an image, as large as fits, into the square of side 1 at (left, top); returns left, right, bottom, top.

    Three channels are shown as colours, of others the first one.

    Args:
        window: of `grey_window`, of another image that this one is to be compared with.
    """
    planes = _planes(image, where)
    rows, columns = planes[0].shape
    high, wide = (spacing[0], spacing[1]) if where is None else (spacing[1], spacing[0])
    scale = 0.95 / max(rows * high, columns * wide)
    wide, high = columns * wide * scale, rows * high * scale
    left, top = left + (1 - wide) / 2, top + (1 - high) / 2
    box = (left, left + wide, top + high, top)
    window = window or grey_window(image, where)
    shown = np.stack(
        [np.clip((p - low) / max(high - low, 1e-12), 0, 1) for p, (low, high) in zip(planes, window, strict=True)],
        axis=-1,
    )
    shown = shown if len(planes) == 3 else shown[..., 0]
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=box, aspect="equal")
    return box


def grey_window(image: np.ndarray, where: int | None) -> list[tuple[float, float]]:
    """What is shown black and white, by channel: the 1st and 99th percentile of the plane that is shown."""
    window = []
    for plane in _planes(image, where):
        low, high = np.percentile(plane, (1, 99)).tolist()
        window.append((low, high) if high > low else (float(plane.min()), float(plane.max())))
    return window


def _planes(image: np.ndarray, where: int | None) -> list[np.ndarray]:
    return [plane_of(channel, where) for channel in (image if len(image) == 3 else image[:1])]


def _fill(axes: Axes, plane: np.ndarray, box: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import to_rgba

    colours = np.zeros((*plane.shape, 4))
    for value in np.unique(plane[plane > 0]):
        colours[plane == value] = to_rgba(CLASS_COLOURS[(int(value) - 1) % len(CLASS_COLOURS)], 0.62)
    axes.imshow(colours, interpolation="nearest", extent=box, aspect="equal")


def outline(
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


def figure_png(draw: Callable[[Figure], None], height: float) -> bytes:
    """Draw on a figure of WIDTH x `height` inches; the same drawing gives the same bytes."""
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
    return target.getvalue()
