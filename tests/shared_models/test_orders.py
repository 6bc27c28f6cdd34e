"""The signed order: a good one is opened, and every other is refused for the right reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_models.keys import canonical_json, key_fingerprint, new_signing_key, public_line, sign
from shared_models.orders import BadOrder, Order, check_order, open_order, sign_order

KEY = new_signing_key()
TRUSTED = [public_line(new_signing_key()), public_line(KEY)]
JOB = '{"name":"hippocampus"}'
NOW = 1_800_000_000.0
ORDER = Order(
    federation="north",
    run="hippocampus-1",
    flower_run=2**63 + 11,
    site="aachen",
    question="train",
    job_hash=hashlib.sha256(JOB.encode()).hexdigest(),
    version="0.1.0",
    nonce="0123456789abcdef",
    issued=NOW,
    expires=NOW + 3600,
    fields={"round": 3, "learning_rate": 0.1, "phase": "train", "last": False},
)
TEXT, SIGNATURE = sign_order(ORDER, KEY)


def check(order: Order = ORDER, **other) -> None:
    message = {
        "federation": "north",
        "site": "aachen",
        "question": "train",
        "fields": dict(ORDER.fields),
        "job_text": JOB,
        "flower_run": ORDER.flower_run,
        "version": "0.1.0",
        "now": NOW + 1,
        "used": set(),
    }
    check_order(order, **{**message, **other})


def signed(content: object) -> tuple[str, str]:
    """What a coordinator with the right key but other software might send."""
    text = content if isinstance(content, str) else canonical_json(content)
    return text, sign(KEY, text.encode())


def code(run, *arguments, **keywords) -> str:
    with pytest.raises(BadOrder) as caught:
        run(*arguments, **keywords)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 500
    return caught.value.code


def test_a_signed_order_arrives_as_it_was_given_and_is_acted_on() -> None:
    order = open_order(TEXT, SIGNATURE, TRUSTED)
    assert order == ORDER
    check(order)
    check(order, now=NOW - 299)


@pytest.mark.parametrize(("text", "signature"), [("", SIGNATURE), (TEXT, ""), (None, None), (TEXT, 7), (b"x", "y")])
def test_a_message_without_order_or_signature_is_unsigned(text, signature) -> None:
    assert code(open_order, text, signature, TRUSTED) == "unsigned"


def test_an_order_of_a_key_that_the_hospital_does_not_trust_is_refused_and_both_keys_are_named() -> None:
    with pytest.raises(BadOrder) as caught:
        open_order(TEXT, SIGNATURE, TRUSTED[:1])
    assert caught.value.code == "untrusted"
    assert all(key_fingerprint(line) in str(caught.value) for line in TRUSTED)
    assert code(open_order, TEXT, SIGNATURE, []) == "untrusted"


def test_a_stranger_who_claims_the_trusted_key_is_found() -> None:
    _, forged = sign_order(ORDER, new_signing_key())
    assert code(open_order, TEXT, forged, TRUSTED) == "altered"


@given(place=st.integers(0, len(TEXT) - 1), character=st.characters())
def test_no_character_of_an_order_can_be_changed(place, character) -> None:
    text = TEXT[:place] + character + TEXT[place + 1 :]
    if text != TEXT:
        assert code(open_order, text, SIGNATURE, TRUSTED) in {"altered", "malformed", "untrusted"}


@given(st.text(min_size=1), st.text(min_size=1))
def test_whatever_comes_as_an_order_ends_in_a_bad_order(text, signature) -> None:
    assert code(open_order, text, signature, TRUSTED) == "malformed"


CONTENT = json.loads(TEXT)


@pytest.mark.parametrize(
    "content",
    [
        {**CONTENT, "more": 1},
        {key: value for key, value in CONTENT.items() if key != "nonce"},
        {**CONTENT, "schema": "consilium-order/2"},
        {**CONTENT, "site": 3},
        {**CONTENT, "flower_run": True},
        {**CONTENT, "flower_run": 3.0},
        {**CONTENT, "issued": 1},
        {**CONTENT, "expires": NOW},
        {**CONTENT, "nonce": "short"},
        {**CONTENT, "job_hash": "A" * 64},
        {**CONTENT, "signer": []},
        {**CONTENT, "fields": {"round": [1, 2]}},
        {**CONTENT, "fields": {"round": None}},
        {**CONTENT, "fields": []},
        {**CONTENT, "fields": {"x": "y" * 70_000}},
        [],
        TEXT + " ",
        TEXT[:-1] + ',"site":"other"}',
        TEXT.replace('"round":3', '"round":NaN'),
        TEXT.replace('"round":3', '"round":1e999'),
        TEXT.replace('"round":3', '"round":' + "9" * 5000),
        "[" * 60_000,
    ],
    ids=range(22),
)
def test_an_order_of_another_form_is_malformed_even_when_it_is_signed(content) -> None:
    assert code(open_order, *signed(content), TRUSTED) == "malformed"


@pytest.mark.parametrize("fields", [{"round": float("nan")}, {"round": b"x"}, {"x": "y" * 70_000}])
def test_the_coordinator_cannot_sign_what_no_site_could_open(fields) -> None:
    assert code(sign_order, replace(ORDER, fields=fields), KEY) == "malformed"


@pytest.mark.parametrize(
    ("expected", "other"),
    [
        ("wrong_site", {"site": "bonn"}),
        ("wrong_site", {"federation": "south"}),
        ("replayed", {"flower_run": 5}),
        ("replayed", {"used": {ORDER.nonce}}),
        ("expired", {"now": ORDER.expires + 1}),
        ("expired", {"now": NOW - 301}),
        ("altered", {"question": "evaluate"}),
        ("altered", {"fields": {**ORDER.fields, "round": 4}}),
        ("altered", {"fields": {**ORDER.fields, "round": 3.0}}),
        ("altered", {"fields": {**ORDER.fields, "last": 0}}),
        ("altered", {"fields": {**ORDER.fields, "learning_rate": float("nan")}}),
        ("altered", {"fields": {**ORDER.fields, "round": b"3"}}),
        ("altered", {"fields": {**ORDER.fields, "more": 1}}),
        ("altered", {"fields": {"round": 3}}),
        ("wrong_version", {"version": "0.2.0"}),
        ("wrong_job", {"job_text": JOB + " "}),
        ("wrong_job", {"job_text": "\ud800"}),
    ],
)
def test_a_good_order_is_refused_where_it_does_not_belong(expected, other) -> None:
    assert code(check, **other) == expected
