"""`consilium sweep` at the command line; whole sweeps are in tests/system/test_sweep.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy import cli_sweep
from deploy.cli import app
from simulation.sweep import Sweep
from tests.server.compared_runs import dice_cases, dice_of, finished, variant
from tests.simulation.test_sweep import JOB


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_the_help_teaches(command: str):
    text = CliRunner().invoke(app, [command, "--help"]).output
    assert text.count(f"consilium {command} ") >= 3 and "Exit codes" in text
    assert all(f" {code}  " in text for code in (0, 2, 4))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "give a JOB.yaml with --grid or --seeds"),
        ("job.yaml", "a sweep of one run"),
        ("job.yaml --grid rounds", "--grid rounds: expected a key, '=' and values"),
        ("job.yaml --grid rounds=1,2 --compare lokal", "lokal"),
        ("job.yaml --grid training.batch_size=0,-1", "no cell of this sweep can run"),
        ("job.yaml --grid evaluation.select=dice,hd95", "no cell of this sweep can run"),
        ("--resume nowhere", "nowhere is not a sweep that can go on"),
        ("job.yaml --resume old --seeds 2", "--resume takes everything from its folder; leave out --seeds, JOB.yaml"),
    ],
)
def test_what_cannot_be_done_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, sentence: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    done = CliRunner().invoke(app, ["sweep", *arguments.split()])
    assert done.exception is not None and sentence in str(done.exception), done.output
    assert not list((tmp_path / "sweeps").glob("*"))


def test_the_one_run_that_is_left_of_a_sweep_says_its_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What the others lack, a reader has to know of it."""
    rows = [
        {"name": f"00{rounds}", "settings": {"rounds": rounds}, "seed": 7, "status": status, "failures": []}
        for rounds, status in ((8, "complete"), (9, "failed"))
    ]
    finished(tmp_path / "runs" / "008", variant(rounds=8), dice_cases(dice_of(0.8)))
    cli_sweep._compare(Sweep(tmp_path, {"cells": rows}, 0))
    assert "federation.rounds=8" in capsys.readouterr().out
    assert "federation.rounds=8" in (tmp_path / "compare.html").read_text()
