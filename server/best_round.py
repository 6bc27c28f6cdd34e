"""Which round is the best one so far, also where hospitals are away when a round is judged, or join later.

A hospital that does badly and is away lifts the value over all others. So two rounds are compared over the hospitals
that both were judged at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from server.checkpoint import RunState
from server.events import EventLog
from shared_models.page import listed

ByHospital = Mapping[str, float | None]
"""The selection metric at every hospital that a round was judged at; None where it is undefined."""


def remember_if_best(
    state: RunState, value: float, by_hospital: ByHospital, cases: Mapping[str, float], events: EventLog
) -> bool:
    """Whether the state's round is the best one so far, which it then remembers; else that this one was no better.

    Args:
        value: the selection metric over all hospitals of `by_hospital` together.
        cases: hospital -> how many it was judged on there.
    """
    if state.best_round is not None:
        gain = _gain(state, value, by_hospital, cases)
        if gain is None:
            return False  # nothing to compare, so nothing that patience could count
        if gain <= 0:
            state.without_better += 1
            _tell_of_absence(state, value, by_hospital, events)
            return False
    state.best_round, state.best_used, state.without_better = state.round, dict(state.last_used), 0
    # A hospital that is away counts in later comparisons as it did when it was last judged in a best round.
    state.best_by_hospital |= by_hospital
    state.best_value = value if by_hospital.keys() == state.best_by_hospital.keys() else None
    return True


def _gain(state: RunState, value: float, by_hospital: ByHospital, cases: Mapping[str, float]) -> float | None:
    """By how much the round is better than the best one: over all patients where both were judged at the same
    hospitals, else the mean over the hospitals that they share, weighted by cases; None where they share none.
    """
    before = state.best_by_hospital
    if state.best_value is not None and by_hospital.keys() == before.keys():
        return value - state.best_value
    gains = {
        name: now - then
        for name, now in by_hospital.items()
        if now is not None and (then := before.get(name)) is not None
    }
    return float(np.average([*gains.values()], weights=[cases[name] for name in gains])) if gains else None


def _tell_of_absence(state: RunState, value: float, by_hospital: ByHospital, events: EventLog) -> None:
    """Says once in a run that a round looked better and is not, because other hospitals were there to judge it."""
    one_only = sorted(by_hospital.keys() ^ state.best_by_hospital.keys())
    looks_better = state.best_value is None or value > state.best_value
    if one_only and looks_better and not state.told_of_absence:
        state.told_of_absence = True
        text = (
            f"round {state.round} is not better than round {state.best_round} at the hospitals that judged both: "
            f"{listed(one_only)} judged only one of them, and such hospitals do not count when two rounds are compared"
        )
        events.emit("warning", text=text)
