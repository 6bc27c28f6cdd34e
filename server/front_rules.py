"""What the front lets through to the SuperLink: which requests, of whom, and how large.

What a refusal does to the SuperNode that meets it (flwr 1.41) decided the statuses:

- 401, no key of this federation: the SuperNode stops itself, and the hospital's daemon starts it again later.
- 403, a suspended site: it stays and asks again every 3 s, so that a readmitted site is back by itself. Its heartbeat
  alone would end for good at a 403, and therefore gets a 503.
- 503, the SuperLink is away or fails: it tries again, at most 20 s later, for ever.
- 413 and 415: nothing that a SuperNode sends. Like a 500, they could leave it running but deaf, which is why a 500 of
  the SuperLink reaches the sites as a 503.
"""

from __future__ import annotations

import base64
import logging
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from server.registry import Registry
from shared_models.errors import BadInput
from shared_models.keys import public_line

HEARTBEAT = "/v1/fleet/send-node-heartbeat"
PULL_MESSAGES = "/v1/fleet/pull-messages"
PUSH_OBJECT = "/v1/fleet/push-object"
ROUTES = frozenset(
    {
        "/v1/fleet/activate-node",
        "/v1/fleet/confirm-message-received",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        PULL_MESSAGES,
        "/v1/fleet/pull-object",
        "/v1/fleet/push-messages",
        PUSH_OBJECT,
        HEARTBEAT,
    }
)
"""What a SuperNode with a key of its own sends, always by POST. One without registers itself, which no site may."""

# The names and limits of flwr.common.constant and flwr.supercore.constant, which are not public; a test compares them.
PUBLIC_KEY_HEADER = b"flwr-public-key"
SIGNATURE_HEADER = b"flwr-signature"
TIMESTAMP_HEADER = b"flwr-timestamp"
OLDEST_SIGNATURE = timedelta(seconds=305)
CLOCK_SKEW = timedelta(seconds=5)
PASSED_ON = (
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    b"flwr-component-name",
    b"flwr-package-name",
    b"flwr-package-version",
    b"accept",
    b"content-type",
)
"""The headers of a request that reach the SuperLink."""
PASSED_BACK = ("content-type", "content-length", "flwr-version-incompatibility-message")
"""The headers of an answer that reach the site."""

LARGEST_OBJECT = 16 * 1024 * 1024  # bytes; Flower cuts tensors into objects of at most 5 MB
# Of every other request, in bytes; the names of 10,000 objects fit. Protobuf needs some 30 times the memory for a body
# of nothing but empty messages, two bytes each: half a gigabyte of the SuperLink for 16 MiB.
LARGEST_MESSAGE = 1024 * 1024
LARGEST_KEY = 1024  # bytes of base64; one on P-384 takes 288

_log = logging.getLogger(__name__)


class Refused(Exception):
    """A request is not let through: with which HTTP status, why, and of which site, where one has signed it."""

    def __init__(self, status: int, sentence: str, site: str | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.site = site


def check_route(method: str, target: bytes) -> str:
    """The path of a request that a SuperNode makes.

    ``target`` is as it was sent, so that no spelling of it means one thing here and another at the SuperLink.

    Raises:
        Refused: it is any other.
    """
    path = target.decode("ascii", "replace")
    if method != "POST" or path not in ROUTES:
        raise Refused(403, "only the requests of a SuperNode are let through here")
    return path


def signed_by(headers: dict[bytes, bytes], registry: Registry, path: str) -> str:
    """The name of the active site that signed this request not long ago.

    The SuperLink checks the same signature again. Here it keeps strangers from sending a body, and from having their
    refusals counted as those of a site.

    Raises:
        Refused: no site did, or one that is suspended.
    """
    timestamp = headers.get(TIMESTAMP_HEADER, b"")
    try:
        key, line = _public_key(headers.get(PUBLIC_KEY_HEADER, b""))
        signature = base64.b64decode(headers.get(SIGNATURE_HEADER, b""), validate=True)
        age = datetime.now(UTC) - datetime.fromisoformat(timestamp.decode("ascii"))
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        raise Refused(401, "no signature of a site; expected the headers of a SuperNode with a key") from None
    try:
        site = registry.site_of(line)
    except BadInput as error:
        # The text names files of the coordinator, which are not for the sites.
        _log.error("%s", error)
        raise Refused(503, "the registry cannot be read") from None
    if site is None:
        raise Refused(401, "no site of this federation has this key; ask the coordinator to admit it")
    try:
        key.verify(signature, timestamp, ECDSA(SHA256()))
    except InvalidSignature:
        raise Refused(401, "the signature does not fit the key") from None
    if not -CLOCK_SKEW < age < OLDEST_SIGNATURE:
        seconds = age.total_seconds()
        raise Refused(401, f"signed {seconds:.0f} s ago by its clock; set the clock of the site right", site.name)
    if site.state != "active":
        status = 503 if path == HEARTBEAT else 403
        raise Refused(status, "the coordinator has suspended this site", site.name)
    return site.name


def largest_body(path: str) -> int:
    """The most bytes that the body of a request may have."""
    return LARGEST_OBJECT if path == PUSH_OBJECT else LARGEST_MESSAGE


def check_body(headers: dict[bytes, bytes], largest: int) -> int | None:
    """The length that the body has by its header, in bytes; None when it comes in chunks and must be counted.

    Raises:
        Refused: it is compressed, or has more bytes than ``largest``.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(415, "a compressed body is not taken; send it as it is")
    if b"transfer-encoding" in headers or b"content-length" not in headers:
        return None
    length = int(headers[b"content-length"])  # digits only, or h11 would have refused it
    check_length(length, largest)
    return length


def check_length(length: int, largest: int) -> None:
    """Whether a body of so many bytes is taken.

    Raises:
        Refused: it is not.
    """
    if length > largest:
        raise Refused(413, f"a body of {length} bytes or more; at most {largest} are taken")


@lru_cache(maxsize=256)
def _public_key(header: bytes) -> tuple[EllipticCurvePublicKey, str]:
    """The key in a header, and how the registry spells it.

    Raises:
        ValueError, UnsupportedAlgorithm: it is none that a site could have.
    """
    if len(header) > LARGEST_KEY:
        raise ValueError("too long")
    key = load_pem_public_key(base64.b64decode(header, validate=True))
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("not on an elliptic curve")
    return key, public_line(key)
