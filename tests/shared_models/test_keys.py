"""Keys: who can read them, how they are written, and that OpenSSH agrees."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from shared_models.errors import BadInput
from shared_models.keys import (
    canonical_json,
    is_encrypted,
    key_fingerprint,
    load_private,
    load_public,
    new_signing_key,
    new_site_key,
    openssh_private,
    public_line,
    save_private,
    sign,
    verify,
)

KINDS = pytest.mark.parametrize("new_key", [new_site_key, new_signing_key])


def pem_of(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "other.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@KINDS
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_saved_key_is_readable_by_its_owner_alone_and_is_the_same_key_again(tmp_path, new_key, passphrase) -> None:
    key, path = new_key(), tmp_path / "keys" / "site.key"
    save_private(path, key, passphrase)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["site.key"]
    assert public_line(load_private(path, passphrase)) == public_line(key)
    assert is_encrypted(path) is (passphrase is not None)
    assert (pem_of(key) in path.read_bytes()) is (passphrase is None)


def test_a_key_is_never_overwritten(tmp_path) -> None:
    path = tmp_path / "site.key"
    save_private(path, new_site_key(), None)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="site.key exists already and a key is never overwritten"):
        save_private(path, new_site_key(), None)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["site.key"]


def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(tmp_path) -> None:
    path = tmp_path / "site.key"
    save_private(path, new_site_key(), None)
    path.chmod(0o640)
    with pytest.raises(BadInput, match=f"has mode 0640, so others can read it; run: chmod 600 {path}"):
        load_private(path, None)


def test_a_wrong_or_missing_passphrase_is_told_apart(tmp_path) -> None:
    path = tmp_path / "site.key"
    save_private(path, new_site_key(), b"right")
    with pytest.raises(BadInput, match="does not open with this passphrase"):
        load_private(path, b"wrong")
    with pytest.raises(BadInput, match="is encrypted; give its passphrase"):
        load_private(path, None)


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
def test_a_passphrase_that_cannot_protect_a_key_is_refused(tmp_path, passphrase) -> None:
    with pytest.raises(BadInput, match="expected 1 to 1023"):
        save_private(tmp_path / "site.key", new_site_key(), passphrase)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "holds no private key in PEM"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "holds no private key in PEM"),
        (b"x" * 70_000, "larger than any private key"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "another kind of key; expected ECDSA on P-384 or Ed25519"),
        (pem_of(rsa.generate_private_key(65537, 2048)), "another kind of key; expected ECDSA on P-384 or Ed25519"),
    ],
)
def test_a_file_that_is_no_key_of_ours_is_named(tmp_path, content, found) -> None:
    with pytest.raises(BadInput, match=found):
        load_private(key_file(tmp_path, content), None)


def test_a_missing_key_and_a_folder_are_named(tmp_path) -> None:
    with pytest.raises(BadInput, match="there is no key at .*site.key"):
        load_private(tmp_path / "site.key", None)
    with pytest.raises(BadInput, match="cannot be read|is not a file"):
        load_private(tmp_path, None)


@KINDS
def test_fingerprints_are_those_of_ssh_keygen(tmp_path, new_key) -> None:
    line = public_line(new_key())
    (tmp_path / "key.pub").write_text(line + "\n")
    printed = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key.pub"], capture_output=True, text=True)
    assert key_fingerprint(line) == printed.stdout.split()[1]


@KINDS
def test_ssh_keygen_reads_the_openssh_form_and_finds_the_same_public_key(tmp_path, new_key) -> None:
    key = new_key()
    path = key_file(tmp_path, openssh_private(key))
    printed = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", path], capture_output=True, text=True)
    assert " ".join(printed.stdout.split()[:2]) == public_line(key)


LINE = public_line(new_signing_key())


@pytest.mark.parametrize(
    "line",
    [
        "",
        LINE + " somebody@somewhere",
        LINE + "\n",
        " " + LINE,
        LINE.replace("ssh-ed25519 ", "ecdsa-sha2-nistp384 "),
        LINE[:-8],
        "ssh-ed25519 " + "A" * 10_000,
        public_line(new_site_key())[:-4],
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode(),
    ],
)
def test_anything_but_the_one_spelling_of_a_known_kind_of_key_is_refused(line) -> None:
    with pytest.raises(BadInput, match="is not a public key"):
        load_public(line)


@KINDS
def test_a_signature_holds_for_its_data_and_its_key_only(new_key) -> None:
    key = new_key()
    signature = sign(key, b"the job")
    line = public_line(key)
    assert verify(line, b"the job", signature)
    assert not verify(line, b"the jobs", signature)
    assert not verify(public_line(new_key()), b"the job", signature)
    for other in ("", "not base64!", base64.b64encode(b"short").decode(), signature + "AAAA"):
        assert not verify(line, b"the job", other)


def test_the_canonical_text_does_not_depend_on_order_and_knows_no_nan() -> None:
    assert canonical_json({"b": 1, "a": [True, "é"]}) == canonical_json({"a": [True, "é"], "b": 1})
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})
