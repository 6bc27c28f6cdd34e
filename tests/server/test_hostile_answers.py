"""Answers that a site made to break the coordinator, before the rounds and after them: each costs that site only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from server import baselines
from server.app import Result
from server.deployed_grid import DeployedGrid
from server.events import EventLog, read_events
from server.introduction import Introduction
from server.participation import Site
from shared_models.weights import to_record, travelling
from shared_models.zoo import build
from tests.server.test_introduction import JOB, OneSite, ready

COUNTS = {"train": 3, "validation": 3, "test": 3}
SUMMARY = json.loads(str(ready().config_records["prepared"]["summary"]))


def prepared(summary: Any = SUMMARY, **entries: str) -> RecordDict:
    text = summary if isinstance(summary, str) else json.dumps(summary)
    return RecordDict({"prepared": ConfigRecord({"site": "north", "summary": text, **entries})})


def met(tmp_path: Path, grid: OneSite) -> tuple[Introduction, list[Any]]:
    found = Introduction(grid, JOB, EventLog(tmp_path / "events.jsonl"), wait_seconds=0.0)
    found.ask()
    found.hear()
    return found, list(read_events(tmp_path / "events.jsonl"))


@pytest.mark.parametrize(
    "summary",
    [
        {**SUMMARY, "cases": {}},
        {**SUMMARY, "cases": {**COUNTS, "all": 3}},
        {**SUMMARY, "cases": {**COUNTS, "train": -1}},
        {**SUMMARY, "cases": {**COUNTS, "train": 2**60}},
        {**SUMMARY, "cases": {**COUNTS, "train": 3.5}},
        {**SUMMARY, "patients": {"train": 3}},
        {**SUMMARY, "warnings": ["x"] * 1001},
        {**SUMMARY, "quarantined": {"x" * 1001: "y"}},
        {**SUMMARY, "more": 1},
        "[" * 100_000,
        "NaN",
    ],
    ids=range(11),
)
def test_a_summary_that_is_none_is_refused(tmp_path: Path, summary: Any) -> None:
    found, [event] = met(tmp_path, OneSite([prepared(summary)]))
    assert found.ready == {}
    assert (event["event"], event["reason"]) == ("site_refused", "its answer was not understood")


def test_what_a_site_says_of_itself_moves_no_cursor(tmp_path: Path) -> None:
    words = "\x1b[2J\nsouth: all is well"
    summary = {**SUMMARY, "warnings": [words], "quarantined": {words: words}}
    _, [event] = met(tmp_path, OneSite([prepared(summary, version=words)]))
    said = " [2J south: all is well"
    assert (event["warnings"], event["quarantined"], event["version"]) == ([said], {said: said}, said)


class Known(OneSite, DeployedGrid):
    """One node that the registry knows as south, which is gone when its answer is read."""

    gone = False

    def site_names(self) -> dict[int, str]:
        return {} if self.gone else {7: "south"}

    def expected_sites(self) -> set[str]:
        return {"north", "south"}

    def pull_messages(self, message_ids: Any) -> Any:
        self.gone = True
        return super().pull_messages(message_ids)


def test_a_site_that_goes_away_is_not_taken_for_the_one_that_it_says_it_is(tmp_path: Path) -> None:
    found, [event] = met(tmp_path, Known([prepared()]))
    assert list(found.ready) == ["south"] and event["site"] == "south"


NUMBERS: Mapping[str, Any] = {"steps": 3, "seconds": 1.0, "best_round": 1}


def alone(curve: str = "[]", **numbers: Any) -> RecordDict:
    tensors = {name: np.array(array) for name, array in travelling(build(JOB)).items()}
    values = {name: value for name, value in {**NUMBERS, **numbers}.items() if value is not None}
    return RecordDict(
        {
            "weights": to_record(tensors),
            "numbers": MetricRecord(values),
            "curve": ConfigRecord({"json": curve}),
        }
    )


def without(name: str) -> RecordDict:
    content = alone()
    del content[name]
    return content


def trained(tmp_path: Path, answer: RecordDict) -> list[Any]:
    events, site = EventLog(tmp_path / "events.jsonl"), Site("north", 7, COUNTS)
    result = Result(travelling(build(JOB)), 1, {}, {"north": site}, {})
    baselines.train_baselines(OneSite([answer]), result, JOB, ["local"], tmp_path, events)
    return list(read_events(tmp_path / "events.jsonl"))


@pytest.mark.parametrize(
    "answer",
    [
        without("numbers"),
        without("curve"),
        alone(steps=None),
        alone(steps=-1),
        alone(seconds=float("nan")),
        alone(best_round=[1, 2]),
        alone("not JSON"),
        alone("[" * 100_000),
        alone('[{"round": 1}]'),
        alone('[{"round": 1, "metrics": {"auroc": "x"}}]'),
        alone('[{"round": 1, "metrics": {"auroc": 1e999}}]'),
    ],
    ids=range(11),
)
def test_a_baseline_whose_numbers_are_none_is_left_out(tmp_path: Path, answer: RecordDict) -> None:
    [event] = trained(tmp_path, answer)
    assert event["event"] == "warning" and event["left_out"]
    assert event["text"].startswith("there is no baseline 'local:north': what the reply says of the training")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_good_baseline_is_kept(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    [event] = trained(tmp_path, alone('[{"round": 1, "metrics": {"auroc": 0.5, "brier": null}}]'))
    assert event["event"] == "baseline_finished" and event["curve"][0]["metrics"] == {"auroc": 0.5, "brier": None}
    assert (tmp_path / "models" / "local-north.safetensors").exists()
