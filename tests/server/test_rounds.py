"""The round against sites that behave, fail, answer late, or send garbage; each site is a function."""

import itertools
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog, read_events
from server.participation import Site, draw
from server.rounds import one_round, run_rounds
from shared_models.errors import RunStopped
from shared_models.faults import WORKER_DIED
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from shared_models.weights import TensorInfo, fingerprint, from_record, to_record

TENSORS = [TensorInfo("w", "shared", (3,), "float32", True), TensorInfo("count", "constant", (), "int64", False)]
START = {"w": np.array([1.0, 2.0, 3.0], np.float32)}


def job(**federation):
    return Job.model_validate(
        {
            "name": "scripted",
            "seed": 1,
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 2, **federation},
            "evaluation": {"every": 0},
        }
    )


def update(tensors, cases=10, went_on_from=0):
    numbers = {"weight": cases, "cases": cases, "skipped": 0, "steps": 1, "loss": 0.5, "seconds": 0.1}
    numbers["went_on_from"] = went_on_from
    return RecordDict({"weights": to_record(tensors), "numbers": MetricRecord(numbers)})


def moved(by, cases=10):
    return lambda weights, attempt: update({"w": (weights["w"] + np.float32(by)).astype(np.float32)}, cases)


class ScriptedGrid(Grid):
    """Every site is a function from the weights and the number of its call to a content; None is silence."""

    def __init__(self, sites, order=None):
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._run = Run.create_empty(run_id=1)
        self.sites, self.order = sites, order or list(range(len(sites)))
        self.asked, self.waiting, self.calls = [], {}, [0] * len(sites)
        self.last_used, self.content = [], None  # the message that is being answered

    def set_run(self, run):
        self._run = run

    @property
    def run(self):
        return self._run

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self):
        return range(len(self.sites))

    def push_messages(self, messages):
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            self.last_used.append((node, message.content["instruction"].get("last_used")))
            self.waiting[f"{node}"] = message
            yield f"{node}"

    def pull_messages(self, message_ids):
        for message_id in message_ids:
            node = int(message_id)
            first = next((n for n in self.order if f"{n}" in self.waiting), None)
            if node != first:  # replies arrive in the order of the test
                continue
            message = self.waiting.pop(message_id)
            self.calls[node] += 1
            self.content = message.content
            answer = self.sites[node](from_record(message.content["weights"]), self.calls[node])
            if answer is not None:
                yield Message(answer, reply_to=message)

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError("the round takes replies one at a time")


def play(tmp_path, sites, order=None, **federation):
    grid = ScriptedGrid(sites, order)
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 1000}) for i in range(len(sites))}
    events = EventLog(tmp_path / "events.jsonl")
    state = one_round(grid, roster, job(**federation), TENSORS, RunState(START), events, lambda needed: None)
    return state, list(read_events(tmp_path / "events.jsonl"))


def replies(events):
    return {event["site"]: (event["status"], event["reason"]) for event in events if event["event"] == "site_replied"}


def test_the_global_model_is_the_mean_weighted_by_cases(tmp_path):
    state, events = play(tmp_path, [moved(1.0, cases=30), moved(5.0, cases=10)])
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(2.0))
    assert state.round == 1 and state.fingerprint == fingerprint(state.weights)
    finished = events[-1]
    assert finished["sites_used"] == 2 and finished["update_norm"] == pytest.approx(2 * 3**0.5)


@pytest.mark.parametrize(
    ("federation", "weights"), [({"weighting": "equal"}, (1, 1)), ({"algorithm": {"name": "qfedavg"}}, (2**17, 2**15))]
)
def test_the_loss_of_a_round_is_the_mean_over_cases_whatever_an_update_counts(tmp_path, federation, weights):
    def site(cases, loss, weight):
        def answer(model, attempt):
            content = update(model, cases)
            content["numbers"].update({"loss": loss, "weight": weight})
            if "algorithm" in federation:
                content["algorithm"] = to_record({"damping": np.array(0.0, np.float32)})
            return content

        return answer

    _, events = play(tmp_path, [site(30, 2.0, weights[0]), site(10, 0.4, weights[1])], **federation)
    assert events[-1]["loss"] == pytest.approx((30 * 2.0 + 10 * 0.4) / 40)


