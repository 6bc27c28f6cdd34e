"""Real hospitals over real TLS, and what breaks: processes, machines, networks, disks, clocks.

Every test ends with the model that the same job has in one undisturbed process, or with one clear sentence and
everything kept.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deploy.local_network import consilium, wait_for
from tests.system.network_faults import (
    GOES_ON,
    HOUR,
    PATIENCE,
    Network,
    fill,
    kill,
    move_into_the_past,
    simulated,
    write_job,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SMALL_DISK = "hospital-3"
FEW_BYTES = 30_000
"""Of an upload of 105 kB; a site in training sends a hundred bytes now and then."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """One federation for all tests; the work directory of one hospital lies on a disk of 48 MB, where that can be."""
    folder = tmp_path_factory.mktemp("network")
    with Network(folder) as network:
        disk = network.work(SMALL_DISK)
        disk.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "consilium-test", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        network.start()
        yield network
    if mounted.returncode == 0:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def network(running: Network) -> Network:
    """The federation, with everything well."""
    running.recover()
    return running


@pytest.fixture(scope="module")
def undisturbed(running: Network, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The last global model of the same job in one process."""
    return simulated(running.job, tmp_path_factory.mktemp("undisturbed") / "run")[2]


def test_a_killed_superlink_is_started_again_and_the_round_goes_on(network: Network, undisturbed: str) -> None:
    going = network.launch()
    going.wait_for_training("hospital-1", 2)
    before = network.daemon()["superlink"]
    kill(before["pid"])
    going.wait_to_read("waits for the SuperLink", "being started again")
    going.assert_complete(undisturbed)
    assert network.daemon()["superlink"]["restarts"] == before["restarts"] + 1


def test_a_run_whose_process_was_killed_goes_on_from_its_last_checkpoint(network: Network, undisturbed: str) -> None:
    going = network.launch()
    going.wait_for_training("hospital-1", 2)
    workers = {site: network.health(site)["worker"]["pid"] for site in network.sites}
    kill(network.daemon()["run_pid"])
    going.wait_to_read("waits for its own process", "goes on from its last checkpoint")
    going.assert_complete(undisturbed)
    # Nobody wants the update that they were at; they stay warm.
    assert {site: network.health(site)["worker"]["pid"] for site in network.sites} == workers
    assert going.state.attempts == 2
    assert going.run.events("run_started")[-1]["resumed_from"] == 1


def test_a_killed_supernode_and_a_killed_worker_are_replaced_and_their_round_is_tried_again(
    network: Network, undisturbed: str
) -> None:
    """Both in one round, as each costs the minute that Flower waits for a sign of life."""
    going = network.launch()
    going.wait_for_training("hospital-1", 2)
    kill(network.health("hospital-1")["worker"]["pid"])
    kill(network.health("hospital-2")["supernode"]["pid"])
    line = going.wait_to_read("waits for", "hospital-2", "to train in round 2, since")
    assert "The round ends with at least 3 of 3 updates" in line
    going.assert_complete(undisturbed)
    assert {event["round"] for event in going.run.events("round_retried")} == {2}
    assert network.health("hospital-1")["worker"]["restarts"] > 0
    assert network.health("hospital-2")["supernode"]["restarts"] > 0


def test_a_site_that_stands_still_for_90_s_misses_those_rounds_only(network: Network, tmp_path: Path) -> None:
    job = write_job(tmp_path, GOES_ON)
    going = network.launch(job)
    going.wait_for_training("hospital-2", 2)
    frozen = network.processes_of("hospital-2")
    for process in frozen:
        process.send_signal(signal.SIGSTOP)
    thaw = time.monotonic() + 90
    try:
        going.wait_to_read("waits for hospital-2 to train in round 2")
        wait_for(lambda: time.monotonic() > thaw, "90 s to pass")
    finally:
        for process in frozen:
            process.send_signal(signal.SIGCONT)
    back = going.wait_for_event(2, event="site_replied", site="hospital-2", status="used")["round"]
    going.wait_for_event(event="round_finished", round=back)
    going.stop()
    absences = going.absences()
    assert (2, "hospital-2") in absences and (back, "hospital-2") not in absences
    assert {site for _, site in absences} == {"hospital-2"}
    reached = going.fingerprints()
    # Exactly the model without those updates: one that came late is in no round.
    assert reached == simulated(job, tmp_path / "run", absences, rounds=max(reached))


