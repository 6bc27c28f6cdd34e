"""The page of a comparison: one HTML file that needs no network, with one figure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.checkpoint import write_atomically
from server.report.comparison_answer import do_not_rely
from server.report.figures import CYCLE, FEDERATED, WIDTH, svg
from shared_models.errors import BadInput
from shared_models.page import data_uri, environment, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

SEED, OVER_SEEDS = "#8A94A0", CYCLE[1]


def write_comparison(comparison: Row, page: Path) -> Path:
    """Writes what `compare_runs` found as a page, and as JSON beside it, each whole or not at all; an older one of the
    same name is replaced. The path of the JSON file is returned.

    Raises:
        BadInput: the page's name does not end in .html.
        RunStopped: a file cannot be written, as on a full disk.
    """
    if page.suffix != ".html":
        raise BadInput(f"{page}: a comparison is an HTML page; give a name that ends in .html")
    numbers = page.with_suffix(".json")
    page.parent.mkdir(parents=True, exist_ok=True)
    text = (
        environment(Path(__file__).parent)
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            heading=do_not_rely(comparison),
            hospitals_of=hospitals_of,
            figure=data_uri("image/svg+xml", draw(comparison).encode()),
            json=numbers.name,
            names=_short_names([run["run"] for method in comparison["methods"] for run in method["runs"]]),
        )
    )
    write_atomically(numbers, json.dumps(comparison, indent=1, allow_nan=False, ensure_ascii=False).encode())
    write_atomically(page, text.encode())
    return numbers


def hospitals_of(row: Row) -> str:
    """The hospitals that a mean or spread is of, or the names of the worst ones with their cases."""
    found, of = row["hospitals"], row["of"]
    if isinstance(found, int):
        several = f"{found}" if found == row["most"] else f"{found} to {row['most']}"
        return f"{several} of {plural(of, 'hospital')}" if found < of else plural(of, "hospital")
    n = [] if row["n"] is None else [f"n = {row['n']}"]
    return ", ".join([*(found or []), *n])


def _short_names(runs: list[str]) -> dict[str, str]:
    """Each run by what tells its path from the others': a table has no room for folders that all have in common."""
    common = os.path.commonpath([Path(run).absolute().parent for run in runs])
    return {run: os.path.relpath(run, common) for run in runs}


def draw(comparison: Row) -> str:
    """Each method's value with its interval and its seeds (left), and its difference from the first method (right)."""
    methods, found = comparison["methods"], comparison["tests"]

    def on(figure: Figure) -> None:
        panels = figure.subplots(1, 2 if found else 1, sharey=True, squeeze=False)[0]
        for place, method in enumerate(methods):
            _interval(panels[0], place, method, "value", FEDERATED, "o", "all patients, 95 % interval over patients")
            if len(method["runs"]) > 1:
                seeds = [run["value"] for run in method["runs"] if run["value"] is not None]
                panels[0].plot(seeds, [place + 0.24] * len(seeds), ".", color=SEED, markersize=5, label="one seed")
        panels[0].set_xlabel(comparison["label"])
        panels[0].set_yticks(range(len(methods)), [_folded(method["label"]) for method in methods])
        panels[0].set_ylim(len(methods) - 0.45, -0.55)
        if found:
            for place, test in enumerate(found, 1):
                over = "over patients, 95 % interval"
                _interval(panels[1], place - 0.1, test["patients"], "difference", FEDERATED, "o", over)
                over = "over seeds, 95 % interval"
                _interval(
                    panels[1], place + 0.16, test["seeds"], "difference", OVER_SEEDS, "D", over, needs_bounds=True
                )
            panels[1].axvline(0, color="#3A4552", linewidth=1)
            panels[1].set_xlabel(f"Difference in {comparison['label']} from the first method")
        for axes in panels:
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            _legend(axes)

    return svg(WIDTH, 1.25 + 0.48 * len(methods), on)


def _interval(
    axes: Axes, place: float, row: Row, key: str, colour: str, marker: str, name: str, needs_bounds: bool = False
) -> None:
    bounded = row["low"] is not None and row["high"] is not None
    if row[key] is None or (needs_bounds and not bounded):
        return
    if bounded:
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([row[key]], [place], marker, color=colour, markersize=5.5, markeredgecolor="white", label=name)


def _legend(axes: Axes) -> None:
    """Each kind of mark once."""
    by_name = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if by_name:
        names = list(by_name)
        marks = [by_name[name] for name in names]
        axes.legend(marks, names, loc="lower center", bbox_to_anchor=(0.5, 1.0), handletextpad=0.2, fontsize=8)


def _folded(label: str) -> str:
    return label.replace(", ", ",\n")