@pytest.mark.parametrize(
    ("algorithm", "sent", "numbers", "reason"),
    [
        ({"name": "fednova"}, 1e12, {}, "its path_length is 1e+12, where 1 local steps make 1"),
        ({"name": "fednova"}, -1.0, {}, "its path_length is -1, where 1 local steps make 1"),
        ({"name": "fednova"}, 99.0, {"steps": 99}, "it took 99 local steps, where the job and its 10 cases make 1"),
        ({"name": "fednova"}, 0.0, {"steps": 0}, "it took 0 local steps, where the job and its 10 cases make 1"),
        ({"name": "qfedavg"}, -5.0, {}, "its damping is -5, expected 0 to 750.756"),
        ({"name": "qfedavg"}, 1e12, {}, "its damping is 1e+12, expected 0 to 750.756"),
        (
            {"name": "qfedavg"},
            0.0,
            {"weight": 2**29 - 1},
            "its weight is 536870911, where losses of 0 to 100 make 1 to 6553600",
        ),
        (
            {"name": "qfedavg", "q": 0.0},
            0.0,
            {"weight": 2**17},
            "its weight is 131072, where losses of 0 to 100 make 65536 to 65536",
        ),
    ],
)
def test_one_number_beside_the_model_cannot_replace_it(tmp_path, algorithm, sent, numbers, reason):
    nova = algorithm["name"] == "fednova"

    def site(value, **changes):
        def answer(weights, call):
            content = update({"w": weights["w"] + np.float32(0.5)})
            content["numbers"].update({"weight": 10 if nova else 2**16, **changes})
            content["algorithm"] = to_record({"path_length" if nova else "damping": np.array(value, np.float32)})
            return content

        return answer

    honest = 1.0 if nova else 0.0
    state, events = play(tmp_path, [*[site(honest)] * 4, site(sent, **numbers)], algorithm=algorithm)
    assert replies(events)["site-3"] == ("used", None)
    assert replies(events)["site-4"] == ("rejected", reason)
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(0.5))


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_model_that_is_not_finite_is_not_kept_and_the_round_is_done_again(tmp_path):
    far = [0.0, 5.0, 1.0]  # by call; 1e38 times 5 is beyond float32

    def site(weights, call):
        return update({"w": weights["w"] + np.float32(far[call - 1])})

    asked = job(algorithm={"name": "fedavg", "server_optimizer": {"name": "momentum", "learning_rate": 1e38}})
    grid, roster = ScriptedGrid([site]), {"site-0": Site("site-0", 0, {"train": 10})}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    said = "round 2 came to values that are NaN or infinite, by the algorithm fedavg and the aggregation mean"
    with pytest.raises(RunStopped, match=said):
        run_rounds(grid, roster, asked, TENSORS, RunState(START), store, events, lambda needed: None)
    kept, _ = store.load(pytest.fail)
    assert kept.round == 1 and kept.fingerprint == fingerprint(START)
    state = run_rounds(grid, roster, asked, TENSORS, kept, store, events, lambda needed: None)
    assert state.round == 2 and np.isfinite(state.weights["w"]).all()


def test_one_wild_site_of_four_is_outvoted_by_the_median_and_not_by_the_mean(tmp_path):
    sites = [moved(1.0), moved(1.0), moved(1.5), moved(-15.0)]
    state, _ = play(tmp_path, sites)
    np.testing.assert_allclose(state.weights["w"], START["w"] - 2.875)
    state, events = play(tmp_path, sites, aggregation={"name": "median"})
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(1.0))
    assert events[-1]["aggregation"] == {"left_out_at_either_end": 1}


