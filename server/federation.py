"""A coordinator's home: the folder that a federation is, and where in it everything stands."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from cryptography.x509 import Certificate
from pydantic import Field, field_validator

from server.registry import Registry
from shared_models.certificates import expiry_warning, is_authority, issued_by, read_certificate
from shared_models.enrolment import Document, Moment, Name, check_public_key, introduced, parse_address, read_document
from shared_models.errors import BadInput
from shared_models.keys import is_encrypted, verify


class FederationFile(Document):
    """What federation.json says."""

    schema_name: ClassVar[str] = "consilium-federation/1"

    name: Name
    address: str
    created: Moment
    introduction: str = Field(description="The signature of every kit; see shared_models.enrolment.Kit.")

    @field_validator("address")
    @classmethod
    def _can_be_dialled(cls, address: str) -> str:
        parse_address(address)
        return address


@dataclass(frozen=True)
class Paths:
    """Where everything stands in a coordinator's home."""

    home: Path

    @property
    def federation(self) -> Path:
        """The name and the address of the federation."""
        return self.home / "federation.json"

    @property
    def ca_key(self) -> Path:
        """The authority's private key; only `renew` needs it."""
        return self.home / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """The authority's certificate, which every site holds."""
        return self.home / "ca.crt"

    @property
    def server_key(self) -> Path:
        """The private key of the server certificate."""
        return self.home / "server.key"

    @property
    def server_certificate(self) -> Path:
        """What the coordinator shows to a site that connects."""
        return self.home / "server.crt"

    @property
    def signing_key(self) -> Path:
        """The private key that orders are signed with."""
        return self.home / "job-signing.key"

    @property
    def signing_public(self) -> Path:
        """The public half of it, one line."""
        return self.home / "job-signing.pub"

    @property
    def registry(self) -> Path:
        """Which sites there are."""
        return self.home / "registry.json"

    @property
    def superlink(self) -> Path:
        """The state of Flower's SuperLink."""
        return self.home / "superlink"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.home / "runs"

    @property
    def logs(self) -> Path:
        """What the processes of the coordinator say."""
        return self.home / "logs"


@dataclass(frozen=True)
class Federation:
    """A federation as its coordinator holds it."""

    paths: Paths
    name: str
    host: str
    port: int
    address: str
    created: str
    signing_public: str
    """The public key that sites trust orders by, as a line of OpenSSH."""
    ca_certificate: str
    """PEM."""
    introduction: str
    """The signature by which a kit shows that address and CA certificate are of this federation."""

    @property
    def registry(self) -> Registry:
        """The sites, as the file says now."""
        return Registry(self.paths.registry)

    def warnings(self, now: datetime) -> list[str]:
        """A sentence for each certificate that is not valid for 30 more days.

        Raises:
            BadInput: a certificate cannot be read.
        """
        certificates = (self.paths.server_certificate, self.paths.ca_certificate)
        return [warning for path in certificates if (warning := expiry_warning(_text(path), now))]


def open_federation(home: Path) -> Federation:
    """The federation in a folder that `consilium coordinator init` made.

    Raises:
        BadInput: the folder is none, or something in it is missing, damaged, readable by others or of another one.
    """
    paths = Paths(home)
    if not paths.federation.is_file():
        raise BadInput(f"{home}: no federation here; `consilium coordinator init` makes one, --home says where one is")
    if stat.S_IMODE(home.stat().st_mode) & 0o077:
        raise BadInput(f"{home}: others can look into this folder, which holds keys; run: chmod 700 {home}")
    file = read_document(paths.federation, FederationFile)
    for key in (paths.server_key, paths.signing_key):
        is_encrypted(key)  # refuses one that is missing or readable by others
    if paths.ca_key.exists():  # its owner may keep it elsewhere, and bring it back for a renewal
        is_encrypted(paths.ca_key)
    _check_chain(paths)
    try:
        signing_public = check_public_key(_text(paths.signing_public).strip(), of_site=False)
    except ValueError as error:
        raise BadInput(f"{paths.signing_public}: {error}") from None
    ca_certificate = _text(paths.ca_certificate)
    if not verify(signing_public, introduced(file.name, file.address, ca_certificate), file.introduction):
        raise BadInput(
            f"{paths.federation}: name, address, {paths.ca_certificate.name} and {paths.signing_public.name} do not "
            "belong together; one of them was changed by hand, bring it back from a copy"
        )
    Registry(paths.registry).entries()
    host, port = parse_address(file.address)
    return Federation(
        paths=paths,
        name=file.name,
        host=host,
        port=port,
        address=file.address,
        created=file.created,
        signing_public=signing_public,
        ca_certificate=ca_certificate,
        introduction=file.introduction,
    )


def _check_chain(paths: Paths) -> None:
    authority = _certificate(paths.ca_certificate)
    if not is_authority(authority):
        raise BadInput(f"{paths.ca_certificate}: not the certificate of an authority; bring the file back from a copy")
    if not issued_by(_certificate(paths.server_certificate), authority):
        raise BadInput(
            f"{paths.server_certificate}: not issued by {paths.ca_certificate}, so no site would trust it; "
            "bring both back from a copy"
        )


def _certificate(path: Path) -> Certificate:
    return read_certificate(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; bring it back from a copy of this folder") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
