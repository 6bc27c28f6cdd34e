"""Hospitals that lose what they keep at home: quadratics whose optimum is known, and both ends as they run."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error

import client.app
from client.site import Site as ClientSite
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog, read_events
from server.participation import Site
from server.rounds import one_round
from shared_models.weights import schema
from tests.server.test_rounds import ScriptedGrid
from tests.shared_models.algorithms.quadratics import Blank, Point, Quadratic, job, optimum

SCAFFOLD, FEDDYN = {"name": "scaffold"}, {"name": "feddyn", "alpha": 1.0}


class Here(Blank):
    report = SimpleNamespace(quarantined={})


class Network:
    """Three hospitals that answer as client.app does, and a coordinator that is killed behind every round."""

    def __init__(self, folder, monkeypatch, algorithm):
        self.job, self.monkeypatch, self.away = job(algorithm, rounds=300), monkeypatch, set()
        self.homes = [ClientSite(f"site-{k}", folder, folder / f"site-{k}", folder) for k in range(3)]
        self.grid = ScriptedGrid([self.hospital(k) for k in range(3)])
        self.roster = {f"site-{k}": Site(f"site-{k}", k, {"train": 10}) for k in range(3)}
        self.events, self.log = EventLog(folder / "events.jsonl"), folder / "events.jsonl"
        self.store = CheckpointStore(folder / "checkpoints", "job")
        self.state = RunState({"w": np.zeros(3, np.float32)})
        monkeypatch.setattr(client.app, "network_of", lambda job, device: Point())
        monkeypatch.setattr(client.app, "data_of", lambda site, job: Here(10))

    def hospital(self, k):
        def answer(weights, call):
            if k in self.away:
                return Error(1, "away")
            self.monkeypatch.setattr(client.app, "task_of", lambda job: Quadratic(job, k))
            return client.app.train(self.homes[k], self.job, self.grid.content)

        return answer

    def play(self, rounds, away=()):
        self.away = set(away)
        tensors = schema(Point(), self.job.federation.share)
        for _ in range(rounds):
            state = one_round(self.grid, self.roster, self.job, tensors, self.state, self.events, lambda needed: None)
            self.store.save(state, 0)
            self.state, _ = self.store.load(pytest.fail)

    def lose(self, k):
        shutil.rmtree(self.homes[k].own)

    def warnings(self):
        return [event["text"] for event in read_events(self.log) if event["event"] == "warning"]

    def distance(self):
        return np.abs(self.state.weights["w"] - optimum()).max()


@pytest.fixture
def network(tmp_path, monkeypatch):
    return lambda algorithm: Network(tmp_path, monkeypatch, algorithm)


@pytest.mark.parametrize("algorithm", [SCAFFOLD, FEDDYN])
def test_a_hospital_that_lost_its_folder_costs_some_rounds_and_not_the_optimum(network, algorithm):
    found = network(algorithm)
    found.play(5)
    found.lose(0)
    found.play(1)
    assert not any(array.any() for array in found.state.algorithm.values())
    assert found.state.algorithm_since == 6
    found.play(60)
    assert found.distance() < 1e-2
    [said] = found.warnings()
    assert said.startswith("site-0 began anew in round 6: what it kept at home behind round 5 is lost")
    name = algorithm["name"]
    assert (
        f"corrections (control variates) of {name} begin anew at the coordinator and every site behind round 6" in said
    )


def test_who_was_away_while_the_others_began_anew_does_so_too(network):
    found = network(SCAFFOLD)
    found.play(5)
    found.lose(0)
    found.play(2, away=[2])
    found.play(60)
    assert found.distance() < 1e-2
    assert len(found.warnings()) == 1


def test_what_no_longer_counts_anywhere_may_be_lost(network):
    """Of site 2 the coordinator counts nothing since all began anew: that it lost it changes nothing."""
    found = network(SCAFFOLD)
    found.play(3)
    found.lose(0)
    found.play(2, away=[2])
    found.lose(2)
    found.play(1)
    assert [text.partition(":")[0] for text in found.warnings()] == ["site-0 began anew in round 4"]
    assert found.state.algorithm_since == 4


def test_a_ring_keeps_its_models_whatever_a_hospital_has_lost(network):
    found = network({"name": "ring"})
    found.play(1)
    home = client.app.train

    def forgetful(site, job, content):
        reply = home(site, job, content)
        reply["numbers"]["went_on_from"] = 0
        return reply

    found.monkeypatch.setattr(client.app, "train", forgetful)
    found.play(1)
    assert len(found.warnings()) == 3 and found.state.algorithm_since == 0
    models = {array.tobytes() for array in found.state.algorithm.values()}
    assert len(models) == 3 and found.state.weights["w"].tobytes() not in models