@pytest.mark.parametrize(
    ("numbers", "federation", "reason"),
    [
        ({"cases": 1001, "weight": 1001}, {}, "trained on 1001 cases, where the site has 1000"),
        ({"cases": 10, "weight": 900}, {}, "its weight is 900, expected 10"),
        ({"cases": 10, "weight": 10}, {"weighting": "equal"}, "its weight is 10, expected 1"),
    ],
)
def test_a_site_counts_for_no_more_than_the_job_and_its_cases_say(tmp_path, numbers, federation, reason):
    def greedy(weights, attempt):
        content = update({"w": weights["w"] + np.float32(1.0)})
        content["numbers"].update(numbers)
        return content

    def honest(weights, attempt):
        content = update({"w": weights["w"]})
        content["numbers"]["weight"] = 1 if federation else 10
        return content

    state, events = play(tmp_path, [greedy, honest], quorum=1, **federation)
    assert replies(events)["site-0"] == ("rejected", replies(events)["site-0"][1])
    assert reason in replies(events)["site-0"][1]
    np.testing.assert_array_equal(state.weights["w"], START["w"])


def test_one_of_four_that_goes_the_other_way_stands_out_on_record(tmp_path):
    _, events = play(tmp_path, [moved(1.0), moved(1.0), moved(1.0), moved(-1.0)])
    assert [(e["site"], e["why"]) for e in events if e["event"] == "stood_out"] == [("site-3", "away")]
    norms = {e["site"]: e["update_norm"] for e in events if e["event"] == "site_replied"}
    assert norms["site-3"] == pytest.approx(3**0.5)


def test_in_a_relay_lengths_tell_who_stands_out_and_directions_do_not(tmp_path):
    sites = [moved(1.0), moved(-1.0), moved(1.0), moved(20.0)]
    _, events = play(tmp_path, sites, algorithm={"name": "cyclic"})
    assert [(e["site"], e["why"]) for e in events if e["event"] == "stood_out"] == [("site-3", "long")]


def test_too_few_updates_for_the_aggregation_stop_the_run_and_are_no_mean(tmp_path):
    with pytest.raises(RunStopped, match="4 of 4 sites gave an update, 5 are needed"):
        play(tmp_path, [moved(1.0)] * 4, aggregation={"name": "krum"}, quorum=2, retries=0)


def test_the_order_of_arrival_does_not_show(tmp_path):
    rng = np.random.default_rng(0)
    sites = [moved(rng.normal(), cases=int(n)) for n in rng.integers(1, 1000, 4)]
    prints = set()
    for number, order in enumerate(itertools.permutations(range(4))):
        folder = tmp_path / str(number)
        folder.mkdir()
        prints.add(play(folder, sites, order=list(order))[0].fingerprint)
    assert len(prints) == 1


def test_garbage_is_left_out_with_its_reason_and_the_rest_is_averaged(tmp_path):
    nan = np.array([1, np.nan, 1], np.float32)
    state, events = play(
        tmp_path,
        [
            moved(1.0),
            lambda weights, call: update({"w": nan}),
            lambda weights, call: update({"v": START["w"]}),
            lambda weights, call: update({"w": np.ones((1, 3), np.float32)}),
            lambda weights, call: update({"w": np.ones(3, np.int64)}),
            lambda weights, call: RecordDict({"fault": ConfigRecord({"sentence": "the disk is full"})}),
            lambda weights, call: Error(1, WORKER_DIED),
            lambda weights, call: RecordDict(),
            moved(3.0),
        ],
        quorum=2,
    )
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(2.0))
    assert replies(events) == {
        "site-0": ("used", None),
        "site-1": ("rejected", "'w' has values that are NaN or infinite"),
        "site-2": ("rejected", "1 of 1 tensors missing, such as 'w'"),
        "site-3": ("rejected", "'w' has shape (1, 3), expected (3,)"),
        "site-4": ("rejected", "'w' has dtype int64, expected float32"),
        "site-5": ("failed", "the disk is full"),
        "site-6": ("failed", WORKER_DIED),
        "site-7": ("rejected", "the reply has no records 'weights' and 'numbers'"),
        "site-8": ("used", None),
    }


