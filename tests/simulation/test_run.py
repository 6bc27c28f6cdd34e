"""Whole simulations on a data set that trains in a second."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from server.checkpoint import CheckpointStore, load_weights
from server.events import read_events
from shared_models.errors import BadInput, RunStopped
from shared_models.weights import fingerprint
from simulation import run
from simulation.run import simulate
from simulation.run_folder import SimulationRequest


def events_of(path, kind):
    return [event for event in read_events(path / "events.jsonl") if event["event"] == kind]


def last_fingerprint(path):
    return fingerprint(load_weights(path / "models" / "federated-last.safetensors"))


def test_a_run_leaves_everything_that_a_reader_needs(write_job, squares, tmp_path):
    out = tmp_path / "run"
    assert simulate(SimulationRequest(write_job(), squares, out, workers=1)) == 0
    finished = events_of(out, "run_finished")[-1]
    assert finished["status"] == "complete" and finished["fingerprint"] == last_fingerprint(out)
    assert [event["round"] for event in events_of(out, "round_finished")] == [1, 2, 3]
    assert [event["round"] for event in events_of(out, "validated")] == [1, 2, 3]
    evaluations = json.loads((out / "evaluations.json").read_text())
    hospitals = ["hospital-1", "hospital-2", "hospital-3"]
    assert list(evaluations["models"]) == ["federated", "pooled", *[f"local:{name}" for name in hospitals], "kept"]
    assert all(list(by_site) == [*hospitals, "all"] for by_site in evaluations["models"].values())
    assert evaluations["models"]["federated"]["all"]["auroc"]["value"] > 0.9
    assert (out / "report.html").stat().st_size > 10_000
    assert json.loads((out / "report.json").read_text())["schema"] == "consilium-report/1"


def test_a_hospital_alone_takes_as_many_steps_as_in_the_federation(write_job, squares, tmp_path):
    out = tmp_path / "run"
    simulate(SimulationRequest(write_job(), squares, out, workers=1))
    federated: dict[str, int] = {}
    for event in events_of(out, "site_replied"):
        federated[event["site"]] = federated.get(event["site"], 0) + event["steps"]
    alone = {event["model"]: event["steps"] for event in events_of(out, "baseline_finished")}
    assert {f"local:{site}": steps for site, steps in federated.items()} == {
        model: steps for model, steps in alone.items() if model != "pooled"
    }
    assert abs(alone["pooled"] - sum(federated.values())) <= 3 * 3  # rounding up of batches, per round and hospital


def test_the_number_of_workers_does_not_show_in_the_model(write_job, squares, tmp_path):
    job = write_job()
    prints = set()
    for workers in (2, 3):
        out = tmp_path / f"run-{workers}"
        simulate(SimulationRequest(job, squares, out, workers=workers, compare=()))
        assert json.loads((out / "run.json").read_text())["threads"] == 1
        prints.add(last_fingerprint(out))
    assert len(prints) == 1


def test_a_run_does_not_begin_without_some_of_its_hospitals(monkeypatch):
    class Half:
        def get_node_ids(self):
            return [1, 2]

    monkeypatch.setattr(run, "REGISTRATION_SECONDS", 0.05)
    with pytest.raises(RunStopped, match="only 2 of 4 nodes were there"):
        run._wait_for(4, Half())
    run._wait_for(2, Half())


def test_a_run_directory_is_never_overwritten(write_job, squares, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="exists already and is never overwritten"):
        simulate(SimulationRequest(write_job(), squares, out))
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_a_split_can_be_replayed(write_job, squares, tmp_path):
    job = write_job()
    simulate(SimulationRequest(job, squares, tmp_path / "one", workers=1, compare=()))
    replay = SimulationRequest(job, squares, tmp_path / "two", workers=1, compare=(), split=tmp_path / "one/split.json")
    simulate(replay)
    assert last_fingerprint(tmp_path / "one") == last_fingerprint(tmp_path / "two")


def test_a_hospital_whose_data_are_refused_is_left_out_loudly(write_job, squares, tmp_path, monkeypatch):
    out = tmp_path / "run"
    real = run.create

    def create_with_an_empty_hospital(request):
        folder = real(request)
        manifest = folder.path / "sites" / "hospital-2" / "manifest.csv"
        manifest.write_text(manifest.read_text().splitlines()[0] + "\n")
        return folder

    monkeypatch.setattr(run, "create", create_with_an_empty_hospital)
    assert simulate(SimulationRequest(write_job(), squares, out, workers=1)) == 4
    (refused,) = events_of(out, "site_refused")
    assert refused["site"] == "hospital-2" and "manifest.csv" in refused["reason"]
    assert {event["site"] for event in events_of(out, "site_replied")} == {"hospital-1", "hospital-3"}


def test_below_quorum_a_round_is_retried_and_then_the_run_stops(write_job, squares, tmp_path, monkeypatch):
    out = tmp_path / "run"
    job = write_job(federation={"quorum": 3, "rounds": 2, "retries": 1}, data={"max_quarantined": 0})
    real = run.create

    def create_with_a_bad_case(request):
        folder = real(request)
        manifest = folder.path / "sites" / "hospital-2" / "manifest.csv"
        manifest.write_text(manifest.read_text().replace("images[", "nothing[", 1))
        return folder

    monkeypatch.setattr(run, "create", create_with_a_bad_case)
    with pytest.raises(RunStopped, match="round 1 stayed below its quorum after 2 attempts: 2 of 2 sites"):
        simulate(SimulationRequest(job, squares, out, workers=1))
    assert len(events_of(out, "round_retried")) == 2
    assert events_of(out, "run_finished")[-1]["status"] == "stopped"
    assert "quorum" in (out / "report.html").read_text()


def test_resuming_a_finished_run_changes_nothing_but_the_clock(write_job, squares, tmp_path):
    out = tmp_path / "run"
    simulate(SimulationRequest(write_job(), squares, out, workers=1))
    before = json.loads((out / "evaluations.json").read_text()), last_fingerprint(out)
    assert simulate(SimulationRequest(None, resume=out)) == 0
    assert (json.loads((out / "evaluations.json").read_text()), last_fingerprint(out)) == before
    assert len(events_of(out, "round_finished")) == 3
    assert len(events_of(out, "baseline_finished")) == 4


def test_a_run_that_another_process_works_on_is_not_resumed_before_it_ends(write_job, squares, tmp_path):
    out = tmp_path / "run"
    simulate(SimulationRequest(write_job(), squares, out, workers=1, compare=()))
    script = (
        "import sys, pathlib, simulation.run_folder\n"
        "with simulation.run_folder.held(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        before = (out / "events.jsonl").read_bytes()
        with pytest.raises(BadInput, match="another process works on this run; wait for it, or stop it first"):
            simulate(SimulationRequest(None, resume=out))
        assert (out / "events.jsonl").read_bytes() == before
        other.kill()
    assert simulate(SimulationRequest(None, resume=out)) == 0


def test_resume_takes_only_a_run_that_is_whole_and_unchanged(write_job, squares, tmp_path):
    with pytest.raises(BadInput, match="has no run.json"):
        simulate(SimulationRequest(None, resume=tmp_path))
    out = tmp_path / "run"
    simulate(SimulationRequest(write_job(), squares, out, workers=1, compare=()))
    job = out / "job.yaml"
    job.write_text(job.read_text().replace("seed: 3", "seed: 4"))
    with pytest.raises(BadInput, match="job.yaml or split.json was changed"):
        simulate(SimulationRequest(None, resume=out))


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_server_optimisers_resume_with_their_moments(write_job, squares, tmp_path, name):
    job = write_job(
        federation={
            "rounds": 4,
            "algorithm": {"name": "fedavg", "server_optimizer": {"name": name, "learning_rate": 0.1}},
        }
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    simulate(SimulationRequest(job, squares, whole, workers=1, compare=()))
    shutil.copytree(whole, cut)
    for leftover in ("round-00004.json", "round-00004.safetensors"):
        (cut / "checkpoints" / leftover).unlink()
    shutil.rmtree(cut / "models")
    simulate(SimulationRequest(None, resume=cut))
    assert last_fingerprint(cut) == last_fingerprint(whole)
    metrics = [event["metrics"] for event in events_of(cut, "validated")]
    assert metrics == [event["metrics"] for event in events_of(whole, "validated")]
    last = load_weights(cut / "models" / "federated-last.safetensors")
    assert all(np.isfinite(array).all() for array in last.values())


@pytest.mark.parametrize("kept", ["no_statistics", "nothing"])
def test_normalisation_that_stays_at_home_is_each_hospitals_own_and_survives_a_stop(
    write_job, squares, tmp_path, monkeypatch, kept
):
    share = {"federation": {"share": {"normalisation": kept}}}
    job = write_job(model={"normalisation": "batch"}, **share)
    out = tmp_path / "run"
    assert simulate(SimulationRequest(job, squares, out, workers=1)) == 0
    travelled = load_weights(out / "models" / "federated-last.safetensors")
    kept_at = {folder.parent.name: folder for folder in out.glob("sites/*/own")}
    assert set(kept_at) == {"hospital-1", "hospital-2", "hospital-3"}
    last = {site: load_weights(folder / "round-000003.safetensors") for site, folder in kept_at.items()}
    assert len({fingerprint(tensors) for tensors in last.values()}) == 3
    assert not travelled.keys() & {name.removeprefix("model/") for name in last["hospital-1"]}
    # A baseline is a whole model.
    own = {name.removeprefix("model/") for name in last["hospital-1"]}
    assert load_weights(out / "models" / "pooled.safetensors").keys() == travelled.keys() | own

    broken = tmp_path / "broken"
    request = SimulationRequest(job, squares, broken, workers=1)
    _stop_behind_round(monkeypatch, 2)
    with pytest.raises(RunStopped):
        simulate(request)
    monkeypatch.undo()
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    assert simulate(SimulationRequest(None, resume=broken)) == 0
    assert last_fingerprint(broken) == last_fingerprint(out)
    assert (broken / "evaluations.json").read_text() == (out / "evaluations.json").read_text()


def _stop_behind_round(monkeypatch, last):
    """Lets a run stop as for a lack of sites, once a round is checkpointed."""
    save = CheckpointStore.save

    def then_stop(self, state, size):
        save(self, state, size)
        if state.round == last:
            raise RunStopped("stopped by the test")

    monkeypatch.setattr(CheckpointStore, "save", then_stop)
