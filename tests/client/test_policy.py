"""What a hospital's policy refuses, and that nothing in a job or a question can widen it."""

from __future__ import annotations

from datetime import datetime, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.policy import (
    Policy,
    Refusal,
    Refused,
    is_open,
    judge_coordinator,
    judge_job,
    judge_question,
    steps_per_round,
)
from shared_models.job import Job
from shared_models.tasks import task_of

FINGERPRINT = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
SEGMENTATION = ["dice", "surface_dice", "hd95", "missed", "false", "calibration_error", "brier"]
CLASSIFICATION = ["auroc", "average_precision", "balanced_accuracy", "accuracy", "calibration_error", "brier"]
PATIENTS = {"train": 30, "validation": 12, "test": 12}
CASES = {"train": 60, "validation": 24, "test": 24}
NOON = datetime(2030, 5, 4, 12, 0)

OPEN = {
    "coordinators": [FINGERPRINT],
    "tasks": ["segmentation", "classification"],
    "models": ["unet", "cnn"],
    "algorithms": ["fedavg"],
    "max_rounds": 50,
    "max_local_steps": 100,
    "max_hours_per_day": 8,
    "metrics": SEGMENTATION + CLASSIFICATION,
}
FIELDS: dict[str, dict[str, object]] = {
    "query.prepare": {},
    "train": {"round": 3, "best_used": 2, "last_used": 2, "algorithm_since": 0},
    "train.alone": {"steps": 0},
    "evaluate": {"model": "global", "split": "test", "replicates": 500, "round": 3, "last_used": 3, "variant": ""},
}


def policy(**changes: Any) -> Policy:
    return Policy.model_validate(OPEN | changes, strict=True)


def job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "name": "vessels",
        "task": {"kind": "segmentation", "classes": ["background", "vessel"]},
        "data": {"spatial_dims": 2, "crop": [32, 32]},
        "model": {"name": "unet"},
        "training": {"local_steps": 20},
        "federation": {"rounds": 10},
    }
    return Job.model_validate(values | changes)


def verdict(rules: Policy, asked: Job, patients=PATIENTS, cases=CASES) -> dict[str, Refusal]:
    found = judge_job(rules, asked, patients=patients, cases=cases)
    assert len({refusal.rule for refusal in found}) == len(found)
    return {refusal.rule: refusal for refusal in found}


def answer(rules: Policy, question: str, asked: Job | None = None, **changes: Any) -> set[str]:
    arguments = {"now": NOON, "seconds_used_today": 0.0, "fields": FIELDS[question], "patients": PATIENTS} | changes
    return {refusal.rule for refusal in judge_question(rules, asked or job(), question, **arguments)}


def test_a_job_within_the_policy_may_run():
    assert verdict(policy(), job()) == {}
    assert all(answer(policy(local_baseline=True), question) == set() for question in FIELDS)


def test_an_empty_policy_allows_nothing_and_names_every_rule_at_once():
    assert set(verdict(Policy(), job())) == {
        "policy.tasks",
        "policy.models",
        "policy.algorithms",
        "policy.metrics",
        "policy.max_rounds",
        "policy.max_local_steps",
    }
    assert judge_coordinator(Policy(), FINGERPRINT)
    assert answer(Policy(), "query.prepare") == {"policy.max_hours_per_day"}
    assert Policy().approve == "ask"


def test_a_refusal_says_rule_asked_allowed_and_what_would_pass():
    refused = Refused(judge_job(policy(), job(federation={"rounds": 100}), patients=PATIENTS, cases=CASES))
    assert str(refused) == (
        "policy.max_rounds: asked 100, allowed 50; passes with federation.rounds of at most 50 or a wider policy"
    )
    refused = Refused(judge_job(policy(models=["cnn"]), job(), patients=PATIENTS, cases=CASES))
    assert str(refused) == (
        "policy.models: asked unet, allowed cnn; passes with model.name as one of cnn or a wider policy"
    )


