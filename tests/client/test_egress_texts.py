"""The door: texts, names and faults, in which a secret could be said in so many words."""

import json
from datetime import datetime

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.allowed import allowed_for
from client.egress import Withheld, fault_content, fault_of, release
from client.policy import QUESTIONS, Policy, Refusal, Refused, judge_coordinator, judge_job, judge_question
from shared_models.errors import BadInput, RunStopped
from shared_models.faults import QUARANTINE, Fault, read_fault
from shared_models.orders import BadOrder
from shared_models.weights import to_record
from tests.client.door import ASKED, JOB, POLICY, SECRETS, allowed, fresh, property_test, serialised, withheld

# Records and texts


@property_test
@given(secret=SECRETS, question=st.sampled_from(list(ASKED)))
def test_one_more_record(replies, question, secret):
    records = (ConfigRecord({"note": secret}), MetricRecord({secret: 1}), to_record({secret: np.zeros(1)}))
    for record in records:
        for name in ("note", secret):
            content = fresh(replies, question)
            content[name] = record
            withheld(content, question, secret)


@property_test
@given(asked=st.sampled_from(list(ASKED)), answered=st.sampled_from(list(ASKED)))
def test_the_answer_to_another_question(replies, asked, answered):
    if asked != answered:
        withheld(fresh(replies, answered), asked)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | SECRETS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(SECRETS, children, max_size=4),
)


@property_test
@given(entry=JSON, place=st.sampled_from(["cases", "patients", "classes", "duplicates", "quarantined", "new"]))
def test_anything_in_the_summary(replies, place, entry):
    content = fresh(replies, "prepare")
    summary = json.loads(content["prepared"]["summary"]) | {place: entry}
    content["prepared"]["summary"] = json.dumps(summary)
    try:
        released = release(content, allowed("prepare"))
    except Withheld as error:
        assert "Jane" not in str(error)
    else:
        assert place in ("duplicates", "quarantined")
        assert b"Jane" not in serialised(released.content)


@property_test
@given(entry=JSON, place=st.sampled_from(["train", "small"]))
def test_anything_deeper_in_the_summary(replies, place, entry):
    content = fresh(replies, "prepare")
    summary = json.loads(content["prepared"]["summary"])
    if place == "train":
        summary["cases"]["train"] = entry
    else:
        summary["classes"]["train"]["small"] = entry
    content["prepared"]["summary"] = json.dumps(summary)
    if type(entry) is int and 0 <= entry < 2**29:
        assert (
            entry
            in json.loads(str(release(content, allowed("prepare")).content["prepared"]["summary"]))[
                "cases" if place == "train" else "classes"
            ]["train"].values()
            if place == "small"
            else True
        )
    else:
        withheld(content, "prepare")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cases": ' + "[" * 10**5, "9" * 5000, '"Jane Doe"'])
def test_a_summary_that_is_none(replies, text):
    content = fresh(replies, "prepare")
    content["prepared"]["summary"] = text
    withheld(content, "prepare")


@property_test
@given(secret=SECRETS)
def test_the_name_of_the_site_is_the_configured_one(replies, secret):
    content = fresh(replies, "prepare")
    content["prepared"]["site"] = secret
    content["prepared"]["version"] = secret
    assert secret.encode() not in serialised(release(content, allowed("prepare")).content)
    content = fresh(replies, "prepare")
    content["prepared"][secret] = 1
    withheld(content, "prepare", secret)


@property_test
@given(categories=st.dictionaries(SECRETS, st.sampled_from(list(QUARANTINE)), max_size=20), reason=SECRETS)
def test_quarantined_cases_tell_their_number_and_categories_only(replies, categories, reason):
    def leave(cases):
        content = fresh(replies, "prepare")
        summary = json.loads(content["prepared"]["summary"]) | {"quarantined": dict.fromkeys(cases, reason)}
        content["prepared"]["summary"] = json.dumps(summary)
        return release(content, allowed("prepare", categories=categories))

    released = leave(categories)
    assert b"Jane" not in serialised(released.content)
    assert sorted(released.numbers["quarantined"].values()) == sorted(QUARANTINE[name] for name in categories.values())
    assert serialised(released.content) == serialised(leave(reversed(categories)).content)


@property_test
@given(entry=JSON)
@pytest.mark.parametrize("place", ["curve", "point", "round", "metrics", "auroc", "new"])
def test_anything_in_a_curve(replies, place, entry):
    content = fresh(replies, "alone")
    curve = json.loads(content["curve"]["json"])
    if place == "curve":
        curve = entry
    elif place == "point":
        curve[0] = entry
    elif place in ("auroc", "new"):
        curve[0]["metrics"][place] = entry
    else:
        curve[0][place] = entry
    content["curve"]["json"] = json.dumps(curve)
    try:
        released = release(content, allowed("alone"))
    except Withheld as error:
        assert "Jane" not in str(error)
    else:
        assert b"Jane" not in serialised(released.content)
        assert len(released.numbers["curve"]) <= JOB.federation.rounds and place not in ("point", "metrics", "new")


def test_a_curve_of_more_rounds_than_the_job_has(replies):
    content = fresh(replies, "alone")
    (point, _) = json.loads(content["curve"]["json"])
    for rounds in ([1, 1], [2, 1], [1, 2, 2], [0], [3]):
        content = fresh(replies, "alone")
        content["curve"]["json"] = json.dumps([{**point, "round": number} for number in rounds])
        withheld(content, "alone")


# Faults


@property_test
@given(
    secret=SECRETS, kind=st.sampled_from([RuntimeError, ValueError, FileNotFoundError, KeyError, BadInput, RunStopped])
)
def test_the_text_of_an_exception_stays(replies, kind, secret):
    named = type(secret, (kind,), {})  # the name of a class can be made to hold a name, too
    for error in (kind(secret), named(secret)):
        code, parameters = fault_of(error)
        released = release(fault_content("here", code, **parameters), allowed("train"))
        assert b"Jane" not in serialised(released.content)
        assert "Jane" not in read_fault(dict(released.content["fault"]))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (OSError(28, "No space left on device", "/data/Jane Doe"), "its disk is full"),
        (PermissionError(13, "Permission denied", "/data/Jane Doe"), "its system says: Permission denied"),
        (ZeroDivisionError("Jane Doe"), "ZeroDivisionError; the site's log has the whole story"),
        (BadOrder("expired", "the order of Jane Doe is over"), "its time is over"),
        (Fault("lr too high for Jane Doe", "diverged", round=7), "loss in round 7 is not finite"),
        (
            Refused([Refusal("policy.max_rounds", "9", "5", "a wider policy")]),
            "asked 9, allowed 5; passes with a wider",
        ),
    ],
)
def test_what_the_coordinator_reads_of_an_exception(error, said):
    code, parameters = fault_of(error)
    released = release(fault_content("here", code, **parameters), allowed("train"))
    assert said in read_fault(dict(released.content["fault"]))
    assert b"Jane" not in serialised(released.content)