def test_a_site_that_does_not_answer_in_time_is_late(tmp_path):
    began = time.monotonic()
    state, events = play(tmp_path, [moved(1.0), lambda weights, call: None], deadline_seconds=0.3, quorum=1)
    assert replies(events)["site-1"] == ("late", "no reply before the deadline")
    assert time.monotonic() - began < 5
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(1.0))


def test_below_quorum_the_round_is_run_again_from_the_same_model(tmp_path):
    def recovers(weights, call):
        return update({"w": weights["w"] + np.float32(1)}) if call > 1 else Error(1, "restarting")

    state, events = play(tmp_path, [recovers, moved(1.0)], quorum=2)
    assert [event["event"] for event in events].count("round_retried") == 1
    np.testing.assert_array_equal(state.weights["w"], START["w"] + np.float32(1.0))


def test_a_site_hears_which_of_its_updates_was_the_last_that_counted(tmp_path):
    def failing(*calls):
        return lambda weights, call: Error(1, "restarting") if call in calls else update(weights)

    # Round 2 has one update at first, and is tried again: then that site is the one that fails.
    grid = ScriptedGrid([failing(2), failing(2), failing(3)])
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(3)}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    asked = job(quorum=2, rounds=3)
    run_rounds(grid, roster, asked, TENSORS, RunState(START), store, events, lambda needed: None)
    by_attempt = [dict(grid.last_used[first : first + 3]) for first in range(0, 12, 3)]
    assert by_attempt == [{0: 0, 1: 0, 2: 0}, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 1}, {0: 2, 1: 2, 2: 1}]
    kept, _ = store.load(pytest.fail)
    assert kept.last_used == {"site-0": 3, "site-1": 3, "site-2": 3}


def test_what_a_sum_over_all_sites_moves_by_is_the_share_of_the_weight_that_answered(tmp_path):
    grid = ScriptedGrid([moved(1.0, cases=30), lambda weights, call: Error(1, "gone")])
    roster = {"site-0": Site("site-0", 0, {"train": 30}), "site-1": Site("site-1", 1, {"train": 10})}
    events = EventLog(tmp_path / "events.jsonl")
    asked = job(quorum=1, algorithm={"name": "feddyn", "alpha": 1.0})
    state = one_round(grid, roster, asked, TENSORS, RunState(START), events, lambda needed: None)
    np.testing.assert_array_equal(state.algorithm["slope/w"], np.full(3, -0.75, np.float32))


def test_sites_that_count_less_than_they_announced_have_all_answered_all_the_same(tmp_path):
    """Each has 1000 training cases, says so, and trains on 20 of them: its share is of what both count."""
    sites = [moved(1.0, cases=20), moved(0.0, cases=20)]
    state, _ = play(tmp_path, sites, algorithm={"name": "feddyn", "alpha": 1.0})
    np.testing.assert_array_equal(state.algorithm["slope/w"], np.full(3, -0.5, np.float32))


def test_a_newcomer_gets_the_mean_in_which_it_counts_already(tmp_path):
    """SCAFFOLD's c is 1 at the only site there is; with a second one of a quarter of the cases it is 0.75."""
    received = []

    def site(cases):
        def answer(weights, call):
            received.append(from_record(grid.content["algorithm"])["control/w"])
            content = update(weights, cases, went_on_from=call - 1)
            content["algorithm"] = to_record({"control/w": np.full(3, float(call == 1), np.float32)})
            return content

        return answer

    grid, events = ScriptedGrid([site(30), site(10)]), EventLog(tmp_path / "events.jsonl")
    roster, asked = {"site-0": Site("site-0", 0, {"train": 30})}, job(algorithm={"name": "scaffold"})
    state = one_round(grid, roster, asked, TENSORS, RunState(START), events, lambda needed: None)
    newcomer = {"site-1": Site("site-1", 1, {"train": 10})}
    # It comes while the round waits for sites.
    one_round(grid, roster, asked, TENSORS, state, events, lambda needed: roster.update(newcomer))
    np.testing.assert_array_equal(received, [np.zeros(3), np.full(3, 0.75), np.full(3, 0.75)])


