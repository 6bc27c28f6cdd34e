"""The figures of the report as SVG text: Okabe-Ito colours, and a shape for everything that has a colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from server.report.models import is_single_local

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEDERATED, LOCAL, POOLED, SCALED = "#0072B2", "#D55E00", "#4D4D4D", "#009E73"
MODEL_STYLES = {"local": (LOCAL, "s"), "pooled": (POOLED, "D"), "federated": (FEDERATED, "o")}
CALIBRATED = MODEL_STYLES | {"temperature-scaled": (SCALED, "^")}
"""The models whose calibration is drawn."""
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8C6D1F"]
DASHES = ["-", "--", ":", "-."]
STATUS_STYLES = {
    "used": ("s", "#0072B2", "full"),
    "failed": ("X", "#D55E00", "full"),
    "late": (">", "#B27900", "full"),
    "rejected": ("D", "#8B2D6B", "full"),
    "refused": ("_", "#4D4D4D", "full"),
    "no_reply": ("$?$", "#4D4D4D", "full"),
    "discarded": ("s", "#0072B2", "none"),
    "not_drawn": (".", "#B8C0CA", "full"),
}
WIDTH = 8.6
MANY_MARKS = 4000


def svg(width: float, height: float, draw: Callable[[Figure], None]) -> str:
    """Draw on a figure of `width` × `height` inches; the same drawing gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#8A94A0",
        "axes.labelcolor": "#3A4552",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "xtick.color": "#8A94A0",
        "ytick.color": "#8A94A0",
        "xtick.labelcolor": "#3A4552",
        "ytick.labelcolor": "#3A4552",
        "grid.color": "#E3E7EC",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "axes.unicode_minus": True,
        "svg.hashsalt": "consilium",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        target = io.StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def forest(rows: list[dict[str, Any]], label: str) -> str:
    """Per hospital the value and interval of each model (left), and federated minus the others (right).

    Args:
        rows: of `tables.comparison`, the last one for all hospitals together.
        label: of the metric, with its unit.
    """

    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        others = [other for other in ("local", "pooled") if any(row[f"federated-{other}"] for row in rows)]
        # Without anything to compare with, there is nothing to draw on the right.
        panels = figure.subplots(
            1, 2 if others else 1, sharey=True, squeeze=False, width_ratios=[1.25, 1][: 1 + bool(others)]
        )[0]
        values = panels[0]
        for model, offset in (("local", -0.22), ("pooled", 0.0), ("federated", 0.22)):
            colour, marker = MODEL_STYLES[model]
            _intervals(values, [row[model] for row in rows], offset, colour, marker, model)
        for other in others:
            colour, marker = MODEL_STYLES[other]
            entries, offset = [row[f"federated-{other}"] for row in rows], {"local": -0.13, "pooled": 0.13}[other]
            _intervals(panels[1], entries, offset, colour, marker, f"federated \u2212 {other}")
        if others:
            panels[1].axvline(0, color="#3A4552", linewidth=1)
            panels[1].set_xlabel(f"Difference in {label} (95 % interval)")
        for index, row in enumerate(rows):
            if not any((row[model] or {}).get("value") is not None for model in MODEL_STYLES):
                where = values.get_yaxis_transform()
                absent = "no value" if row["absent"] == "\u2013" else row["absent"]
                values.text(0.02, index, absent, transform=where, va="center", color="#66717D", fontsize=8)
        values.set_xlabel(f"{label} (95 % interval)")
        values.set_yticks(range(len(rows)), [_with_n(row) for row in rows])
        values.set_ylim(len(rows) - 0.45, -0.55)
        for axes in panels:
            axes.grid(axis="x")
            axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            if len(rows) > 1:
                axes.axhline(len(rows) - 1.5, color="#8A94A0", linewidth=0.7)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.2, columnspacing=1)

    return svg(WIDTH, 1.15 + 0.46 * len(rows), draw)


def _with_n(row: dict[str, Any]) -> str:
    return f"{row['name']} (n = {row['n']})" if row["n"] is not None else str(row["name"])


