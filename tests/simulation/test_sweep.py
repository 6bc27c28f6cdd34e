"""A sweep's folder and record: made whole, checked before anything runs, opened again; runs are in tests/system."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from shared_models.errors import BadInput
from simulation.sweep import Sweep, SweepRequest, begin, check_cells, reopen, run_cells

JOB = """\
name: tiny
seed: 3
task: {kind: classification, classes: [normal, pneumonia]}
data: {spatial_dims: 2, crop: [28, 28]}
model: {name: cnn, arguments: {channels: [4, 8], hidden: 8}}
training: {local_steps: 2}
federation: {rounds: 2}
simulation:
  dataset: {name: medmnist, flag: pneumoniamnist}
  partition: {name: iid}
  hospitals: 3
"""
RATES = "training.optimizer.learning_rate=0.1,0.01"
GRID = ["algorithm.name=fedavg,fedprox", RATES]


@pytest.fixture
def asked(tmp_path: Path) -> SweepRequest:
    (tmp_path / "job.yaml").write_text(JOB)
    return SweepRequest(str(tmp_path / "job.yaml"), GRID, 1, "none", str(tmp_path), None, "cpu")


def changed(request: SweepRequest, **values: Any) -> SweepRequest:
    return SweepRequest(**{**vars(request), **values})


def closed(sweep: Sweep) -> Sweep:
    """Lets the folder go, as the end of the process does."""
    os.close(sweep.lock)
    return sweep


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return found


def says(text: str, code: int) -> list[str]:
    """A command that says something and ends, as a run does that cannot begin."""
    return [sys.executable, "-c", f"import sys; print({text!r}, file=sys.stderr); sys.exit({code})"]


def test_every_cell_has_a_job_file_of_its_own(asked: SweepRequest, tmp_path: Path):
    sweep = begin(asked, tmp_path / "s")
    assert len(sweep.rows) == 4 and check_cells(sweep, lambda path: None) == []
    texts = {sweep.job_path(row).read_text() for row in sweep.rows}
    assert len(texts) == 4
    assert record(tmp_path / "s")["request"]["grid"] == GRID
    assert {row["status"] for row in record(tmp_path / "s")["cells"]} == {"waiting"}


def test_cells_that_cannot_run_are_found_before_anything_runs(asked: SweepRequest, tmp_path: Path):
    grid = ["algorithm.name=fedavg,fedporx", "training.optimizer.learning_rate=0.1,-1"]
    sweep = begin(changed(asked, grid=grid), tmp_path / "s")
    invalid = check_cells(sweep, lambda path: None)
    assert [row["name"][:3] for row in invalid] == ["002", "003", "004"]
    kept = record(tmp_path / "s")["cells"]
    assert [row["status"] for row in kept] == ["waiting", "invalid", "invalid", "invalid"]
    assert kept[1]["failures"][0]["sentence"] == ("training.optimizer.learning_rate: expected a number > 0, found -1")
    assert "found 'fedporx'; did you mean 'fedprox'?" in kept[2]["failures"][0]["sentence"]
    assert sweep.exit_code() == 4


def test_what_the_caller_checks_counts_as_well(asked: SweepRequest, tmp_path: Path):
    def check(path: Path) -> None:
        if "fedprox" in path.name:
            raise BadInput("no such metric")

    sweep = begin(asked, tmp_path / "s")
    assert len(check_cells(sweep, check)) == 2


def test_a_sweep_of_which_nothing_can_run_leaves_nothing(asked: SweepRequest, tmp_path: Path):
    sweep = begin(changed(asked, grid=["training.optimizer.learning_rat=1,2"]), tmp_path / "s")
    with pytest.raises(BadInput, match="no cell of this sweep can run") as refused:
        check_cells(sweep, lambda path: None)
    assert str(refused.value).splitlines()[1:] == [
        "training.optimizer.learning_rat: unknown key; did you mean 'learning_rate'?"
    ]
    assert not (tmp_path / "s").exists()


def test_what_else_is_kept_in_its_folder_stays(asked: SweepRequest, tmp_path: Path):
    mine = tmp_path / "s" / "jobs" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("work of a week")
    sweep = begin(changed(asked, grid=["training.optimizer.learning_rat=1,2"]), tmp_path / "s")
    with pytest.raises(BadInput, match="no cell of this sweep can run"):
        check_cells(sweep, lambda path: None)
    assert [path.name for path in (tmp_path / "s").rglob("*")] == ["jobs", "mine.yaml"]


def test_runs_that_are_there_are_never_removed(asked: SweepRequest, tmp_path: Path):
    """Another version may know none of the jobs any more; what they gave stays."""
    sweep = begin(asked, tmp_path / "s")
    (tmp_path / "s" / "runs").mkdir()
    for row in sweep.rows:
        sweep.job_path(row).write_text("name: old")
    with pytest.raises(BadInput, match="no cell of this sweep can run"):
        check_cells(sweep, lambda path: None)
    assert (tmp_path / "s" / "runs").is_dir()


def test_a_complete_run_that_is_gone_is_run_again(asked: SweepRequest, tmp_path: Path):
    sweep = begin(asked, tmp_path / "s")
    sweep.rows[0]["status"] = "complete"
    check_cells(sweep, lambda path: None)
    assert sweep.rows[0]["status"] == "waiting"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"grid": [], "seeds": 1}, "a sweep of one run: give --grid"),
        ({"grid": ["algorithm.name=fedavg"], "seeds": 1}, "a sweep of one run: give --grid"),
        ({"job": "none.yaml"}, "none.yaml: cannot read this job file"),
        ({"compare": "lokal"}, "lokal"),
        ({"grid": ["rounds.x=1,2"]}, "federation.rounds: this is 2, and no section"),
    ],
)
def test_what_cannot_be_a_sweep_is_refused_and_leaves_nothing(
    asked: SweepRequest, tmp_path: Path, values: dict[str, Any], sentence: str
):
    with pytest.raises(BadInput, match=sentence):
        begin(changed(asked, **values), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_same_command_opens_the_sweep_again_and_another_does_not(asked: SweepRequest, tmp_path: Path):
    closed(begin(asked, tmp_path / "s"))
    assert len(closed(begin(asked, tmp_path / "s")).rows) == 4
    with pytest.raises(BadInput, match="holds another sweep, which differs in seeds; give another --out, or go on"):
        begin(changed(asked, seeds=3), tmp_path / "s")
    Path(asked.job).write_text(JOB.replace("local_steps: 2", "local_steps: 3"))
    with pytest.raises(BadInput, match="differs in the content of the job file; give"):
        begin(asked, tmp_path / "s")


def test_two_processes_do_not_work_on_one_sweep(asked: SweepRequest, tmp_path: Path):
    sweep = begin(asked, tmp_path / "s")
    with pytest.raises(BadInput, match="another process works on this sweep"):
        reopen(tmp_path / "s")
    closed(sweep)
    closed(reopen(tmp_path / "s"))


def test_a_folder_with_other_things_in_it_is_not_touched(asked: SweepRequest, tmp_path: Path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="exists already and holds no sweep"):
        begin(asked, tmp_path / "s")
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["thesis.tex"]
    with pytest.raises(BadInput, match="not a sweep that can go on"):
        reopen(tmp_path / "s")


def test_killed_before_its_record_was_written_a_sweep_can_be_begun_again(asked: SweepRequest, tmp_path: Path):
    closed(begin(asked, tmp_path / "s"))
    (tmp_path / "s" / "sweep.json").unlink()
    assert len(begin(asked, tmp_path / "s").rows) == 4


def test_a_damaged_record_is_said(asked: SweepRequest, tmp_path: Path):
    closed(begin(asked, tmp_path / "s"))
    (tmp_path / "s" / "sweep.json").write_text('{"schema": ')
    with pytest.raises(BadInput, match="sweep.json cannot be read"):
        reopen(tmp_path / "s")


def test_every_failure_stays_on_record_and_the_others_still_run(asked: SweepRequest, tmp_path: Path):
    sweep = begin(changed(asked, grid=[RATES]), tmp_path / "s")
    lines: list[str] = []
    for text, code in (("warning\nconsilium: no data at x; name it", 2), ("consilium: the disk is full", 3)):
        check_cells(sweep, lambda path: None)
        run_cells(sweep, says(text, code), lines.append)
    for row in record(tmp_path / "s")["cells"]:
        assert row["status"] == "failed"
        assert [failure["exit_code"] for failure in row["failures"]] == [2, 3]
        assert [failure["sentence"] for failure in row["failures"]] == ["no data at x; name it", "the disk is full"]
    assert lines[0].startswith("1 of 2  training.optimizer.learning_rate=0.1, seed 3: failed: no data at x; name it, ")
    assert "left" in lines[0] and "left" not in lines[1]
    assert [row["why"] for row in sweep.unfinished()] == ["the disk is full"] * 2
    assert sweep.exit_code() == 4


def test_a_run_that_is_killed_is_a_failure_that_says_so(asked: SweepRequest, tmp_path: Path):
    sweep = begin(changed(asked, grid=[RATES]), tmp_path / "s")
    run_cells(sweep, [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], print)
    assert "its process was ended by signal 9" in sweep.unfinished()[0]["why"]


def test_what_a_run_left_that_was_never_whole_is_begun_again(asked: SweepRequest, tmp_path: Path):
    """A run directory without a run.json cannot be resumed, and would be refused as one that exists."""
    sweep = begin(changed(asked, grid=[RATES]), tmp_path / "s")
    first, second = map(sweep.run_dir, sweep.rows)
    for run in (first, second):
        (run / "sites").mkdir(parents=True)
    (second / "run.json").write_text("{}")
    echo = [sys.executable, "-c", "import sys; print('consilium:', *sys.argv[1:]); sys.exit(2)"]
    run_cells(sweep, echo, print)
    assert not first.exists() and second.exists()
    told = [row["failures"][0]["sentence"].split() for row in sweep.rows]
    assert told[0][:2] == ["simulate", str(sweep.job_path(sweep.rows[0]))]
    assert told[0][told[0].index("--out") + 1] == str(first)
    assert told[1] == ["simulate", "--resume", str(second)]


STOPPED = (
    "round 1 stayed below its quorum after 1 attempts: 0 of 3 sites gave an update, 2 are needed, and the warnings"
)


def stops(run: Path, reasons: list[str], status: str = "stopped") -> None:
    """Leaves what a run does whose hospitals all fail in every attempt."""
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    events: list[dict[str, Any]] = []
    for attempt in range(2):
        events.append({"event": "round_started", "round": 1, "attempt": attempt})
        told = reasons if attempt else ["a reason of the first attempt"]
        events += [{"event": "site_replied", "site": f"h{place}", "reason": why} for place, why in enumerate(told)]
        reason = "0 of 3 sites gave an update, 2 are needed"
        events.append({"event": "round_retried", "round": 1, "attempt": attempt, "reason": reason})
    events.append({"event": "run_finished", "status": status, "reason": STOPPED})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_why_the_hospitals_of_a_run_failed_is_on_record(asked: SweepRequest, tmp_path: Path):
    sweep = begin(changed(asked, grid=[RATES]), tmp_path / "s")
    first, second = map(sweep.run_dir, sweep.rows)
    nan = "the training loss in round 1 is nan; lower the learning rate"
    stops(first, [nan] * 3)
    stops(second, [f"reason {number}" for number in range(5)])
    lines: list[str] = []
    run_cells(
        sweep, says(f"consilium: {STOPPED} say why; continue with consilium simulate --resume x", 3), lines.append
    )
    quorum = "round 1 stayed below its quorum: 0 of 3 sites gave an update, 2 are needed"
    assert [row["why"] for row in sweep.unfinished()] == [
        f"{quorum}; {nan}",
        f"{quorum}; reason 4; reason 3; reason 2; 2 more reasons",
    ]
    assert f"failed: {quorum}; {nan}" in lines[0]


def test_a_sweep_goes_on_as_a_sweep_and_an_old_reason_is_not_that_of_a_new_failure(asked: SweepRequest, tmp_path: Path):
    sweep = begin(changed(asked, grid=[RATES]), tmp_path / "s")
    for row in sweep.rows:
        stops(sweep.run_dir(row), ["nan"])
    echo = "import sys; print('consilium: no data; continue with: consilium simulate', *sys.argv[2:4]); sys.exit(2)"
    run_cells(sweep, [sys.executable, "-c", echo], print)
    assert sweep.unfinished()[0]["why"] == f"no data; continue with: consilium sweep --resume {tmp_path / 's'}"
