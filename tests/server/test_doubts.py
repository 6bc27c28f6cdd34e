"""A run that should not be believed says so: each reason on a run that has it, and none on one that has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.report import write_report
from server.report.record import read_record
from server.report.summary import summarise
from shared_models.job import Job
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


def test_a_rising_loss_of_a_model_that_gets_better_to_the_end_is_not(sound: Path) -> None:
    """Hospitals of one class have next to no loss in the first round, and more once the model knows the others."""
    change(sound, "round_finished", round=8, to={"loss": 1.9})
    change(sound, "validated", to={"best": True})
    assert "loss_rising" not in doubts_of(sound)
    change(sound, "validated", to=lambda e: {} if e["round"] == 8 else {"metrics": {}})  # nothing to be better than
    assert "loss_rising" in doubts_of(sound)


def test_a_hospital_out_of_line_stands_before_what_it_has_done_to_the_loss(sound: Path) -> None:
    change(sound, "round_finished", round=8, to={"loss": 1.9})
    seen = {"event": "stood_out", "site": "riverside", "why": "away", "ratio": 1.0}
    write_events(sound, [*read_events(sound)[:-1], *[seen | {"round": n} for n in range(1, 9)], read_events(sound)[-1]])
    first, second = summarise(read_record(sound))["doubts"]
    assert (first["kind"], second["kind"]) == ("update_out_of_line", "loss_rising")
    assert "Look at riverside first" in second["remedy"] and "learning_rate" not in second["remedy"]


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


def classes(split: str = "train", **by_site: dict[str, int]) -> Any:
    return lambda e: {"classes": e["classes"] | {split: by_site[e["site"].replace("-", "_")]}}


def test_a_class_at_one_hospital_only_is_confounded_with_it(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", job("classification"), classification_evaluations())
    both, normal = {"normal": 30, "pneumonia": 5}, {"normal": 30, "pneumonia": 0}
    change(folder, "site_ready", to=classes(north_clinic=normal, riverside=both, university=normal))
    change(folder, "site_ready", to=classes("test", north_clinic=both, riverside=both, university=both))
    doubt = doubts_of(folder)["confounded"]
    assert doubt["grave"]
    assert doubt["text"] == (
        "Only riverside has training cases of 'pneumonia' (5): label and hospital are confounded, and a model can do "
        "well on them by telling the hospital."
    )
    change(folder, "site_ready", to=classes("test", north_clinic=normal, riverside=both, university=normal))
    assert "has training and test cases of 'pneumonia' (5 and 5): label" in doubts_of(folder)["confounded"]["text"]
    change(folder, "site_ready", to=classes(north_clinic=both, riverside=both, university=normal))
    assert "confounded" not in doubts_of(folder)


def test_an_organ_that_one_hospital_alone_annotates_is_not_confounded_with_it(sound: Path) -> None:
    whole = {"background": 9, "anterior": 9, "posterior": 9}
    first, other = ({name: 9 for name in whole if name != organ} for organ in ("posterior", "anterior"))
    change(sound, "site_ready", to=classes(north_clinic=first, riverside=first, university=other))
    change(sound, "site_ready", to=classes("test", north_clinic=whole, riverside=whole, university=whole))
    assert "confounded" not in doubts_of(sound)


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
    assert doubt["remedy"] == (
        "Let hospitals keep what is best for them (--compare fine_tuned), or try another algorithm (fedbn, ditto, "
        "fedprox)."
    )


def test_to_harmed_hospitals_no_algorithm_is_named_that_the_job_cannot_have(tmp_path: Path) -> None:
    made = job("classification").model_dump(mode="json")
    made["model"], made["data"] = {"name": "pix2pix"}, {"spatial_dims": 2, "crop": [64, 64], "label": "target"}
    made["task"] = {"kind": "translation", "how": {"mode": "paired"}}
    found = evaluations(dict.fromkeys(SITES, -0.05))
    doubt = doubts_of(fabricate(tmp_path / "run", Job.model_validate(made), found))["worse_than_local"]
    assert doubt["remedy"].endswith("or try another algorithm (fedbn, fedprox).")  # ditto is for one loss


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


def test_a_run_without_validation_says_that_nothing_chose_its_round(sound: Path) -> None:
    change(sound, "validated", to={"best": False, "metrics": {"dice": None}})
    doubt = doubts_of(sound)["not_validated"]
    assert doubt["text"].startswith("Validation gave no value of Dice in any round: the last one, 8, is judged")
    write_events(sound, [event for event in read_events(sound) if event["event"] != "validated"])
    doubt = doubts_of(sound)["not_validated"]
    assert not doubt["grave"] and "evaluation.validation_share" in doubt["remedy"]
    assert doubt["text"] == "No round was validated: the last one, 8, is judged, whether or not it is the best."


def test_baselines_of_other_lengths_than_the_federation_are_said_with_their_steps(sound: Path) -> None:
    change(sound, "baseline_finished", model="local:riverside", to={"steps": 70})  # and 64: less than a tenth
    assert doubts_of(sound) == {}
    for number in (1, 2):
        change(sound, "site_replied", site="riverside", round=number, to={"status": "failed", "reason": "away"})
    doubt = doubts_of(sound)["unequal_steps"]
    assert not doubt["grave"] and "local_steps" in doubt["remedy"]
    assert doubt["text"] == (
        "Federated and baseline models took different numbers of optimiser steps: riverside (48 federated, 70 alone). "
        "Differences between them are not due to sharing alone."
    )
    change(sound, "baseline_finished", model="pooled", to={"steps": 300})
    assert (
        "steps: all hospitals together (176 federated, 300 pooled) and r" in doubts_of(sound)["unequal_steps"]["text"]
    )


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
    tested(north=24, river=24, unive=0)
    doubt = doubts_of(folder)["one_class_judged"]
    assert (
        doubt["grave"] and "No hospital has two: values over all hospitals reward nothing but telling" in doubt["text"]
    )
    tested(north=24, river=24, unive=24)
    doubt = doubts_of(folder)["one_class_judged"]
    assert doubt["grave"] and doubt["text"].endswith("a model that always says so is never wrong there.")
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


@pytest.mark.parametrize(
    ("federation", "says"),
    [
        ({}, "federation.aggregation: {name: median} bounds what a single hospital can do to the model."),
        (
            {"quorum": 2},
            "federation.aggregation: {name: clipped_mean} bounds what a single hospital can do to the model.",
        ),
        ({"algorithm": {"name": "scaffold"}}, "see its own row below."),
        (
            {"aggregation": {"name": "krum"}},
            "The run's aggregation, krum, bounds what a single hospital can do to the model.",
        ),
    ],
)
def test_against_a_hospital_out_of_line_only_a_rule_is_named_that_the_job_can_have(
    tmp_path: Path, federation: dict[str, Any], says: str
) -> None:
    made = job().model_dump(mode="json")
    made["federation"] |= federation
    seen = {"event": "stood_out", "round": 3, "site": SITES[0], "why": "long", "ratio": 12.0}
    doubt = doubts_of(fabricate(tmp_path / "run", Job.model_validate(made), extra=[seen]))["update_out_of_line"]
    assert doubt["remedy"].endswith(says)


@pytest.mark.parametrize(("algorithm", "part", "grave"), [("fedper", "its head", True), ("fedbn", "its norm", False)])
def test_a_part_at_home_that_was_not_trained_by_the_best_round_is_said(
    tmp_path: Path, algorithm: str, part: str, grave: bool
) -> None:
    made = job().model_dump(mode="json", exclude={"simulation"})
    made["federation"] |= {"algorithm": {"name": algorithm}, "share": {}}
    found, away = evaluations(dict.fromkeys(SITES, 0.04)), {"riverside": {"status": "failed", "reason": "away"}}
    folder = fabricate(tmp_path / "run", Job.model_validate(made), found, replies=dict.fromkeys((1, 2), away))
    assert "untrained_part" not in doubts_of(folder)  # it had trained by the best round, the seventh
    change(folder, "validated", to=lambda e: {"best": e["round"] == 2})
    doubt = doubts_of(folder)["untrained_part"]
    assert doubt["grave"] == grave
    assert "is that of round 2, and no update of riverside was used" in doubt["text"] and part in doubt["text"]


def test_nothing_is_untrained_where_the_whole_model_travels(tmp_path: Path) -> None:
    away = {"riverside": {"status": "failed", "reason": "away"}}
    folder = everywhere_helped(tmp_path / "run", replies=dict.fromkeys((1, 2), away))
    change(folder, "validated", to=lambda e: {"best": e["round"] == 2})
    assert "untrained_part" not in doubts_of(folder)


def test_grave_doubts_stand_above_the_answer_and_the_others_below(sound: Path) -> None:
    change(sound, "site_ready", site="riverside", to=lambda e: {"patients": e["patients"] | {"test": 6}})
    change(sound, "round_finished", round=8, to={"loss": 1.9})
    page = write_report(sound).read_text()
    places = [page.index(text) for text in ("Do not rely on", "training diverged", "beats local", "Fewer than 20")]
    assert places == sorted(places)
    assert [doubt["grave"] for doubt in summarise(read_record(sound))["doubts"]] == [True, False]
