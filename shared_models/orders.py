"""The signed order that comes with every message of a coordinator: who asks whom for what, once, until when.

Flower's messages are not signed, and whoever reaches a SuperLink could send one. A site therefore does nothing that
it holds no order for: the canonical JSON of an `Order`, signed by a key that the hospital trusts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared_models.errors import BadInput
from shared_models.keys import PrivateKey, canonical_json, key_fingerprint, public_line, sign, verify

SCHEMA = "consilium-order/1"
LARGEST_TEXT = 64 * 1024  # bytes
CLOCK_TOLERANCE = 300.0
"""Seconds by which the coordinator's clock may be ahead of the site's."""

Code = Literal[
    "unsigned",
    "altered",
    "untrusted",
    "expired",
    "replayed",
    "wrong_site",
    "wrong_version",
    "wrong_job",
    "malformed",
]

_HASH = re.compile(r"[0-9a-f]{64}")
_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class BadOrder(BadInput):
    """A message that the site does not act on; `code` says why in one word, the message in one sentence."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code: Code = code


@dataclass(frozen=True)
class Order:
    """What a coordinator asks one site to do, once."""

    federation: str
    run: str
    """Its name: at most 200 letters, digits, `_`, `.` or `-`."""
    flower_run: int
    site: str
    question: str
    """The type of Flower's message: query.prepare, query.statistics, train, train.alone or evaluate."""
    job_hash: str
    """SHA-256 of the job's canonical JSON, as hexadecimal digits."""
    version: str
    """The consilium package that the site must have."""
    nonce: str
    """Drawn at random for this order alone: 16 to 64 letters, digits, `-` or `_`."""
    issued: float
    """Unix time, s."""
    expires: float
    """Unix time, s."""
    fields: dict[str, int | float | str | bool]
    """The rest of the instruction, such as the round."""


_TYPES: dict[str, type] = {
    "federation": str,
    "run": str,
    "flower_run": int,
    "site": str,
    "question": str,
    "job_hash": str,
    "version": str,
    "nonce": str,
    "issued": float,
    "expires": float,
    "fields": dict,
}


def sign_order(order: Order, key: PrivateKey) -> tuple[str, str]:
    """The order as canonical JSON, and the signature over it in base64.

    Raises:
        BadOrder: the order is not one that a site could open: a wrong type, a NaN, or more than 64 KiB.
    """
    content = {
        **dataclasses.asdict(order),
        "issued": float(order.issued),
        "expires": float(order.expires),
        "schema": SCHEMA,
        "signer": key_fingerprint(public_line(key)),
    }
    try:
        text = canonical_json(content)
    except (TypeError, ValueError) as error:
        raise BadOrder("malformed", f"the order cannot be written as JSON: {error}") from None
    _parse(text)
    return text, sign(key, text.encode("ascii"))


def open_order(text: object, signature: object, trusted: Collection[str]) -> Order:
    """The order of a message, once it is known to be whole and signed by a key that the hospital trusts.

    Args:
        text: what the message carries as its order; anything.
        signature: what it carries as the signature; anything.
        trusted: public keys, each as `shared_models.keys.public_line` writes it.

    Raises:
        BadOrder: unsigned, malformed, untrusted or altered.
        BadInput: a line of ``trusted`` is no public key.
    """
    if not (isinstance(text, str) and text and isinstance(signature, str) and signature):
        raise BadOrder("unsigned", "the message carries no signed order; this site acts on signed orders only")
    order, signer = _parse(text)
    lines = {key_fingerprint(line): line for line in trusted}
    if signer not in lines:
        names = ", ".join(sorted(lines)) or "no key at all"
        found = f"the order is signed by {signer!r}, and this site trusts {names}"
        raise BadOrder("untrusted", f"{found}; a new key of the coordinator needs a new kit")
    if not verify(lines[signer], text.encode("ascii"), signature):
        raise BadOrder(
            "altered", f"the order is not what {signer} signed; it was altered after the coordinator made it"
        )
    return order


