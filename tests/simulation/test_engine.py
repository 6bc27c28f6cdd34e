"""The in-process engine, and the parts of flwr that are not public and that it leans on."""

import os
import signal
import time
from importlib.metadata import version

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from simulation import engine
from simulation.engine import LocalGrid, pack, unpack


def test_the_flwr_whose_internals_are_known():
    """engine.py uses flwr's Run, TaskIdentity and serialisers: look at them again before this version is moved."""
    assert version("flwr") == "1.41.0"


def everything():
    return RecordDict(
        {
            "weights": ArrayRecord({"a": Array(np.arange(6, dtype=np.float32).reshape(2, 3)), "b": Array(np.ones(()))}),
            "empty": ArrayRecord(),
            "numbers": MetricRecord({"n": 3, "loss": 0.25, "many": [1, 2]}),
            "instruction": ConfigRecord({"text": "grüße", "flag": True, "raw": b"\0\1"}),
        }
    )


def test_a_message_comes_out_of_shared_memory_as_it_went_in():
    content = unpack(pack(everything()))
    assert {name: type(record) for name, record in content.items()} == {
        name: type(record) for name, record in everything().items()
    }
    assert content["numbers"] == everything()["numbers"]
    assert content["instruction"] == everything()["instruction"]
    np.testing.assert_array_equal(content["weights"]["a"].numpy(), everything()["weights"]["a"].numpy())
    assert content["weights"]["b"].numpy() == 1.0


def test_packing_leaves_no_descriptor_behind():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        unpack(pack(everything()))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before


def ask(grid, kind="query.prepare"):
    nodes = list(grid.get_node_ids())
    content = RecordDict({"instruction": ConfigRecord({"job": "{}"})})
    return list(grid.send_and_receive([Message(content, node, kind) for node in nodes], timeout=60))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_site_answers_whatever_the_number_of_workers(workers):
    nodes = [{"site": f"h{i}", "manifest": "none.csv", "folder": "", "cache": "", "device": "cpu"} for i in range(5)]
    grid = LocalGrid(nodes, workers, threads=1)
    try:
        replies = ask(grid)
        assert sorted(str(reply.content["prepared"]["site"]) for reply in replies) == ["h0", "h1", "h2", "h3", "h4"]
        assert all("sentence" in reply.content["fault"] for reply in replies)  # "{}" is no job
    finally:
        grid.close()


def test_a_worker_that_dies_is_an_error_reply_and_is_replaced():
    grid = LocalGrid([{"site": "h", "manifest": "", "folder": "", "cache": "", "device": "cpu"}], 2, threads=1)
    try:
        victim = grid._workers[0]._process
        os.kill(victim.pid, signal.SIGSTOP)  # so that it dies before it can answer
        (message_id,) = grid.push_messages(
            [Message(RecordDict({"instruction": ConfigRecord({"job": "{}"})}), 100, "query.prepare")]
        )
        os.kill(victim.pid, signal.SIGKILL)
        replies, until = [], time.monotonic() + 30
        while not replies and time.monotonic() < until:
            grid.wait_for_reply(1)
            replies = list(grid.pull_messages([message_id]))
        assert replies[0].has_error() and "worker process died" in replies[0].error.reason
        assert len(ask(grid)) == 1
    finally:
        grid.close()


def test_workers_end_with_the_process_that_made_them():
    child = os.fork()
    if child == 0:
        grid = LocalGrid([{"site": "h", "manifest": "", "folder": "", "cache": "", "device": "cpu"}], 2, threads=1)
        pids = " ".join(str(worker._process.pid) for worker in grid._workers)
        os.write(_pipe_for_test[1], pids.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    pids = [int(pid) for pid in os.read(_pipe_for_test[0], 1000).split()]
    until = time.monotonic() + 10 * engine.PARENT_CHECK_SECONDS
    while any(_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(_alive(pid) for pid in pids)


_pipe_for_test = os.pipe()


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_what_nobody_waits_for_any_more_is_forgotten(workers):
    nodes = [{"site": f"h{i}", "manifest": "", "folder": "", "cache": "", "device": "cpu"} for i in range(9)]
    grid = LocalGrid(nodes, workers, threads=1)
    try:
        content = RecordDict({"instruction": ConfigRecord({"job": "{}"})})
        list(grid.push_messages([Message(content, 100 + i, "query.prepare", ttl=0.2) for i in range(9)]))
        time.sleep(0.5)
        assert len(ask(grid)) == 9  # replies that were never pulled would have kept the workers idle
        assert not grid._replies and not grid._queue
    finally:
        grid.close()
