"""A job on real processes over TLS: the model of one process, a person's approval, a clean end, stop and resume.

Every process is real; the hospitals' images are the phantom's, so that nothing is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.local_network import LocalNetwork, consilium, wait_for
from server.events import read_events
from shared_models.job_file import dump_job, load_job
from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

JOB = ROOT / "examples" / "network-phantom.yaml"
ROUNDS = 3


@pytest.fixture(scope="module")
def job_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, shorter, and with the quorum of all hospitals."""
    values = yaml.safe_load(dump_job(load_job(JOB)))
    values["name"] = "short"
    values["federation"] |= {"rounds": ROUNDS, "quorum": 2}
    values["training"]["local_steps"] = 3
    values["simulation"]["hospitals"] = 2
    values["evaluation"]["subgroups"] = {"scanner": ["scanner-a", "scanner-b"], "level_mm": [-30, 30]}
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def simulated(job_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same job in one process."""
    out = tmp_path_factory.mktemp("simulated") / "run"
    consilium("simulate", job_path, "--compare", "none", "--workers", 2, "--out", out)
    return out


@pytest.fixture(scope="module")
def network(job_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNetwork]:
    """A coordinator and two hospitals, connected."""
    with LocalNetwork(tmp_path_factory.mktemp("network"), load_job(job_path), None) as started:
        started.start()
        yield started


def test_the_network_gives_the_model_of_the_simulation_bit_for_bit(
    network: LocalNetwork, job_path: Path, simulated: Path
) -> None:
    done = network.run("run", job_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = last_run(network)
    assert fingerprint(run) == fingerprint(simulated)
    # The table before round 1 says who is there, and the end says that nobody was left out.
    assert "allows it" in done.stdout.split("round 1/")[0]
    assert "complete, nobody was left out" in done.stdout
    assert len(done.stdout.splitlines()) < 40


def test_groups_of_patients_are_told_as_in_the_simulation(network: LocalNetwork, simulated: Path) -> None:
    """The same patients are behind the same values; the draws of the intervals are each hospital's own."""
    tables = [json.loads((run / "evaluations.json").read_text())["subgroups"] for run in (last_run(network), simulated)]
    # Of the slices' levels, one band has too few patients at either hospital: it takes the other one with it.
    assert [row["group"] for row in tables[0] if row["hospitals"]] == ["scanner-a", "scanner-b"]
    assert [row["withheld"] for row in tables[0] if row["column"] == "level_mm"] == [network.sites] * 2
    for told, expected in zip(*tables, strict=True):
        counted = ("column", "group", "patients", "cases", "hospitals", "withheld")
        assert [told[key] for key in counted] == [expected[key] for key in counted]
        values = [{name: entry["value"] for name, entry in row["metrics"].items()} for row in (told, expected)]
        assert values[0] == values[1]


def test_pictures_of_patients_are_at_the_hospital_only(network: LocalNetwork) -> None:
    assert not list(network.home.rglob("*.png"))
    page = (last_run(network) / "report.html").read_text()
    assert "data:image/png" not in page and "each has a report of its own" in page
    for name in network.sites:
        own = next(network.work(name).glob("runs/*/report.html")).read_text()
        assert "data:image/png" in own and "Keep this page at the hospital" in own


def test_every_ledger_is_whole_and_names_each_tensor_that_left(network: LocalNetwork) -> None:
    for name in network.sites:
        verified = consilium("site", "ledger", "verify", "--config", network.site_yaml(name))
        assert "is whole" in verified.stdout
        lines = [json.loads(line) for line in (network.work(name) / "ledger.jsonl").read_text().splitlines()]
        trained = [line for line in lines if line["kind"] == "answer" and line["question"] == "train"]
        assert [line["round"] for line in trained] == list(range(1, ROUNDS + 1))
        assert all(len(tensor["sha256"]) == 64 for line in trained for tensor in line["tensors"])
        assert sum(line["kind"] == "bundle_ignored" for line in lines) == 1


def test_no_update_stays_in_the_superlinks_database(network: LocalNetwork) -> None:
    model = (last_run(network) / "models" / "federated-last.safetensors").read_bytes()
    piece = model[-64:]  # of the last tensor's values, as they stood in the messages
    assert any(piece)
    found = [path.name for path in (network.home / "superlink").glob("state.db*") if piece in path.read_bytes()]
    assert found == []


def test_a_job_waits_until_a_person_at_the_hospital_approves_it(network: LocalNetwork, job_path: Path) -> None:
    name = network.sites[0]
    set_policy(network, name, {"approve": "ask"})
    asked = job_path.with_name("asked.yaml")
    asked.write_text(job_path.read_text().replace("name: short", "name: asked").replace("seed: 7", "seed: 8"))
    assert network.run("run", asked, "--detach").returncode == 0
    config = ("--config", network.site_yaml(name))
    wait_for(lambda: "asked" in consilium("site", "jobs", *config).stdout, "the job to be noted at the hospital")
    wait_for(
        lambda: "waits for the hospital's approval" in network.run("status").stdout,
        "the status to say that the hospital has not approved yet",
    )
    status = network.run("status").stdout
    assert name in status
    shown = consilium("site", "show", "asked", *config).stdout
    assert "8 train" in shown or "train" in shown
    consilium("site", "approve", "asked", "--by", "Dr Example", *config)
    run = last_run(network)
    wait_for(lambda: phase(run) == "complete", "the run to end", 300)
    assert exit_code(run) == 0
    set_policy(network, name, {"approve": "automatic"})


def test_a_run_that_is_stopped_goes_on_where_it_was(network: LocalNetwork, job_path: Path, simulated: Path) -> None:
    assert network.run("run", job_path, "--detach").returncode == 0
    run = last_run(network)
    wait_for(lambda: finished_rounds(run) >= 1, "the first round to be finished")
    assert network.run("stop", run.name).returncode == 0
    wait_for(lambda: phase(run) == "stopped", "the run to stop")
    kept = finished_rounds(run)
    assert 1 <= kept < ROUNDS
    resumed = network.run("resume", run.name)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert fingerprint(run) == fingerprint(simulated)
    results = network.run("results", run.name).stdout
    assert fingerprint(run) in results and "report.html" in results


def test_a_daemon_that_is_asked_to_end_in_mid_training_says_so_and_comes_back(
    network: LocalNetwork, job_path: Path
) -> None:
    name = network.sites[1]
    longer = job_path.with_name("longer.yaml")
    longer.write_text(job_path.read_text().replace("local_steps: 3", "local_steps: 400"))
    set_policy(network, name, {"max_local_steps": 400})
    set_policy(network, network.sites[0], {"max_local_steps": 400})
    assert network.run("run", longer, "--detach").returncode == 0
    run = last_run(network)
    wait_for(lambda: "train" in network.health(name)["worker"].get("doing", ""), "the worker to train")
    network.stop(name)
    wait_for(lambda: any("being stopped" in str(e.get("reason")) for e in events(run)), "the coordinator to be told")
    network.start_site(name)
    wait_for(lambda: phase(run) in ("complete", "stopped"), "the run to end", 300)
    assert phase(run) == "complete" and finished_rounds(run) == ROUNDS
    assert "is whole" in consilium("site", "ledger", "verify", "--config", network.site_yaml(name)).stdout


def test_a_model_of_one_hospitals_patients_is_judged_there_and_nowhere_else(
    network: LocalNetwork, job_path: Path
) -> None:
    for name in network.sites:
        set_policy(network, name, {"local_baseline": True})
    done = network.run("run", job_path, "--compare", "local,fine_tuned")
    assert done.returncode == 0, done.stdout + done.stderr
    run = last_run(network)
    report = json.loads((run / "report.json").read_text())
    assert set(report["differences"]["federated-local"]) == {*network.sites, "all"}
    for choice in report["choices"].values():  # the door lets replicates of validation patients out, too
        assert choice["intervals"].keys() == {"federated", "local", "fine-tuned"}
        assert all(row["low"] is not None for row in choice["intervals"].values())
    for name in network.sites:
        lines = [json.loads(line) for line in (network.work(name) / "ledger.jsonl").read_text().splitlines()]
        models = {str(line.get("model")) for line in lines if line["kind"] == "answer"}
        assert {model for model in models if model.startswith("local:")} == {f"local:{name}"}
        assert {"fine-tuned", "kept"} <= models
        assert (network.work(name) / "own" / run.name / "kept.safetensors").is_file()


def test_a_suspended_hospital_is_told_and_comes_back_when_it_is_readmitted(network: LocalNetwork) -> None:
    name = network.sites[0]
    status = ("site", "status", "--config", network.site_yaml(name))
    assert network.run("suspend", name).returncode == 0
    wait_for(lambda: "has suspended this site" in consilium(*status, check=False).stdout, "the hospital to be told")
    assert consilium(*status, check=False).returncode == 3
    assert network.run("readmit", name).returncode == 0
    wait_for(lambda: consilium(*status, check=False).returncode == 0, "the hospital to be well again")
    network.wait_until_connected([name])


def set_policy(network: LocalNetwork, name: str, changes: dict[str, object]) -> None:
    """Edits site.yaml and starts the daemon again, as a hospital would."""
    path = network.site_yaml(name)
    config = yaml.safe_load(path.read_text())
    config["policy"] |= changes
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    network.stop(name)
    wait_for(lambda: network.daemon()["sites"].get(name) == "offline", f"{name} to be gone")
    network.start_site(name)
    network.wait_until_connected([name])


def last_run(network: LocalNetwork) -> Path:
    return max((network.home / "runs").iterdir(), key=lambda path: path.stat().st_ctime)


def events(run: Path) -> list[dict[str, object]]:
    path = run / "events.jsonl"
    return list(read_events(path)) if path.exists() else []


def finished_rounds(run: Path) -> int:
    return sum(event["event"] == "round_finished" for event in events(run))


def phase(run: Path) -> str:
    return str(json.loads((run / "state.json").read_text())["phase"])


def exit_code(run: Path) -> int:
    return int(json.loads((run / "state.json").read_text())["exit_code"])


def fingerprint(run: Path) -> str:
    return str(json.loads((run / "report.json").read_text())["run"]["fingerprint"])
