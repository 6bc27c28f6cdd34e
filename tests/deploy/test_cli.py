"""The command as a person meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy import cli, cli_job
from shared_models.errors import BadInput

CONSILIUM = Path(sys.executable).with_name("consilium")

TINY = """\
name: tiny
task: {kind: segmentation, classes: [background, grey matter, white matter]}
data: {spatial_dims: 2, crop: [32, 32]}
model: {name: unet, arguments: {channels: [4, 8], strides: [2], num_res_units: 0}}
training: {local_steps: 2, batch_size: 4}
federation: {rounds: 2}
evaluation: {bootstrap: 20}
simulation:
  dataset: {name: phantom, patients_per_hospital: 6, slices_per_patient: 1, size: 32}
  partition: {name: natural, column: scanner}
"""

FINDINGS = """\
name: findings
task: {kind: classification, classes: [normal, abnormal]}
data: {spatial_dims: 2, crop: [16, 16]}
model: {name: cnn}
training: {local_epochs: 1}
federation: {rounds: 1}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    (tmp_path / "findings.yaml").write_text(FINDINGS)
    return tmp_path


def consilium(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CONSILIUM, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def refused(*arguments: str) -> str:
    """What a refused command says: exit code 2, nothing but sentences."""
    done = consilium(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("consilium: ") for line in done.stderr.splitlines())
    return done.stderr


def test_help_imports_nothing_that_is_slow():
    """Half a second is promised; it holds while none of these is imported."""
    program = (
        "import sys; sys.argv = ['consilium', '--help']\n"
        "from deploy.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "slow = {'torch', 'numpy', 'flwr', 'monai', 'matplotlib', 'scipy', 'pydantic'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout


@pytest.mark.parametrize(
    "command", ["simulate", "report", "partition", "version", "job init", "job check", "job schema", "site check"]
)
def test_the_help_of_every_command_has_an_example(command: str):
    done = consilium(*command.split(), "--help")
    assert done.returncode == 0
    assert f"\n consilium {command}" in done.stdout


def test_the_help_of_simulate_says_what_exit_codes_mean():
    text = consilium("simulate", "--help").stdout
    assert all(f"   {code}  " in text for code in (0, 2, 3, 4, 130))


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_init_writes_an_example_and_says_what_comes_next(here: Path, task: str):
    done = consilium("job", "init", "--task", task, "--out", "new.yaml")
    assert done.stdout == "Wrote new.yaml. Next: consilium job check new.yaml\n"
    assert f"kind: {task}" in (here / "new.yaml").read_text()


def test_check_says_what_a_job_would_do(here: Path):
    consilium("job", "init", "--task", "segmentation")
    done = consilium("job", "check", "job.yaml")
    assert done.returncode == 0, done.stderr
    for words in (
        "white matter",
        "each scanner of phantom",
        "10 rounds of fedavg",
        " parameters",
        "MB",
        "for a training step at a hospital",
        "500 bootstrap",
    ):
        assert words in done.stdout


def test_check_says_how_hospitals_differ_and_how_their_updates_become_one(here: Path, capsys):
    federation = (
        "{rounds: 2, algorithm: {name: fedprox, mu: 0.5}, aggregation: {name: krum, keep: 2}, weighting: equal, "
        "patience: 3, deadline_seconds: 60}"
    )
    differences = """
  scanners: {by_hospital: {hospital-1: [{kind: blur, sigma: 2.0}, {kind: inverted}]}}
  annotators: {hospital-2: {masks: larger, voxels: 1.5}}
  participation: {hospital-3: {answers: 0.5}}
  faulty: {hospital-4: {kind: sign_flip}}
  partition: {name: iid}
  hospitals: 5
"""
    job = TINY.replace("federation: {rounds: 2}", f"federation: {federation}")
    (here / "job.yaml").write_text(job.replace("\n  partition: {name: natural, column: scanner}\n", differences))
    cli_job.check(here / "job.yaml")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "scanners: hospital-1 blur 2 voxels, inverted",
        "annotators: hospital-2 masks larger, voxels 1.5",
        "participation: hospital-3 answers 0.5",
        "faulty: hospital-4 kind sign_flip",
        "fedprox (mu 0.5)",
        "more than half and at least 5 must reply within 60 s",
        "updates combined by krum (faulty 1, keep 2), all hospitals count alike",
        "stops after 3 validations without a better one",
    ):
        assert words in shown


def test_check_says_that_masks_are_partly_labelled(here: Path, capsys):
    (here / "job.yaml").write_text(TINY.replace("\n  partition:", "\n  partly_labelled: rotate\n  partition:"))
    cli_job.check(here / "job.yaml")
    assert "partly labelled: one class at each hospital, in turn" in capsys.readouterr().out


def test_init_never_overwrites(here: Path):
    assert "tiny.yaml exists already" in refused("job", "init", "--task", "segmentation", "--out", "tiny.yaml")
    assert (here / "tiny.yaml").read_text() == TINY


def test_check_names_every_mistake_with_its_line(here: Path):
    (here / "bad.yaml").write_text(TINY.replace("rounds: 2", "round: 2").replace("num_res_units", "num_res_unit"))
    assert refused("job", "check", "bad.yaml").splitlines() == [
        "consilium: bad.yaml:6: federation.rounds: missing; expected an integer >= 1",
        "consilium: bad.yaml:6: federation.round: unknown key; did you mean 'rounds'?",
    ]


def test_check_warns_of_a_job_that_will_not_fit(here: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (here / "job.yaml").write_text(TINY.replace("batch_size: 4", "batch_size: 4, accumulate: 2, channels_last: true"))
    monkeypatch.setattr("shared_models.memory.free_memory", lambda device: 2_000)
    cli_job.check(here / "job.yaml")
    shown = " ".join(capsys.readouterr().out.split())
    assert "batches of 4 in 2 parts" in shown and "channels last" in shown
    assert "! will not fit where no more is free than here, 0 MB: use smaller data.crop or training.batch_size" in shown


def test_check_says_what_can_have_no_effect(here: Path, capsys: pytest.CaptureFixture[str]):
    """A first validation is the best one so far, and there must be a round left that is not begun."""
    faults = "\n  faulty: {hospital-1: {kind: sign_flip}, hospital-2: {kind: noise}}\n  hospitals: "
    job = TINY.replace("\n  partition: {name: natural, column: scanner}", "\n  partition: {name: iid}" + faults)

    def shown(rounds: int, patience: int, hospitals: int) -> str:
        federation = f"federation: {{rounds: {rounds}, patience: {patience}}}"
        text = job.replace("federation: {rounds: 2}", federation).replace("hospitals: ", f"hospitals: {hospitals}")
        (here / "job.yaml").write_text(text)
        cli_job.check(here / "job.yaml")
        return " ".join(capsys.readouterr().out.split())

    pointless = shown(rounds=4, patience=3, hospitals=2)
    assert "! federation.patience 3 ends no run of 4 validations early" in pointless
    assert "! all hospitals are faulty" in pointless
    assert "!" not in shown(rounds=5, patience=3, hospitals=3)


def test_the_module_runs_like_the_command(here: Path):
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "job", "check", "no.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no.yaml" in done.stderr


@pytest.mark.parametrize("metric", ["auroc", "hd95"])
def test_a_metric_that_cannot_pick_the_best_round_is_refused(here: Path, metric: str):
    (here / "bad.yaml").write_text(TINY.replace("bootstrap: 20", f"select: {metric}"))
    with pytest.raises(BadInput, match=f"bad.yaml: evaluation.select: '{metric}', .*; expected one of dice, "):
        cli_job.selection_metric(Path("bad.yaml"))


def test_the_schema_is_json_with_descriptions():
    schema = json.loads(consilium("job", "schema").stdout)
    assert set(schema["required"]) == {"name", "task", "data", "model", "training", "federation"}
    assert schema["$defs"]["Data"]["properties"]["spacing"]["description"].startswith("Resample")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("simulate", "give a JOB.yaml, or --resume RUN_DIR"),
        ("simulate none.yaml", "none.yaml: cannot read this job file (No such file or directory)"),
        ("simulate tiny.yaml --compare lokal", "adapted with commas between, or all, or none; found 'lokal'"),
        ("simulate tiny.yaml --resume old --workers 2", "leave out "),
        ("simulate --resume nowhere", "nowhere is not a run that can be resumed"),
        ("report nowhere", "nowhere: there is no such run directory"),
        ("partition findings.yaml --out split.json", "simulation"),
        ("partition tiny.yaml --out tiny.yaml", "tiny.yaml exists already"),
        ("site check none.csv --job findings.yaml", "none.csv"),
    ],
)
def test_what_cannot_be_done_gets_one_sentence(here: Path, arguments: str, sentence: str):
    said = refused(*arguments.split())
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert sorted(path.name for path in here.iterdir() if path.name != "cache") == ["findings.yaml", "tiny.yaml"]


def test_an_unknown_option_gets_a_suggestion():
    done = consilium("simulate", "--resum", "x")
    assert done.returncode == 2
    assert "--resume" in done.stderr


def test_a_bug_is_owned_up_to(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def broken(run_dir: Path) -> Path:
        raise KeyError("curves")

    monkeypatch.setattr("server.report.write_report", broken)
    for arguments, traceback in (([], False), (["--debug"], True)):
        monkeypatch.setattr(sys, "argv", ["consilium", "report", ".", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert end.value.code == 70
        assert "consilium: this is a bug: KeyError: 'curves'" in said
        assert ("Traceback" in said) is traceback
        assert ("--debug" in said) is not traceback


def test_site_check_counts_what_is_unfit(here: Path):
    generator = np.random.default_rng(0)
    rows = ["patient,image,label"]
    for number in range(10):
        Image.fromarray(generator.integers(0, 255, (16, 16), np.uint8)).save(here / f"{number}.png")
        rows.append(f"p{number},{number}.png,{('normal', 'abnormal')[number % 2]}")
    (here / "manifest.csv").write_text("\n".join(rows))
    fine = consilium("site", "check", "manifest.csv", "--job", "findings.yaml")
    assert fine.returncode == 0, fine.stderr
    assert "10 of 10 cases are usable" in fine.stdout

    (here / "3.png").write_bytes((here / "3.png").read_bytes()[:40])
    (here / "manifest.csv").write_text("\n".join([*rows, "p11,0.png,odd"]))
    unfit = consilium("site", "check", "manifest.csv", "--job", "findings.yaml")
    assert unfit.returncode == 1, unfit.stderr
    assert "9 of 11 cases are usable" in unfit.stdout
    assert "Quarantined" in unfit.stdout and "3.png" in unfit.stdout and "odd" in unfit.stdout


@pytest.mark.system
def test_a_run_from_partition_to_report(here: Path):
    made = consilium("partition", "tiny.yaml", "--out", "split.json")
    assert made.returncode == 0, made.stderr
    assert "24 patients in 4 hospitals" in made.stdout

    run = consilium("simulate", "tiny.yaml", "--split", "split.json", "--out", "run", "--compare", "none")
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout
    assert run.stdout.splitlines()[-1] == f"report   {here}/run/report.html"
    assert "round 2/2" in run.stdout and "scanner-a" in run.stdout
    settings = json.loads((here / "run" / "run.json").read_text())
    assert settings["split_hash"] == json.loads((here / "split.json").read_text())["hash"]

    before = (here / "run" / "report.json").read_text()
    (here / "run" / "report.json").unlink()
    again = consilium("report", "run")
    assert again.returncode == 0, again.stderr
    assert json.loads((here / "run" / "report.json").read_text()).keys() == json.loads(before).keys()

    assert "run exists already and is never overwritten" in refused("simulate", "tiny.yaml", "--out", "run")


def _listen_to_ctrl_c():
    """Where the tests run in the background of a shell, their processes would be told to ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.system
def test_ctrl_c_says_how_to_go_on_and_going_on_works(here: Path):
    (here / "long.yaml").write_text(TINY.replace("rounds: 2", "rounds: 40").replace("steps: 2", "steps: 20"))
    command = [CONSILIUM, "simulate", "long.yaml", "--out", "run", "--compare", "none"]
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=_listen_to_ctrl_c
    )
    events = here / "run" / "events.jsonl"
    while running.poll() is None and not (events.exists() and '"round_finished"' in events.read_text()):
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130
    assert said == "consilium: interrupted; continue with: consilium simulate --resume run\n"

    resumed = consilium("simulate", "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "round 40/40" in resumed.stdout
