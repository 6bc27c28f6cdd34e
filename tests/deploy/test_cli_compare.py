"""`consilium compare` as a person meets it: tables that fit, a page, JSON, and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from tests.server.compared_runs import dice_cases, dice_of, finished, variant


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs of two algorithms with two seeds each, and one that was never finished."""
    monkeypatch.chdir(tmp_path)
    for algorithm, gain in (("fedavg", 0.0), ("fedprox", 0.02)):
        for seed in (1, 2):
            the_job = variant(seed=seed, algorithm={"name": algorithm, "server_optimizer": {"name": "adam"}}, rounds=3)
            finished(Path(f"{algorithm}-{seed}"), the_job, dice_cases(dice_of(0.8, gain=gain, noise=0.01)))
    stopped = finished(Path("stopped"), variant(rounds=4), dice_cases(dice_of(0.8)))
    events = (stopped / "events.jsonl").read_text().splitlines()
    (stopped / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")
    return tmp_path


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


ALL = ("fedavg-1", "fedprox-1", "fedavg-2", "fedprox-2")


def test_the_tables_fit_100_columns_and_say_what_was_found(here: Path):
    done = compare(*ALL)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 100
    for words in ("algorithm.name=fedavg", "2 seeds", "+0.0", "< 0.001", "better", "needs 3 seeds", "n = 40"):
        assert words in done.stdout
    assert done.stdout.splitlines()[-1] == "Wrote compare.html and compare.json."
    assert "algorithm.name=fedprox" in (here / "compare.html").read_text()


def test_a_run_that_is_not_to_be_relied_on_is_said_before_the_answer(here: Path):
    events = Path("fedprox-1", "events.jsonl")
    events.write_text(re.sub(r'"loss": [0-9.]+', '"loss": null', events.read_text(), count=1))
    said = compare(*ALL).stdout
    assert "Do not rely on 1 of these 4 runs as it stands:\n! algorithm.name=fedprox, seed 1: The training loss" in said
    assert said.index("! algorithm.name") < said.index("has the best Dice")
    assert json.loads((here / "compare.json").read_text())["doubts"][0]["runs"] == ["fedprox-1"]


def test_a_run_that_is_left_out_is_said_and_shows_in_the_exit_code(here: Path):
    done = compare(*ALL, "stopped", "--out", "tables/all.html")
    assert done.exit_code == 4
    assert "! stopped is left out: it is not complete" in done.stdout
    assert "stopped" in (here / "tables" / "all.html").read_text()


def test_json_is_json_and_nothing_else(here: Path):
    done = compare("fedavg-1", "fedprox-1", "--json", "--metric", "hd95")
    found = json.loads(done.stdout)
    assert found == json.loads((here / "compare.json").read_text())
    assert found["metric"] == "hd95" and found["tests"][0]["verdict"] == "better"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere: no run.json in it, so this is not a run directory"),
        (["stopped"], "stopped cannot be compared: it is not complete"),
        (["fedavg-1", "skews"], "skews is a sweep, whose comparison is skews/compare.html; its runs are skews/runs/*"),
        (["fedavg-1", "--metric", "auroc"], "it has no metric 'auroc'"),
        (["fedavg-1", "--model", "kept"], "it has no model 'kept'; it has federated"),
        (["fedavg-1", "--out", "job.yaml"], "job.yaml: a comparison is an HTML page"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(here: Path, arguments: list[str], sentence: str):
    (here / "skews").mkdir()
    (here / "skews" / "sweep.json").write_text("{}")
    done = compare(*arguments)
    assert done.exception is not None and sentence in str(done.exception)
    assert not (here / "compare.html").exists()
