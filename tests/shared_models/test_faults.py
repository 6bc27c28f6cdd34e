"""What may be said of a failure, and that nothing else can be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.errors import BadInput
from shared_models.faults import (
    FAULTS,
    LARGEST_PARAMETERS,
    MOST_REFUSALS,
    NO_VARIANT,
    ORDERS,
    WITHHELD,
    Fault,
    check,
    fields,
    known_error,
    parse,
    read_fault,
    sentence,
)
from shared_models.orders import BadOrder, open_order

REFUSAL = {
    "rule": "policy.max_rounds",
    "asked": "100",
    "allowed": "50",
    "remedy": "federation.rounds of at most 50 or a wider policy",
}
EXAMPLES = {
    "unreadable_cases": {"cases": 3, "checked": 20, "tolerated": 2},
    "channels": {"cases": 3, "checked": 20},
    "does_not_fit": {"needed": 9000, "there": 4000},
    "labels": {"cases": 3, "checked": 20},
    "shape": {"cases": 3, "checked": 20},
    "too_few_cases": {"cases": 20, "checked": 20},
    "too_few_patients": {"split": "train", "found": 3, "needed": 10},
    "system": {"errno": "EACCES"},
    "error": {"name": "ZeroDivisionError"},
    "diverged": {"round": 4},
    "overflow": {"round": 4},
    "lost": {"round": 4},
    "version": {"installed": "0.1.0", "expected": "0.2.0rc1"},
    "order": {"reason": "expired"},
    "policy": {"refusals": [REFUSAL]},
    "closed": {"hours": "20:00-06:00"},
    "withheld": {"reason": "tensor"},
    "variant": {"reason": "no_validation"},
}


@pytest.mark.parametrize("code", list(FAULTS))
def test_every_fault_reads_the_same_on_both_sides(code):
    parameters = EXAMPLES.get(code, {})
    said = sentence(code, **parameters)
    assert said and "{" not in said and not said.endswith(".")
    assert read_fault(fields(code, parameters)) == said
    assert parse(fields(code, parameters)) == (code, parameters)


def test_a_refusal_says_rule_asked_allowed_and_what_would_pass():
    assert sentence("policy", refusals=[REFUSAL]) == (
        "policy.max_rounds: asked 100, allowed 50; passes with federation.rounds of at most 50 or a wider policy"
    )


def test_every_reason_has_its_words():
    assert all(ORDERS[reason] in sentence("order", reason=reason) for reason in ORDERS)
    assert all(WITHHELD[reason] in sentence("withheld", reason=reason) for reason in WITHHELD)
    assert all(NO_VARIANT[reason] in sentence("variant", reason=reason) for reason in NO_VARIANT)


def test_an_order_that_is_refused_has_a_reason_that_the_coordinator_knows():
    with pytest.raises(BadOrder) as caught:
        open_order(None, None, [])
    assert sentence("order", reason=caught.value.code) == "it did not act on the order: it is not signed"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(min_size=1),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
)


@given(code=st.sampled_from(list(FAULTS)) | st.text(), parameters=st.dictionaries(st.text(), ANYTHING))
def test_a_parameter_that_is_not_declared_is_refused(code, parameters):
    if code in FAULTS and not FAULTS[code].parameters and not parameters:
        check(code, parameters)
    else:
        with pytest.raises(BadInput):
            check(code, parameters)


@given(code=st.sampled_from([code for code in EXAMPLES if code != "policy"]), value=st.text() | st.floats() | st.none())
def test_a_parameter_of_another_kind_is_refused(code, value):
    for name in EXAMPLES[code]:
        with pytest.raises(BadInput) as caught:
            check(code, {**EXAMPLES[code], name: value})
        assert not isinstance(value, str) or len(value) < 10 or value not in str(caught.value)


@pytest.mark.parametrize("value", [True, -1, 2**31, 10**300, 1.0, "1"])
def test_a_count_is_a_small_whole_number(value):
    with pytest.raises(BadInput):
        check("diverged", {"round": value})


@given(text=st.text(min_size=1))
@pytest.mark.parametrize("key", ["rule", "asked", "allowed", "remedy"])
def test_a_site_cannot_say_in_a_refusal_what_a_hospital_has_no_word_for(key, text):
    told = f"{text} Jane"
    with pytest.raises(BadInput):
        fields("policy", {"refusals": [{**REFUSAL, key: told}]}, words=frozenset({"unet"}))


@pytest.mark.parametrize(
    "change",
    [
        {"asked": "<script>"},
        {"asked": "9\n9"},
        {"asked": "\x1b[2J"},
        {"asked": "９"},
        {"asked": ""},
        {"asked": 9},
        {"asked": "9" * 500},
        {"note": "9"},
    ],
)
def test_a_coordinator_shows_nothing_that_is_not_in_the_form_of_a_refusal(change):
    record = {"code": "policy", "parameters": json.dumps({"refusals": [{**REFUSAL, **change}]})}
    assert read_fault(record) == "it gave a reason that is not in the vocabulary of this version of consilium"


def test_too_many_refusals_are_none():
    with pytest.raises(BadInput):
        check("policy", {"refusals": [REFUSAL] * (MOST_REFUSALS + 1)})
    with pytest.raises(BadInput):
        check("policy", {"refusals": []})


def test_names_of_the_job_may_stand_in_a_refusal():
    asked = {**REFUSAL, "rule": "policy.models", "asked": "swin-7", "allowed": "unet, resnet"}
    with pytest.raises(BadInput):
        fields("policy", {"refusals": [asked]}, words=frozenset({"unet"}))
    assert fields("policy", {"refusals": [asked]}, words=frozenset({"unet", "resnet", "swin-7"}))["code"] == "policy"


@given(record=st.dictionaries(st.sampled_from(["code", "parameters", "x"]), st.text() | st.integers() | st.binary()))
def test_whatever_a_record_holds_the_coordinator_has_a_sentence(record):
    assert read_fault(record) == "it gave a reason that is not in the vocabulary of this version of consilium"


@pytest.mark.parametrize("text", ["[" * 10**5, "{}" + " " * LARGEST_PARAMETERS, "9" * 5000, "NaN", "null", '{"a":1}'])
def test_parameters_that_are_none(text):
    with pytest.raises(BadInput):
        parse({"code": "disk", "parameters": text})


def test_a_fault_keeps_its_story_and_tells_its_code():
    fault = Fault("Jane Doe's loss is nan", "diverged", round=2)
    assert (str(fault), fault.code, fault.parameters) == ("Jane Doe's loss is nan", "diverged", {"round": 2})
    with pytest.raises(BadInput):
        Fault("the loss is nan", "diverged", round="Jane Doe")


def test_an_exception_of_an_unknown_class_leaves_as_the_class_that_it_is_made_from():
    class JaneDoe(UnicodeDecodeError):
        pass

    assert known_error(JaneDoe("utf-8", b"", 0, 1, "")) == "UnicodeDecodeError"
    assert known_error(BadInput("x")) == "Exception"
