"""The simulated clock: what a run would take in the world, reckoned from its events."""

from pathlib import Path
from typing import Any

import pytest

from server.report import write_report
from server.report.record import read_record
from server.report.summary import summarise
from shared_models.job import Job
from tests.server.fabricated_run import fabricate, job

SIMULATION = {
    "dataset": {"name": "medmnist", "flag": "pneumoniamnist"},
    "partition": {"name": "iid"},
    "hospitals": 3,
}
# Of every reply of a fabricated run, in seconds: 4 of training, and 1.3 MB down and 1.301 MB up at 100 Mbit/s.
TRAVEL = (1_300_000 + 1_301_000) * 8 / 100e6


def clock_of(folder: Path, replies: Any = None, federation: Any = None, **simulation: Any) -> dict[str, Any]:
    values = job("classification", rounds=2).model_dump(mode="json")
    values["federation"].update(federation or {})
    the_job = Job.model_validate({**values, "simulation": {**SIMULATION, **simulation}})
    report = summarise(read_record(fabricate(folder, the_job, replies=replies)))
    found: dict[str, Any] = report["clock"]
    return found


def test_a_round_takes_as_long_as_its_slowest_hospital(tmp_path: Path) -> None:
    clock = clock_of(tmp_path / "run", participation={"riverside": {"slowdown": 3}})
    assert [row["seconds"] for row in clock["rounds"]] == pytest.approx([12 + TRAVEL] * 2)
    assert {row["slowest"] for row in clock["rounds"]} == {"riverside"}
    assert clock["seconds"] == pytest.approx(2 * (12 + TRAVEL))
    assert "about 24.4 s, all hospitals at once" in clock["text"]
    assert "riverside is waited for in 2 of 2 rounds" in clock["text"]
    assert "(riverside times 3)" in clock["text"]


def test_the_line_counts_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    assert "100 Mbit/s to and from each hospital (assumed" in clock_of(tmp_path / "default")["text"]
    clock = clock_of(tmp_path / "thin", bandwidth_mbit=1.0)
    assert clock["rounds"][0]["seconds"] == pytest.approx(4 + 100 * TRAVEL)
    assert "1 Mbit/s to and from each hospital (as the job states)" in clock["text"]


def test_a_late_hospital_costs_the_deadline_and_an_absent_one_nothing(tmp_path: Path) -> None:
    late = {"status": "late", "seconds": 0.2, "cases": 0}
    away = {"status": "failed", "seconds": 0.0, "bytes_down": 0, "bytes_up": 0, "cases": 0}
    replies = {1: {"university": late}, 2: {"university": away, "riverside": {"seconds": 1.0}}}
    clock = clock_of(tmp_path / "run", replies, {"deadline_seconds": 60})
    assert [row["seconds"] for row in clock["rounds"]] == pytest.approx([60, 4 + TRAVEL])
    assert [row["slowest"] for row in clock["rounds"]] == ["university", "north-clinic"]


def test_hospitals_in_turn_take_the_sum(tmp_path: Path) -> None:
    clock = clock_of(tmp_path / "run", federation={"algorithm": {"name": "cyclic"}})
    assert clock["rounds"][0]["seconds"] == pytest.approx(3 * (4 + TRAVEL))
    assert "one hospital after the other" in clock["text"]


def test_only_a_simulation_has_it_and_the_page_says_it(tmp_path: Path) -> None:
    assert summarise(read_record(fabricate(tmp_path / "real")))["clock"] is None
    clock = clock_of(tmp_path / "run")
    assert clock["text"] in write_report(tmp_path / "run").read_text()
