"""Attacks on a federation of real processes over TLS: what is tried, who refuses it, and that the run goes on."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.fab import Fab

from client.ledger import read_ledger
from deploy.local_network import LocalNetwork, consilium, wait_for
from shared_models.faults import ORDERS, UNREADABLE, read_fault
from shared_models.flower_runtime import COORDINATOR_TASK, SITE_TASK, Control, Runtime, TaskQueue, coordinator_task
from shared_models.job import Job
from shared_models.keys import load_private
from tests.server.superlink import signed_headers
from tests.system.hostile_site import ATTACKS
from tests.system.processes import Run
from tests.system.under_attack import (
    HONEST_SITES,
    JOB,
    SUSPENDED_ROUNDS,
    Attacked,
    look_at_processes,
    option,
    post,
    processes_of,
    secrets_of,
    start_mallory,
    superlink,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

EXPECTED = {
    "NaN": ("rejected", "has values that are NaN or infinite"),
    "wrong shape": ("rejected", r"has shape \(\d+,\), expected \(\d+, \d+"),
    "1e30": ("rejected", r"it moves the model by \d\.\de\+3\d, where"),
    "far away": ("rejected", r"it moves the model by \d\.\de\+0\d, where"),
    "an extra tensor": ("rejected", "1 unexpected tensors, such as 'image'"),
    "a missing tensor": ("rejected", "1 of 6 tensors missing"),
    "another dtype": ("rejected", "has dtype float64, expected float32"),
    "10 GB by its header": ("rejected", "cannot be read as a numpy array"),
    "10 GB by repetition": ("rejected", UNREADABLE),
    "a header that breaks the reader": ("rejected", "cannot be read as a numpy array"),
    "deep nesting": ("rejected", UNREADABLE),
    "a protobuf bomb": ("rejected", UNREADABLE),
    "a negative weight": ("rejected", "'weight' is -3, expected a count"),
    "a weight without bound": ("rejected", "'weight' is 1099511627776, expected a count"),
    "no records": ("rejected", "the reply has no records 'weights' and 'numbers'"),
    "an error with a text": ("failed", "its app failed: the site's log says why"),
    "a packed file that is none": ("rejected", UNREADABLE),
    "a name with control characters": ("rejected", r"such as '\\x1b"),
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNetwork]:
    """A coordinator and two honest hospitals that run, and the key and kit of a third site."""
    folder = tmp_path_factory.mktemp("net")
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16), dtype=np.uint8)
    patients = np.array([f"p{number}" for number in range(60)])
    np.savez(folder / "squares.npz", images=images, labels=np.arange(60) % 2, patient=patients)
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB, sort_keys=False))
    with LocalNetwork(folder, Job.model_validate(JOB), folder) as net:
        mallory = folder / "sites" / "mallory"
        consilium("site", "init", "--name", "mallory", "--home", mallory)
        assert net.run("admit", mallory / "request.json", "--out", mallory / "kit.json").returncode == 0
        net.start()
        yield net


@pytest.fixture(scope="module")
def attacked(net: LocalNetwork) -> Attacked:
    """One run in which mallory tries one attack a round, and is suspended in the middle of the run."""
    start_mallory(net)
    done = net.run("run", net.folder / "job.yaml", "--detach")
    assert done.returncode == 0, done.stderr
    [name] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("run ")]
    run = Run(Path(name))
    wait_for(lambda: len(run.events("round_finished")) >= 2, "two rounds to end", 300)
    processes, secrets = look_at_processes(net), secrets_of(net)
    wait_for(lambda: len(run.events("round_finished")) >= len(ATTACKS), "all attacks to be tried", 600)
    assert net.run("suspend", "mallory").returncode == 0
    done = net.run("log", run.path.name)
    said = (net.folder / "mallory.out").read_text().splitlines()
    tried = [json.loads(line)["attack"] for line in said if line.startswith('{"attack"')]
    return Attacked(run, done.returncode, tried, processes, secrets)


# --- what a hostile site sends ---


def test_every_attack_was_tried_and_none_ended_the_run(attacked: Attacked) -> None:
    assert list(dict.fromkeys(attack for attack in attacked.tried if attack in ATTACKS)) == list(ATTACKS)
    assert attacked.exit_code == 4, "complete, but a site was left out"
    assert attacked.run.events("run_finished")[-1]["status"] == "complete"
    assert EXPECTED.keys() == ATTACKS.keys()
    state = json.loads((attacked.run.path / "state.json").read_text())
    assert state["attempts"] == 1, "its process did not die of any"


@pytest.mark.parametrize("attack", EXPECTED)
def test_what_no_training_made_is_rejected_and_on_record(attacked: Attacked, attack: str) -> None:
    status, reason = EXPECTED[attack]
    answer = attacked.of_mallory()[list(ATTACKS).index(attack) + 1]
    assert answer["status"] == status and re.search(reason, answer["reason"]), answer
    assert answer["reason"].isprintable() and len(answer["reason"]) < 400 and "Jane" not in answer["reason"]


def test_it_is_called_by_the_name_of_the_registry_whatever_it_says(attacked: Attacked) -> None:
    ready = [event["site"] for event in attacked.run.events("site_ready")]
    assert sorted(ready) == [*HONEST_SITES, "mallory"]


def test_a_site_that_is_suspended_in_mid_run_is_asked_and_heard_no_more(net: LocalNetwork, attacked: Attacked) -> None:
    last = [attacked.of_mallory()[JOB["federation"]["rounds"] - after] for after in range(SUSPENDED_ROUNDS - 1)]
    assert {(answer["status"], answer["reason"]) for answer in last} == {("failed", "it was not connected")}
    key = load_private(net.folder / "sites" / "mallory" / "site.key", None)
    assert isinstance(key, EllipticCurvePrivateKey)
    answer = post(net, "fleet/pull-messages", signed_headers(key))
    assert answer.status_code == 403 and "the coordinator has suspended this site" in answer.text
    replies = attacked.run.events("site_replied")
    assert all(event["status"] == "used" for event in replies if event["site"] in HONEST_SITES)


def test_the_model_is_the_one_that_the_others_make_alone(net: LocalNetwork, attacked: Attacked) -> None:
    assert not any(answer["status"] == "used" for answer in attacked.of_mallory().values())
    alone = net.folder / "alone"
    # Two workers have one thread each, as the sites have.
    arguments = ("--data-dir", net.folder, "--out", alone, "--compare", "none", "--workers", "2")
    consilium("simulate", net.folder / "job.yaml", *arguments)
    assert attacked.run.fingerprint() == Run(alone).fingerprint()


def test_the_report_says_who_was_left_out_and_why(attacked: Attacked) -> None:
    page = (attacked.run.path / "report.html").read_text()
    assert "mallory" in page and "rejected" in page and "\x1b" not in page


# --- secrets ---


def test_no_secret_is_in_the_arguments_or_the_environment_of_any_process(attacked: Attacked) -> None:
    assert len(attacked.processes) >= 9, (
        "two daemons with two children each, and the coordinator with SuperLink and run"
    )
    assert len(attacked.secrets) == 6, "key and secret, of the SuperLink and of two SuperNodes"
    for where, secret in attacked.secrets.items():
        lines = [line for line in secret.splitlines() if len(line) > 20 and b"-----" not in line] or [secret]
        for line in [*lines, base64.b64encode(secret), secret.hex().encode()]:
            holders = [name for name, text in attacked.processes.items() if line in text]
            assert holders == [], f"the secret {where}"
    assert not [name for name, text in attacked.processes.items() if b"--token" in text]


def test_no_secret_is_in_a_log_or_a_status_file(net: LocalNetwork, attacked: Attacked) -> None:
    kinds = (".log", ".out", ".jsonl", "daemon.json", "worker.json", "health.json", ".html")
    files = [path for path in net.folder.rglob("*") if path.name.endswith(kinds) and path.is_file()]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        for secret in attacked.secrets.values():
            assert secret not in content and base64.b64encode(secret) not in content, path


# --- ways in ---


@pytest.mark.parametrize(
    "path", ["control/list-runs", "control/start-run", "runtime/acquire-task", "fleet/register-node"]
)
def test_nothing_but_what_a_supernode_asks_is_let_through_the_front(net: LocalNetwork, path: str) -> None:
    assert post(net, path, {}).status_code == 403


def test_flowers_own_command_gets_nowhere_through_the_front(net: LocalNetwork, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{net.port}"\n'
        f'root-certificates = "{net.home / "ca.crt"}"\n'
    )
    command = [Path(sys.executable).with_name("flwr"), "list"]
    environment = {**os.environ, "FLWR_HOME": str(tmp_path), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "attacks" not in done.stdout


@pytest.mark.parametrize("side", ["SuperLink", "SuperNode"])
@pytest.mark.parametrize("secret", [b"", b"x" * 32])
def test_nobody_claims_a_task_without_the_secret(net: LocalNetwork, side: str, secret: bytes) -> None:
    if side == "SuperLink":
        runtime, kind = Runtime(superlink(net).address, secret, superlink(net).certificates), COORDINATOR_TASK
    else:
        _, port = option(net, "client.supernode", "--port")
        runtime, kind = Runtime(f"127.0.0.1:{port}", secret), SITE_TASK
    client = TaskQueue(runtime, kind)._client
    for call in (
        lambda: client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind])),
        lambda: client.PullTaskInput(PullTaskInputRequest()),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code in (401, 403)


def test_the_ports_behind_the_front_are_on_loopback_only(net: LocalNetwork) -> None:
    listening = {
        connection.laddr.ip
        for process in processes_of(net)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


# --- code ---

PROJECT = b"""[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "evil"
version = "1.0.0"
description = "x"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "evil"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
"""


def test_a_bundle_with_code_in_it_changes_nothing_at_the_site(
    net: LocalNetwork, attacked: Attacked, tmp_path: Path
) -> None:
    """From the coordinator's own machine, with everything that is there but the key that signs orders."""
    written = tmp_path / "written"
    code = f"""
from pathlib import Path
Path({str(written)!r}).touch()
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()
@app.train()
def train(message, context):
    Path({str(written)!r}).touch()
    return Message(RecordDict({{"image": ArrayRecord([np.zeros((512, 512))])}}), reply_to=message)
"""
    content = build_fab_from_files({"pyproject.toml": PROJECT, "client/app.py": code.encode()})[0]
    digest, runtime = sha256(content).hexdigest(), superlink(net)
    control = Control(runtime.address, runtime.certificates or b"")
    run = control._client.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, content, {})))).run_id
    claim = TaskQueue(runtime, COORDINATOR_TASK).claim()
    assert claim is not None and claim.run_id == run
    with coordinator_task(runtime, claim.token) as grid:
        [*nodes] = [node.node_id for node in grid.get_nodes()]
        content_of = RecordDict({"instruction": ConfigRecord({"job": Job.model_validate(JOB).canonical_json()})})
        ids = list(grid.push_messages([Message(content_of, node, "train") for node in nodes]))
        answers: dict[str, Message] = {}

        def both_have_answered() -> bool:
            for message_id in ids:
                for reply in grid.pull_messages([message_id]) if message_id not in answers else ():
                    answers[message_id] = reply
            # Flower lists the suspended site until its last heartbeat has run out, and answers for it: without content.
            return sum(reply.has_content() for reply in answers.values()) == len(HONEST_SITES)

        wait_for(both_have_answered, "the sites to answer", 180)
    control.stop_run(run)
    control.close()
    for reply in answers.values():
        if not reply.has_content():
            continue
        assert set(reply.content) == {"fault", "prepared"}
        assert ORDERS["unsigned"] in read_fault(dict(reply.content.config_records["fault"]))
    assert not written.exists()
    for site in HONEST_SITES:
        lines = list(read_ledger(net.work(site) / "ledger.jsonl"))
        ignored = {line["flower_run"]: line["sha256"] for line in lines if line["kind"] == "bundle_ignored"}
        assert ignored[str(run)] == digest
        assert lines[-1]["kind"] == "refused" and ORDERS["unsigned"] in lines[-1]["sent"]
        assert not list((net.work(site) / "flower").rglob("app.py"))