@pytest.mark.parametrize("seen_again", [True, False])
def test_a_mean_over_all_sites_counts_those_that_come_late_and_those_that_are_away(tmp_path, seen_again):
    """FedDyn's h is −α Σ pₖ (θₖ − θ) over all rounds, pₖ the share of the weight of all that were met."""

    def moves(weights, call):
        return update({"w": weights["w"] + np.float32(1)}, cases=30, went_on_from=call - 1)

    grid = ScriptedGrid([moves, moved(0.0, cases=10)])
    first, late = Site("site-0", 0, {"train": 30}), Site("site-1", 1, {"train": 10})
    events = EventLog(tmp_path / "events.jsonl")
    asked, store = job(quorum=1, algorithm={"name": "feddyn", "alpha": 1.0}), CheckpointStore(tmp_path / "kept", "job")

    def round_of(sites, state):
        """A round, behind which the run is killed and resumed."""
        store.save(one_round(grid, sites, asked, TENSORS, state, events, lambda needed: None), 0)
        return store.load(pytest.fail)[0]

    state = round_of({"site-0": first}, RunState(START))
    np.testing.assert_array_equal(state.algorithm["slope/w"], np.full(3, -1.0, np.float32))
    state = round_of({"site-0": first, "site-1": late}, state)
    np.testing.assert_allclose(state.algorithm["slope/w"], np.full(3, -2 * 0.75))
    # The run is resumed while the late one is away: it is still of the federation.
    roster = {"site-0": first, "site-1": late} if seen_again else {"site-0": first}
    grid.sites[1] = lambda weights, call: Error(1, "gone")
    state = round_of(roster, state)
    np.testing.assert_allclose(state.algorithm["slope/w"], np.full(3, -3 * 0.75))


def test_a_site_that_lost_what_it_keeps_at_home_is_named(tmp_path):
    def site(*went_on_from):
        return lambda weights, call: update(weights, went_on_from=went_on_from[call - 1])

    grid = ScriptedGrid([site(0, 1, 2), site(0, 1, 0), site(0, 1, 1)])
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(3)}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    run_rounds(grid, roster, job(rounds=3), TENSORS, RunState(START), store, events, lambda needed: None)
    said = [event["text"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "warning"]
    assert [text.partition(":")[0] for text in said] == [
        "site-1 began anew in round 3",
        "site-2 went on from round 1 in round 3",
    ]
    assert "what it kept at home behind round 2 is lost" in said[0] and "begin anew" not in said[0]


def test_a_site_cannot_have_gone_on_from_a_round_that_did_not_count(tmp_path):
    grid = ScriptedGrid([lambda weights, call: update(weights, went_on_from=call - 1)] * 2)
    grid.sites[1] = lambda weights, call: update(weights, went_on_from=500)
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(2)}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    asked = job(rounds=1, quorum=1)
    run_rounds(grid, roster, asked, TENSORS, RunState(START), store, events, lambda needed: None)
    reason = "it went on from round 500, where its last one that counts is 0"
    assert replies(read_events(tmp_path / "events.jsonl"))["site-1"] == ("rejected", reason)


def test_a_metric_that_has_no_value_is_no_reason_to_stop_early(tmp_path):
    def judged(weights, call):
        """Only one kind of case: there is no AUROC."""
        record = CaseRecord("a", "a", {"probabilities": [0.4, 0.6], "label": [1.0]})
        return RecordDict({**update(weights), "sums": to_record(task_of(asked).sums([record], np.ones((1, 1))))})

    asked = Job.model_validate(job(rounds=4, patience=2).model_dump() | {"evaluation": {"every": 1}})
    roster = {"site-0": Site("site-0", 0, {"train": 10, "validation": 1})}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    grid = ScriptedGrid([judged])
    state = run_rounds(grid, roster, asked, TENSORS, RunState(START), store, events, lambda needed: None)
    assert (state.round, state.best_round) == (4, None)
    assert len([event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "validated"]) == 4


