"""A run that should not be believed says so: each reason on a run that has it, and none on one that has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.report import outliers, write_report
from server.report.record import read_record
from server.report.summary import summarise
from tests.server.fabricated_run import (
    SITES,
    classification_evaluations,
    entry,
    evaluations,
    everywhere_helped,
    fabricate,
    job,
    read_events,
    write_events,
)


def doubts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By kind."""
    return {doubt["kind"]: doubt for doubt in summarise(read_record(folder))["doubts"]}


def change(folder: Path, kind: str, **match: Any) -> Any:
    """Rewrite the events of one kind: the values of `change_to` replace theirs."""
    change_to = match.pop("to")
    events = read_events(folder)
    for event in events:
        if event["event"] == kind and match.items() <= event.items():
            event |= change_to(event) if callable(change_to) else change_to
    write_events(folder, events)
    return folder


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Three hospitals, every one helped, 24 test patients each."""
    folder = everywhere_helped(tmp_path / "run")
    return change(
        folder, "site_ready", to=lambda e: {"patients": e["patients"] | {"test": 24}, "quarantined": {}, "warnings": []}
    )


def test_a_sound_run_raises_no_doubt(sound: Path) -> None:
    assert doubts_of(sound) == {}


def test_a_rising_loss_is_divergence(sound: Path) -> None:
    change(sound, "round_finished", round=8, to={"loss": 1.9})
    doubt = doubts_of(sound)["loss_rising"]
    assert doubt["grave"]
    assert doubt["text"] == "The training loss rose from 0.424 in round 7 to 1.900 at the end: training diverged."
    assert "learning_rate" in doubt["remedy"]


def test_a_loss_that_wavers_at_its_end_is_not(sound: Path) -> None:
    change(sound, "round_finished", round=8, to={"loss": 0.55})  # from 1.2; 0.42 was the lowest
    assert "loss_rising" not in doubts_of(sound)


def test_a_loss_that_is_no_number_is_divergence(sound: Path) -> None:
    change(sound, "site_replied", site="riverside", round=4, to={"loss": float("nan")})
    doubt = doubts_of(sound)["loss_undefined"]
    assert doubt["grave"] and "riverside was not a number in 1 round, first in round 4" in doubt["text"]


def test_growing_updates_are_said(sound: Path) -> None:
    change(sound, "round_finished", to=lambda e: {"update_norm": 0.5 * e["round"] ** 2})
    assert "grew from 1.25 to 28.25 (means of 2 rounds)" in doubts_of(sound)["update_growing"]["text"]


def test_growing_updates_of_a_model_that_still_gets_better_are_not(sound: Path) -> None:
    change(sound, "round_finished", to=lambda e: {"update_norm": 0.5 * e["round"] ** 2})
    change(sound, "validated", to=lambda e: {"best": True})
    assert "update_growing" not in doubts_of(sound)


def test_a_hospital_in_no_round_is_grave(sound: Path) -> None:
    change(sound, "site_replied", site="riverside", to={"status": "failed", "reason": "out of memory"})
    found = doubts_of(sound)
    assert found["hospital_unused"]["grave"]
    assert found["hospital_unused"]["text"] == (
        "riverside took no part: no round holds an update of it (last: out of memory)."
    )
    assert found["left_out"]["text"] == "riverside was left out of 8 of 8 rounds (failed 8)."
    assert found["left_out"]["remedy"] == "Last reason: out of memory."


def test_a_hospital_in_no_number_is_grave(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    del found["models"]["federated"]["riverside"]
    doubts = doubts_of(fabricate(tmp_path / "run", found=found))
    assert doubts["hospital_unjudged"]["grave"]
    assert "The 24 test patients of riverside are in no number below" in doubts["hospital_unjudged"]["text"]


def test_a_model_that_was_judged_elsewhere_is_said(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    del found["models"]["pooled"]["university"]
    doubt = doubts_of(fabricate(tmp_path / "run", found=found))["judged_elsewhere"]
    assert doubt["text"] == "Pooled was not judged at university, where the federated model was."


def test_many_quarantined_cases_are_said(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to={"quarantined": {f"case-{n}": "constant" for n in range(30)}})
    assert doubts_of(sound)["many_set_aside"]["text"] == "30 of 124 cases of riverside were set aside as unusable."


def test_duplicates_across_splits_are_grave_and_said_once(sound: Path) -> None:
    warning = ["2 image(s) appear in more than one split."]
    change(sound, "site_ready", site="riverside", to={"duplicates": 2, "warnings": warning})
    report = summarise(read_record(sound))
    [doubt] = report["doubts"]
    assert (doubt["kind"], doubt["grave"]) == ("duplicates", True)
    assert "in different splits at riverside (2)" in doubt["text"]
    assert report["warnings"] == []


def test_a_few_duplicates_of_many_cases_are_not_grave(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to={"duplicates": 1})  # of 32 validation and test cases
    assert not doubts_of(sound)["duplicates"]["grave"]


def with_copies(folder: Path, *rows: tuple[str, str, str, str, int]) -> dict[str, Any]:
    keys = ("hospital", "split", "of", "of_split", "cases")
    found = json.loads((folder / "run.json").read_text())
    found["copies"] = [dict(zip(keys, row, strict=True)) for row in rows]
    (folder / "run.json").write_text(json.dumps(found))
    return doubts_of(folder)["copies"]


def test_copies_between_hospitals_are_said_with_their_numbers(sound: Path) -> None:
    doubt = with_copies(
        sound,
        ("north-clinic", "validation", "university", "train", 1),
        ("riverside", "test", "university", "train", 20),
    )
    assert doubt["grave"]
    assert "20 of 24 test cases of riverside are copies of training cases of university; 1 of 8 val" in doubt["text"]


def test_one_copy_of_many_cases_is_not_grave(sound: Path) -> None:
    assert not with_copies(sound, ("riverside", "test", "university", "train", 1))["grave"]


def test_one_copy_at_a_small_hospital_is_not_grave(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to={"cases": {"train": 30, "validation": 4, "test": 4}})
    assert not with_copies(sound, ("riverside", "test", "university", "train", 1))["grave"]


def test_copies_at_many_hospitals_are_one_sentence_of_bearable_length(sound: Path) -> None:
    rows = [("riverside", "test", f"hospital-{number}", "train", 2) for number in range(9)]
    assert "; and 12 more elsewhere." in with_copies(sound, *rows)["text"]


def classes(**by_site: dict[str, int]) -> Any:
    return lambda e: {"classes": {"train": by_site[e["site"].replace("-", "_")], "test": {}}}


def test_a_class_at_one_hospital_only_is_confounded_with_it(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())
    both = {"normal": 30, "pneumonia": 5}
    change(
        folder,
        "site_ready",
        to=classes(north_clinic=both | {"pneumonia": 0}, riverside=both, university=both | {"pneumonia": 0}),
    )
    doubt = doubts_of(folder)["confounded"]
    assert doubt["grave"]
    assert doubt["text"].startswith("Only riverside has cases of 'pneumonia' (5): label and hospital are confounded")
    change(folder, "site_ready", to=classes(north_clinic=both, riverside=both, university=both | {"pneumonia": 0}))
    assert "confounded" not in doubts_of(folder)


def test_the_background_is_no_class_of_a_hospital(sound: Path) -> None:
    there, none = {"background": 9, "anterior": 9}, {"background": 0, "anterior": 9}
    change(sound, "site_ready", to=classes(north_clinic=there, riverside=none, university=none))
    assert doubts_of(sound) == {}


def test_few_test_patients_in_all_are_grave_and_few_at_one_hospital_are_not(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to=lambda e: {"patients": e["patients"] | {"test": 6}})
    doubt = doubts_of(sound)["few_patients"]
    assert not doubt["grave"] and doubt["text"] == "Fewer than 20 test patients, so little weight: riverside (6)."
    change(sound, "site_ready", to=lambda e: {"patients": e["patients"] | {"test": 6}})
    doubt = doubts_of(sound)["few_patients"]
    assert doubt["grave"] and doubt["text"] == "All numbers rest on 18 test patients in all."


def with_classes(folder: Path, **counts: list[int]) -> None:
    """Test cases of every class by the first letters of a hospital, 100 patients each, and one class of a case."""

    def ready(event: dict[str, Any]) -> dict[str, Any]:
        names = ["normal", "pneumonia"]
        by_class = dict(zip(names, counts[event["site"][:5]], strict=True))
        cases = event["cases"] | {"test": sum(by_class.values())}
        return {"classes": {"test": by_class}, "cases": cases, "patients": event["patients"] | {"test": 100}}

    change(folder, "site_ready", to=ready)


def test_a_ranking_that_rests_on_few_cases_of_a_class_is_said_once_for_all_hospitals(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())
    with_classes(folder, north=[8, 92], river=[50, 50], unive=[81, 19])
    doubt = doubts_of(folder)["few_cases"]
    assert not doubt["grave"]
    assert doubt["text"] == (
        "AUROC rests on fewer than 20 test cases of one kind at north-clinic (8 'normal') and "
        "university (19 'pneumonia')."
    )
    with_classes(folder, north=[20, 80], river=[50, 50], unive=[80, 20])
    assert "few_cases" not in doubts_of(folder)


def test_a_ranking_that_rests_on_few_cases_of_a_class_in_all_is_grave(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())
    with_classes(folder, north=[4, 96], river=[3, 97], unive=[5, 95])
    doubt = doubts_of(folder)["few_cases"]
    assert doubt["grave"] and doubt["text"] == "AUROC rests on few test cases in all: 12 'normal'."


def test_findings_that_nearly_every_case_has_leave_few_without(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())

    def several(event: dict[str, Any]) -> dict[str, Any]:
        without = 3 if event["site"] == "riverside" else 40
        numbers = {"normal": 100 - without, "pneumonia": 60}
        return {
            "classes": {"test": numbers},
            "cases": event["cases"] | {"test": 100},
            "patients": event["patients"] | {"test": 100},
        }

    change(folder, "site_ready", to=several)
    assert "at riverside (3 without 'normal')." in doubts_of(folder)["few_cases"]["text"]


def test_an_organ_that_few_test_cases_have_is_said(sound: Path) -> None:
    def ready(event: dict[str, Any]) -> dict[str, Any]:
        posterior = 3 if event["site"] == "riverside" else 24
        return {"classes": {"test": {"background": 24, "anterior": 24, "posterior": posterior}}}

    change(sound, "site_ready", to=ready)
    text = doubts_of(sound)["few_cases"]["text"]
    assert text == "The Dice of an organ rests on fewer than 20 test cases of one kind at riverside (3 'posterior')."


def test_hospitals_of_few_patients_are_not_told_of_twice(sound: Path) -> None:
    there = {"classes": {"test": {"background": 6, "anterior": 6}}}
    change(sound, "site_ready", to=lambda e: {"classes": {"test": {"background": 24, "anterior": 24}}})
    change(sound, "site_ready", site="riverside", to=lambda e: there | {"patients": e["patients"] | {"test": 6}})
    assert list(doubts_of(sound)) == ["few_patients"]


def test_harmed_hospitals_are_named(tmp_path: Path) -> None:
    found = evaluations(dict(zip(SITES, (0.04, -0.05, -0.06), strict=True)))
    doubt = doubts_of(fabricate(tmp_path / "run", found=found))["worse_than_local"]
    assert "at riverside and university (2 of 3 hospitals harmed, 1 helped)" in doubt["text"]


def test_a_best_round_at_the_end_says_that_training_had_not_ended(sound: Path) -> None:
    change(sound, "validated", to=lambda e: {"best": True, "metrics": {"dice": 0.1 * e["round"]}})
    text = doubts_of(sound)["still_learning"]["text"]
    assert text == "The last round, 8, was the best one: validation Dice still rose by 0.200 in the last 2 rounds."
    change(sound, "validated", to=lambda e: {"metrics": {"dice": 0.8 + 1e-4 * e["round"]}})
    assert "still_learning" not in doubts_of(sound)


def test_a_best_round_at_the_beginning_says_that_training_did_harm(sound: Path) -> None:
    change(sound, "validated", to=lambda e: {"best": e["round"] == 1, "metrics": {"dice": 0.9 - 0.05 * e["round"]}})
    text = doubts_of(sound)["best_round_first"]["text"]
    assert "The first round was the best one of 8 (validation Dice 0.850, at the end 0.500)" in text


def test_a_best_round_that_no_later_one_is_worse_than_is_not_called_harm(sound: Path) -> None:
    change(sound, "validated", to=lambda e: {"best": e["round"] == 1, "metrics": {"dice": 0.5}})
    text = doubts_of(sound)["best_round_first"]["text"]
    assert "no later one was better" in text and "worse" not in text


def test_a_hospital_with_one_class_to_judge_on_is_said(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())

    def tested(**normal: int) -> None:
        change(
            folder,
            "site_ready",
            to=lambda e: {"classes": {"test": {"normal": (n := normal[e["site"][:5]]), "pneumonia": 24 - n}}},
        )

    tested(north=24, river=10, unive=0)
    doubt = doubts_of(folder)["one_class_judged"]
    assert not doubt["grave"]
    assert "one class at north-clinic (normal) and university (pneumonia)" in doubt["text"]
    tested(north=23, river=10, unive=1)
    assert "one_class_judged" not in doubts_of(folder)
    tested(north=23, river=10, unive=1)
    change(folder, "site_ready", site="riverside", to={"classes": {"test": {"normal": 24, "pneumonia": 5}}})
    assert "one_class_judged" not in doubts_of(folder)  # of several findings, one that every case has


def test_a_kept_model_that_is_worse_than_the_federated_one_is_said(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    found["models"]["kept"] = found["models"]["federated"]
    gaps = dict(zip(SITES, (0.0, -0.3, 0.1), strict=True))
    found["differences"]["kept-federated"] = {site: {"dice": entry(gap, 0.02, None)} for site, gap in gaps.items()}
    doubt = doubts_of(fabricate(tmp_path / "run", found=found))["kept_worse"]
    assert doubt["text"] == (
        "On test patients, the model that is kept is worse than the federated one at riverside (\u22120.300) in Dice."
    )


@pytest.mark.parametrize(("rule", "says"), [("mean", "{name: median} bounds"), ("krum", "aggregation, krum, bounds")])
def test_a_run_that_is_robust_already_is_not_told_to_be(rule: str, says: str) -> None:
    assert says in outliers.remedy(rule)


def test_grave_doubts_stand_above_the_answer_and_the_others_below(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to=lambda e: {"patients": e["patients"] | {"test": 6}})
    change(sound, "round_finished", round=8, to={"loss": 1.9})
    page = write_report(sound).read_text()
    places = [page.index(text) for text in ("Do not rely on", "training diverged", "beats local", "Fewer than 20")]
    assert places == sorted(places)
    assert [doubt["grave"] for doubt in summarise(read_record(sound))["doubts"]] == [True, False]