def test_what_would_pass_does_pass():
    found = verdict(policy(), job(federation={"rounds": 51}, training={"local_steps": 101}))
    assert set(found) == {"policy.max_rounds", "policy.max_local_steps"}
    assert verdict(policy(), job(federation={"rounds": 50}, training={"local_steps": 100})) == {}
    twice = {"rounds": 50, "algorithm": {"name": "ditto"}}
    rules = policy(algorithms=["ditto"])
    refusal = verdict(rules, job(federation=twice, training={"local_steps": 51}))["policy.max_local_steps"]
    assert (refusal.asked, refusal.remedy) == ("102", "training.local_steps of at most 50 or a wider policy")
    assert verdict(rules, job(federation=twice, training={"local_steps": 50})) == {}


def test_epochs_count_as_the_steps_that_they_take_with_the_cases_of_this_site():
    asked = job(training={"local_epochs": 3, "batch_size": 8})
    assert steps_per_round(asked, 60) == 24
    assert verdict(policy(max_local_steps=24), asked) == {}
    assert set(verdict(policy(max_local_steps=23), asked)) == {"policy.max_local_steps"}


def test_too_few_patients_to_train_on_refuse_the_job_and_to_judge_on_the_question():
    few = {"train": 9, "validation": 3, "test": 12}
    assert set(verdict(policy(), job(), patients=few)) == {"policy.min_patients"}
    assert answer(policy(), "train", patients=few) == {"policy.min_patients"}
    on_validation = FIELDS["evaluate"] | {"split": "validation", "replicates": 0, "round": 0, "last_used": 0}
    assert answer(policy(), "evaluate", fields=on_validation, patients=few) == {"policy.min_patients"}
    assert answer(policy(), "evaluate", patients=few) == set()
    assert answer(policy(min_patients=3), "evaluate", fields=on_validation, patients=few) == set()


def test_a_variant_rests_on_the_patients_that_it_is_made_with():
    few, fitted = {"train": 12, "validation": 3, "test": 12}, FIELDS["evaluate"] | {"variant": "temperature"}
    assert answer(policy(), "evaluate", fields=fitted, patients=few) == {"policy.min_patients"}
    assert answer(policy(), "evaluate", fields=fitted) == set()
    assert answer(policy(), "evaluate", fields=FIELDS["evaluate"] | {"variant": "adapted"}, patients=few) == set()
    # Fine-tuning is a round of local steps, which a policy bounds in every job.
    assert set(verdict(policy(max_local_steps=9), job(training={"local_steps": 10}))) == {"policy.max_local_steps"}


@pytest.mark.parametrize(
    ("kind", "names"), [("segmentation", SEGMENTATION), ("classification", CLASSIFICATION)], ids=["masks", "classes"]
)
def test_a_metric_that_may_not_leave_refuses_its_task(kind: str, names: list[str]):
    asked = job(task={"kind": kind, "classes": ["background", "vessel"]})
    assert {name.split("/")[0] for name in task_of(asked).metric_info()} == set(names)
    refusal = verdict(policy(metrics=names[1:]), asked)["policy.metrics"]
    assert refusal.asked == names[0]
    assert verdict(policy(metrics=names), asked) == {}
    assert "policy.metrics" in verdict(policy(metrics=["all"]), asked)


@pytest.mark.parametrize("required", [{"clip": 1.0}, {"noise": 0.5}, {"secure_aggregation": True}])
def test_a_required_protection_that_no_job_offers_yet_refuses_every_job(required: dict[str, Any]):
    [name] = required
    found = verdict(policy(protections=required), job())
    assert set(found) == {f"policy.protections.{name}"}
    assert "no job can offer this yet" in str(found[f"policy.protections.{name}"])


def test_only_a_listed_key_may_ask():
    assert judge_coordinator(policy(), FINGERPRINT) == []
    [refusal] = judge_coordinator(policy(), FINGERPRINT.replace("47D", "48D"))
    assert refusal.rule == "policy.coordinators"


