"""Hospitals that come late, leave, answer by chance or are slow: asked as the server asks them, over scripted sites."""

import uuid

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.participation import NOT_CONNECTED, ask, instruction
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.weights import from_record, to_record
from simulation.unreliable import UnreliableGrid, check_participation, no_leave_one_out

SITES = ["hospital-1", "hospital-2", "hospital-3"]
W = {"w": np.arange(4, dtype=np.float32)}


def job(federation=None, **simulation):
    return Job.model_validate(
        {
            "name": "unreliable",
            "seed": 5,
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 500, **(federation or {})},
            "simulation": {
                "dataset": {"name": "medmnist", "flag": "pneumoniamnist"},
                "partition": {"name": "iid"},
                "hospitals": 3,
                **simulation,
            },
        }
    )


class Engine(Grid):
    """Every site answers at once: who it is, or W + 1 after `seconds` of training."""

    def __init__(self, seconds=1.0):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._run, self.seconds, self.sent = Run.create_empty(run_id=1), seconds, {}

    run = property(lambda self: self._run)

    def set_run(self, run):
        self._run = run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return range(len(SITES))

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = ids[-1]
            self.sent[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        for name in message_ids:
            message = self.sent.pop(name)  # as of Flower's grids, a reply can be had once
            yield Message(self._answer(message), reply_to=message)

    def _answer(self, message):
        if message.metadata.message_type == "query.prepare":
            return RecordDict({"prepared": ConfigRecord({"site": SITES[message.metadata.dst_node_id]})})
        received = from_record(message.content["weights"])
        learnt = to_record({name: array + np.float32(1) for name, array in received.items()})
        return RecordDict({"weights": learnt, "numbers": MetricRecord({"seconds": self.seconds})})

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def introduced(the_job, tmp_path, seconds=1.0):
    """A grid over sites that have said who they are."""
    grid = UnreliableGrid(Engine(seconds), the_job, tmp_path)
    content = RecordDict({"instruction": instruction(the_job)})
    list(ask(grid, {name: (node, content) for node, name in enumerate(SITES)}, "query.prepare"))
    return grid


def round_of(grid, the_job, number, kind=MessageType.TRAIN):
    """Site -> its reply in a round, asked as the server asks."""
    content = RecordDict({"instruction": instruction(the_job, round=number), "weights": to_record(W)})
    requests = {name: (node, content) for node, name in enumerate(SITES)}
    return {reply.site: reply for reply in ask(grid, requests, kind, the_job.federation.deadline_seconds)}


def there(replies):
    assert all(reply.why == NOT_CONNECTED for reply in replies.values() if reply.message is None)
    return [site for site in SITES if replies[site].message is not None]


def test_a_hospital_trains_from_the_round_it_joins_until_the_round_it_leaves(tmp_path):
    the_job = job(participation={"hospital-2": {"joins": 3, "leaves": 5}})
    grid = introduced(the_job, tmp_path)
    rounds = [number for number in range(1, 8) if "hospital-2" in there(round_of(grid, the_job, number))]
    assert rounds == [3, 4]
    assert there(round_of(grid, the_job, 1)) == ["hospital-1", "hospital-3"]


@pytest.mark.parametrize(
    ("federation", "habits", "sentence"),
    [
        ({}, {"hospital-1": {"joins": 2}}, None),
        ({}, {"hospital-1": {"joins": 9}, "hospital-2": {"leaves": 9}}, None),
        ({}, {"hospital-1": {"joins": 9}, "hospital-2": {"leaves": 8}}, "1 of 3 hospitals are there in round 8"),
        ({"quorum": 3}, {"hospital-3": {"joins": 2}}, "a round needs 3 updates; set federation.quorum to at most 2"),
        (
            {},
            {name: {"leaves": 8} for name in SITES},
            "0 of 3 .* in round 8, .* let some of them join earlier or leave later",
        ),
        ({"sites_per_round": 1}, {"hospital-1": {"joins": 9}, "hospital-2": {"leaves": 8}}, None),
        (
            {"aggregation": {"name": "median"}},
            {"hospital-3": {"joins": 2}},
            "needs 3 updates; median takes no fewer than 3: have more hospitals",
        ),
    ],
)
def test_too_few_hospitals_for_a_round_are_noticed_before_it(federation, habits, sentence):
    the_job = job(federation, participation=habits)
    if sentence is None:
        check_participation(the_job, SITES)
    else:
        with pytest.raises(BadInput, match=sentence):
            check_participation(the_job, SITES)


def test_a_federation_that_would_stop_without_one_of_its_hospitals_is_noticed_before_the_run():
    late = job(participation={"hospital-1": {"joins": 2}})
    check_participation(late, SITES)
    assert no_leave_one_out(late, SITES) == (
        "the federation without hospital-2 would stop: by simulation.participation, 1 of 2 hospitals are there in "
        "round 1, and a round needs 2 updates; set federation.quorum to at most 1"
    )
    assert no_leave_one_out(job({"quorum": 1}, participation={"hospital-1": {"joins": 2}}), SITES) is None
    assert no_leave_one_out(job(), SITES) is None


def test_a_hospital_that_is_away_is_judged_all_the_same(tmp_path):
    the_job = job(participation={"hospital-2": {"joins": 3}})
    assert there(round_of(introduced(the_job, tmp_path), the_job, 1, MessageType.EVALUATE)) == SITES


def test_a_hospital_answers_as_often_as_the_job_says(tmp_path):
    the_job = job(participation={"hospital-1": {"answers": 0.7}})
    grid = introduced(the_job, tmp_path)
    present = ["hospital-1" in there(round_of(grid, the_job, number)) for number in range(1, 301)]
    assert 0.6 < np.mean(present) < 0.8
    again = introduced(the_job, tmp_path)  # as after a resume: the rounds that are left are drawn the same
    assert present[150:] == ["hospital-1" in there(round_of(again, the_job, number)) for number in range(151, 301)]


def test_every_attempt_at_a_round_is_drawn_anew(tmp_path):
    the_job = job(participation={"hospital-1": {"answers": 0.5}})
    grid = introduced(the_job, tmp_path)
    attempts = ["hospital-1" in there(round_of(grid, the_job, 1)) for _ in range(20)]
    assert 2 < sum(attempts) < 18


@pytest.mark.parametrize(
    ("simulation", "seconds"),
    [
        ({"participation": {"hospital-3": {"slowdown": 4000}}}, 1.0),  # 4000 s of 1 s measured here
        ({"participation": {"hospital-3": {"slowdown": 1.001}}}, 3599.0),
    ],
)
def test_a_slow_hospital_is_late_and_nobody_waits_for_it(tmp_path, simulation, seconds):
    the_job = job({"deadline_seconds": 3600}, **simulation)
    grid = introduced(the_job, tmp_path, seconds)
    for number in (1, 2):  # within the time that a test has, not after two hours
        replies = round_of(grid, the_job, number)
        assert replies["hospital-3"].message is None and "deadline" in replies["hospital-3"].why
        assert all(replies[site].message is not None for site in SITES[:2])


def test_a_thin_line_makes_everybody_late(tmp_path):
    # 16 bytes and a header of 128, each way, at 100 bit/s: more than 20 s.
    the_job = job({"deadline_seconds": 20}, bandwidth_mbit=1e-4)
    assert not [r for r in round_of(introduced(the_job, tmp_path), the_job, 1).values() if r.message is not None]
    the_job = job({"deadline_seconds": 30}, bandwidth_mbit=1e-4)
    assert there(round_of(introduced(the_job, tmp_path), the_job, 1)) == SITES


def test_without_a_deadline_nobody_is_late(tmp_path):
    the_job = job(participation={"hospital-3": {"slowdown": 1e9}})
    assert there(round_of(introduced(the_job, tmp_path), the_job, 1)) == SITES


def test_what_is_stale_in_one_federation_is_not_so_in_another(tmp_path):
    the_job = job(faulty={"hospital-1": {"kind": "stale"}})
    grid = introduced(the_job, tmp_path)
    sent = {}
    for without, weights in (("", W), ("hospital-2", {"w": W["w"] + 7}), ("", {"w": W["w"] + 50})):
        said = instruction(the_job, round=1, **({"without": without} if without else {}))
        content = RecordDict({"instruction": said, "weights": to_record(weights)})
        (reply,) = ask(grid, {"hospital-1": (0, content)}, MessageType.TRAIN)
        sent.setdefault(without, []).append(from_record(reply.message.content["weights"])["w"])
    assert np.array_equal(sent[""][0], W["w"] + 1) and np.array_equal(sent[""][1], W["w"] + 1)
    assert np.array_equal(sent["hospital-2"][0], W["w"] + 8)


def test_a_faulty_hospital_sends_something_else_and_the_others_what_they_learnt(tmp_path):
    the_job = job(faulty={"hospital-2": {"kind": "sign_flip", "strength": 3.0, "from_round": 2}})
    grid = introduced(the_job, tmp_path)
    for number, lies in ((1, 1.0), (2, -3.0)):
        replies = round_of(grid, the_job, number)
        moves = {s: from_record(replies[s].message.content["weights"])["w"] - W["w"] for s in SITES}
        assert {site: set(move.tolist()) for site, move in moves.items()} == {
            "hospital-1": {1.0},
            "hospital-2": {lies},
            "hospital-3": {1.0},
        }
