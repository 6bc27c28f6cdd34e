"""The way to the coordinator: proxy, name, connection, certificate, and whether the two clocks agree.

One request is made, as the SuperNode makes its own: by httpx, which takes a proxy from the environment, and with the
kit's CA as the only one that is trusted. What failed is read from how far that came.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from client.doctor.row import Late, Row, fault, printable, warning, within
from shared_models.certificates import expiry_warning, issued_by, read_certificate
from shared_models.enrolment import Kit, parse_address

SECONDS = 10.0
LOOKUP_SECONDS = 5.0

# Flower takes a signature that is up to 5 s from the future or 305 s old, and so does the front. A Date header is in
# whole seconds, and some servers renew it once a second: it says the time to 2 s.
DATE_GRAIN = 2.0
AHEAD_WARNING, AHEAD_FAULT = 1.0, 4.0
BEHIND_WARNING, BEHIND_FAULT = 30.0, 240.0

_DATES = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_NAMES = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_PROXY_EXAMPLE = "such as http://proxy.example.org:3128, a password with special characters percent-encoded"


@dataclass
class Attempt:
    """How far one request came."""

    dialled: tuple[str, int] | None = None
    """The coordinator or a proxy; None before that was known."""
    connected: bool = False
    tunnelled: bool = False
    """A proxy has opened the way to the coordinator."""
    peer: str = ""
    """The IP address of whoever took the connection, once it has answered."""
    certificate: bytes | None = None
    """Of the server, as DER."""
    status: int | None = None
    date: str | None = None
    sent: float = 0.0
    received: float = 0.0
    error: Exception | None = None


def coordinator(kit: Kit) -> Iterator[Row]:
    """Every row about the coordinator of a kit; what comes after a fault cannot be looked at."""
    yield _dates("CA certificate", kit.ca_certificate)
    host, port = parse_address(kit.address)
    attempt = _ask(kit, ssl.create_default_context(cadata=kit.ca_certificate), SECONDS)
    if attempt.dialled is None:
        yield _no_way(attempt.error)
        return
    proxy = "" if attempt.dialled == (host.lower(), port) else _shown(*attempt.dialled)
    if attempt.connected and not attempt.tunnelled and proxy and attempt.error:
        yield _refused_by_proxy(proxy, kit.address, attempt.error)
        return
    yield Row("proxy", proxy or "none for this address")
    if not attempt.connected:
        yield from _unconnected(*attempt.dialled, proxy, attempt.error)
        return
    yield Row("connection", f"open to {proxy or kit.address}{f' ({attempt.peer})' if attempt.peer else ''}")
    if attempt.status is not None:
        yield Row("certificate", f"of {printable(host)}, issued by the kit's CA")
        if attempt.certificate:
            pem = x509.load_der_x509_certificate(attempt.certificate).public_bytes(Encoding.PEM)
            yield _dates("server certificate", pem.decode("ascii"))
        yield _answered(kit.address, attempt.status)
        yield _clock(attempt)
        return
    if (why := _cause(attempt.error, ssl.SSLError)) is None:
        yield _silent(kit.address, attempt.error)
        return
    # Whoever is there instead: nothing but `GET /` is sent to it.
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    other = _ask(kit, anyone, LOOKUP_SECONDS)
    yield _untrusted(kit, why, other.certificate)
    if other.date:
        yield _clock(other)


def _ask(kit: Kit, context: ssl.SSLContext, seconds: float) -> Attempt:
    """One request for nothing in particular, to the coordinator of a kit."""
    host, port = parse_address(kit.address)
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/"
    attempt = Attempt()

    def follow(event: str, details: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.started":
            attempt.dialled = (details["host"], details["port"])
            attempt.tunnelled = attempt.dialled == (host.lower(), port)
        elif event == "connection.connect_tcp.complete":
            attempt.connected = True
        elif event == "proxy.start_tls.started":
            attempt.tunnelled = True
        elif event == "http11.send_request_headers.started":
            attempt.sent = time.time()

    def ask() -> None:
        with (
            httpx.Client(verify=context, timeout=seconds) as client,
            # Only the headers are read: whoever is there could send a body without end.
            client.stream("GET", url, extensions={"trace": follow}) as answer,
        ):
            attempt.received = time.time()
            stream = answer.extensions["network_stream"]
            attempt.peer = stream.get_extra_info("server_addr")[0]
            attempt.certificate = stream.get_extra_info("ssl_object").getpeercert(True)
            attempt.status, attempt.date = answer.status_code, answer.headers.get("date")

    try:
        within(seconds, ask)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError, Late) as error:
        # Of the way, of TLS, or of the address of a proxy: `coordinator` tells them apart.
        attempt.error = error
    return attempt


def _cause(error: BaseException | None, kind: type[BaseException]) -> Any:
    """The first error of a kind among an error and what caused it; None without one."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _no_way(error: Exception | None) -> Row:
    """httpx could not even begin. Its texts may hold the password of a proxy, and are not shown."""
    if isinstance(error, ValueError | ImportError | httpx.InvalidURL | httpx.UnsupportedProtocol):
        found = "HTTPS_PROXY, ALL_PROXY or NO_PROXY in the environment cannot be used"
        return fault("proxy", "cannot be used", f"{found}; expected a proxy {_PROXY_EXAMPLE}, or none of them")
    kind = type(error).__name__
    return fault("connection", "not begun", f"the request to the coordinator was not begun ({kind}); try it again")