@pytest.mark.parametrize(
    ("hours", "open_at", "closed_at"),
    [
        ("20:00-06:00", ["20:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "19:59"]),
        ("08:30-17:00", ["08:30", "16:59"], ["08:29", "17:00", "00:00"]),
        (None, ["00:00", "12:00"], []),
    ],
)
def test_opening_hours_may_cross_midnight(hours: str | None, open_at: list[str], closed_at: list[str]):
    assert all(is_open(hours, time.fromisoformat(at)) for at in open_at)
    assert not any(is_open(hours, time.fromisoformat(at)) for at in closed_at)


def test_a_question_outside_opening_hours_or_after_the_hours_of_a_day_is_refused():
    assert answer(policy(opening_hours="20:00-06:00"), "train") == {"policy.opening_hours"}
    assert answer(policy(opening_hours="20:00-06:00"), "train", now=NOON.replace(hour=21)) == set()
    assert answer(policy(), "train", seconds_used_today=8 * 3600 - 1) == set()
    assert answer(policy(), "train", seconds_used_today=8 * 3600) == {"policy.max_hours_per_day"}
    assert answer(policy(), "train", seconds_used_today=float("nan")) == {"policy.max_hours_per_day"}


def test_training_on_this_site_alone_needs_a_policy_that_allows_it():
    assert answer(policy(), "train.alone") == {"policy.local_baseline"}
    assert answer(policy(local_baseline=True), "train.alone") == set()


@pytest.mark.parametrize(
    ("question", "changed", "rule"),
    [
        ("train", {"round": 11}, "order.round"),
        ("train", {"round": 0}, "order.round"),
        ("train", {"round": 1.0}, "order.round"),
        ("train", {"round": True}, "order.round"),
        ("train", {"round": 10**400}, "order.round"),
        ("train", {"steps": 5}, "order.fields"),
        ("train.alone", {"steps": 101}, "order.steps"),
        ("train.alone", {"steps": -1}, "order.steps"),
        ("evaluate", {"replicates": 501}, "order.replicates"),
        ("evaluate", {"split": "everything"}, "order.split"),
        ("evaluate", {"split": ["test"]}, "order.split"),
        ("evaluate", {"model": "../../etc/passwd"}, "order.model"),
        ("evaluate", {"model": "a\nb"}, "order.model"),
        ("evaluate", {"variant": "ensemble"}, "order.variant"),
        ("evaluate", {"variant": 1}, "order.variant"),
    ],
)
def test_a_field_that_leads_out_of_the_job_is_refused(question: str, changed: dict[str, Any], rule: str):
    assert answer(policy(local_baseline=True), question, fields=FIELDS[question] | changed) == {rule}


def test_an_unknown_question_and_a_missing_field_are_refused():
    refusals = judge_question(
        policy(), job(), "shell; rm", now=NOON, seconds_used_today=0.0, fields={}, patients=PATIENTS
    )
    assert [refusal.rule for refusal in refusals] == ["order.question"]
    assert "rm" not in str(refusals[0])
    assert answer(policy(), "evaluate", fields={"split": "test", "model": "global"}) == {"order.fields"}


def test_a_name_that_is_none_is_not_repeated():
    asked = job(model={"name": "\x1b[2J Mrs Example"})
    assert "Example" not in str(Refused(judge_job(policy(), asked, patients=PATIENTS, cases=CASES)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"coordinators": ["*"]},
        {"coordinators": ["SHA256:short"]},
        {"coordinators": "all"},
        {"tasks": ["a b"]},
        {"max_rounds": -1},
        {"max_rounds": True},
        {"max_rounds": "50"},
        {"min_patients": 0},
        {"max_hours_per_day": float("nan")},
        {"max_hours_per_day": 25},
        {"opening_hours": "24:00-06:00"},
        {"opening_hours": "08:00-08:00"},
        {"opening_hours": "08:00-17:00\n"},
        {"protections": {"clip": float("inf")}},
        {"approve": "never"},
        {"anything": 1},
    ],
)
def test_a_policy_that_does_not_say_what_it_means_is_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        policy(**wrong)


policies = st.builds(
    policy,
    tasks=st.lists(st.sampled_from(["segmentation", "classification"])),
    models=st.lists(st.sampled_from(["unet", "cnn", "vit"])),
    max_rounds=st.integers(0, 20),
    max_local_steps=st.integers(0, 40),
    min_patients=st.integers(1, 40),
    metrics=st.sampled_from([[], ["dice"], SEGMENTATION, CLASSIFICATION, SEGMENTATION + CLASSIFICATION]),
    protections=st.fixed_dictionaries({}, optional={"clip": st.floats(0.1, 9), "secure_aggregation": st.booleans()}),
)
jobs = st.builds(
    job,
    task=st.fixed_dictionaries(
        {"kind": st.sampled_from(["segmentation", "classification"]), "classes": st.just(["no", "yes"])}
    ),
    model=st.fixed_dictionaries(
        {
            "name": st.sampled_from(["unet", "cnn", "vit", "policy"]),
            # Arguments are passed through as they are: also what looks like a policy.
            "arguments": st.fixed_dictionaries({}, optional={"policy": st.just(OPEN), "max_rounds": st.just(10**6)}),
        }
    ),
    training=st.one_of(
        st.fixed_dictionaries({"local_steps": st.integers(1, 60)}),
        st.fixed_dictionaries({"local_epochs": st.integers(1, 9), "batch_size": st.integers(1, 32)}),
    ),
    federation=st.fixed_dictionaries({"rounds": st.integers(1, 40)}),
)
counts = st.fixed_dictionaries({"train": st.integers(0, 60), "validation": st.integers(0, 60)})


@given(policies, jobs, counts, counts)
def test_no_job_widens_a_policy(rules: Policy, asked: Job, patients: dict[str, int], cases: dict[str, int]):
    before = rules.model_dump_json()
    if verdict(rules, asked, patients, cases) == {}:
        assert asked.task.kind in rules.tasks
        assert asked.model.name in rules.models
        assert asked.federation.rounds <= rules.max_rounds
        assert steps_per_round(asked, cases["train"]) <= rules.max_local_steps
        assert patients["train"] >= rules.min_patients
        assert {name.split("/")[0] for name in task_of(asked).metric_info()} <= set(rules.metrics)
        assert rules.protections == Policy().protections
    assert rules.model_dump_json() == before


@given(policies, jobs, counts, st.sampled_from(list(FIELDS)), st.integers(-5, 10**6), st.floats(0, 10**5))
def test_no_question_widens_a_policy(
    rules: Policy, asked: Job, patients: dict[str, int], question: str, number: int, used: float
):
    fields = {key: number if isinstance(value, int) else value for key, value in FIELDS[question].items()}
    if not answer(rules, question, asked, fields=fields, patients=patients, seconds_used_today=used):
        assert used < rules.max_hours_per_day * 3600
        assert question != "train.alone" or rules.local_baseline
        assert question != "train" or (1 <= number <= asked.federation.rounds)
        assert question != "evaluate" or (0 <= number <= asked.evaluation.bootstrap)
        assert question == "query.prepare" or patients.get(fields.get("split", "train"), 0) >= rules.min_patients


SYNTHESIS = [
    *("auroc_with_synthetic", "auroc_without_synthetic", "auroc_gain", "balanced_accuracy_without_synthetic"),
    *("balanced_accuracy_with_synthetic", "memorised", "memorised_control", "nearest_synthetic", "nearest_real"),
]


def test_steps_that_judging_takes_count_as_well():
    task = {"kind": "synthesis", "classes": ["no", "yes"], "classifier_steps": 60}
    rules = policy(tasks=["synthesis"], models=["dcgan"], metrics=SYNTHESIS)
    asked = job(task=task, model={"name": "dcgan"})
    found = verdict(rules, asked)
    assert set(found) == {"policy.max_local_steps"}
    said = str(found["policy.max_local_steps"])
    assert "asked 120, allowed 100; passes with task.classifier_steps of at most 100" in said
    assert verdict(rules, job(task=task | {"classifier_steps": 50}, model={"name": "dcgan"})) == {}
