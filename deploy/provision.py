"""Making a federation, letting sites into it, and joining one: keys, certificates and kits.

What is new is made in a folder beside its place and then renamed, so that a home is there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.federation import Federation, FederationFile, Paths, open_federation
from server.registry import new_registry
from shared_models.certificates import days_left, read_certificate
from shared_models.enrolment import (
    Kit,
    Request,
    check_name,
    introduced,
    is_host,
    make_request,
    moment,
    parse_address,
    read_kit,
    read_request,
    write,
)
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.keys import (
    key_fingerprint,
    load_private,
    new_signing_key,
    new_site_key,
    public_line,
    save_private,
    sign,
)

AUTHORITY_DAYS = 3652
SERVER_DAYS = 365
CLOCK_SLACK = timedelta(hours=1)  # a hospital whose clock is slow still takes a certificate made just now
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # what the coordinator itself dials


def init(
    home: Path,
    name: str,
    address: str,
    passphrase: bytes | None,
    sans: Iterable[str] = (),
    now: datetime | None = None,
) -> Federation:
    """Make a federation: its authority, server certificate, signing key and empty registry, in a new folder.

    ``address`` is HOST:PORT as hospitals dial it; ``sans`` are further host names and IP addresses that the server
    certificate is valid for. With a passphrase all three private keys are encrypted.

    Raises:
        BadInput: the folder exists, or the name, the address or a further host name is none.
    """
    check_name(name, "a federation")
    hosts = _hosts(address, sans)
    now = now or datetime.now(UTC)
    with _new_folder(home) as folder:
        paths = Paths(folder)
        ca_key, server_key = generate_private_key(SECP384R1()), generate_private_key(SECP384R1())
        signing_key = new_signing_key()
        for path, key in (
            (paths.ca_key, ca_key),
            (paths.server_key, server_key),
            (paths.signing_key, signing_key),
        ):
            save_private(path, key, passphrase)
        authority = _make_authority(name, ca_key, now)
        server = _make_server_certificate(hosts, server_key.public_key(), authority, ca_key, now)
        _write(paths.ca_certificate, authority.public_bytes(Encoding.PEM))
        _write(paths.server_certificate, server.public_bytes(Encoding.PEM))
        _write(paths.signing_public, f"{public_line(signing_key)}\n".encode())
        signed = introduced(name, address, authority.public_bytes(Encoding.PEM).decode("ascii"))
        introduction = sign(signing_key, signed)
        write(
            paths.federation,
            FederationFile(name=name, address=address, created=moment(now), introduction=introduction),
        )
        new_registry(paths.registry)
    return open_federation(home)


def renew(home: Path, passphrase: bytes | None, now: datetime | None = None) -> x509.Certificate:
    """A new server certificate, for the same key and hosts, from the same authority; no site has to do anything.

    Raises:
        BadInput: the folder is no federation, the authority's key does not open, or the authority has run out.
    """
    paths = open_federation(home).paths
    now = now or datetime.now(UTC)
    authority = _read(paths.ca_certificate)
    if days_left(authority, now) < 1:
        raise BadInput(f"{paths.ca_certificate}: this authority has run out; make a new federation and admit each site")
    key = load_private(paths.ca_key, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey) or key.public_key() != authority.public_key():
        raise BadInput(f"{paths.ca_key}: not the key of {paths.ca_certificate}; bring both back from a copy")
    old = _read(paths.server_certificate)
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    public = old.public_key()
    new = _make_server_certificate([str(name.value) for name in names], public, authority, key, now)
    _write(paths.server_certificate, new.public_bytes(Encoding.PEM))
    return new


def admit(home: Path, request_path: Path, now: datetime | None = None) -> Kit:
    """Take a site into the registry of a federation, and answer its request with a kit that holds nothing secret.

    Raises:
        BadInput: the folder is no federation, the request is none or not signed by its key, or another site has its
            name or its key.
    """
    federation = open_federation(home)
    request = read_request(request_path)
    now = now or datetime.now(UTC)
    federation.registry.admit(request.site, request.public_key, now)
    return Kit(
        federation=federation.name,
        site=request.site,
        address=federation.address,
        ca_certificate=federation.ca_certificate,
        signing_key=federation.signing_public,
        created=moment(now),
        introduction=federation.introduction,
    )


def init_site(home: Path, name: str, passphrase: bytes | None) -> Request:
    """Make a hospital's key, which never leaves its folder, and the request to send to the coordinator.

    Raises:
        BadInput: the folder exists, or the name is none.
    """
    check_name(name, "a site")
    with _new_folder(home) as folder:
        key = new_site_key()
        save_private(folder / "site.key", key, passphrase)
        _write(folder / "site.pub", f"{public_line(key)}\n".encode())
        request = make_request(name, key)
        write(folder / "request.json", request)
    return request


def kit_for(home: Path, kit_path: Path) -> Kit:
    """The kit in a file, when it answers the request of this hospital.

    Raises:
        BadInput: the folder is no hospital's, or the file is no kit or one for another site.
    """
    request_path = home / "request.json"
    if not request_path.is_file():
        raise BadInput(f"{home}: no request here; `consilium site init` makes one, --home says where one is")
    request, kit = read_request(request_path), read_kit(kit_path)
    if kit.site != request.site:
        raise BadInput(f"{kit_path}: a kit for site {kit.site}, but this is {request.site}; ask for the right one")
    return kit


def join(home: Path, kit: Kit, manifest: Path, data_root: Path) -> bool:
    """Put a kit that is trusted into a hospital's folder, with a site.yaml to edit; False when there is one already.

    Raises:
        BadInput: the manifest or the folder of the data is not there.
    """
    from client.config import write_site_config

    if not manifest.is_file():
        raise BadInput(f"{manifest}: there is no such manifest")
    if not data_root.is_dir():
        raise BadInput(f"{data_root}: there is no such folder; --data-root is the one that all images are under")
    write(home / "kit.json", kit)
    config = home / "site.yaml"
    if config.exists():
        return False
    write_site_config(
        config,
        site=kit.site,
        kit=home / "kit.json",
        key=home / "site.key",
        manifest=manifest.resolve(),
        data_root=data_root.resolve(),
        work=home / "work",
        coordinator=key_fingerprint(kit.signing_key),
    )
    return True


def _make_authority(name: str, key: EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    subject = _subject("Authority", name)
    return (
        _begin(subject, subject, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _make_server_certificate(
    hosts: list[str],
    public: CertificatePublicKeyTypes,
    authority: x509.Certificate,
    key: EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    """A certificate for these hosts, the first of which is its name; it never outlives its authority."""
    names = [x509.IPAddress(ip_address(host)) if _is_ip(host) else x509.DNSName(host) for host in hosts]
    until = min(now + timedelta(days=SERVER_DAYS), authority.not_valid_after_utc)
    return (
        _begin(_subject("Coordinator", hosts[0][:64]), authority.subject, public, now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_issuer(authority), critical=False)
        .sign(key, hashes.SHA384())
    )


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    public: CertificatePublicKeyTypes,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _subject(unit: str, common: str) -> x509.Name:
    """The unit keeps the authority's name apart from a server's, even where the federation is called like a host."""
    parts = ((NameOID.ORGANIZATION_NAME, "Consilium"), (NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in (*parts, (NameOID.COMMON_NAME, common))])


def _issuer(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hosts(address: str, sans: Iterable[str]) -> list[str]:
    """Every host that the server certificate is for, the one that hospitals dial first, none twice."""
    try:
        host, _ = parse_address(address)
    except ValueError as error:
        raise BadInput(f"--address: {error}") from None
    hosts = [host, *sans, *LOOPBACK]
    for text in hosts:
        if not is_host(text):
            raise BadInput(f"--san: {text[:80]!r} is neither a host name nor an IP address")
    return list(dict.fromkeys(text.lower() for text in hosts))


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@contextmanager
def _new_folder(home: Path) -> Iterator[Path]:
    """A folder to fill that takes its place at ``home`` when the block ends well, readable by its owner alone."""
    taken = f"{home} exists already and holds keys or something else; nothing in it was touched, give another --home"
    if home.exists() or home.is_symlink():
        raise BadInput(taken)
    home.parent.mkdir(parents=True, exist_ok=True)
    folder = home.with_name(f".{home.name}.{os.getpid()}.tmp")
    folder.mkdir(mode=0o700)
    try:
        yield folder
        try:
            folder.rename(home)
        except OSError:  # made by somebody else in the meantime
            raise BadInput(taken) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> x509.Certificate:
    return read_certificate(path.read_bytes(), str(path))


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)