def check_order(
    order: Order,
    *,
    federation: str,
    site: str,
    question: str,
    fields: Mapping[str, Any],
    job_text: str,
    flower_run: int,
    version: str,
    now: float,
    used: Container[str],
) -> None:
    """See that an opened order is for this site, this message and this moment.

    Args:
        federation: the one that the site has joined.
        site: the site's own name.
        question: the type of the message.
        fields: what the message carries beside the order and the job.
        job_text: the job's canonical JSON, as it came or as it is kept.
        flower_run: the Flower run of the message.
        version: of the consilium package that is installed here.
        now: Unix time, s.
        used: the nonces of orders that were acted on; one is needed until its order expires.

    Raises:
        BadOrder: the first thing that does not fit.
    """
    if order.federation != federation:
        raise BadOrder(
            "wrong_site", f"the order is for federation {order.federation!r}; this site is in {federation!r}"
        )
    if order.site != site:
        raise BadOrder("wrong_site", f"the order is for site {order.site!r}; this is {site!r}")
    if order.flower_run != flower_run:
        found = f"the order was made for Flower run {order.flower_run} and came in run {flower_run}"
        raise BadOrder("replayed", f"{found}; an order holds for its own run only")
    if order.nonce in used:
        raise BadOrder("replayed", f"the order {order.nonce!r} was acted on before; each holds once")
    if order.issued > now + CLOCK_TOLERANCE:
        found = f"the order was issued {order.issued - now:.0f} s in the future"
        raise BadOrder("expired", f"{found}; set the clocks of this site and of the coordinator by the same time")
    if order.expires < now:
        found = f"the order expired {now - order.expires:.0f} s ago"
        raise BadOrder("expired", f"{found}; the coordinator has to ask again, or one of the two clocks is wrong")
    if order.question != question:
        raise BadOrder("altered", f"the order asks for {order.question!r} and came in a message for {question!r}")
    _check_fields(order.fields, fields)
    if order.version != version:
        found = f"the order is for consilium {order.version!r}; installed here is {version!r}"
        raise BadOrder("wrong_version", f"{found}; coordinator and sites need the same version")
    if hashlib.sha256(job_text.encode("utf-8", "surrogatepass")).hexdigest() != order.job_hash:
        raise BadOrder("wrong_job", f"the job that came is not the one that was signed, {order.job_hash[:16]}")


def _check_fields(signed: Mapping[str, Any], came: Mapping[str, Any]) -> None:
    """Compared key by key as JSON, in which 1, 1.0 and true are three values."""
    for key in sorted({*signed, *came}):
        try:
            same = key in signed and key in came and canonical_json(signed[key]) == canonical_json(came[key])
        except (TypeError, ValueError):
            same = False
        if not same:
            raise BadOrder(
                "altered", f"{key[:60]!r} in the message is not what the order says; it was altered on the way"
            )


def _parse(text: str) -> tuple[Order, str]:
    """The order and the fingerprint of who says to have signed it, from a text of which nothing is known."""
    if len(text) > LARGEST_TEXT:
        raise _malformed(f"it has {len(text)} characters, expected at most {LARGEST_TEXT}")
    try:
        content = json.loads(text)
        # Also finds keys that come twice, NaN, and other spellings of the same order.
        canonical = canonical_json(content) == text
    except (ValueError, RecursionError):
        raise _malformed("it is not JSON") from None
    if not canonical or not isinstance(content, dict):
        raise _malformed("it is not an object in canonical JSON")
    if content.get("schema") != SCHEMA:
        raise _malformed(f"schema is {str(content.get('schema'))[:60]!r}, expected {SCHEMA!r}")
    expected = {*_TYPES, "schema", "signer"}
    if content.keys() != expected:
        raise _malformed(f"its keys differ in {sorted(expected ^ content.keys())[0][:60]!r}")
    for key, kind in _TYPES.items():
        if type(content[key]) is not kind:
            raise _malformed(f"{key} is a {type(content[key]).__name__}, expected a {kind.__name__}")
    signer = content.pop("signer")
    if not isinstance(signer, str):
        raise _malformed("signer is no fingerprint")
    del content["schema"]
    _check_values(content)
    return Order(**content), signer[:60]


def _check_values(content: dict[str, Any]) -> None:
    """See that values of the right types can be meant."""
    if not _HASH.fullmatch(content["job_hash"]):
        raise _malformed("job_hash is not the 64 hexadecimal digits of a SHA-256")
    if not _NONCE.fullmatch(content["nonce"]):
        raise _malformed("nonce is not 16 to 64 letters, digits, '-' or '_'")
    if not _RUN.fullmatch(content["run"]):  # the site names a folder after it
        raise _malformed("run is not 1 to 200 letters, digits, '_', '.' or '-' that begin with a letter or digit")
    times = content["issued"], content["expires"]
    if not all(map(math.isfinite, times)) or times[0] >= times[1]:
        raise _malformed("it expires before it is issued")
    for key, value in content["fields"].items():
        if type(value) not in (int, float, str, bool):
            raise _malformed(f"field {key[:60]!r} is a {type(value).__name__}, expected a number, a text or a truth")


def _malformed(found: str) -> BadOrder:
    return BadOrder("malformed", f"the order cannot be read: {found}; the coordinator may run another version")