def _refused_by_proxy(proxy: str, address: str, error: Exception) -> Row:
    """The proxy is there, and there is no way through it."""
    refused = _cause(error, httpx.ProxyError)
    if refused is None:
        found = "does not answer like a proxy"
        remedy = f"see that HTTPS_PROXY in the environment names one {_PROXY_EXAMPLE}"
    elif (found := f"answers {printable(str(refused), 60)}").startswith("answers 407"):
        remedy = "it wants a name and a password: set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT"
    else:
        remedy = f"ask who runs it to allow CONNECT to {address}"
    sentence = f"the proxy {proxy} {found} where a connection to {address} was asked for; {remedy}"
    return fault("proxy", f"{proxy} {found}", sentence)


def _unconnected(host: str, port: int, proxy: str, error: Exception | None) -> Iterator[Row]:
    """Nobody took the connection: because of the name, or of what comes after it."""
    what = "the proxy" if proxy else "the coordinator"
    remedy = "see HTTPS_PROXY in the environment" if proxy else "see that the kit's address is right, and this DNS"
    try:
        found = within(LOOKUP_SECONDS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as wrong:
        reason = f"no address for the name {host} of {what} was found ({getattr(wrong, 'strerror', None) or wrong})"
        yield fault("name", "not found", f"{printable(reason, 200)}; {remedy}")
        return
    except Late:
        reason = f"the name {host} of {what} was not answered by DNS within {LOOKUP_SECONDS:.0f} s"
        yield fault("name", "no answer", f"{reason}; see that this machine has a DNS server that it can reach")
        return
    yield Row("name", f"{printable(host)} is {found[0][4][0]}")
    if proxy:
        remedy = "see HTTPS_PROXY in the environment, or except this address with NO_PROXY"
    else:
        remedy = (
            f"let connections out to TCP port {port} of {host}, set HTTPS_PROXY if there is a proxy, or ask whether"
        )
        remedy += " the coordinator runs"
    reason = _reason(error)
    sentence = f"{what} at {_shown(host, port)} cannot be connected to ({reason}); {remedy}"
    yield fault("connection", reason, sentence)


def _reason(error: Exception | None) -> str:
    """Why there is no connection, in few words."""
    if isinstance(error, Late | httpx.TimeoutException):
        return f"no answer within {SECONDS:.0f} s"
    low = _cause(error, OSError)
    return (low.strerror or type(low).__name__).lower() if low else type(error).__name__


def _silent(address: str, error: Exception | None) -> Row:
    """Somebody took the connection and gave no answer over it."""
    late = isinstance(error, Late | httpx.TimeoutException)
    found = f"no answer within {SECONDS:.0f} s" if late else "closed without an answer"
    remedy = "ask the coordinator whether it runs, and the network department whether a firewall looks into connections"
    return fault("answer", found, f"{address} took the connection: {found}; {remedy}")


def _untrusted(kit: Kit, error: ssl.SSLError, der: bytes | None) -> Row:
    """Why the server is not who the kit says."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        found = printable((error.reason or "TLS failed").replace("_", " ").lower())
        remedy = f"see that {kit.address} is the coordinator's, and that no firewall breaks TLS"
        return fault("certificate", found, f"{kit.address} did not agree on TLS ({found}); {remedy}")
    host, _ = parse_address(kit.address)
    found = f"not trusted: {printable(error.verify_message)}"
    remedy = "ask the coordinator for a new kit, and compare its fingerprint by telephone"
    with suppress(ValueError, x509.ExtensionNotFound):  # a certificate that cannot be taken apart
        certificate = x509.load_der_x509_certificate(der or b"")
        pem = certificate.public_bytes(Encoding.PEM)
        if not issued_by(certificate, read_certificate(kit.ca_certificate, "the kit")):
            issuer = printable(certificate.issuer.rfc4514_string() or "nobody")
            digest = certificate.fingerprint(SHA256()).hex()
            sentence = (
                f"{kit.address} shows a certificate (SHA-256 {digest}) issued by {issuer}, and not by the kit's CA: "
                f"if a firewall of yours looks into TLS, have it except this address; else {remedy}"
            )
            return fault("certificate", "not issued by the kit's CA", sentence)
        if error.verify_code in _DATES and (dates := expiry_warning(pem, datetime.now(UTC))):
            return fault("certificate", "not valid today", dates)
        if error.verify_code in _NAMES:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            listed = printable(", ".join(str(name.value) for name in names))
            sentence = f"the certificate of {kit.address} is for {listed}, and not for {host}; {remedy}"
            return fault("certificate", f"not for {host}", sentence)
    return fault("certificate", found, f"the certificate of {kit.address} is {found}; {remedy}")


def _dates(check: str, pem: str) -> Row:
    """A certificate's last day; a warning 30 days before it, a fault after it."""
    now = datetime.now(UTC)
    certificate = read_certificate(pem, check)
    found = f"until {certificate.not_valid_after_utc:%Y-%m-%d}"
    sentence = expiry_warning(pem, now)
    if sentence is None:
        return Row(check, found)
    valid = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    return (warning if valid else fault)(check, found, sentence)


def _answered(address: str, status: int) -> Row:
    """A question that no SuperNode asks is answered with 403."""
    if status == 403:
        return Row("answer", "it answers")
    sentence = (
        f"{address} answers {status} where a coordinator's front answers 403; "
        "ask the coordinator whether it runs, and what stands before it"
    )
    return warning("answer", f"HTTP {status}", sentence)


def _clock(attempt: Attempt) -> Row:
    """The difference of the clocks, as little as the answer's date leaves possible."""
    try:
        stamped = parsedate_to_datetime(attempt.date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        sentence = (
            "the coordinator's answer has no date, so the clocks were not compared; see that this machine uses NTP"
        )
        return warning("clock", "not compared", sentence)
    ahead, behind = attempt.sent - stamped - DATE_GRAIN, stamped - attempt.received
    if ahead <= AHEAD_WARNING and behind <= BEHIND_WARNING:
        return Row("clock", "agrees with the coordinator's")
    found = f"{ahead:.0f} s ahead of" if ahead > 0 else f"{behind:.0f} s behind"
    how = fault if ahead > AHEAD_FAULT or behind > BEHIND_FAULT else warning
    sentence = (
        f"the clock of this machine is {found} the coordinator's, which refuses a site that is more than 5 s ahead "
        "or 300 s behind; set it right, as with `timedatectl set-ntp true`, or tell the coordinator if that is wrong"
    )
    return how("clock", f"{found} the coordinator's", sentence)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{printable(host)}:{port}"