def _intervals(axes: Axes, rows: list[Any], offset: float, colour: str, marker: str, name: str) -> None:
    drawn = [(index + offset, row) for index, row in enumerate(rows) if row and row.get("value") is not None]
    if not drawn:
        return
    for place, row in drawn:
        if row.get("low") is not None and row.get("high") is not None:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    places, values = [place for place, _ in drawn], [row["value"] for _, row in drawn]
    axes.plot(values, places, marker, color=colour, markersize=5.5, markeredgecolor="white", label=name)


def learning_curves(report: dict[str, Any], metric: str | None, label: str) -> str:
    """Training loss and the validation metric by round: thin lines are hospitals, the thick one is the federation."""

    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure) -> None:
        loss, quality = figure.subplots(1, 2)
        rounds = report["rounds"]
        sites = report["run"]["sites"]
        for site in sites:
            _line(loss, [(r["round"], r["loss_by_site"].get(site)) for r in rounds], "#A9B4C0", 0.8)
            points = [(r["round"], r["validation_by_site"].get(site, {}).get(metric)) for r in rounds]
            _line(quality, points, "#A9B4C0", 0.8)
        _line(loss, [(r["round"], r["loss"]) for r in rounds], FEDERATED, 2.0, "federated (mean)")
        _line(quality, [(r["round"], r["validation"].get(metric)) for r in rounds], FEDERATED, 2.0, "federated")
        for axes in (loss, quality):
            axes.plot([], [], color="#A9B4C0", linewidth=0.8, label="each hospital")
        best = report["run"]["best_round"]
        height = next((r["validation"].get(metric) for r in rounds if r["round"] == best), None)
        if height is not None:
            quality.plot([best], [height], "*", color="#E69F00", markeredgecolor="#3A4552", markersize=12)
            quality.plot(
                [], [], "*", color="#E69F00", markeredgecolor="#3A4552", markersize=9, label=f"best round ({best})"
            )
        _end_levels(quality, report["baselines"], metric)
        loss.set_ylabel("Training loss")
        quality.set_ylabel(f"{label}, validation")
        for axes in (loss, quality):
            axes.set_xlabel("Round")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            # Above the axes, where no line runs through it.
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, columnspacing=1)

    return svg(WIDTH, 3.8, draw)


def _line(axes: Axes, points: list[tuple[int, float | None]], colour: str, width: float, name: str = "") -> None:
    there = [(number, value) for number, value in points if value is not None]
    if there:
        marker = "o" if len(there) <= 20 and width > 1 else ""
        xs, ys = [number for number, _ in there], [value for _, value in there]
        axes.plot(xs, ys, color=colour, linewidth=width, marker=marker, markersize=3.5, label=name or None)


def _end_levels(axes: Axes, baselines: dict[str, Any], metric: str | None) -> None:
    """Where the baselines ended, on the validation data they chose their best round with."""
    ends: dict[str, list[float]] = {"pooled": [], "local": []}
    for model, baseline in baselines.items():
        kind = "local" if is_single_local(model) else model  # a federation without one hospital is neither
        values = [point["metrics"].get(metric) for point in baseline.get("curve") or []]
        values = [value for value in values if value is not None]
        if values and kind in ends:
            ends[kind].append(values[-1])
    for (kind, values), dash in zip(ends.items(), ((0, (6, 3)), (0, (1.5, 2))), strict=True):
        if values:
            name = "pooled, end" if kind == "pooled" else "local, mean of ends"
            axes.axhline(
                sum(values) / len(values), color=MODEL_STYLES[kind][0], linestyle=dash, linewidth=1.3, label=name
            )


