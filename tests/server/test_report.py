"""The report of a run: what its sentences say, what its page shows, what its JSON holds."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from server.report import figures, tables, write_report
from server.report.matrix import matrix
from server.report.record import read_record
from server.report.summary import summarise
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import calibration
from tests.server.fabricated_run import (
    SITES,
    classification_evaluations,
    entry,
    evaluations,
    everywhere_helped,
    fabricate,
    job,
    read_events,
    site_ready,
    write_events,
)


def facts_of(folder: Path) -> dict[str, Any]:
    """What report.json holds, without drawing the page."""
    return summarise(read_record(folder))


def report_of(folder: Path) -> tuple[dict[str, Any], str]:
    """report.json, and the text of the page without its tags."""
    page = write_report(folder)
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    return json.loads((folder / "report.json").read_text()), re.sub(r"\s+", " ", text)


def test_the_answer_comes_first_with_its_numbers_and_intervals(tmp_path: Path) -> None:
    report, text = report_of(everywhere_helped(tmp_path / "run"))
    assert report["answer"][0] == (
        "Federated training beats local training at 3 of 3 hospitals "
        "(Dice difference +0.040 on average over the hospitals, 95 % interval +0.020 to +0.060)."
    )
    assert report["answer"][1] == (
        "It shows no clear difference from pooled training "
        "(difference \u22120.004, 95 % interval \u22120.014 to +0.006)."
    )
    assert "worst at riverside: Dice 0.842 (95 % interval 0.822 to 0.862, n = 24 cases)" in report["answer"][3]
    assert text.index("Federated training beats") < text.index("Before you cite this") < text.index("Did it help?")


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ((0.04, 0.01, -0.05), "beats local training at 1 of 3 hospitals and is worse at 1, university (Dice"),
        ((-0.04, 0.01, -0.05), "is worse than local training at 2 of 3 hospitals, north-clinic and university, and"),
        ((-0.04, -0.03, -0.05), "is worse than local training at 3 of 3 hospitals (Dice difference \u22120.040"),
        ((0.01, 0.0, -0.01), "shows no clear difference from local training at any of 3 hospitals"),
    ],
)
def test_the_answer_does_not_hide_who_was_harmed(tmp_path: Path, gains: tuple[float, ...], expected: str) -> None:
    found = evaluations(dict(zip(SITES, gains, strict=True)))
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert expected in report["answer"][0]


def test_all_hospitals_together_may_contradict_the_single_ones(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.01))
    found["differences"]["federated-local"]["all"]["dice"] = entry(-0.05, 0.02, None)
    found["differences"]["federated-local"]["riverside"]["dice"] = entry(None)
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert report["answer"][0] == (
        "Federated training shows no clear difference from local training at any of 2 hospitals, but on average "
        "over the hospitals it is worse (Dice difference \u22120.050, 95 % interval \u22120.070 to \u22120.030); "
        "it cannot be told at riverside."
    )


def with_one_class(folder: Path, cases: dict[str, dict[str, int]]) -> Path:
    """The run of a classification whose hospitals have these test cases of each class."""
    found = classification_evaluations()
    for site, by_class in cases.items():
        if min(by_class.values()) < 2:
            value = None if min(by_class.values()) == 0 else 0.036
            poor = {"value": value, "low": None, "high": None, "why": "no interval"}
            for rows in found["models"].values():
                rows[site]["auroc"] = poor | {"n": 24 if value else 0}
            found["differences"]["federated-local"][site]["auroc"] = poor | {"value": value and -0.768}
    found["differences"]["federated-local"]["all"]["auroc"] |= {"hospitals": 1, "of": 3}
    fabricate(folder, job("classification"), found)
    events = read_events(folder)
    for event in events:
        if event["event"] == "site_ready":
            event["classes"] = {"test": cases[event["site"]]}
    write_events(folder, events)
    return folder


UNEQUAL = dict(
    zip(
        SITES,
        ({"normal": 23, "pneumonia": 1}, {"normal": 0, "pneumonia": 24}, {"normal": 12, "pneumonia": 12}),
        strict=True,
    )
)


def test_a_single_case_of_a_class_decides_neither_mean_nor_worst(tmp_path: Path) -> None:
    """The answer says over how many hospitals a mean is, and what the others lack."""
    report, text = report_of(with_one_class(tmp_path / "run", UNEQUAL))
    assert "(AUROC difference +0.030 on average over 1 of 3 hospitals, 95 % interval" in report["answer"][0]
    assert report["answer"][0].endswith(
        "; it cannot be told at north-clinic (1 'pneumonia' case) and riverside (one class only)."
    )
    worst = report["worst_hospital"]["federated"]
    assert (worst["hospital"], worst["hospitals"], worst["of"]) == ("university", 1, 3)
    assert "Of the 1 of 3 hospitals with an interval, it does worst at university: AUROC 0.889" in " ".join(
        report["answer"]
    )
    assert "Worst: university 0.889 [0.869, 0.909] 1 of 3 hospitals n = 24" in text


def test_where_no_value_has_an_interval_the_worst_is_of_all(tmp_path: Path) -> None:
    cases = {site: {"normal": 23, "pneumonia": 1} for site in SITES}
    report = facts_of(with_one_class(tmp_path / "run", cases))
    worst = report["worst_hospital"]["federated"]
    assert (worst["value"], worst["hospitals"], worst["of"]) == (0.036, 3, 3)
    assert any("It does worst at north-clinic: AUROC 0.036 (no interval," in sentence for sentence in report["answer"])


def test_a_hospital_of_one_class_has_its_n_and_the_reason_in_place_of_a_value(tmp_path: Path) -> None:
    report, text = report_of(with_one_class(tmp_path / "run", UNEQUAL))
    row = next(row for row in tables.comparison(report, "auroc") if row["hospital"] == "riverside")
    assert row["n"] == 24 and row["federated"]["n"] == 0
    assert "riverside 24 one class only one class only one class only" in text
    drawn = figures.forest(tables.comparison(report, "auroc"), "AUROC")
    assert "riverside (n = 24)" in drawn and "one class only" in drawn and "no value" not in drawn


def test_an_interval_that_touches_zero_is_no_clear_difference(tmp_path: Path) -> None:
    report = facts_of(fabricate(tmp_path / "run", found=evaluations(dict.fromkeys(SITES, 0.02))))
    assert set(report["verdicts"]["federated-local"]["riverside"].values()) == {"no clear difference", "helped"}


def test_a_smaller_distance_helps_and_the_largest_is_the_worst(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    for by_hospital in [*found["models"].values(), *found["differences"].values()]:
        for by_metric in by_hospital.values():
            del by_metric["dice"]
    del found["metrics"]["dice"]
    found["models"]["federated"]["university"]["hd95"]["value"] = 3.5
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert report["headline_metric"] == "hd95"
    assert "beats local training at 3 of 3 hospitals (HD95 (mm) difference \u22120.70" in report["answer"][0]
    assert report["worst_hospital"]["federated"]["hospital"] == "university"


def test_pooled_training_may_be_better(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04), against_pooled=-0.031)
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert report["answer"][1].startswith("It falls short of pooled training (difference \u22120.031")


def test_every_failure_is_listed_with_its_reason_and_warned_of(tmp_path: Path) -> None:
    replies = {
        2: {"riverside": {"status": "failed", "reason": "its worker was killed"}},
        5: {"university": {"status": "late", "reason": "replied after 61 s; the deadline is 60 s"}},
        6: {"riverside": {"status": "rejected", "reason": "head.weight holds 3 values that are not finite"}},
    }
    report, text = report_of(everywhere_helped(tmp_path / "run", replies=replies))
    assert len(report["participation"]) == 3 * 8
    assert "riverside was left out of 2 of 8 rounds (failed 1, rejected 1)." in [
        row["text"] for row in report["doubts"]
    ]
    for reason in ("its worker was killed", "replied after 61 s", "head.weight holds 3 values"):
        assert reason in text
    assert report["sites"]["riverside"]["cases_used"] == 6 * 62


def test_undrawn_and_refused_sites_and_retried_rounds_are_told_apart(tmp_path: Path) -> None:
    folder = everywhere_helped(tmp_path / "run")
    events = read_events(folder)
    for event in events:
        if event["event"] == "round_started" and event["round"] == 3:
            event["sites"] = ["riverside", "university"]
    events = [e for e in events if not (e["event"] == "site_replied" and e["round"] == 3 and e["site"] == SITES[0])]
    first_try = [e | {"attempt": 0} for e in events if e.get("round") == 3 and e["event"] == "round_started"]
    first_try += [e | {"attempt": 0} for e in events if e.get("round") == 3 and e.get("site") == "riverside"]
    first_try += [{"event": "round_retried", "round": 3, "attempt": 0, "reason": "1 update, the quorum is 2"}]
    start = next(i for i, e in enumerate(events) if e["event"] == "round_started" and e["round"] == 3)
    for event in events:
        if event.get("round") == 3 and "attempt" in event:
            event["attempt"] = 1
    refused = {"event": "site_refused", "site": "island", "reason": "no case is left after preflight"}
    write_events(folder, [*events[:start], *first_try, *events[start:], refused])
    report, text = report_of(folder)
    status = {(e["round"], e["attempt"], e["site"]): e["status"] for e in report["participation"]}
    assert status[3, 1, "riverside"] == "discarded"
    assert status[3, 1, "university"] == "no_reply"
    assert status[3, 2, "university"] == "used"
    assert status[3, 2, "north-clinic"] == "not_drawn"
    assert status[4, 1, "island"] == "refused"
    assert report["rounds"][2]["retries"] == 1
    assert "island took no part: no case is left after preflight" in text


def test_few_patients_undefined_metrics_and_quarantine_stand_under_the_answer(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    found["models"]["federated"]["riverside"]["hd95"] = entry(None)
    found["models"]["federated"]["riverside"]["dice"] = entry(0.842, 0.07)
    warning = {"event": "warning", "text": "the clock of riverside is 2 min late"}
    report, text = report_of(fabricate(tmp_path / "run", found=found, extra=[warning]))
    assert report["warnings"] == [
        "1 case was quarantined at 1 hospital; the reasons are listed below.",
        "Wide intervals of Dice: riverside (0.772 to 0.912).",
        "No value of HD95 (mm) at riverside (no case has this class).",
        "north-clinic and riverside: Every training case is of one class.",
        "the clock of riverside is 2 min late.",
    ]
    assert "hippocampus_017 riverside image has shape 35×51×35" in text


def test_metrics_that_the_coordinator_names_with_the_main_one_are_not_named_again(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    for name in ("dice", "hd95"):
        found["models"]["federated"]["riverside"][name] = entry(None)
    found["models"]["pooled"]["university"]["hd95"] = entry(None)
    warnings = facts_of(fabricate(tmp_path / "run", found=found))["warnings"]
    assert [text for text in warnings if "HD95" in text] == [
        "No value of HD95 (mm) at university (no case has this class)."
    ]


def test_what_a_file_of_initial_weights_gave_is_on_record(tmp_path: Path) -> None:
    matched = {"file": "first.pt", "sha256": "0" * 64, "matched": 58, "tensors": 60, "share": 0.99}
    matched |= {"missing": [], "other_shape": ["out.weight", "out.bias"], "unexpected": []}
    report = facts_of(fabricate(tmp_path / "run", extra=[{"event": "pretrained", **matched}]))
    assert report["run"]["pretrained"] == matched
    assert facts_of(fabricate(tmp_path / "other"))["run"]["pretrained"] is None


def test_a_stopped_run_says_so_at_the_top(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run")
    events = [e for e in read_events(folder) if e.get("round", 0) <= 3]
    events[-1] |= {"status": "stopped", "reason": "round 4 had 1 of 2 updates in 3 attempts", "best_round": None}
    write_events(folder, events)
    report, text = report_of(folder)
    assert report["status"] == "stopped"
    assert "This run is not complete. It stopped after 3 of 8 rounds: round 4 had 1 of 2 updates" in text
    assert "cannot say whether federation helps" in report["answer"][0]


def test_a_killed_run_with_a_torn_line_gets_a_report(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run")
    lines = (folder / "events.jsonl").read_text().splitlines()
    in_round_3 = next(i for i, line in enumerate(lines) if '"site_replied", "round": 3' in line)
    (folder / "events.jsonl").write_text("\n".join([*lines[: in_round_3 + 1], lines[in_round_3 + 1][:40]]))
    report, text = report_of(folder)
    assert report["status"] == "unfinished"
    assert "This run is not complete. It has 2 of 8 rounds on record" in text
    assert [e["status"] for e in report["participation"] if e["round"] == 3] == ["discarded", "no_reply", "no_reply"]


def test_a_resumed_run_is_as_complete_as_any_other(tmp_path: Path) -> None:
    folder = everywhere_helped(tmp_path / "run")
    events = read_events(folder)
    cut = next(i for i, e in enumerate(events) if e["event"] == "round_started" and e["round"] == 5)
    again = [events[0] | {"resumed_from": 4}, *[e for e in events if e["event"] == "site_ready"]]
    stopped = {"event": "run_finished", "status": "stopped", "reason": "the disk is full"}
    write_events(folder, [*events[:cut], *again, *events[cut:]])
    report, text = report_of(folder)
    assert len(report["participation"]) == 3 * 8
    assert report["status"] == "complete"
    assert "Resumed 1 time" in text
    write_events(folder, [*events[:cut], stopped, *again])
    assert facts_of(folder)["status"] == "unfinished"


def test_the_node_of_the_pooled_data_is_no_hospital(tmp_path: Path) -> None:
    folder = everywhere_helped(tmp_path / "run")
    events = read_events(folder)
    write_events(folder, [events[0], site_ready("pooled", 1), *events[1:]])
    report = facts_of(folder)
    assert report["run"]["sites"] == SITES
    assert [row["site"] for row in report["quarantine"]] == ["riverside"]


def test_a_run_without_a_single_event_gets_a_report(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run")
    (folder / "events.jsonl").unlink()
    _, text = report_of(folder)
    assert "It has 0 of 8 rounds on record" in text


def test_the_page_says_how_many_steps_the_federation_and_its_baselines_took(tmp_path: Path) -> None:
    away = {1: {"riverside": {"status": "failed", "reason": "away"}}}
    _, text = report_of(everywhere_helped(tmp_path / "run", replies=away))
    assert "Optimiser steps of a hospital: 56 to 64 federated, 64 alone." in text
    assert "Optimiser steps of all hospitals: 184 federated, 192 pooled." in text
    assert "same number of optimiser steps" not in text


def test_without_baselines_the_question_stays_open(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    found["models"] = {"federated": found["models"]["federated"]}
    found["differences"] = {}
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert report["answer"][0].startswith("No local or pooled baseline was evaluated")
    assert "The federated model reaches Dice 0.867" in report["answer"][1]


def test_without_bootstrap_nothing_is_called_helped(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    found = json.loads(json.dumps(found), object_hook=lambda o: o | {"low": None, "high": None} if "low" in o else o)
    report = facts_of(fabricate(tmp_path / "run", found=found))
    assert report["answer"][0].startswith("Whether federated training beats local training cannot be told")


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    sites = [f"clinic {evil}", "b & c", "$x^2$"]
    the_job = job()
    the_job = Job.model_validate(
        the_job.model_dump() | {"task": {"kind": "segmentation", "classes": ["background", evil]}}
    )
    replies = {1: {sites[1]: {"status": "failed", "reason": evil}}}
    found = evaluations(dict.fromkeys(sites, 0.04))
    found["metrics"]["dice"]["label"] = f"Dice {evil}"
    folder = fabricate(
        tmp_path / "run", the_job, found, replies, extra=[{"event": "warning", "text": evil}], sites=sites
    )
    page = write_report(folder).read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert") > 8
    assert "b &amp; c" in page


def test_the_page_needs_no_network_and_is_the_same_each_time(tmp_path: Path) -> None:
    folder = everywhere_helped(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    links = re.findall(rb"""(?:src|href|url)\s*[=(]\s*["']?([^"' >)]{0,20})""", first)
    assert links
    assert all(link.startswith((b"data:", b"#")) for link in links)
    assert not [name for name in folder.iterdir() if name.name.startswith(".")]


def test_no_number_in_the_json_is_nan(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    found["models"]["federated"]["riverside"]["dice"] |= {"value": math.nan, "low": math.nan, "high": math.inf}
    replies = {1: {"riverside": {"loss": math.nan}}}
    folder = fabricate(tmp_path / "run", found=found, replies=replies)
    write_report(folder)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in report.json")

    report = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert report["models"]["federated"]["riverside"]["dice"]["value"] is None
    assert report["rounds"][0]["loss_by_site"]["riverside"] is None


def test_a_classification_run_shows_roc_and_calibration(tmp_path: Path) -> None:
    report, text = report_of(fabricate(tmp_path / "run", job("classification"), classification_evaluations()))
    assert report["headline_metric"] == "auroc"
    assert "ROC and calibration" in text
    assert 'alt="ROC curves and reliability' in (tmp_path / "run" / "report.html").read_text()


def test_a_segmentation_run_shows_the_calibration_of_its_voxels(tmp_path: Path) -> None:
    found, voxels = evaluations(dict.fromkeys(SITES, 0.04)), classification_evaluations()
    for by_hospital in found["models"].values():
        for rows in by_hospital.values():
            rows["calibration_error"] = entry(0.071, 0.01)
    found["metrics"] |= calibration.INFO
    for model in ("federated", "pooled"):
        reliability = voxels["curves"][model]["all"]["reliability"]
        found["curves"][model] = {"all": {"reliability": reliability | {"n": [n / 100 for n in reliability["n"]]}}}
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "Federated 0.071 [0.061, 0.081]" in text
    assert "voxels in and around the organs" in text and "Best, median and worst case" in text
    assert 'alt="Reliability of the predicted probabilities.' in (tmp_path / "run" / "report.html").read_text()
    drawn = figures.roc_and_reliability(report)
    assert drawn and "federated, n = 5 -->" in drawn and "False positive rate" not in drawn


def test_a_segmentation_run_without_calibration_says_nothing_of_it(tmp_path: Path) -> None:
    _, text = report_of(everywhere_helped(tmp_path / "run"))
    assert "Calibration" not in text and "reliability" not in text


def with_more_models(found: dict[str, Any]) -> dict[str, Any]:
    """What further comparisons leave in evaluations.json."""
    for model, gain in {"ensemble": -0.01, "fine-tuned": 0.02, "kept": 0.02}.items():
        moved = json.loads(json.dumps(found["models"]["federated"]))
        for rows in moved.values():
            rows["dice"] |= {key: rows["dice"][key] + gain for key in ("value", "low", "high")}
        found["models"][model] = moved
        places = [*SITES, "all"]
        found["differences"][f"{model}-federated"] = {site: {"dice": entry(gain, 0.005, None)} for site in places}
        found["differences"][f"{model}-local"] = {site: {"dice": entry(0.02 + gain, 0.03, None)} for site in places}
    kept = dict(zip(SITES, ("federated", "local", "federated"), strict=True))
    values = {"local": 0.81, "federated": 0.83, "fine-tuned": 0.82}
    found["choices"] = {site: {"kept": name, "validation": values} for site, name in kept.items()}
    spread = {"range": entry(0.047, 0.01, None), "deviation": entry(0.019, 0.004, None), "hospitals": 3}
    found["spread"] = {model: {"dice": spread} for model in ("federated", "pooled", "local")}
    return found


def test_every_model_has_its_row_and_its_label(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    rows = {row["model"]: row for row in tables.overview(report, "dice")}
    assert list(rows) == ["local", "federated", "pooled", "ensemble", "fine-tuned", "kept"]
    assert rows["pooled"]["federated"]["value"] == pytest.approx(0.004)  # on record as federated minus pooled
    assert rows["pooled"]["federated"]["low"] < rows["pooled"]["federated"]["value"]
    assert (len(rows["ensemble"]["calls"]["helped"]), len(rows["fine-tuned"]["calls"]["helped"])) == (0, 3)
    assert rows["local"]["worst"]["hospital"] == "riverside"
    assert "Ensemble the mean of the probabilities of all local models" in text
    assert "Fine-tuned the federated model trained on at the hospital" in text


def test_spread_and_counts_are_numbers_of_the_first_screen(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict(zip(SITES, (0.04, 0.01, -0.05), strict=True))))
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "Hospitals helped 1 of 3 Hospitals harmed 1 of 3" in text
    assert "Spread, best \u2212 worst 0.047 [0.037, 0.057] 3 hospitals" in text
    assert text.index("Spread, best") < text.index("Before you cite this") < text.index("Did it help?")
    assert any("Best and worst of 3 hospitals lie 0.047 apart" in sentence for sentence in report["answer"])


def test_the_top_says_how_it_was_trained_and_what_was_made_to_differ(tmp_path: Path) -> None:
    made = job().model_dump(mode="json", exclude={"simulation"})
    made["federation"] |= {"algorithm": {"name": "fedprox"}, "aggregation": {"name": "median"}}
    made["simulation"] = {
        "dataset": {"name": "decathlon", "task": "Task04_Hippocampus"},
        "partition": {"name": "iid"},
        "hospitals": 3,
        "scanners": {"set": "strong"},
    }
    folder = fabricate(tmp_path / "run", Job.model_validate(made), evaluations(dict.fromkeys(SITES, 0.04)))
    report, text = report_of(folder)
    assert (report["run"]["algorithm"], report["run"]["aggregation"]) == ("fedprox", "median")
    assert "by fedprox and median, 3 hospitals" in text
    assert text.index("other scanners (the set strong)") < text.index("Hospitals helped")


def test_a_hospital_without_an_interval_is_not_counted_among_those_that_can_be_told(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    why = "no interval: one patient only"
    found["differences"]["federated-local"]["riverside"]["dice"] = {
        "value": 0.04,
        "low": None,
        "high": None,
        "why": why,
    }
    _, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "beats local training at 2 of 2 hospitals" in text
    assert "Hospitals helped 2 of 2 1 cannot be told Hospitals harmed 0 of 2 1 cannot be told" in text
    assert "+0.040 no interval" in text


def test_tables_by_hospital_say_how_many_cases_they_rest_on(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    _, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "Model north-clinic n = 24 riverside n = 24 university n = 24 All hospitals n = 72" in text
    assert "Hospital Validation patients Keeps" in text and "riverside 8 Local" in text


def test_what_the_hospitals_keep_is_counted(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    assert report["kept_by"] == {"federated": ["north-clinic", "university"], "local": ["riverside"]}
    sentence = "2 of 3 hospitals keep the federated model, 1 its local model (riverside)."
    assert sentence in report["answer"][2] and sentence in text


def test_a_hospital_that_could_not_choose_is_named_with_the_reason(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    found["choices"]["university"] |= {"why": "its validation masks have no posterior"}
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    kept = (
        "By their own validation patients, 1 of 2 hospitals keeps the federated model, 1 its local model (riverside)."
    )
    assert kept in report["answer"]
    none = "1 of 3 hospitals had no choice but the federated model (university): see what each hospital keeps."
    assert none in report["answer"]
    assert "university 8 Federated no choice: its validation masks have no posterior" in text


def test_where_no_hospital_could_choose_none_is_said_to_have(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    for choice in found["choices"].values():
        choice |= {"kept": "federated", "why": "its validation masks have no posterior"}
    answer = facts_of(fabricate(tmp_path / "run", found=found))["answer"]
    assert not any("By their own validation patients" in sentence for sentence in answer)
    assert any(sentence.startswith("3 of 3 hospitals had no choice") for sentence in answer)


def test_what_a_hospital_chose_by_has_its_interval_and_its_n(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    intervals = {"local": {"low": 0.61, "high": 0.93, "n": 8, "why": None}}
    found["choices"]["riverside"] |= {"intervals": intervals}
    found["choices"]["university"] |= {"why": "its validation masks have no grey matter"}
    report, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "riverside 8 Local 0.810 [0.610, 0.930] n = 8 0.830 no interval" in text
    assert "university 8 Federated no choice: its validation masks have no grey matter" in text
    said = "1 of 3 hospitals had no choice but the federated model (university)"
    assert any(sentence.startswith(said) for sentence in report["answer"])


def test_hospitals_with_numbers_stand_in_their_order(tmp_path: Path) -> None:
    folder = fabricate(tmp_path / "run", found=with_more_models(evaluations(dict.fromkeys(SITES, 0.04))))
    renamed = dict(zip(SITES, ("hospital-10", "hospital-2", "hospital-1"), strict=True))
    for path in (path for path in folder.rglob("*.json*") if path.is_file()):
        path.write_text(re.sub("|".join(SITES), lambda found: renamed[found[0]], path.read_text()))
    report, order = facts_of(folder), ["hospital-1", "hospital-2", "hospital-10"]
    assert report["run"]["sites"] == list(report["sites"]) == tables.hospitals(report) == order
    assert [row["model"] for row in tables.everywhere(report, "dice")][:3] == [f"local:{name}" for name in order]
    assert [row["hospital"] for row in tables.choices(report)["rows"]] == order
    for rows in (report["models"]["federated"], report["verdicts"]["federated-local"]):
        assert list(rows) == [*order, "all"]


def test_the_matrix_outlines_what_is_a_hospitals_own(tmp_path: Path) -> None:
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04)))
    folder = fabricate(tmp_path / "run", found=found)
    report = facts_of(folder)
    rows = tables.everywhere(report, "dice")
    own = {row["model"]: row["home"] for row in rows}
    assert own["local:riverside"] == [False, True, False] and own["federated"] == [False] * 3
    assert own["kept"] == [True] * 3
    drawn = matrix(rows, SITES, report["metrics"]["dice"])
    assert drawn.count("stroke: #d55e00") == 3 + 3 + 3  # at home, fine-tuned, kept
    assert 'alt="Dice of every model on every hospital' in write_report(folder).read_text()


def test_a_model_of_which_a_part_stays_at_home_is_each_hospitals_own(tmp_path: Path) -> None:
    made = job().model_dump(mode="json", exclude={"federation": {"share"}})
    made["federation"]["algorithm"] = {"name": "fedbn"}
    found = evaluations(dict.fromkeys(SITES, 0.04))
    report, text = report_of(fabricate(tmp_path / "run", Job.model_validate(made), found))
    assert report["differs_by_hospital"] == ["federated"]
    assert {row["model"]: row["home"] for row in tables.everywhere(report, "dice")}["federated"] == [True] * 3
    assert "the one model that all hospitals trained, with what stays at home of each" in text
    assert "another model at every hospital (Local; Federated)" in text


@pytest.mark.parametrize(
    ("kind", "found", "says"),
    [
        ("classification", classification_evaluations(), "So is AUROC of such models over all hospitals"),
        ("segmentation", evaluations(dict.fromkeys(SITES, 0.04)), "They may contradict the values over all hospitals"),
    ],
)
def test_what_a_value_over_all_hospitals_is_is_explained(tmp_path: Path, kind: str, found: Any, says: str) -> None:
    assert says in report_of(fabricate(tmp_path / "run", job(kind), found))[1]


def test_a_matrix_of_equal_or_missing_values_is_drawn() -> None:
    info = {"label": "HD95 (mm)", "unit": "mm", "digits": 2, "larger_is_better": False}
    row = {"label": "Federated", "values": [{"value": 2.0}, None, {"value": None}], "home": [False, False]}
    assert "<svg" in matrix([row], ["a", "b"], info)
    assert "<svg" in matrix([row | {"values": [None] * 3}], ["a", "b"], info)


@pytest.mark.parametrize(("value", "unit", "never"), [(1.0, "", "1.5"), (0.0, "mm", "\u22120.5")])
def test_the_colours_of_equal_values_end_where_the_metric_does(value: float, unit: str, never: str) -> None:
    info = {"label": "Metric", "unit": unit, "digits": 3, "larger_is_better": not unit}
    drawn = matrix([{"label": "Federated", "values": [{"value": value}] * 3, "home": [False, False]}], ["a", "b"], info)
    assert f"<!-- {value:.3f} -->" in drawn and f"<!-- {never} -->" not in drawn


def test_groups_of_patients_are_shown_and_small_ones_only_named(tmp_path: Path) -> None:
    found = evaluations(dict.fromkeys(SITES, 0.04))
    told = {"column": "sex", "group": "F", "hospitals": SITES[:2], "withheld": SITES[2:], "patients": 31, "cases": 40}
    told |= {"metrics": {"dice": entry(0.853, 0.02, 40)}, "federated-local": {"dice": entry(0.031, 0.02, None)}}
    silent = {"column": "sex", "group": "M", "hospitals": [], "withheld": SITES, "patients": 0, "cases": 0}
    nobody = silent | {"group": "other", "withheld": []}
    empty: dict[str, Any] = {"metrics": {}, "federated-local": {}}
    found["subgroups"] = [told, silent | empty, nobody | empty]
    _, text = report_of(fabricate(tmp_path / "run", found=found))
    assert "F 31 40 2 of 3 0.853 [0.833, 0.873] +0.031 [+0.011, +0.051]" in text
    assert "M fewer than 5 patients" in text
    assert "other fewer than" not in text  # every hospital has told of all of its cases


def test_the_choice_of_the_round_is_on_record(tmp_path: Path) -> None:
    early = {"event": "stopped_early", "round": 8, "patience": 3, "best_round": 5}
    report, text = report_of(everywhere_helped(tmp_path / "run", extra=[early]))
    assert report["run"]["stopped_early"] == {"round": 8, "patience": 3, "best_round": 5}
    assert "The model of round 7 of 8 was judged: the best one by Dice on the hospitals' validation patients" in text
    assert "stopped after round 8 of 8: 3 validations in a row brought nothing better than round 5" in text


def test_a_federation_without_a_hospital_is_no_local_baseline_of_the_curves(tmp_path: Path) -> None:
    report = facts_of(everywhere_helped(tmp_path / "run"))
    curve = [{"round": 8, "metrics": {"dice": 0.8}}]
    report["baselines"] = {f"local:{site}": {"curve": curve} for site in SITES}
    alone = figures.learning_curves(report, "dice", "Dice")
    report["baselines"] |= {f"leave-one-out:{SITES[0]}": {"curve": [{"round": 8, "metrics": {"dice": 0.1}}]}}
    assert figures.learning_curves(report, "dice", "Dice") == alone


def test_no_line_of_the_learning_curves_runs_through_their_legends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, kept = facts_of(everywhere_helped(tmp_path / "run")), []
    plain = figures.svg
    monkeypatch.setattr(
        figures, "svg", lambda w, h, draw: plain(w, h, lambda figure: (draw(figure), kept.append(figure)))
    )
    figures.learning_curves(report, "dice", "Dice")
    for axes in kept[0].axes:
        assert not axes.get_legend().get_window_extent().overlaps(axes.get_window_extent())


def test_calibration_stands_in_numbers_before_and_after_scaling(tmp_path: Path) -> None:
    found = classification_evaluations()
    for model, value in {"federated": 0.112, "temperature-scaled": 0.031}.items():
        place = found["models"].setdefault(model, {site: {} for site in [*SITES, "all"]})
        for rows in place.values():
            rows["calibration_error"] = entry(value, 0.01)
    info = {"label": "Calibration error", "larger_is_better": False, "unit": "", "headline": True}
    found["metrics"]["calibration_error"] = info
    found["curves"]["temperature-scaled"] = found["curves"]["federated"]
    report, text = report_of(fabricate(tmp_path / "run", job("classification"), found))
    assert "Temperature-scaled 0.031 [0.021, 0.041]" in text
    drawn = figures.roc_and_reliability(report)
    assert drawn and "#009e73" in drawn  # the curve after scaling


def test_pictures_are_embedded(tmp_path: Path) -> None:
    from PIL import Image

    folder = everywhere_helped(tmp_path / "run")
    (folder / "pictures").mkdir()
    for name in ("partition", "cases", "scanners"):
        Image.new("L", (4, 4)).save(folder / "pictures" / f"{name}.png")
    page = write_report(folder).read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "One patient seen by every scanner" in page


def test_a_folder_that_is_no_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no run\.json in it"):
        write_report(tmp_path)
    folder = everywhere_helped(tmp_path / "run")
    (folder / "evaluations.json").write_text('{"models": ')
    with pytest.raises(BadInput, match=r"evaluations\.json: not JSON \(line 1"):
        write_report(folder)


def test_every_field_of_the_json_is_documented(tmp_path: Path) -> None:
    """docs/report.md names every field; names that come from data (hospitals, models, metrics) are left out."""
    replies = {2: {"riverside": {"status": "failed", "reason": "killed"}}}
    group = {"column": "sex", "group": "F", "hospitals": SITES, "withheld": [], "patients": 31, "cases": 40}
    group |= {"metrics": {"dice": entry(0.8)}, "federated-local": {}}
    found = with_more_models(evaluations(dict.fromkeys(SITES, 0.04))) | {"subgroups": [group]}
    report = facts_of(fabricate(tmp_path / "run", found=found, replies=replies))
    document = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    from_data = {
        *SITES,
        "all",
        "dice",
        "hd95",
        "auroc",
        "train",
        "validation",
        "test",
        *report["models"],
        *report["differences"],
    }

    def fields(value: Any) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(fields, value))
        if isinstance(value, dict):
            return set(value).union(*map(fields, value.values()))
        return set()

    versions = set(report["run"]["versions"])
    missing = {name for name in fields(report) - from_data - versions if f"`{name}`" not in document}
    assert not missing
