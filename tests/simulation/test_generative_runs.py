"""Whole simulations of synthesis and of anomaly detection on the squares."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from server.events import read_events
from simulation.run import simulate
from simulation.run_folder import SimulationRequest

NORMALISED = {"normalisation": "minmax"}


def report_of(out: Path) -> dict[str, Any]:
    """The report, the warnings that no picture may have caused, and the values of the federated model."""
    report = json.loads((out / "report.json").read_text())
    assert report["warnings"] == [] or not any("picture" in text for text in report["warnings"])
    return report


def federated(out: Path) -> dict[str, float]:
    evaluations = json.loads((out / "evaluations.json").read_text())
    return {name: metric["value"] for name, metric in evaluations["models"]["federated"]["all"].items()}


def test_synthesis_measures_the_gain_and_checks_for_copies(write_job, squares, tmp_path) -> None:
    job = write_job(
        task={"kind": "synthesis", "images_per_class": 10, "classifier_steps": 20},
        data=NORMALISED,
        model={"name": "dcgan", "arguments": {"latent": 4, "channels": 4}},
        training={"optimizer": {"learning_rate": 0.001, "beta": 0.5}},
        federation={"rounds": 2},
    )
    out = tmp_path / "run"
    assert simulate(SimulationRequest(job, squares, out, workers=1, compare=())) == 0
    found = federated(out)
    assert found["auroc_gain"] == pytest.approx(found["auroc_with_synthetic"] - found["auroc_without_synthetic"])
    assert found["nearest_synthetic"] > found["nearest_real"] > 0, "after two rounds nothing looks like a square"
    assert found["memorised"] == 0
    assert set(found) == set(report_of(out)["metrics"])
    assert (out / "pictures" / "cases.png").stat().st_size > 10_000


def test_anomaly_detection_never_trains_on_what_it_is_to_find(write_job, squares, tmp_path) -> None:
    job = write_job(
        task={"kind": "anomaly"},
        data=NORMALISED,
        model={"name": "vae", "arguments": {"latent": 8, "channels": 8}},
        federation={"rounds": 4},
    )
    out = tmp_path / "run"
    assert simulate(SimulationRequest(job, squares, out, workers=1, compare=())) == 0
    assert federated(out)["auroc"] > 0.9
    assert set(federated(out)) == set(report_of(out)["metrics"])
    events = [event for event in read_events(out / "events.jsonl") if event["event"] == "site_replied"]
    assert len(events) == 3 * 4
    for event in events:
        with (out / "sites" / event["site"] / "manifest.csv").open() as manifest:
            rows = [row for row in csv.DictReader(manifest) if row["split"] == "train"]
        normal = [row for row in rows if row["label"] in ("small", "0")]
        assert 0 < len(normal) < len(rows)
        assert event["cases"] == len(normal)
    assert (out / "pictures" / "cases.png").stat().st_size > 10_000