@property_test
@given(secret=SECRETS, question=st.sampled_from(list(ASKED)))
def test_a_fault_with_free_text(question, secret):
    refusal = {"rule": "policy.max_rounds", "asked": secret, "allowed": "5", "remedy": "a wider policy"}
    faults = [
        {"sentence": secret},
        {"code": "disk", "parameters": "{}", "sentence": secret},
        {"code": secret, "parameters": "{}"},
        {"code": "disk", "parameters": json.dumps({"text": secret})},
        {"code": "error", "parameters": json.dumps({"name": secret})},
        {"code": "version", "parameters": json.dumps({"installed": secret, "expected": "1.0.0"})},
        {"code": "diverged", "parameters": json.dumps({"round": secret})},
        {"code": "policy", "parameters": json.dumps({"refusals": [refusal]})},
        {"code": "policy", "parameters": json.dumps({"refusals": [{**refusal, "asked": "9", "remedy": secret}]})},
        {"code": "policy", "parameters": json.dumps({"refusals": [{**refusal, "asked": "9", "note": secret}]})},
        {"code": "policy", "parameters": json.dumps({"refusals": [{**refusal, "asked": "9", "rule": "policy.Jane"}]})},
        {"code": "disk", "parameters": f"{secret}"},
    ]
    for fault in faults:
        withheld(RecordDict({"fault": ConfigRecord(fault)}), question, secret)
    beside = RecordDict(
        {"fault": ConfigRecord({"code": "disk", "parameters": "{}"}), "note": ConfigRecord({"n": secret})}
    )
    withheld(beside, question, secret)
    prepared = ConfigRecord({"site": "here", "summary": secret})
    withheld(RecordDict({"fault": ConfigRecord({"code": "disk", "parameters": "{}"}), "prepared": prepared}), question)


@pytest.mark.parametrize("question", list(ASKED))
def test_without_a_trusted_job_nothing_but_a_fault_leaves(replies, question):
    nothing = allowed_for(None, question, site="here", policy=POLICY)
    with pytest.raises(Withheld):
        release(fresh(replies, question), nothing)
    assert release(fault_content("here", "order", reason="untrusted"), nothing).numbers["fault"] == "order"


NAMES = st.lists(st.sampled_from(["cnn", "unet", "segmentation", "classification", "fedavg", "auroc", "ward-7"]))


@property_test
@given(
    policy=st.builds(
        Policy,
        tasks=NAMES,
        models=NAMES,
        algorithms=NAMES,
        metrics=NAMES,
        max_rounds=st.integers(0, 3),
        max_local_steps=st.integers(0, 3),
        max_hours_per_day=st.sampled_from([0, 0.5, 24]),
        opening_hours=st.sampled_from([None, "20:00-06:00", "08:30-09:00"]),
        protections=st.fixed_dictionaries({"clip": st.sampled_from([None, 0.5, 1e-5]), "noise": st.just(1.1)}),
    ),
    fields=st.dictionaries(
        st.sampled_from(["round", "steps", "replicates", "split", "model"]),
        st.sampled_from([0, 99, 10**12, "x", "Jane Doe"]),
    ),
    question=st.sampled_from([*QUESTIONS, "Jane Doe"]),
    hour=st.integers(0, 23),
)
def test_every_refusal_of_a_policy_reaches_the_coordinator(policy, fields, question, hour):
    counts = {"train": 3, "validation": 0, "test": 1}
    refusals = [
        *judge_coordinator(policy, "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"),
        *judge_job(policy, JOB, patients=counts, cases=counts),
        *judge_question(
            policy,
            JOB,
            question,
            now=datetime(2026, 1, 1, hour, 59),
            seconds_used_today=40_000.0,
            fields=fields,
            patients=counts,
        ),
    ]
    code, parameters = fault_of(Refused(refusals))
    released = release(fault_content("here", code, **parameters), allowed("train", policy=policy))
    said = read_fault(dict(released.content["fault"]))
    assert all(str(refusal) in said for refusal in refusals)
    assert b"Jane" not in serialised(released.content)


def test_a_reply_without_its_records_is_not_sent():
    assert "missing: numbers, weights" in withheld(RecordDict(), "train")
    empty = RecordDict({"weights": ArrayRecord(), "numbers": MetricRecord()})
    withheld(empty, "train")
