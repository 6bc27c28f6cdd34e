"""Writes the report of a run: one HTML file that needs no network, and the same content as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.checkpoint import write_atomically
from server.judgement import LOCAL, POOLED
from server.report import figures, tables
from server.report.answer import comparisons
from server.report.matrix import matrix
from server.report.participation import STATUSES
from server.report.record import RunRecord, read_record
from server.report.summary import summarise
from shared_models.page import data_uri, environment
from shared_models.tasks import task_of

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
    metric, selection, tiles = report["headline_metric"], report["run"]["selection_metric"], tables.tiles(report)
    return (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            report=report,
            metric=metric,
            across_classes=bool(metric) and task_of(record.job).is_across_classes(metric),
            compared={
                "local": any(model.startswith(LOCAL) for model in report["models"]),
                "pooled": POOLED in report["models"],
            },
            answer=comparisons(report) if tiles else report["answer"],
            tiles=tiles,
            digits=report["metrics"][metric]["digits"] if metric else 0,
            selected=report["metrics"].get(selection, {"label": selection})["label"],
            overview=tables.overview(report, metric) if metric else [],
            choices=tables.choices(report),
            subgroups=tables.subgroups(report, metric) if metric else {},
            least_patients=record.job.evaluation.subgroup_patients,
            calibration=tables.calibration(report),
            job_text=record.job_text,
            comparisons={name: tables.comparison(report, name) for name in tables.summary_metrics(report)},
            details=tables.federated_details(report),
            baseline_seconds=tables.baseline_seconds(report),
            steps_taken=tables.steps_taken(report),
            everywhere=tables.everywhere(report, metric) if metric else [],
            places=tables.places(report),
            left_out=tables.left_out_rows(report),
            figures={name: data_uri("image/svg+xml", drawn.encode()) for name, drawn in _figures(report).items()},
            pictures={path.stem: data_uri("image/png", path.read_bytes()) for path in _pictures(record.folder)},
            statuses=STATUSES,
        )
    )


def _figures(report: Row) -> dict[str, str]:
    """The figures that this run has something for: name -> SVG."""
    metric = report["headline_metric"]
    name = metric or next((name for row in report["rounds"] for name in row["validation"]), None)
    label = report["metrics"][metric]["label"] if metric else name or "Metric"
    drawn: dict[str, str | None] = {}
    if metric and report["models"]:
        drawn["forest"] = figures.forest(tables.comparison(report, metric), label)
        if len(report["models"]) > 1:
            rows = tables.everywhere(report, metric)
            drawn["matrix"] = matrix(rows, tables.hospitals(report), report["metrics"][metric])
    if report["rounds"]:
        drawn["curves"] = figures.learning_curves(report, name, label)
    if report["participation"]:
        drawn["participation"] = figures.participation_grid(report, STATUSES)
    drawn["calibration"] = figures.roc_and_reliability(report)
    return {key: text for key, text in drawn.items() if text}


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures").glob("*.png"))
