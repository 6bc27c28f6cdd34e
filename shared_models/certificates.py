"""Certificates (X.509): read one from its text, and say in time that it runs out."""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shared_models.errors import BadInput

WARN_DAYS = 30


def read_certificate(pem: str | bytes, source: str) -> x509.Certificate:
    """The certificate in a PEM text that holds this one and nothing else; ``source`` names it in messages.

    Raises:
        BadInput: the text is no certificate, or holds more than it.
    """
    text = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    try:
        certificate = x509.load_pem_x509_certificate(text)
    except ValueError:
        raise BadInput(f"{source}: no certificate; expected one as PEM (-----BEGIN CERTIFICATE-----)") from None
    # Anything beside the certificate, such as a private key by mistake, would travel wherever it is sent.
    if text.strip() != certificate.public_bytes(Encoding.PEM).strip():
        raise BadInput(f"{source}: more than one certificate; expected exactly one as PEM and nothing beside it")
    return certificate


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate is of an authority: it says that it may sign others, and is signed by itself."""
    try:
        signs = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False
    return signs and issued_by(certificate, certificate)


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of ``issuer`` signed ``certificate``, and its name stands there as the issuer's."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # cryptography raises one of four kinds, all of which say no
        return False
    return True


def days_left(certificate: x509.Certificate, now: datetime) -> float:
    """Days until a certificate runs out; negative when it has. ``now`` has a time zone."""
    return (certificate.not_valid_after_utc - now) / timedelta(days=1)


def expiry_warning(pem: str | bytes, now: datetime) -> str | None:
    """What to say about the dates of a certificate; None when it is valid for 30 more days.

    Raises:
        BadInput: the text is no certificate.
    """
    certificate = read_certificate(pem, "the certificate")
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    authority = is_authority(certificate)
    what = f"the {'CA' if authority else 'server'} certificate of {str(names[0].value) if names else 'no name'}"
    if now < certificate.not_valid_before_utc:
        return (
            f"{what} is not valid before {_day(certificate.not_valid_before_utc)}; is the clock of this machine right?"
        )
    left = days_left(certificate, now)
    if left >= WARN_DAYS:
        return None
    day = _day(certificate.not_valid_after_utc)
    when = f"expired on {day}" if left < 0 else f"expires in {int(left)} days, on {day}"
    remedy = (
        "the federation has to be made anew, and every site joined again"
        if authority
        else "at the coordinator run: consilium coordinator renew"
    )
    return f"{what} {when}; {remedy}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
