"""What a person sees of a run in the terminal."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from server.live import LiveDisplay

START = datetime(2024, 1, 1, tzinfo=UTC)
SITES = ["berlin", "leiden", "porto [north]"]


class Run:
    """Events of a run, ten seconds apart, into a display."""

    def __init__(self, run_dir: Path, *, terminal: bool = False) -> None:
        self.out = io.StringIO()
        console = Console(file=self.out, force_terminal=terminal, width=100, highlight=False)
        self.display = LiveDisplay(run_dir, "dice", console)
        self.count = 0

    def emit(self, event: str, **fields: Any) -> None:
        time = START + timedelta(seconds=10 * self.count)
        self.count += 1
        self.display.handle({"event": event, "time": time.isoformat(), **fields})

    def begin(self, rounds: int, sites: list[str] | None = None, **fields: Any) -> None:
        self.emit("run_started", name="lungs", rounds=rounds, parameters=1_234_567, bytes_model=4_938_268, **fields)
        for site in sites or SITES:
            self.ready(site)

    def ready(self, site: str, **fields: Any) -> None:
        cases = {"train": 70, "validation": 10, "test": 20}
        self.emit("site_ready", **{"site": site, "cases": cases, "quarantined": {}, "warnings": [], **fields})

    def round(self, number: int, *, missing: str | None = None) -> None:
        self.emit("round_started", round=number, attempt=0, sites=SITES)
        for site in SITES:
            status, reason = ("late", "no reply before the deadline") if site == missing else ("used", None)
            self.emit("site_replied", round=number, attempt=0, site=site, status=status, reason=reason)
        used = len(SITES) - bool(missing)
        self.emit("round_finished", round=number, loss=1 / number, sites_used=used, seconds=12.0)
        self.emit("validated", round=number, metrics={"dice": 1 - 1 / (number + 1)}, by_site={}, best=number == 1)

    def end(self, status: str = "complete", exit_code: int = 0) -> list[str]:
        self.emit("run_finished", status=status, reason=None, exit_code=exit_code, best_round=1, seconds=125)
        return self.lines()

    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with a judged run in it."""
    entry = {"value": 0.9, "low": 0.85, "high": 0.95, "n": 20}
    federated: dict[str, Any] = {site: {"dice": entry} for site in [*SITES, "all"]}
    federated["berlin"] = {"dice": {"value": None, "low": None, "high": None, "n": 0}}
    alone = {f"local:{site}": {site: {"dice": {**entry, "value": 0.8}}} for site in SITES}
    content = {
        "metrics": {"dice": {"label": "Dice", "larger_is_better": True, "headline": True}},
        "models": {"federated": federated, "pooled": federated, **alone},
    }
    (tmp_path / "evaluations.json").write_text(json.dumps(content))
    (tmp_path / "report.html").write_text("report")
    return tmp_path


