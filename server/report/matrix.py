"""The cross-hospital matrix: every model on every hospital's held-out patients, as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.report.figures import WIDTH, svg
from shared_models.page import fixed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 12
"""With more hospitals than this, values lose a decimal and names stand upright."""


def matrix(rows: Sequence[dict[str, Any]], hospitals: Sequence[str], info: dict[str, Any]) -> str:
    """The heat map as SVG text. Light is good, dark is bad, whichever way the metric goes.

    Args:
        rows: of `tables.everywhere`.
        hospitals: the columns, before one for all hospitals together.
        info: of the metric: "label", "unit", "digits", "larger_is_better".
    """
    import matplotlib
    import numpy as np

    values = np.array([[(cell or {}).get("value") for cell in row["values"]] for row in rows], dtype=float)
    larger, many = info["larger_is_better"], len(hospitals) > MANY
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if high - low < 1e-9:  # one colour for equal values, within what the metric can be
        share = not info["unit"] and low >= 0 and high <= 1
        low, high = (0.0, 1.0) if share else (min(low, max(0.0, low - 0.5)), high + 0.5)
    # Perceptually uniform, and the same to readers with any colour vision (Nuñez et al. 2018).
    colours = matplotlib.colormaps["cividis" if larger else "cividis_r"].with_extremes(bad="#F1F3F5")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (place, column), value in np.ndenumerate(values):
            dark = np.isfinite(value) and _luminance(colours((value - low) / (high - low))) < 0.2
            text = fixed(value if np.isfinite(value) else None, max(0, info["digits"] - many))
            weight = "bold" if column == len(hospitals) else "normal"
            size = 6 if many else 8.5
            axes.text(
                column, place, text, ha="center", va="center", fontsize=size, weight=weight,
                color="white" if dark else "#1B2530",
            )  # fmt: skip
        _frame(axes, rows, hospitals, many)
        bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=max(8, 3 * len(rows)), pad=0.015)
        bar.set_label(f"{info['label']}{'' if larger else ', smaller is better'}")
        bar.outline.set_visible(False)

    return svg(WIDTH, 1.1 + 0.34 * len(rows) + (0.5 if many else 0), draw)


def _luminance(colour: Sequence[float]) -> float:
    """The relative luminance of a red, green and blue in 0..1 (WCAG 2.2): below 0.2, white text is read best."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _frame(axes: Axes, rows: Sequence[dict[str, Any]], hospitals: Sequence[str], upright: bool) -> None:
    """Names, a gap before the column for all, and an outline around what is a hospital's own."""
    from matplotlib.patches import Rectangle

    axes.set_xticks(range(len(hospitals) + 1), [*hospitals, "All"], rotation=90 if upright else 0)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("Held-out patients of", loc="left")
    axes.set_ylabel("Model")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(len(hospitals) - 0.5, color="white", linewidth=4)
    for place, row in enumerate(rows):
        for column, own in enumerate(row["home"]):
            if own:
                cell = Rectangle(
                    (column - 0.46, place - 0.42), 0.92, 0.84, fill=False, edgecolor="#D55E00", linewidth=2
                )
                axes.add_patch(cell)
