"""Whole simulations of hospitals that come, go, are slow or do harm, and what their report says."""

import json
import shutil

import pytest

from server.checkpoint import load_weights
from server.events import read_events
from shared_models.errors import BadInput, RunStopped
from shared_models.weights import fingerprint
from simulation.run import simulate
from simulation.run_folder import SimulationRequest, create
from tests.simulation.conftest import JOB


def run(write_job, squares, out, hospitals=5, federation=None, training=None, **simulation):
    job = write_job(
        federation={"rounds": 3, **(federation or {})},
        training=training or {},
        evaluation={"every": 0, "bootstrap": 0},
        simulation={**JOB["simulation"], "hospitals": hospitals, **simulation},
    )
    return simulate(SimulationRequest(job, squares, out, workers=2, compare=()))


def statuses(out):
    """Round -> site -> status."""
    found: dict[int, dict[str, str]] = {}
    for event in read_events(out / "events.jsonl"):
        if event["event"] == "site_replied":
            found.setdefault(event["round"], {})[event["site"]] = event["status"]
    return found


def report_of(out):
    return json.loads((out / "report.json").read_text())


def named(out):
    return [doubt["text"] for doubt in report_of(out)["doubts"] if doubt["kind"] == "update_out_of_line"]


def test_hospitals_come_go_and_are_late_and_the_report_says_so(write_job, squares, tmp_path):
    out = tmp_path / "run"
    habits = {"hospital-1": {"joins": 2}, "hospital-2": {"leaves": 3}, "hospital-3": {"slowdown": 1e9}}
    federation = {"quorum": 1, "deadline_seconds": 3600}
    assert run(write_job, squares, out, 3, federation, participation=habits) == 4
    assert statuses(out) == {
        1: {"hospital-1": "failed", "hospital-2": "used", "hospital-3": "late"},
        2: {"hospital-1": "used", "hospital-2": "used", "hospital-3": "late"},
        3: {"hospital-1": "used", "hospital-2": "failed", "hospital-3": "late"},
    }
    report = report_of(out)
    assert report["clock"]["seconds"] == 3 * 3600
    # Judged all the same: each of the three has a result of the federated model.
    assert len(json.loads((out / "evaluations.json").read_text())["models"]["federated"]) == 4


def test_a_round_that_too_few_hospitals_are_there_for_is_refused_before_anything_is_written(
    write_job, squares, tmp_path
):
    habits = {"hospital-1": {"leaves": 3}, "hospital-2": {"leaves": 3}}
    there = "1 of 3 hospitals are there in round 3, and a round needs 2 updates; set federation.quorum to at most 1"
    with pytest.raises(BadInput, match=there):
        run(write_job, squares, tmp_path / "run", 3, participation=habits)
    assert not (tmp_path / "run").exists()
    assert run(write_job, squares, tmp_path / "run", 3, {"quorum": 1}, participation=habits) == 4


def test_leave_one_out_that_would_stop_is_refused_before_the_run_and_left_out_of_all(write_job, squares, tmp_path):
    participation = {"hospital-1": {"joins": 2}}
    job = write_job(
        federation={"rounds": 3}, simulation={**JOB["simulation"], "hospitals": 3, "participation": participation}
    )
    why = "the federation without hospital-2 would stop: by simulation.participation, 1 of 2 hospitals are there in ro"
    with pytest.raises(BadInput, match=f"--compare leave_one_out does not fit this run: {why}"):
        create(SimulationRequest(job, squares, tmp_path / "run", workers=1, compare=("local", "leave_one_out")))
    assert not (tmp_path / "run").exists()
    settings = create(SimulationRequest(job, squares, tmp_path / "run", workers=1, compare=("all",))).settings
    assert "leave_one_out" not in settings["compare"]
    assert settings["not_compared"]["leave_one_out"].startswith(why)


def test_a_run_that_too_few_answer_stops_and_says_that_going_on_changes_nothing(write_job, squares, tmp_path):
    habits = {"hospital-1": {"answers": 1e-9}, "hospital-2": {"answers": 1e-9}}
    with pytest.raises(RunStopped, match="round 1 stayed below its quorum after 3 attempts: 1 of 3 sites.*away again"):
        run(write_job, squares, tmp_path / "run", 3, participation=habits)


def test_a_hospital_of_another_name_is_refused_with_the_names_there_are(write_job, squares, tmp_path):
    with pytest.raises(BadInput, match="no hospital 'north'; the hospitals are hospital-1, hospital-2, hospital-3"):
        run(write_job, squares, tmp_path / "run", 3, faulty={"north": {"kind": "stale"}})


@pytest.mark.parametrize("fault", [{"kind": "sign_flip", "strength": 2.0}, {"kind": "scaling"}, {"kind": "noise"}])
def test_one_faulty_hospital_of_five_is_named(write_job, squares, tmp_path, fault):
    out = tmp_path / "run"
    run(write_job, squares, out, faulty={"hospital-4": fault})
    assert [text.split()[0] for text in named(out)] == ["hospital-4"]


def test_nobody_is_named_where_nobody_is_faulty(write_job, squares, tmp_path):
    out = tmp_path / "run"
    run(write_job, squares, out)
    assert report_of(out)["rounds"] and not named(out)


def test_a_stale_hospital_goes_on_being_stale_when_the_run_is_resumed(write_job, squares, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(write_job, squares, whole, 3, faulty={"hospital-1": {"kind": "stale"}})
    shutil.copytree(whole, broken)
    for leftover in ("round-00003.json", "round-00003.safetensors"):
        (broken / "checkpoints" / leftover).unlink()
    simulate(SimulationRequest(None, resume=broken))
    last = [fingerprint(load_weights(out / "models" / "federated-last.safetensors")) for out in (whole, broken)]
    assert last[0] == last[1]
