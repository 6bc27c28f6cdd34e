"""What the doctor says of a site that is well, and of everything that can be wrong with one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from packaging.version import Version

from client import doctor
from client.config import load_site_config
from client.daemon import SiteDaemon
from client.doctor import Level, machine
from client.ledger import Ledger
from shared_models.enrolment import Kit, write
from shared_models.keys import load_private, new_signing_key, new_site_key, save_private
from tests.client.joined_site import PATIENTS, Joined, ill, look, serving, the_one, worse

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Joined:
    return Joined(tmp_path)


def test_a_site_that_is_well_has_every_check_and_no_fault(site: Joined):
    with site.front():
        rows = look(site)
    assert worse(rows) == []
    assert {row.check for row in rows} == {
        *("python", "memory", "packages", "site.yaml", "device", "disk", "work", "key", "ledger", "manifest"),
        *("health port", "kit", "policy", "CA certificate", "proxy", "connection", "certificate"),
        *("server certificate", "answer", "clock"),
    }
    found = {row.check: row.found for row in rows}
    assert found["manifest"] == "10 rows, 10 patients"
    assert found["proxy"] == "none for this address"
    assert found["certificate"] == "of 127.0.0.1, issued by the kit's CA"


# Keys, kit and modes


def test_a_key_that_others_can_read_is_a_fault(site: Joined):
    (site.site / "site.key").chmod(0o644)
    told = the_one(ill(site), "key", Level.FAULT)
    assert told.endswith(f"has mode 0644, so others can read it; run: chmod 600 {site.site / 'site.key'}")


def test_an_encrypted_key_is_opened_with_its_passphrase_only(tmp_path: Path):
    site = Joined(tmp_path, passphrase=b"correct horse")
    assert ill(site, b"correct horse") == []
    assert "does not open with this passphrase" in the_one(ill(site, b"hush"), "key", Level.FAULT)
    assert "is encrypted and no passphrase was given" in the_one(ill(site), "key", Level.WARNING)


def test_a_missing_a_foreign_and_a_half_key_are_told(site: Joined):
    key = site.site / "site.key"
    key.unlink()
    assert the_one(ill(site), "key", Level.FAULT) == f"there is no key at {key}"
    save_private(key, new_signing_key(), None)
    assert "is no key of a site; expected ECDSA on P-384" in the_one(ill(site), "key", Level.FAULT)
    key.unlink()
    save_private(key, new_site_key(), None)
    assert "is not the public half of" in the_one(ill(site), "key", Level.FAULT)
    (site.site / "site.pub").unlink()
    assert "there is no public key at" in the_one(ill(site), "key", Level.FAULT)


def test_the_kit_of_another_site_is_told(site: Joined):
    write(site.site / "kit.json", Kit(**site.kit.model_dump() | {"site": "south"}))
    told = the_one(ill(site), "kit", Level.FAULT)
    assert told.endswith("kit.json is the kit of site south, and this is north; ask for your own kit")


def test_without_a_kit_what_rests_on_it_is_said_not_to_be_looked_at(site: Joined):
    (site.site / "kit.json").write_text("{}")
    found = ill(site)
    assert [(check, level) for check, level, _ in found] == [("kit", Level.FAULT), ("coordinator", Level.WARNING)]
    assert "neither the policy nor the coordinator was looked at" in found[1][2]


@pytest.mark.parametrize(("mode", "level"), [(0o750, Level.WARNING), (0o755, Level.FAULT)])
def test_a_work_directory_that_others_can_look_into_is_told(site: Joined, mode: int, level: Level):
    work = load_site_config(site.config).work
    work.chmod(mode)
    told = the_one(ill(site), "work", level)
    assert f"(mode {mode:04o}), where prepared images of patients are kept; run: chmod 700 {work}" in told


def test_a_configuration_that_others_can_change_is_a_fault(site: Joined):
    site.config.chmod(0o666)
    told = the_one(ill(site), "site.yaml", Level.FAULT)
    assert told == f"others may write to {site.config}, and so widen the policy; run: chmod go-w {site.config}"


def test_every_mistake_in_the_configuration_is_a_fault(site: Joined):
    site.edit(device="gpu", cache_gb=0)
    found = worse(look(site))
    assert [check for check, _, _ in found] == ["site.yaml", "site.yaml"]
    assert {"device", "cache_gb"} == {told.split(": ")[1] for _, _, told in found}
    site.config.unlink()
    assert "site.yaml" in the_one(worse(look(site)), "site.yaml", Level.FAULT)


# Policy


@pytest.mark.parametrize(
    ("rules", "level", "told"),
    [
        ({"coordinators": []}, Level.FAULT, "the key that the kit's coordinator signs by; compare it by telephone"),
        ({"models": [], "max_rounds": 0}, Level.FAULT, "policy: models, max_rounds allow nothing, so every job is"),
        (
            {"protections": {"clip": 1.0, "secure_aggregation": True}},
            Level.FAULT,
            "policy.protections requires clip, secure_aggregation, which no job can offer yet",
        ),
        ({"models": ["cnn", "cnm"]}, Level.WARNING, "policy.models lists cnm, which this version does not know"),
        ({"metrics": ["auroc"]}, Level.WARNING, "without which every classification job is refused; list them, or"),
    ],
)
def test_a_policy_by_which_nothing_runs_is_told(site: Joined, rules: dict, level: Level, told: str):
    site.allow(**rules)
    assert told in the_one(ill(site), "policy", level)


# Data


@pytest.mark.parametrize(
    "reference", ["../Doe-1.png", "/etc/Doe-1.nii.gz", "link/Doe-1.png", "../Doe-1.npz::images[3]", "x/../../Doe-1.PNG"]
)
def test_a_file_outside_data_root_is_a_fault_told_by_its_line(site: Joined, tmp_path: Path, reference: str):
    (site.data / "link").symlink_to(tmp_path)
    site.write_manifest("Doe-0.png,0,Doe-0", f"{reference},1,Doe-1")
    told = the_one(ill(site), "manifest", Level.FAULT)
    assert f"1 file outside data_root {site.data}, links followed, the first in line 3, column 1" in told


@pytest.mark.parametrize(
    ("rows", "header", "level", "told"),
    [
        (
            ["Doe-0.png,0,Doe-0", "Doe-x.png,1,Doe-1"],
            "image,label,patient",
            Level.WARNING,
            "1 of 2 files are not there",
        ),
        (["Doe-x.png,0,Doe-0"], "image,label,patient", Level.FAULT, "1 of 1 file are not there or may not be read"),
        (["Doe-0.png,0,Doe-0"], "image,label,who", Level.WARNING, "has no column 'patient' in its header"),
        ([], "image,label,patient", Level.FAULT, "has no case; expected a header line and one row a case"),
        (["Doe-0.dcm,0,Doe-0"], "image,label,patient", Level.FAULT, "names no file of a known kind (.nii, "),
        (['"Doe-0.png,0,Doe-0'], "image,label,patient", Level.FAULT, "this is not well-formed CSV"),
    ],
)
def test_a_manifest_that_is_not_right_is_told(site: Joined, rows: list[str], header: str, level: Level, told: str):
    site.write_manifest(*rows, header=header)
    assert told in the_one(ill(site), "manifest", level)


def test_a_missing_manifest_or_data_root_is_told(site: Joined, tmp_path: Path):
    site.manifest.unlink()
    assert the_one(ill(site), "manifest", Level.FAULT).startswith(f"there is no manifest at {site.manifest}")
    site.edit(data_root=str(tmp_path / "away"))
    assert "away is no folder; mount it" in the_one(ill(site), "manifest", Level.FAULT)


def test_with_a_job_every_image_is_opened_and_nobody_is_named(site: Joined):
    assert ill(site, job=site.job()) == []
    (site.data / f"{PATIENTS[3]}.png").write_bytes(b"no picture")
    told = the_one(ill(site, job=site.job()), "cases", Level.WARNING)
    assert told.startswith("1 case would be left out (1 where a file cannot be read)")
    site.write_manifest(*(f"{patient}.png,7,{patient}" for patient in PATIENTS))
    told = next(told for check, _, told in ill(site, job=site.job()) if check == "cases")
    assert told.startswith("too few cases are usable for this job (") and "a label is not one of the job's" in told


def test_a_job_that_the_policy_refuses_is_told_with_what_would_pass(site: Joined):
    told = the_one(ill(site, job=site.job(federation={"rounds": 9})), "job", Level.FAULT)
    assert "policy.max_rounds: asked 9, allowed 5; passes with federation.rounds of at most 5" in told


def test_a_manifest_that_does_not_fit_the_job_names_columns_but_no_patient(site: Joined):
    job = site.job(data={"spatial_dims": 2, "crop": [16, 16], "images": ["scan"]})
    assert "the column 'scan' (data.images of the job) is missing" in the_one(ill(site, job=job), "cases", Level.FAULT)
    site.write_manifest("Doe-0.png,0,Doe-0,train", "Doe-1.png,0,Doe-0,test", header="image,label,patient,split")
    told = the_one(ill(site, job=site.job()), "cases", Level.FAULT)
    assert "does not fit the job; see which with: consilium site check" in told
    assert "job.yaml" in the_one(ill(site, job=site.job(name="?")), "job", Level.FAULT)


# Machine, ledger and health


def test_a_device_that_is_not_there_is_a_fault(site: Joined):
    import torch

    device = "cuda:99" if torch.cuda.is_available() else "cuda"
    site.edit(device=device)
    told = the_one(ill(site), "device", Level.FAULT)
    assert told.endswith("or set `device: cpu` in site.yaml") or "set one of these" in told


def test_a_disk_too_small_for_the_cache_says_what_fits(site: Joined):
    site.edit(cache_gb=10**7)
    told = the_one(ill(site), "disk", Level.WARNING)
    assert "the cache may still grow by 10000000.0 GiB; free space there, or set cache_gb to" in told


def test_another_flwr_is_a_fault(site: Joined, tmp_path: Path):
    fake = tmp_path / "fake" / "flwr-1.40.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: flwr\nVersion: 1.40.0\n")
    program = "from client.doctor import machine\nfor row in machine.software(): print(row.level, row.sentence)"
    environment = os.environ | {"PYTHONPATH": f"{fake.parent}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    told = "flwr 1.40.0 is installed, expected 1.41.*; in this environment run: python -m pip install 'flwr==1.41.*'"
    assert f"2 {told}\n" in done.stdout, done.stderr


def test_the_flwr_of_the_doctor_is_the_one_of_the_constraints():
    (pinned,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("flwr==")]
    assert machine.FLWR.contains(Version(pinned.removeprefix("flwr==")))


def test_a_changed_ledger_is_a_fault(site: Joined):
    config = load_site_config(site.config)
    ledger = Ledger(config.work / "ledger.jsonl", load_private(config.key, None), "north")
    for number in range(3):
        ledger.append("started", pid=number)
    assert ill(site) == []
    ledger.path.write_text(ledger.path.read_text().replace('"pid":1', '"pid":7'))
    told = the_one(ill(site), "ledger", Level.FAULT)
    assert "line 2 was changed" in told and told.endswith("see them all with: consilium site ledger verify")
    ledger.path.unlink()
    assert "the ledger was removed" in the_one(ill(site), "ledger", Level.FAULT)


def test_a_port_that_something_else_has_is_a_fault(site: Joined):
    with serving(BaseHTTPRequestHandler, site.health_port):
        told = the_one(ill(site), "health port", Level.FAULT)
    assert told.startswith(f"health_port {site.health_port} cannot be listened on (address already in use)")


def test_the_sites_own_daemon_may_have_the_port(site: Joined):
    config = load_site_config(site.config)
    daemon = SiteDaemon(site.config, config, site.kit, load_private(config.key, None), None)
    threading.Thread(target=daemon._health.serve_forever, daemon=True).start()
    try:
        # Its SuperNode and worker were not started.
        assert "consilium site status" in the_one(ill(site), "health port", Level.WARNING)
    finally:
        daemon._health.shutdown()
        daemon._health.server_close()


def test_a_check_that_hangs_is_a_fault_and_the_others_go_on(site: Joined, monkeypatch: pytest.MonkeyPatch):
    ledger = load_site_config(site.config).work / "ledger.jsonl"
    os.mkfifo(ledger)
    monkeypatch.setattr(doctor, "CHECK_SECONDS", 3.0)
    told = the_one(ill(site), "ledger", Level.FAULT)
    assert "the check of ledger did not end in its time; a disk, a driver or a network hangs" in told
    os.close(os.open(ledger, os.O_WRONLY))  # lets the one that hangs go


def test_an_error_that_nobody_foresaw_is_a_fault_without_its_text(site: Joined, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError(f"secret of {PATIENTS[0]}")

    monkeypatch.setattr(machine, "disk", fail)
    told = the_one(ill(site), "disk", Level.FAULT)
    assert told == "the check of disk ended with RuntimeError; look again, and report this"