# --- the hospital's own files ---


def test_a_manifest_that_leads_out_of_its_folder_is_refused_by_a_running_site(
    net: LocalNetwork, attacked: Attacked
) -> None:
    manifest = net.folder / "sites" / "hospital-2" / "data" / "manifest.csv"
    before = manifest.read_text()
    outside = net.folder / "squares.npz"
    lines = before.splitlines()
    lines[3] = re.sub(r"[^,]*::", f"{outside}::", lines[3])
    manifest.write_text("\n".join(lines) + "\n")
    job = net.folder / "outside.yaml"
    job.write_text(yaml.safe_dump({**JOB, "name": "outside", "federation": {"rounds": 1}}))
    try:
        net.run("run", job, "--sites", ",".join(HONEST_SITES), "--wait", "120")
    finally:
        manifest.write_text(before)
    [run] = [Run(path) for path in (net.home / "runs").glob("outside-*")]
    [refused] = run.events("site_refused")
    assert refused["site"] == "hospital-2" and "log says" in refused["reason"]
    assert "squares.npz" not in (run.path / "events.jsonl").read_text()
    log = (net.work("hospital-2") / "logs" / "worker.log").read_text()
    assert "manifest.csv, line 4" in log and f"which is outside {manifest.parent}" in log
    assert [event["sites_used"] for event in run.events("round_finished")] == [1], "the other goes on without it"


# --- sites that are no longer of the federation ---


def test_a_key_that_was_removed_opens_nothing_and_the_site_is_told(net: LocalNetwork) -> None:
    home = net.folder / "sites" / "stranger"
    (home / "data").mkdir(parents=True)
    (home / "data" / "manifest.csv").write_text("patient,image,label,split\n")
    net.join("stranger", {})
    assert net.run("remove", "stranger").returncode == 0
    net.start_site("stranger")
    log = net.work("stranger") / "logs" / "daemon.log"
    wait_for(lambda: log.exists() and "refuses this site's key" in log.read_text(), "the hospital to be told", 180)
    net.stop("stranger")
    wait_for(lambda: "stranger" not in net.daemon()["sites"], "the coordinator to forget it")