def test_ten_rounds_fit_on_a_screen_and_end_with_the_answer(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.begin(10)
        for number in range(1, 11):
            run.round(number)
        run.emit("baseline_finished", model="pooled", steps=300, seconds=31.0)
        for site in SITES:
            run.emit("baseline_finished", model=f"local:{site}", steps=100, seconds=10.0)
        run.emit("judged", models=[], seconds=3.0)
        run.end()
    lines = run.lines()
    assert len(lines) < 30
    assert not any("\x1b" in line for line in lines)
    assert lines[0] == "lungs: 10 rounds, 1,234,567 parameters that travel, 4.94 MB each way"
    assert "porto [north]  " in lines[4]
    assert "round  1/10   loss 1.0000   dice 0.5000   3/3 hospitals   12.0 s   best so far" in lines
    assert "round 10/10   loss 0.1000   dice 0.9091   3/3 hospitals   12.0 s" in lines
    assert "local: 3 models, 300 steps in 30.0 s of computing" in lines
    result = {line.split()[0]: line for line in lines[-8:]}
    assert result["leiden"].split()[1:] == ["0.900", "[0.850,", "0.950]"] * 2 + ["0.800", "[0.850,", "0.950]"]
    assert "undefined" in result["berlin"]
    assert lines[-3] == "complete, nobody was left out (exit code 0), 2 min 5 s"
    assert lines[-1] == f"report   {run_dir}/report.html"


def test_a_long_run_with_many_hospitals_fits_on_a_screen_too(run_dir: Path):
    run = Run(run_dir)
    sites = [f"hospital-{number}" for number in range(1, 41)]
    with run.display:
        run.begin(200, sites)
        for number in range(1, 201):
            run.round(number)
    lines = run.lines()
    assert len(lines) < 40
    rounds = [line.split()[1] for line in lines if line.startswith("round")]
    assert rounds[0] == "1/200" and rounds[-1] == "200/200"
    total = next(line for line in lines if line.startswith("... of 40 in all"))
    assert total.split()[-4:] == ["2800", "400", "800", "0"]
    named = [line.split()[0] for line in lines if line.startswith("hospital-")]
    assert named == sites[:10]


def test_a_run_that_ends_early_says_why(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.begin(10)
        for number in range(1, 5):
            run.round(number)
        run.emit("stopped_early", round=4, patience=3, best_round=1)
    assert run.lines()[-2] == "ends early: 3 validations in a row brought nothing better than round 1"


def test_nobody_is_left_out_silently(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.begin(2, ["berlin", "porto"])
        run.ready("leiden", quarantined={f"case-{n}": "its mask has another shape" for n in range(8)})
        run.emit("site_refused", site="gent", reason="no usable training case")
        run.round(1, missing="leiden")
        run.emit("round_retried", round=2, attempt=0, reason="1 of 3 sites gave an update, 2 are needed")
        lines = run.end(exit_code=4)
    assert "! gent does not take part: no usable training case" in lines
    assert next(line for line in lines if line.startswith("leiden")).split()[-1] == "8"
    assert "! leiden, case-0 is quarantined: its mask has another shape" in lines
    assert "! 3 more are quarantined: the report says which and why" in lines
    assert "! round 1: leiden is left out (late): no reply before the deadline" in lines
    assert "! round 2 is tried again: 1 of 3 sites gave an update, 2 are needed" in lines
    assert any("exit code 4" in line for line in lines)


def test_a_flood_of_warnings_is_counted(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.begin(1)
        for number in range(50):
            run.emit("warning", text=f"warning {number}")
        lines = run.end()
    shown = [line for line in lines if line.startswith("! warning")]
    assert shown == [f"! warning {number}" for number in (*range(10), 47, 48, 49)]
    gap = lines.index("! 37 more warnings in between: the report has them all; the last 3:")
    assert lines[gap - 1] == "! warning 9" and lines[gap + 1] == "! warning 47"


def test_hospitals_with_numbers_stand_in_their_order_in_the_result(run_dir: Path):
    found = json.loads((run_dir / "evaluations.json").read_text())
    names = ["hospital-1", "hospital-10", "hospital-2"]
    rows = {site: found["models"]["federated"]["leiden"] for site in [*names, "all"]}
    (run_dir / "evaluations.json").write_text(json.dumps(found | {"models": {"federated": rows}}))
    run = Run(run_dir)
    run.begin(1, names)
    lines = run.end()
    assert [line.split()[0] for line in lines if "0.900" in line] == ["hospital-1", "hospital-2", "hospital-10", "all"]


def test_a_plan_that_keeps_what_the_files_have_says_so(run_dir: Path):
    run = Run(run_dir)
    decision = {"key": "spacing", "value": None, "why": "the images do not say their voxel size"}
    run.emit("planned", decisions=[decision], left_out={})
    assert run.lines() == ["plan   data.spacing as the files have it: the images do not say their voxel size"]


def test_a_stopped_run_says_what_is_kept(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.begin(5, resumed_from=2)
        run.round(3)
        lines = run.end(status="stopped", exit_code=3)
    assert "continues behind round 2" in lines
    assert f"stopped after 2 min 5 s; everything so far is kept in {run_dir}" in lines


def test_in_a_terminal_a_live_line_shows_the_round_and_how_long_it_takes(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TERM", "xterm")
    run = Run(run_dir, terminal=True)
    with run.display:
        run.begin(10)
        assert "3 hospitals ready" in run.out.getvalue()
        run.round(1)
        run.emit("round_started", round=2, attempt=0, sites=SITES)
        assert "round 2/10   0/3 hospitals replied   dice 0.5000" in run.out.getvalue()
        assert "rounds end in about 1 min 48 s" in run.out.getvalue()


def test_events_of_a_later_version_do_not_disturb(run_dir: Path):
    run = Run(run_dir)
    with run.display:
        run.emit("something_new", what=1)
    assert run.lines() == [f"report   {run_dir}/report.html"]


def test_what_a_file_of_initial_weights_gave_is_said_in_a_line_each(tmp_path):
    run = Run(tmp_path)
    matched = {"file": "first.pt", "sha256": "0" * 64, "matched": 58, "tensors": 60, "share": 0.99699}
    names = {"missing": [], "other_shape": ["out.weight", "out.bias"], "unexpected": ["extra\x1b[2J"]}
    run.emit("pretrained", **matched, **names)
    assert run.lines() == [
        "pretrained   first.pt: 58 of 60 tensors, 99.6 % of the network's numbers",
        "! 2 tensors of another shape there, such as 'out.weight'",
        "! 1 tensor in the file, not in the network, such as 'extra\\x1b[2J'",
    ]
