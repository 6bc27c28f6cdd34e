"""Keys: made once, kept unreadable to others, written one way, and used to sign.

A site has an ECDSA key on P-384 (what Flower's node authentication takes); a coordinator signs its jobs with Ed25519.
A public key is written as OpenSSH writes it, without a comment, so that one key has exactly one spelling.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)

from shared_models.errors import BadInput

PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey
PublicKey = EllipticCurvePublicKey | Ed25519PublicKey

_LINE = re.compile(r"(ecdsa-sha2-nistp384|ssh-ed25519) [A-Za-z0-9+/]{1,200}={0,2}")
LONGEST_PASSPHRASE = 1023  # bytes; OpenSSL takes no more
_LARGEST_FILE = 64 * 1024
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


def new_site_key() -> EllipticCurvePrivateKey:
    """A fresh key of a site, on P-384."""
    return generate_private_key(SECP384R1())


def new_signing_key() -> Ed25519PrivateKey:
    """A fresh key that signs jobs."""
    return Ed25519PrivateKey.generate()


def save_private(path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    """Write a private key as PKCS8 PEM that only its owner can read; encrypted when a passphrase is given.

    The file appears whole, and never in place of another.

    Raises:
        BadInput: ``path`` exists, the passphrase is empty or too long, or the folder cannot be written to.
    """
    if passphrase is not None and not 0 < len(passphrase) <= LONGEST_PASSPHRASE:
        found = f"found one of {len(passphrase)} bytes, expected 1 to {LONGEST_PASSPHRASE}"
        raise BadInput(f"the key {path} cannot be encrypted with this passphrase: {found}")
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        # A rename would replace a key that is there; a second name for a file never does.
        os.link(temporary, path)
    except FileExistsError as error:
        raise BadInput(f"{error.filename2 or error.filename} exists already and a key is never overwritten") from None
    except OSError as error:
        raise BadInput(f"the key {path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def load_private(path: Path, passphrase: bytes | None) -> PrivateKey:
    """Read a private key that `save_private` wrote; a passphrase that an unencrypted key does not need is not used.

    Raises:
        BadInput: the file is missing or readable by others, the passphrase is wrong or missing, or it holds no key.
    """
    pem = _read(path)
    encrypted = pem.startswith(_ENCRYPTED)
    if encrypted and not passphrase:
        raise BadInput(f"the key {path} is encrypted; give its passphrase")
    try:
        key = load_pem_private_key(pem, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if encrypted:
            raise BadInput(f"the key {path} does not open with this passphrase; check it, or the file") from None
        raise BadInput(f"{path} holds no private key in PEM; was another file meant?") from None
    if isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP384R1)
    ):
        return key
    raise BadInput(f"{path} holds another kind of key; expected ECDSA on P-384 or Ed25519")


def is_encrypted(path: Path) -> bool:
    """Whether the key at ``path`` needs a passphrase.

    Raises:
        BadInput: the file is missing or readable by others.
    """
    return _read(path).startswith(_ENCRYPTED)


def _read(path: Path) -> bytes:
    """The bytes of a key file that nobody but its owner can read."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadInput(f"{path} is not a file; expected a private key")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise BadInput(f"the key {path} has mode {mode:04o}, so others can read it; run: chmod 600 {path}")
            pem = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise BadInput(f"there is no key at {path}") from None
    except OSError as error:
        raise BadInput(f"the key {path} cannot be read: {error.strerror}") from None
    if len(pem) > _LARGEST_FILE:
        raise BadInput(f"{path} is larger than any private key; was another file meant?")
    return pem


def public_line(key: PrivateKey | PublicKey) -> str:
    """The public key as one line of OpenSSH, such as ``ssh-ed25519 AAAA...``, without a comment."""
    public = key.public_key() if isinstance(key, PrivateKey) else key
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def load_public(line: str) -> PublicKey:
    """The public key of a line that `public_line` wrote.

    Raises:
        BadInput: the line is anything but an ECDSA key on P-384 or an Ed25519 key, in its one spelling.
    """
    if _LINE.fullmatch(line):
        with suppress(ValueError, UnsupportedAlgorithm):
            key = load_ssh_public_key(line.encode("ascii"))
            if isinstance(key, PublicKey) and public_line(key) == line:
                return key
    raise BadInput(
        f"{line[:60]!r} is not a public key; expected one line 'ecdsa-sha2-nistp384 AAAA...' or 'ssh-ed25519 AAAA...' "
        "without a comment"
    )


def key_fingerprint(line: str) -> str:
    """The short name of a public key that people compare, as ``ssh-keygen -l`` prints it: ``SHA256:...``.

    Raises:
        BadInput: the line is no public key.
    """
    load_public(line)
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def canonical_json(value: Any) -> str:
    """The one JSON text of a value, over which it is hashed and signed: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: the value holds NaN or an infinity.
        TypeError: the value holds something that JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sign(key: PrivateKey, data: bytes) -> str:
    """The signature over ``data`` in base64: Ed25519, or ECDSA with SHA-384."""
    made = key.sign(data) if isinstance(key, Ed25519PrivateKey) else key.sign(data, ECDSA(hashes.SHA384()))
    return base64.b64encode(made).decode("ascii")


def verify(line: str, data: bytes, signature: str) -> bool:
    """Whether the owner of the public key made this signature over ``data``; a signature that is none is simply not.

    Raises:
        BadInput: the line is no public key.
    """
    key = load_public(line)
    try:
        made = base64.b64decode(signature, validate=True)
        if isinstance(key, Ed25519PublicKey):
            key.verify(made, data)
        else:
            key.verify(made, data, ECDSA(hashes.SHA384()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def openssh_private(key: PrivateKey) -> bytes:
    """The private key unencrypted in OpenSSH's format, which Flower's SuperNode reads; for memory, never for a disk."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
