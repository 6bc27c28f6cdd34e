"""Everything that the federated model can be compared with, in whole runs on a data set that trains in a second."""

import json
import shutil

import numpy as np
import pytest
import yaml

from server import baselines, gate, leave_one_out
from server.checkpoint import load_weights
from server.events import EventLog, read_events
from shared_models.errors import BadInput, RunStopped
from shared_models.job_file import read_job
from shared_models.weights import fingerprint
from simulation import run_folder
from simulation.run import simulate
from simulation.run_folder import SimulationRequest
from tests.simulation.conftest import JOB

SAVED = baselines.saved
HOSPITALS = ["hospital-1", "hospital-2", "hospital-3"]
BATCH_NORM = {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Threads that wait for each other on a busy machine take longer than the work."""
    monkeypatch.setattr(run_folder, "_workers", lambda *_: (1, 1))


def run_of(job, data, out, compare):
    return simulate(SimulationRequest(job, data, out, workers=1, compare=compare))


def evaluations_of(out):
    return json.loads((out / "evaluations.json").read_text())


def print_of(out, name):
    return fingerprint(load_weights(out / "models" / f"{name}.safetensors"))


def events_of(path, kind):
    return [event for event in read_events(path / "events.jsonl") if event["event"] == kind]


def test_one_word_compares_with_everything_that_fits_the_job(write_job, squares, tmp_path):
    out = tmp_path / "run"
    careless = {"annotators": {name: {"mislabelled": 0.4} for name in HOSPITALS}}  # or all are right: no temperature
    job = write_job(model=BATCH_NORM, federation={"rounds": 2}, simulation=careless)
    assert run_of(job, squares, out, ("all",)) == 0
    [warning] = [event["text"] for event in events_of(out, "warning")]
    assert warning.startswith("--compare all is without what does not fit this job: personalised (only the algorithm")
    found = evaluations_of(out)
    own = [f"local:{name}" for name in HOSPITALS]
    made = ["ensemble", "fine-tuned", "temperature-scaled", "adapted", "leave-one-out", "leave-one-out-adapted", "kept"]
    assert list(found["models"]) == ["federated", "pooled", *own, *made]
    for name in made:
        assert set(found["models"][name]) == {*HOSPITALS, "all"}
        assert set(found["differences"][f"{name}-local"]) == {*HOSPITALS, "all"}
        assert set(found["differences"][f"{name}-federated"]) == {*HOSPITALS, "all"}
        assert f"{name}-pooled" in found["differences"]
    # Of models that are not the same everywhere, scores are not ranked together.
    values = found["models"]["fine-tuned"]
    counted = [row["value"] for name in HOSPITALS if (row := values[name]["auroc"])["low"] is not None]
    assert values["all"]["auroc"]["value"] == pytest.approx(np.mean(counted))
    assert values["all"]["brier"]["n"] == sum(values[name]["brier"]["n"] for name in HOSPITALS)
    assert "helped" in (out / "report.html").read_text()


def test_the_gate_goes_by_validation_patients_and_what_it_chose_is_on_disk(write_job, squares, tmp_path, monkeypatch):
    splits = []
    real = gate.collect

    def watched(grid, sites, job, model, split, *rest):
        splits.append((model.name, split))
        return real(grid, sites, job, model, split, *rest)

    monkeypatch.setattr(gate, "collect", watched)
    out = tmp_path / "run"
    # Of so few validation patients, some hospital has but one class: there a ranking has no value.
    job = write_job(federation={"rounds": 1}, evaluation={"select": "accuracy"})
    run_of(job, squares, out, ("local", "fine_tuned"))
    assert {split for name, split in splits if name != "kept"} == {"validation"}
    assert {split for name, split in splits if name == "kept"} == {"test"}
    found = evaluations_of(out)
    assert set(found["choices"]) == set(HOSPITALS)
    for site, choice in found["choices"].items():
        assert set(choice["validation"]) == {"federated", "local", "fine-tuned"}
        best = max(value for value in choice["validation"].values())
        assert choice["validation"][choice["kept"]] == best
        assert choice["kept"] == "federated" or choice["validation"]["federated"] < best
        judged = {"local": f"local:{site}"}.get(choice["kept"], choice["kept"])
        assert found["models"]["kept"][site] == found["models"][judged][site]
        kept = load_weights(out / "sites" / site / "own" / "kept.safetensors")
        named = {"local": f"local-{site}", "federated": "federated-best"}
        if choice["kept"] in named:
            assert fingerprint(kept) == print_of(out, named[choice["kept"]])


def test_a_hospitals_own_model_stands_in_the_gate_as_of_its_best_round(write_job, squares, tmp_path):
    out = tmp_path / "run"
    careless = {"annotators": {name: {"mislabelled": 0.4} for name in HOSPITALS}}  # or the last round is among the best
    job = write_job(federation={"rounds": 4}, evaluation={"select": "accuracy"}, simulation=careless)
    run_of(job, squares, out, ("local",))
    fell = []
    for site, choice in evaluations_of(out)["choices"].items():
        note = json.loads((out / "models" / f"local-{site}.json").read_text())
        curve = [entry["metrics"]["accuracy"] for entry in note["curve"]]
        assert choice["validation"]["local"] == max(curve) == curve[note["best_round"] - 1]
        fell.append(curve[-1] < max(curve))
    assert any(fell)


def test_a_hospital_without_test_patients_has_the_model_that_it_chose(write_job, squares, tmp_path):
    table = dict(np.load(squares / "squares.npz"))
    table["hospital"] = np.array(["north", "south", "untested"])[np.arange(90) % 3]
    table["split"] = np.array(["train", "train", "validation", "test", "train"])[np.arange(90) % 5]
    table["split"][(table["hospital"] == "untested") & (table["split"] == "test")] = "train"
    np.savez(tmp_path / "squares.npz", **table)
    columns = {"image": "images", "label": "labels", "patient": "patient", "split": "split", "hospital": "hospital"}
    dataset = {"name": "folder", "table": "squares.npz", "columns": columns}
    parts = {"dataset": dataset, "partition": {"name": "natural", "column": "hospital"}, "hospitals": None}
    job = write_job(federation={"rounds": 1}, simulation=parts)
    out = tmp_path / "run"
    assert run_of(job, tmp_path, out, ("fine_tuned",)) == 0
    found = evaluations_of(out)
    assert set(found["choices"]) == {"north", "south", "untested"}
    assert set(found["models"]["kept"]) == {"north", "south", "all"}
    assert load_weights(out / "sites" / "untested" / "own" / "kept.safetensors")


def test_who_cannot_choose_says_why_and_keeps_the_federated_model(squares, tmp_path):
    table = dict(np.load(squares / "squares.npz"))
    table["hospital"] = np.array(["mixed", "one-class", "unvalidated"])[np.arange(90) // 2 % 3]
    table["split"] = np.array(["train", "validation", "test"])[np.arange(90) // 6 % 3]
    table["split"][(table["hospital"] == "unvalidated") & (table["split"] == "validation")] = "train"
    few = (table["hospital"] == "one-class") & (table["labels"] == 1) & (table["split"] == "validation")
    table = {name: values[~few] for name, values in table.items()}
    np.savez(tmp_path / "squares.npz", **table)
    columns = {"image": "images", "label": "labels", "patient": "patient", "split": "split", "hospital": "hospital"}
    dataset = {"name": "folder", "table": "squares.npz", "columns": columns}
    parts = {"dataset": dataset, "partition": {"name": "natural", "column": "hospital"}}
    content = {**JOB, "federation": {"rounds": 1}, "simulation": parts}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    out = tmp_path / "run"
    assert run_of(tmp_path / "job.yaml", tmp_path, out, ("local", "fine_tuned")) == 0
    choices = evaluations_of(out)["choices"]
    assert [site for site, choice in choices.items() if choice["why"] is None] == ["mixed"]
    for name, value in choices["mixed"]["validation"].items():
        bounds = choices["mixed"]["intervals"][name]
        assert bounds["low"] <= value <= bounds["high"] and bounds["n"] == 10
    # By any score, the best model for patients of one class is one that always says that class.
    assert choices["one-class"]["why"] == "its validation patients have no AUROC"
    assert choices["unvalidated"]["why"] == "it has no validation patients"
    assert choices["one-class"]["kept"] == choices["unvalidated"]["kept"] == "federated"
    report = json.loads((out / "report.json").read_text())
    assert report["choices"] == choices
    [sentence] = [text for text in report["answer"] if text.startswith("By their own validation patients")]
    assert "of 1 hospital" in sentence
    said = "2 of 3 hospitals had no choice but the federated model (one-class and unvalidated)"
    assert f"{said}: see what each hospital keeps." in report["answer"]


def choice_of(write_job, values, cases=9):
    """The choice by the AUROC of every candidate."""
    rows = {
        name: {"auroc": {"value": value, "low": None, "high": None, "n": cases, "why": "too few"}}
        for name, value in values.items()
    }
    return gate._choice(read_job(write_job()), cases, rows)


def test_a_hospital_keeps_the_federated_model_unless_another_is_better(write_job):
    def kept(**values):
        return choice_of(write_job, {name.replace("_", "-"): value for name, value in values.items()})["kept"]

    assert kept(federated=0.8, local=0.8) == "federated"
    assert kept(federated=0.8, local=0.9, fine_tuned=0.9) == "local"
    assert kept(federated=None, local=0.9) == "local"
    assert kept(federated=0.8, local=None) == "federated"


def test_without_any_value_no_choice_is_claimed(write_job):
    choice = choice_of(write_job, {"federated": None, "local": None})
    assert choice["kept"] == "federated"
    assert choice["why"] == "its validation patients have no AUROC"
    lost = gate._choice(read_job(write_job()), 9, {"federated": {}, "local": {}})
    assert lost["why"] == "it gave no result on its validation patients"


def test_a_federation_without_a_hospital_never_asks_it_and_touches_nothing_of_the_run(write_job, squares, tmp_path):
    plain, out = tmp_path / "plain", tmp_path / "run"
    job = write_job(model=BATCH_NORM, federation={"rounds": 2, "algorithm": {"name": "silobn"}})
    run_of(job, squares, plain, ())
    run_of(job, squares, out, ("leave_one_out", "adapted"))
    assert print_of(out, "federated-last") == print_of(plain, "federated-last")
    for site in HOSPITALS:
        others = [name for name in HOSPITALS if name != site]
        asked = {event["site"] for event in events_of(out / "leave-one-out" / site, "site_replied")}
        assert asked == set(others)
        own = {name: out / "sites" / name / "own" for name in HOSPITALS}
        assert [name for name in HOSPITALS if (own[name] / f"without-{site}").exists()] == others
        before, after = (folder / "sites" / site / "own" / "round-000002.safetensors" for folder in (plain, out))
        assert before.read_bytes() == after.read_bytes()
    prints = {print_of(out, f"leave-one-out-{site}") for site in HOSPITALS}
    assert len(prints) == 3 and print_of(out, "federated-best") not in prints
    # As it is, the model has no statistics for a hospital that was not there.
    assert list(evaluations_of(out)["models"]) == ["federated", "adapted", "leave-one-out-adapted"]


def test_leave_one_out_goes_on_where_it_was_stopped(write_job, squares, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    job = write_job(federation={"rounds": 2})
    run_of(job, squares, whole, ("leave_one_out",))
    real = leave_one_out._train_without

    def until_the_second(grid, name, *rest):
        if name == "hospital-2":
            raise RunStopped("stopped by the test")
        real(grid, name, *rest)

    monkeypatch.setattr(leave_one_out, "_train_without", until_the_second)
    with pytest.raises(RunStopped):
        run_of(job, squares, out, ("leave_one_out",))
    assert [event["site"] for event in events_of(out, "leave_one_out_started")] == ["hospital-1", "hospital-2"]
    first = (out / "leave-one-out" / "hospital-1" / "events.jsonl").read_bytes()
    trained_again = []
    monkeypatch.setattr(
        leave_one_out, "_train_without", lambda grid, name, *rest: (trained_again.append(name), real(grid, name, *rest))
    )
    assert simulate(SimulationRequest(None, resume=out)) == 0
    assert trained_again == ["hospital-2", "hospital-3"]
    assert (out / "leave-one-out" / "hospital-1" / "events.jsonl").read_bytes() == first
    assert evaluations_of(out) == evaluations_of(whole)
    finished = [event["model"] for event in events_of(out, "baseline_finished")]
    assert finished == [f"leave-one-out:{site}" for site in HOSPITALS]


def test_leave_one_out_goes_on_behind_its_last_whole_round(write_job, squares, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_of(write_job(federation={"rounds": 3}), squares, whole, ("leave_one_out",))
    shutil.copytree(whole, cut)
    (cut / "models" / "leave-one-out-hospital-3.safetensors").unlink()
    inner = cut / "leave-one-out" / "hospital-3"
    for left in inner.glob("checkpoints/round-00003.*"):
        left.unlink()
    assert simulate(SimulationRequest(None, resume=cut)) == 0
    assert [event["round"] for event in events_of(inner, "round_finished")] == [1, 2, 3]
    name = "leave-one-out-hospital-3"
    assert print_of(cut, name) == print_of(whole, name)


def test_updates_that_a_federation_without_a_hospital_lacks_are_said_in_the_run(tmp_path):
    inner = tmp_path / "leave-one-out" / "hospital-2"
    inner.mkdir(parents=True)
    for site, status in (("hospital-1", "used"), ("hospital-3", "late")):
        EventLog(inner / "events.jsonl").emit("site_replied", site=site, status=status)
    leave_one_out._say_what_was_missing("hospital-2", tmp_path, EventLog(tmp_path / "events.jsonl"))
    [warning] = events_of(tmp_path, "warning")
    assert warning["left_out"] and "without hospital-2 lacks updates of hospital-3: " in warning["text"]


def test_ditto_is_judged_by_each_hospitals_personal_model(write_job, squares, tmp_path):
    out = tmp_path / "run"
    job = write_job(federation={"rounds": 2, "algorithm": {"name": "ditto"}})
    run_of(job, squares, out, ("local",))
    found = evaluations_of(out)
    assert "personalised" in found["models"]
    for choice in found["choices"].values():
        assert set(choice["validation"]) == {"federated", "local", "personalised"}
    folder = out / "sites" / "hospital-1" / "evaluations"
    assert (folder / "personalised.json").read_text() != (folder / "federated.json").read_text()


def test_what_does_not_fit_the_job_is_refused_before_anything_is_made(write_job, squares, tmp_path):
    with pytest.raises(BadInput, match="--compare adapted does not fit this run: 'cnn' has no running statistics"):
        run_of(write_job(), squares, tmp_path / "run", ("adapted",))
    assert not (tmp_path / "run").exists()


def test_an_ensemble_that_lacks_a_member_says_so(write_job, squares, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(baselines, "saved", lambda run, name: None if name == "local:hospital-2" else SAVED(run, name))
    assert run_of(write_job(federation={"rounds": 1}), squares, out, ("ensemble",)) == 4
    assert "ensemble has 2 of 3 hospitals' own models" in events_of(out, "warning")[0]["text"]
