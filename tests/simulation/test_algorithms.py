"""Every algorithm in whole runs: it trains, keeps what it must, and goes on after a stop as if there had been none."""

import json
import shutil

import numpy as np
import pytest

from server.checkpoint import CheckpointStore, load_weights
from server.events import read_events
from shared_models.algorithms import ALGORITHMS
from shared_models.errors import RunStopped
from shared_models.weights import fingerprint
from simulation.run import simulate
from simulation.run_folder import SimulationRequest


def events_of(path, kind):
    return [event for event in read_events(path / "events.jsonl") if event["event"] == kind]


def last_model(path):
    return load_weights(path / "models" / "federated-last.safetensors")


def kept_at(path, site, number):
    return load_weights(path / "sites" / site / "own" / f"round-{number:06d}.safetensors")


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch):
    """They take longer than the training, and are looked at elsewhere."""
    monkeypatch.setattr("simulation.run.draw_pictures", lambda run, events: None)
    monkeypatch.setattr("server.outcome.write_report", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def done():
    """The runs so far: they are only read."""
    return {}


@pytest.fixture
def run(write_job, squares, tmp_path_factory, done):
    """Runs the squares with an algorithm, once: `run("fedprox", mu=0.1)` gives the run directory."""

    def run_one(name, rounds=3, optimizer=None, weighting="cases", **parameters):
        federation = {"rounds": rounds, "algorithm": {"name": name, **parameters}, "weighting": weighting}
        optimizer = optimizer or ("sgd" if name == "qfedavg" else "adamw")
        training = {"optimizer": {"name": optimizer, "learning_rate": 0.01}}
        job = write_job(model={"normalisation": "batch"}, federation=federation, training=training)
        key = job.read_text()
        if key not in done:
            done[key] = tmp_path_factory.mktemp(name) / "run"
            assert simulate(SimulationRequest(job, squares, done[key], workers=1, compare=())) == 0
        return done[key]

    return run_one


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_learns_and_resumes_as_if_it_had_not_stopped(
    run, write_job, squares, tmp_path, monkeypatch, name
):
    whole = run(name, **({"q": 0.1} if name == "qfedavg" else {}))
    evaluations = json.loads((whole / "evaluations.json").read_text())
    assert evaluations["models"]["federated"]["all"]["auroc"]["value"] > 0.6
    broken = tmp_path / "broken"
    stop_behind_round_2(SimulationRequest(tmp_path / "job.yaml", squares, broken, workers=1, compare=()), monkeypatch)
    assert simulate(SimulationRequest(None, resume=broken)) == 0
    assert fingerprint(last_model(broken)) == fingerprint(last_model(whole))
    assert not [event for event in events_of(broken, "warning") if "is lost" in event["text"]]
    assert (broken / "evaluations.json").read_text() == (whole / "evaluations.json").read_text()


def stop_behind_round_2(request, monkeypatch):
    save = CheckpointStore.save

    def then_stop(self, state, size):
        save(self, state, size)
        if state.round == 2:
            raise RunStopped("stopped by the test")

    with monkeypatch.context() as patched, pytest.raises(RunStopped):
        patched.setattr(CheckpointStore, "save", then_stop)
        simulate(request)


def test_a_hospital_whose_folder_was_emptied_goes_on_and_the_run_says_what_is_lost(
    write_job, squares, tmp_path, monkeypatch
):
    job, out = write_job(federation={"algorithm": {"name": "scaffold"}}), tmp_path / "run"
    stop_behind_round_2(SimulationRequest(job, squares, out, workers=1, compare=()), monkeypatch)
    shutil.rmtree(out / "sites" / "hospital-2" / "own")
    assert simulate(SimulationRequest(None, resume=out)) == 0
    (said,) = [event["text"] for event in events_of(out, "warning") if "is lost" in event["text"]]
    assert said.startswith("hospital-2 began anew in round 3: what it kept at home behind round 2 is lost")
    assert "(control variates) of scaffold begin anew at the coordinator and every site behind round 3" in said


@pytest.mark.parametrize(("name", "parameters"), [("fedprox", {"mu": 0.0}), ("moon", {"mu": 0.0})])
def test_an_algorithm_without_its_term_is_fedavg_bit_for_bit(run, name, parameters):
    plain, other = run("fedavg"), run(name, **parameters)
    assert fingerprint(last_model(plain)) == fingerprint(last_model(other))


@pytest.mark.parametrize(
    "name", ["fedprox", "scaffold", "feddyn", "moon", "fedrep", "fednova", "qfedavg", "cyclic", "ring"]
)
def test_every_other_algorithm_gives_another_model_than_fedavg(run, name):
    plain, other = last_model(run("fedavg")), last_model(run(name))
    assert any(not np.array_equal(plain[tensor], other[tensor]) for tensor in other)


def test_a_strong_pull_keeps_the_round_near_its_start(run):
    moved = {}
    for mu in (0.0, 90.0):
        moved[mu] = events_of(run("fedprox", rounds=1, optimizer="sgd", mu=mu), "site_replied")[0]["update_norm"]
    assert moved[90.0] < moved[0.0] / 2


def test_control_variates_are_at_the_sites_and_their_mean_is_at_the_server(run):
    out = run("scaffold", weighting="equal")
    ours = [kept_at(out, f"hospital-{number}", 3) for number in (1, 2, 3)]
    store = CheckpointStore(out / "checkpoints", events_job_hash(out))
    state, _ = store.load(print)
    assert state.algorithm.keys() == {key.removeprefix("algorithm/") for key in ours[0]}
    for name, mean in state.algorithm.items():
        np.testing.assert_allclose(mean, np.mean([own[f"algorithm/{name}"] for own in ours], axis=0), atol=1e-5)
    traffic = {name: events_of(run(name), "site_replied")[0]["bytes_up"] for name in ("fedavg", "scaffold")}
    assert traffic["scaffold"] > 1.8 * traffic["fedavg"]


def events_job_hash(out):
    return json.loads((out / "run.json").read_text())["job_hash"]


def test_a_personal_model_stays_at_its_site_and_is_another_one_at_each(run):
    out = run("ditto")
    models = [kept_at(out, f"hospital-{number}", 3) for number in (1, 2, 3)]
    assert len({fingerprint(model) for model in models}) == 3
    assert {name.removeprefix("personal/") for name in models[0]} == set(last_model(out))
    plain = run("fedavg")  # the global model is that of federated averaging
    assert fingerprint(last_model(out)) == fingerprint(last_model(plain))


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_head_stays_at_home(run, name):
    out = run(name)
    assert not [tensor for tensor in last_model(out) if tensor.startswith("head.")]
    heads = [kept_at(out, f"hospital-{number}", 3) for number in (1, 2, 3)]
    assert set(heads[0]) == {"model/head.weight", "model/head.bias"}
    assert len({fingerprint(head) for head in heads}) == 3


@pytest.mark.parametrize(
    ("name", "stay"),
    [("fedbn", {"weight", "bias", "running_mean", "running_var"}), ("silobn", {"running_mean", "running_var"})],
)
def test_normalisation_stays_at_home(run, name, stay):
    out = run(name)
    kept = kept_at(out, "hospital-1", 3)
    assert {tensor.rpartition(".")[2] for tensor in kept} == stay
    assert not {tensor.removeprefix("model/") for tensor in kept} & last_model(out).keys()


def test_sites_of_a_relay_begin_where_the_one_before_ended(run):
    out = run("cyclic", rounds=1)
    assert [event["site"] for event in events_of(out, "site_replied")] == ["hospital-1", "hospital-2", "hospital-3"]


def test_a_run_stops_early_when_patience_is_at_its_end_and_says_so(write_job, squares, tmp_path):
    out = tmp_path / "run"
    job = write_job(training={"optimizer": {"learning_rate": 1e-9}}, federation={"rounds": 30, "patience": 2})
    assert simulate(SimulationRequest(job, squares, out, workers=1, compare=())) == 0
    (stopped,) = events_of(out, "stopped_early")
    assert stopped == stopped | {"round": 3, "patience": 2, "best_round": 1}
    assert len(events_of(out, "round_finished")) == 3
    assert simulate(SimulationRequest(None, resume=out)) == 0
    assert len(events_of(out, "round_finished")) == 3 and len(events_of(out, "stopped_early")) == 1
