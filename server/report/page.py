"""Writes the report of a run: one HTML file that needs no network, and the same content as JSON."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from server.checkpoint import write_atomically
from server.report import answer, figures, tables
from server.report.participation import STATUSES
from server.report.record import RunRecord, read_record
from server.report.summary import summarise

Row = dict[str, Any]


def write_report(run_dir: Path) -> Path:
    """Write `report.json` and `report.html` into a run directory, each atomically; the path of the page is returned.

    A run that stopped, or has no baselines or no evaluation, gets a report that says so.

    Raises:
        BadInput: `run_dir` is no run directory, or a file in it cannot be read.
        RunStopped: the report cannot be written, as on a full disk.
    """
    record = read_record(run_dir)
    report = summarise(record)
    page = _render(record, report)
    content = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(run_dir / "report.json", content.encode())
    write_atomically(run_dir / "report.html", page.encode())
    return run_dir / "report.html"


def _render(record: RunRecord, report: Row) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        fixed=answer.write, size=_size, duration=_duration, count=_count, when=_when, plural=_plural
    )
    metric = report["headline_metric"]
    return environment.get_template("report.html.j2").render(
        report=report,
        metric=metric,
        job_text=record.job_text,
        comparisons={name: tables.comparison(report, name) for name in tables.summary_metrics(report)},
        details=tables.federated_details(report),
        baseline_seconds=tables.baseline_seconds(report),
        everywhere=tables.everywhere(report, metric) if metric else [],
        hospitals=tables.hospitals(report),
        left_out=tables.left_out_rows(report),
        figures={name: _data_uri("image/svg+xml", drawn.encode()) for name, drawn in _figures(report).items()},
        pictures={path.stem: _data_uri("image/png", path.read_bytes()) for path in _pictures(record.folder)},
        statuses=STATUSES,
    )


def _figures(report: Row) -> dict[str, str]:
    """The figures that this run has something for: name -> SVG."""
    metric = report["headline_metric"]
    name = metric or next((name for row in report["rounds"] for name in row["validation"]), None)
    label = report["metrics"][metric]["label"] if metric else name or "Metric"
    drawn: dict[str, str | None] = {}
    if metric and report["models"]:
        drawn["forest"] = figures.forest(tables.comparison(report, metric), label)
    if report["rounds"]:
        drawn["curves"] = figures.learning_curves(report, name, label)
    if report["participation"]:
        drawn["participation"] = figures.participation_grid(report, STATUSES)
    if report["task"] == "classification":
        drawn["roc"] = figures.roc_and_reliability(report)
    return {key: text for key, text in drawn.items() if text}


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").glob("*.png"))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _size(number: float | None) -> str:
    """Bytes as `12.4 MB` (decimal units)."""
    if number is None:
        return "\u2013"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} B"


def _duration(seconds: float | None) -> str:
    """Seconds as `12.3 s`, `4 min 05 s` or `2 h 04 min`."""
    if seconds is None:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _count(number: float | None) -> str:
    """A count with thin spaces between thousands."""
    return "\u2013" if number is None else f"{number:,.0f}".replace(",", "\u202f")


def _when(stamp: str | None) -> str:
    """An ISO-8601 time as `2026-01-31 14:05 UTC`."""
    return "at an unknown time" if not stamp else f"{stamp[:10]} {stamp[11:16]} UTC"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