def test_a_network_lost_in_an_upload_for_a_moment_costs_nothing_but_time(network: Network, undisturbed: str) -> None:
    going = network.launch()
    going.wait_for_training("hospital-1", 2)
    network.wire.cut_in_upload(lambda: [one.pid for one in network.processes_of("hospital-1")], FEW_BYTES)
    wait_for(network.wire.is_cut.is_set, "the cut", PATIENCE)
    going.wait_to_read("waits for", "hospital-1", "to train in round 2")
    time.sleep(10)
    network.wire.mend()
    going.assert_complete(undisturbed)


def test_a_network_lost_in_an_upload_for_minutes_costs_that_round(network: Network, undisturbed: str) -> None:
    going = network.launch()
    going.wait_for_training("hospital-1", 1)
    network.wire.cut_in_upload(lambda: [one.pid for one in network.processes_of("hospital-1")], FEW_BYTES)
    line = going.wait_to_read("waits since", "for hospital-1 to connect", "2 sites are there and 3 are needed")
    assert "it stops, and can be resumed, if they stay away for 600 s" in line
    assert network.wire.is_cut.is_set()
    network.wire.mend()
    going.assert_complete(undisturbed)
    # Tried again twice where the SuperNode registers anew behind the first sign of life of the old one.
    assert {event["round"] for event in going.run.events("round_retried")} == {1}


def test_a_full_disk_is_said_to_the_coordinator_and_the_site_recovers(network: Network, undisturbed: str) -> None:
    work = network.work(SMALL_DISK)
    if not os.path.ismount(work):
        pytest.skip("a small disk could not be mounted: that needs root")
    going = network.launch()
    going.wait_for_training(SMALL_DISK, 2)
    filling = fill(work)
    code, said = going.end()
    assert code == 3
    assert "round 2 stayed below its quorum" in said and "2 of 3 sites gave an update, 3 are needed" in said
    reasons = {event["reason"] for event in going.run.events("site_replied") if event["status"] == "failed"}
    assert reasons == {"its disk is full"}
    assert network.health(SMALL_DISK)["worker"]["alive"]
    filling.unlink()
    assert "is whole" in consilium("site", "ledger", "verify", "--config", network.site_yaml(SMALL_DISK)).stdout
    going.resume()
    going.assert_complete(undisturbed)


def test_a_run_without_sites_waits_for_them_then_stops_and_can_be_resumed(network: Network, undisturbed: str) -> None:
    going = network.launch(None, "--wait", 20)
    going.wait_for_training("hospital-1", 2)
    for site in network.sites:
        network.stop(site)
    line = going.wait_to_read("waits since", "for hospital-1, hospital-2 and hospital-3 to connect")
    assert "0 sites are there and 3 are needed" in line and "can be resumed, if they stay away for 20 s" in line
    code, said = going.end()
    assert code == 3
    assert "did not come back within 20 s" in said and f"consilium coordinator resume {going.name}" in said
    for site in network.sites:
        network.start_site(site)
    network.wait_until_connected(network.sites)
    going.resume()
    going.assert_complete(undisturbed)


def test_a_coordinator_that_was_away_for_an_hour_goes_on(network: Network, undisturbed: str) -> None:
    going = network.launch()
    going.wait_for_training("hospital-1", 2)
    coordinator = network.processes.pop("coordinator")
    coordinator.kill()
    coordinator.wait()
    move_into_the_past(network.home, HOUR)
    assert "The coordinator is not running" in network.status()[0]
    assert "waits for the coordinator itself, which is not running" in network.status()[1]
    network.start_coordinator()
    going.assert_complete(undisturbed)


def test_of_two_jobs_submitted_together_one_waits_for_the_other(network: Network, undisturbed: str) -> None:
    first, second = network.launch(), network.launch()
    second.wait_to_read(f"Queued behind {first.name}: {second.name}.")
    first.assert_complete(undisturbed)
    second.assert_complete(undisturbed)
    ended, began = first.run.events("run_finished")[0]["time"], second.run.events("run_started")[0]["time"]
    assert ended < began


def test_no_update_is_left_at_the_coordinator(network: Network) -> None:
    """Behind all that the other tests broke off."""
    with closing(sqlite3.connect(network.home / "superlink" / "state.db")) as database:
        left = {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("objects", "message_ins", "message_res")
        }
    assert left == {"objects": 0, "message_ins": 0, "message_res": 0}