def test_the_best_round_is_not_the_one_whose_worst_hospital_did_not_answer(tmp_path):
    def hospital(*right_by_round):
        """Trains and is judged in turn: so many of its ten cases are right; None is no answer."""

        def site(weights, call):
            if call % 2:
                return update(weights)
            right = right_by_round[call // 2 - 1]
            if right is None:
                return Error(1, "restarting")
            given = [[0.9, 0.1] if case < right else [0.1, 0.9] for case in range(10)]
            records = [CaseRecord(f"c{i}", f"p{i}", {"probabilities": p, "label": [0.0]}) for i, p in enumerate(given)]
            return RecordDict({"sums": to_record(task_of(asked).sums(records, np.ones((1, 10))))})

        return site

    judged = {"evaluation": {"every": 1, "select": "accuracy"}}
    asked = Job.model_validate(job(rounds=4, patience=2).model_dump() | judged)
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10, "validation": 10}) for i in range(2)}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    grid = ScriptedGrid([hospital(8, 7, 7, 9), hospital(4, None, 5, 5)])
    state = run_rounds(grid, roster, asked, TENSORS, RunState(START), store, events, lambda needed: None)
    happened = list(read_events(tmp_path / "events.jsonl"))
    assert [event["best"] for event in happened if event["event"] == "validated"] == [True, False, False]
    assert (state.round, state.best_round) == (3, 1)  # rounds 2 and 3 were no better: patience is at its end
    said = [event["text"] for event in happened if event["event"] == "warning"]
    assert any(text.startswith("round 2 is not better than round 1") and "site-1" in text for text in said)


def test_before_every_attempt_the_sites_that_it_needs_are_waited_for(tmp_path):
    def recovers(weights, call):
        return update(weights) if call > 1 else Error(1, "restarting")

    grid, needed = ScriptedGrid([recovers, moved(1.0), moved(1.0)]), []
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(3)}
    events = EventLog(tmp_path / "events.jsonl")
    one_round(grid, roster, job(quorum=3), TENSORS, RunState(START), events, needed.append)
    assert needed == [3, 3]


def test_a_round_that_stays_below_quorum_stops_the_run_and_keeps_the_rounds_before(tmp_path):
    def fails_in_round_two(weights, call):
        return update({"w": weights["w"] + np.float32(1)}) if call == 1 else Error(1, "gone")

    grid = ScriptedGrid([fails_in_round_two, moved(1.0)])
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(2)}
    events, store = EventLog(tmp_path / "events.jsonl"), CheckpointStore(tmp_path / "checkpoints", "job")
    said = r"round 2 stayed below its quorum after 3 attempts: 1 of 2 sites .*resume the run"
    with pytest.raises(RunStopped, match=said):
        run_rounds(grid, roster, job(quorum=2), TENSORS, RunState(START), store, events, lambda needed: None)
    kept, _ = store.load(pytest.fail)
    assert kept.round == 1


def test_sites_are_drawn_from_the_seed():
    names = [f"site-{i}" for i in range(10)]
    drawn = [draw(job(sites_per_round=3), names, number, 0) for number in range(1, 30)]
    assert drawn == [draw(job(sites_per_round=3), names[::-1], number, 0) for number in range(1, 30)]
    assert all(len(set(some)) == 3 for some in drawn)
    assert {name for some in drawn for name in some} == set(names)
    assert draw(job(), names, 1, 0) == sorted(names)


def test_only_the_sites_drawn_are_asked(tmp_path):
    grid = ScriptedGrid([moved(float(i)) for i in range(6)])
    roster = {f"site-{i}": Site(f"site-{i}", i, {"train": 10}) for i in range(6)}
    events = EventLog(tmp_path / "events.jsonl")
    one_round(grid, roster, job(sites_per_round=2), TENSORS, RunState(START), events, lambda needed: None)
    started = next(event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "round_started")
    assert {f"site-{node}" for node in grid.asked} == set(started["sites"]) and len(grid.asked) == 2
