"""The two files by which a hospital joins a federation: it sends a request, and gets a kit. Neither holds a secret.

Both are small JSON documents that come from outside, so they are read with every check here, before anything uses them.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from pydantic import Field, field_validator, model_validator

from shared_models.certificates import is_authority, read_certificate
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.job_sentences import refusals
from shared_models.keys import canonical_json, load_public, public_line, sign, verify
from shared_models.section import Section

SITE_NAME = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
LARGEST = 64 * 1024  # bytes of a document that comes from outside

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)
_ALL_NUMBERS = re.compile(r"[0-9.]+")

Name = Annotated[str, Field(pattern=SITE_NAME)]
Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class Document(Section):
    """A JSON file that says in ``schema`` what it is."""

    schema_name: ClassVar[str]

    def content(self) -> dict[str, Any]:
        """What stands in the file."""
        return {"schema": self.schema_name, **self.model_dump()}


class Request(Document):
    """A hospital asks to be admitted: its name, its public key, and the proof that it holds the private half."""

    schema_name: ClassVar[str] = "consilium-enrolment/1"

    site: Name
    public_key: str
    created: Moment
    signature: str = Field(description="By the site's key, over the canonical JSON of everything else.")

    @field_validator("public_key")
    @classmethod
    def _is_of_a_site(cls, line: str) -> str:
        return check_public_key(line, of_site=True)

    @model_validator(mode="after")
    def _is_signed(self) -> Request:
        if not verify(self.public_key, _signed(self.content()), self.signature):
            raise ValueError("the signature is not of this key over this request; it was altered on the way or forged")
        return self


class Kit(Document):
    """What a hospital needs to join, beside its own key: where to dial, and whom to trust."""

    schema_name: ClassVar[str] = "consilium-kit/1"

    federation: Name
    site: Name
    address: str = Field(description="HOST:PORT of the coordinator.")
    ca_certificate: str = Field(description="PEM.")
    signing_key: str = Field(description="The public key that the coordinator's orders are signed with.")
    created: Moment
    introduction: str = Field(description="By the signing key, over federation, address and CA certificate.")

    @field_validator("address")
    @classmethod
    def _can_be_dialled(cls, address: str) -> str:
        parse_address(address)
        return address

    @field_validator("ca_certificate")
    @classmethod
    def _is_an_authority(cls, pem: str) -> str:
        try:
            authority = is_authority(read_certificate(pem, "the text"))
        except BadInput as error:
            raise ValueError(str(error)) from None
        if not authority:
            raise ValueError("expected the certificate of an authority (CA:TRUE, signed by itself)")
        return pem

    @field_validator("signing_key")
    @classmethod
    def _signs_orders(cls, line: str) -> str:
        return check_public_key(line, of_site=False)

    @model_validator(mode="after")
    def _is_introduced(self) -> Kit:
        # Who has compared the fingerprint of the signing key has thereby checked the address and the CA as well.
        signed = introduced(self.federation, self.address, self.ca_certificate)
        if not verify(self.signing_key, signed, self.introduction):
            raise ValueError("the address or the CA certificate is not the one that this signing key vouches for")
        return self


def introduced(federation: str, address: str, ca_certificate: str) -> bytes:
    """What a coordinator signs once, when it makes the federation, so that nobody can put another CA into a kit."""
    values = {"ca_certificate": ca_certificate, "address": address, "federation": federation}
    return canonical_json({"schema": Kit.schema_name, **values}).encode("ascii")


def make_request(site: str, key: EllipticCurvePrivateKey) -> Request:
    """A signed request to be admitted under a name.

    Raises:
        BadInput: the name is none.
    """
    values = {"site": check_name(site, "a site"), "public_key": public_line(key), "created": moment(datetime.now(UTC))}
    signature = sign(key, _signed({"schema": Request.schema_name, **values}))
    return Request(**values, signature=signature)


def read_request(path: Path) -> Request:
    """The request in a file, its proof of possession verified.

    Raises:
        BadInput: the file cannot be read or is no request, or its signature is not of its key.
    """
    return read_document(path, Request)


def read_kit(path: Path) -> Kit:
    """The kit in a file.

    Raises:
        BadInput: the file cannot be read or is no kit.
    """
    return read_document(path, Kit)


def write(path: Path, model: Document) -> None:
    """Write a document; the file appears whole, in place of one that is there.

    Raises:
        OSError: the folder is not there to write to, or full.
    """
    with whole_file(path) as file:
        file.write((json.dumps(model.content(), indent=2) + "\n").encode())


SomeDocument = TypeVar("SomeDocument", bound=Document)


def read_document(path: Path, model: type[SomeDocument], largest: int = LARGEST) -> SomeDocument:
    """The document in a file of at most ``largest`` bytes.

    Raises:
        BadInput: the file cannot be read or is too large, or is not this document; says all that is wrong.
    """
    values = _read_json(path, largest)
    expected = f"expected one with schema '{model.schema_name}'"
    if not isinstance(values, dict) or "schema" not in values:
        raise BadInput(f"{path}: not a file of consilium; {expected}")
    if (found := values.pop("schema")) != model.schema_name:
        raise BadInput(f"{path}: schema {str(found)[:60]!r}; {expected}; was another file meant?")
    if wrong := refusals(model, values):
        lines = [(".".join(map(str, refusal.path)), refusal.sentence) for refusal in wrong]
        raise BadInput("\n".join(f"{path}: {f'{where}: ' if where else ''}{sentence}" for where, sentence in lines))
    return model.model_validate(values, strict=True)


def check_name(name: str, what: str) -> str:
    """The name of a site or a federation (``what`` says of which), safe as a file's name and in a log.

    Raises:
        BadInput: the name is none.
    """
    if not re.fullmatch(SITE_NAME, name) or name.endswith("\n"):
        raise BadInput(
            f"{name[:80]!r} is no name for {what}; expected 1 to 63 of a-z 0-9 _ . - that start with a letter or digit"
        )
    return name


def check_public_key(line: str, *, of_site: bool) -> str:
    """The public key of a site (ECDSA on P-384), or else of a coordinator (Ed25519), in its one spelling.

    Raises:
        ValueError: the line is no such key.
    """
    kind = "ecdsa-sha2-nistp384" if of_site else "ssh-ed25519"
    try:
        load_public(line)
    except BadInput as error:
        raise ValueError(str(error)) from None
    if not line.startswith(f"{kind} "):
        raise ValueError(f"expected a key of the kind {kind}, found {line.split()[0]}")
    return line


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; the host is a DNS name, an IPv4 address, or an IPv6 address in brackets.

    Raises:
        ValueError: the address is none.
    """
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if colon and digits and 0 < int(port) < 65536 and is_host(bare) and (":" in bare) == (bare != host):
        return bare, int(port)
    raise ValueError(
        f"{address[:80]!r} is no address; "
        "expected HOST:PORT, such as fl.example.org:443, 192.0.2.7:443 or [2001:db8::7]:443"
    )


def is_host(text: str) -> bool:
    """Whether a text is a DNS name or an IP address."""
    if "%" in text:  # an interface of this machine means nothing elsewhere
        return False
    if ":" in text or _ALL_NUMBERS.fullmatch(text):
        try:
            return str(ip_address(text)) == text.lower()
        except ValueError:
            return False
    return bool(_HOST.fullmatch(text))


def moment(now: datetime) -> str:
    """A time as documents say it: in UTC, to the second."""
    return f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _signed(content: dict[str, Any]) -> bytes:
    return canonical_json({key: value for key, value in content.items() if key != "signature"}).encode("ascii")


def _read_json(path: Path, largest: int) -> Any:
    try:
        # A pipe in place of the file would wait for ever.
        if not path.is_file():
            raise BadInput(f"{path}: there is no such file")
        with path.open("rb") as file:
            raw = file.read(largest + 1)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(raw) > largest:
        raise BadInput(f"{path}: larger than {largest // 1024} KiB; was another file meant?")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_keys_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadInput(f"{path}: not valid JSON ({reason[:120]}); ask for the file again") from None


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values under one key would be read one way here and another way elsewhere."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