def participation_grid(report: dict[str, Any], words: dict[str, str]) -> str:
    """Sites by rounds, the last attempt at each round: every status has its own colour and its own shape."""
    entries = [entry for entry in report["participation"] if entry["last_attempt"]]
    sites = report["run"]["sites"]
    rounds = sorted({entry["round"] for entry in entries})
    row = {site: index for index, site in enumerate(sites)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        size = min(9.0, 330 / max(len(rounds), 1) ** 0.95)
        for status, (marker, colour, fill) in STATUS_STYLES.items():
            mine = [entry for entry in entries if entry["status"] == status]
            if mine:
                axes.plot(
                    [entry["round"] for entry in mine],
                    [row[entry["site"]] for entry in mine],
                    linestyle="",
                    marker=marker,
                    color=colour,
                    fillstyle=fill,
                    markersize=size if marker != "." else size * 0.6,
                    markeredgewidth=1.0 if marker != "_" else 2.0,
                    label=words[status],
                    rasterized=len(entries) > MANY_MARKS,
                )
        axes.set_yticks(range(len(sites)), sites)
        axes.set_ylim(len(sites) - 0.4, -0.6)
        axes.set_xlim(rounds[0] - 0.7, max(rounds[-1], rounds[0] + 7) + 0.7)
        axes.set_xticks(rounds[:: 1 + len(rounds) // 20])
        axes.set_xlabel("Round", loc="left")
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, handletextpad=0.1)
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_markersize"):
                handle.set_markersize(7)

    return svg(WIDTH, 1.0 + 0.27 * len(sites), draw)


def roc_and_reliability(report: dict[str, Any]) -> str | None:
    """ROC curves, where the task has them, and calibration on all hospitals' held-out patients; None without it."""
    curves = {model: found["all"] for model, found in report["curves"].items() if "all" in found}
    main = curves.get("federated", {})
    if not main.get("reliability", {}).get("n"):
        return None

    def draw(figure: Figure) -> None:
        if "roc" in main:
            roc, reliability = figure.subplots(1, 2)
            draw_roc(roc)
        else:
            reliability = figure.subplots()
        for model in ("pooled", "federated", "temperature-scaled"):
            if model in curves:
                _reliability(reliability, curves[model].get("reliability", {}), model)
        _unit_square(reliability)
        reliability.set(xlabel="Predicted probability (area: how many)", ylabel="Observed share that was right")
        reliability.legend(loc="upper left")

    def draw_roc(roc: Axes) -> None:
        shown = {model: curves[model] for model in ("federated", "pooled") if model in curves}
        classes = list(main.get("roc", {}))
        if len(classes) > 1:
            for index, name in enumerate(classes):
                style = {"color": CYCLE[index % len(CYCLE)], "linestyle": DASHES[index // len(CYCLE) % len(DASHES)]}
                _roc(roc, main["roc"][name], name, **style)
            roc.set_title("Federated model, each class against the rest")
        else:
            for model, found in shown.items():
                for curve in found.get("roc", {}).values():
                    _roc(
                        roc, curve, model, color=MODEL_STYLES[model][0], linestyle="-" if model == "federated" else "--"
                    )
        _unit_square(roc)
        roc.set(xlabel="False positive rate (1 \u2212 specificity)", ylabel="True positive rate (sensitivity)")
        roc.legend(loc="lower right", fontsize=8 if len(classes) < 8 else 6.5)

    return svg(WIDTH, 4.3, draw)


def _unit_square(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color="#8A94A0", linewidth=0.8, linestyle=":")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid()


def _roc(axes: Axes, curve: dict[str, list[float]], name: str, **style: Any) -> None:
    fpr, tpr = curve.get("fpr", []), curve.get("tpr", [])
    if fpr and None not in fpr and None not in tpr:
        axes.plot(fpr, tpr, linewidth=1.7, label=name, **style)


def _reliability(axes: Axes, bins: dict[str, list[Any]], model: str) -> None:
    points = zip(bins.get("confidence", []), bins.get("observed", []), bins.get("n", []), strict=True)
    there = [(x, y, n) for x, y, n in points if x is not None and y is not None and n]
    if there:
        colour, marker = CALIBRATED[model]
        xs, ys, counts = zip(*there, strict=True)
        label = f"{model}, n = {round(sum(counts))}"
        axes.plot(xs, ys, color=colour, linewidth=1.2, marker=marker, markersize=4, label=label)
        axes.scatter(
            xs,
            ys,
            s=[12 + 110 * n / max(counts) for n in counts],
            color=colour,
            marker=marker,
            alpha=0.75,
            clip_on=False,
        )
