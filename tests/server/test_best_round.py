"""The best round is chosen over the hospitals that both rounds were judged at; each case is a hospital's Dice."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.best_round import remember_if_best
from server.checkpoint import CheckpointStore, RunState
from server.events import EventLog, read_events

CASES = {"easy": 20, "hard": 20, "large": 1000}


class Rounds:
    """Judges round after round; after each one the state goes through a checkpoint, as if the run were resumed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.state = RunState({})
        self._events = EventLog(folder / "events.jsonl")

    def judged(self, **values: float | None) -> bool:
        self.state.round += 1
        there = {name: value for name, value in values.items() if value is not None}
        cases = sum(CASES[name] for name in there)
        overall = sum(CASES[name] * value for name, value in there.items()) / cases
        best = remember_if_best(self.state, overall, values, CASES, self._events)
        store = CheckpointStore(self._folder / "checkpoints", "job")
        self.state.fingerprint = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no tensors
        store.save(self.state, self._events.size())
        found = store.load(pytest.fail)
        assert found is not None
        self.state = found[0]
        return best

    @property
    def warnings(self) -> list[str]:
        events = read_events(self._folder / "events.jsonl")
        return [event["text"] for event in events if event["event"] == "warning"]


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


def test_a_round_does_not_win_because_the_worst_hospital_was_away(rounds):
    assert rounds.judged(easy=0.80, hard=0.40)
    assert not rounds.judged(easy=0.79)
    assert rounds.judged(easy=0.85, hard=0.50)
    assert rounds.state.best_round == 3
    assert rounds.warnings == [
        "round 2 is not better than round 1 at the hospitals that judged both: hard judged only one of them, and such "
        "hospitals do not count when two rounds are compared"
    ]


def test_a_hospital_that_was_away_in_the_best_round_counts_as_it_did_before(rounds):
    """Else the third round, far better at the hard hospital, would be held by the easy one alone."""
    rounds.judged(easy=0.80, hard=0.40)
    assert rounds.judged(easy=0.81)
    assert rounds.judged(easy=0.805, hard=0.60)
    assert not rounds.judged(easy=0.81, hard=0.58)


def test_a_hospital_that_comes_late_and_does_badly_does_not_end_the_search(rounds):
    rounds.judged(easy=0.80)
    assert rounds.judged(easy=0.82, hard=0.30)
    assert rounds.judged(easy=0.82, hard=0.35)
    assert rounds.warnings == []


def test_a_hospital_that_leaves_does_not_end_the_search(rounds):
    rounds.judged(easy=0.60, hard=0.90)
    assert rounds.judged(easy=0.65)
    assert not rounds.judged(easy=0.64)
    assert rounds.judged(easy=0.70)
    assert rounds.state.best_round == 4


def test_hospitals_that_share_two_rounds_count_by_their_cases(rounds):
    rounds.judged(large=0.80, easy=0.60, hard=0.40)
    assert not rounds.judged(large=0.79, easy=0.80)
    assert rounds.judged(large=0.81, easy=0.45)


def test_patience_counts_a_round_that_is_no_better_and_not_one_that_cannot_be_compared(rounds):
    rounds.judged(easy=0.80, hard=0.40)
    rounds.judged(easy=0.79)
    assert rounds.state.without_better == 1
    assert not rounds.judged(large=0.99)
    assert rounds.state.without_better == 1
    assert not rounds.judged(easy=None, large=0.99)
    assert rounds.state.without_better == 1
    rounds.judged(easy=0.81, hard=0.41)
    assert rounds.state.without_better == 0


def test_absence_is_told_once_in_a_run(rounds):
    rounds.judged(easy=0.80, hard=0.40)
    for _ in range(3):
        rounds.judged(easy=0.79)
    assert len(rounds.warnings) == 1


def test_over_the_same_hospitals_it_is_the_value_over_all_that_counts(tmp_path):
    """A pooled AUROC may rise where that of each hospital falls."""
    state, events = RunState({}, round=1), EventLog(tmp_path / "events.jsonl")
    assert remember_if_best(state, 0.70, {"easy": 0.8, "hard": 0.8}, CASES, events)
    state.round = 2
    assert remember_if_best(state, 0.71, {"easy": 0.7, "hard": 0.7}, CASES, events)
    assert state.best_round == 2
