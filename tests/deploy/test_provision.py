"""A federation is made, joined and renewed with real keys, judged by openssl and by real TLS handshakes."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from client.config import load_site_config
from deploy.provision import admit, init, init_site, join, kit_for, renew
from server.federation import Federation, open_federation
from shared_models.certificates import expiry_warning
from shared_models.enrolment import Kit, read_kit, write
from shared_models.errors import BadInput
from shared_models.keys import is_encrypted, key_fingerprint, load_private, new_site_key, save_private

ADDRESS = "fl.example.org:443"
PASSPHRASE = b"correct horse"
NOW = datetime.now(UTC)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return init(tmp_path / "coordinator", "liver", ADDRESS, None)


def a_site(federation: Federation, folder: Path, name: str) -> Kit:
    """A hospital that has joined: its folder with key, request, kit and site.yaml."""
    init_site(folder, name, None)
    write(folder / "kit-received.json", admit(federation.paths.home, folder / "request.json"))
    (folder / "manifest.csv").write_text("image,label,patient\n")
    kit = kit_for(folder, folder / "kit-received.json")
    assert join(folder, kit, folder / "manifest.csv", folder)
    return kit


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def openssl_verify(federation: Federation, *options: str) -> subprocess.CompletedProcess[str]:
    paths = federation.paths
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(paths.ca_certificate)]
    return subprocess.run([*command, *options, str(paths.server_certificate)], capture_output=True, text=True)


def handshake(federation: Federation, ca_certificate: str, host: str = "localhost", passphrase: bytes | None = None):
    """A TLS handshake of a client that trusts only this authority with a server that has the federation's key.

    Returns the server's certificate as the client saw it; raises ssl.SSLError as the client got it.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(federation.paths.server_certificate, federation.paths.server_key, passphrase)
    client = ssl.create_default_context(cadata=ca_certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except (ssl.SSLError, OSError):  # the client refused; it says why
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            plain = socket.create_connection(listener.getsockname()[:2])
            with plain, client.wrap_socket(plain, server_hostname=host) as secured:
                assert secured.recv(5) == b"hello"
                return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True))
        finally:
            thread.join()


def test_openssl_accepts_the_chain_for_every_name(tmp_path: Path):
    sans = ("fl2.example.org", "192.0.2.7")
    federation = init(tmp_path / "coordinator", "liver", "[2001:db8::7]:443", None, sans)
    for host in ("fl2.example.org", "localhost"):
        assert openssl_verify(federation, "-verify_hostname", host).returncode == 0
    for ip in ("2001:db8::7", "192.0.2.7", "127.0.0.1", "::1"):
        assert openssl_verify(federation, "-verify_ip", ip).returncode == 0
    refused = openssl_verify(federation, "-verify_hostname", "evil.example.org")
    assert refused.returncode != 0 and "hostname mismatch" in refused.stdout + refused.stderr


def test_a_client_with_the_kit_connects_and_one_with_another_authority_does_not(tmp_path: Path, federation: Federation):
    kit = a_site(federation, tmp_path / "berlin", "berlin")
    for host in ("localhost", "127.0.0.1", "fl.example.org"):
        assert handshake(federation, kit.ca_certificate, host) == federation.paths.server_certificate.read_text()
    other = init(tmp_path / "other", "liver", ADDRESS, None)
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed|unable to get local issuer|signature failure"):
        handshake(federation, other.ca_certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(federation, kit.ca_certificate, "evil.example.org")


def test_an_expired_server_certificate_is_refused_warned_of_and_renewed(tmp_path: Path):
    federation = init(tmp_path / "coordinator", "liver", ADDRESS, None, now=NOW - timedelta(days=400))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(federation, federation.ca_certificate)
    (warning,) = federation.warnings(NOW)
    assert "the server certificate of fl.example.org expired on" in warning
    assert "consilium coordinator renew" in warning
    renew(federation.paths.home, None)
    assert federation.warnings(NOW) == []
    assert handshake(federation, federation.ca_certificate, "fl.example.org")


def test_expiry_is_said_thirty_days_ahead(federation: Federation):
    pem = federation.paths.server_certificate.read_text()
    end = x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    assert expiry_warning(pem, end - timedelta(days=30, minutes=1)) is None
    assert "expires in 29 days, on " in expiry_warning(pem, end - timedelta(days=29, minutes=1) - timedelta(hours=1))
    assert "expired on " in expiry_warning(pem, end + timedelta(minutes=1))
    assert "is the clock of this machine right?" in expiry_warning(pem, end - timedelta(days=400))
    authority = expiry_warning(federation.ca_certificate, NOW + timedelta(days=3640))
    assert "the CA certificate of liver expires in" in authority
    with pytest.raises(BadInput, match="no certificate"):
        expiry_warning("nothing", NOW)


def test_keys_and_home_are_for_their_owner_alone(tmp_path: Path, federation: Federation):
    a_site(federation, tmp_path / "berlin", "berlin")
    paths = federation.paths
    keys = [paths.ca_key, paths.server_key, paths.signing_key, tmp_path / "berlin" / "site.key"]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600] * 4
    assert [stat.S_IMODE(home.stat().st_mode) for home in (paths.home, tmp_path / "berlin")] == [0o700] * 2
    paths.server_key.chmod(0o644)
    with pytest.raises(BadInput, match="server.key has mode 0644, so others can read it"):
        open_federation(paths.home)
    paths.server_key.chmod(0o600)
    paths.home.chmod(0o755)
    with pytest.raises(BadInput, match="others can look into this folder"):
        open_federation(paths.home)


def test_with_a_passphrase_every_key_is_encrypted_and_needed(tmp_path: Path):
    federation = init(tmp_path / "coordinator", "liver", ADDRESS, PASSPHRASE)
    init_site(tmp_path / "berlin", "berlin", PASSPHRASE)
    paths = federation.paths
    for key in (paths.ca_key, paths.server_key, paths.signing_key, tmp_path / "berlin" / "site.key"):
        assert is_encrypted(key)
        assert load_private(key, PASSPHRASE)
    with pytest.raises(BadInput, match="does not open with this passphrase"):
        renew(paths.home, b"wrong")
    with pytest.raises(BadInput, match="is encrypted; give its passphrase"):
        renew(paths.home, None)
    renew(paths.home, PASSPHRASE)
    assert handshake(federation, federation.ca_certificate, passphrase=PASSPHRASE)


def test_an_existing_folder_is_refused_and_untouched(tmp_path: Path, federation: Federation):
    before = content(tmp_path)
    for again in (
        lambda: init(federation.paths.home, "other", ADDRESS, None),
        lambda: init_site(federation.paths.home, "berlin", None),
    ):
        with pytest.raises(BadInput, match="exists already"):
            again()
    assert content(tmp_path) == before


def test_what_fails_leaves_nothing_behind(tmp_path: Path):
    too_long = b"x" * 5000
    for fails in (
        lambda home: init(home, "liver", ADDRESS, too_long),
        lambda home: init(home, "../liver", ADDRESS, None),
        lambda home: init(home, "liver", "nowhere", None),
        lambda home: init(home, "liver", ADDRESS, None, ["not a host"]),
        lambda home: init_site(home, "berlin", too_long),
        lambda home: init_site(home, "../berlin", None),
    ):
        with pytest.raises(BadInput):
            fails(tmp_path / "home")
        assert list(tmp_path.iterdir()) == []


def test_adding_renewing_and_removing_disturb_no_other_site(tmp_path: Path, federation: Federation):
    berlin = tmp_path / "berlin"
    kit = a_site(federation, berlin, "berlin")
    before = content(berlin)
    entry = federation.registry.entries()[0]
    identity = {name: value for name, value in content(federation.paths.home).items() if name.startswith(("ca", "job"))}

    a_site(federation, tmp_path / "munich", "munich")
    old = federation.paths.server_certificate.read_text()
    renew(federation.paths.home, None)
    federation.registry.suspend("munich")
    federation.registry.remove("munich")

    assert content(berlin) == before
    assert federation.registry.entries() == [entry]
    assert federation.registry.site_of((berlin / "site.pub").read_text().strip()) == entry
    now = {name: value for name, value in content(federation.paths.home).items() if name.startswith(("ca", "job"))}
    assert now == identity
    seen = handshake(federation, read_kit(berlin / "kit.json").ca_certificate, "fl.example.org")
    assert seen != old
    admitted_again = admit(federation.paths.home, berlin / "request.json")
    assert admitted_again.model_copy(update={"created": kit.created}) == kit


def test_renewal_keeps_the_names_and_never_outlives_the_authority(tmp_path: Path):
    federation = init(
        tmp_path / "coordinator", "liver", ADDRESS, None, ["192.0.2.7"], now=NOW - timedelta(days=3652 - 100)
    )
    renewed = renew(federation.paths.home, None)
    assert openssl_verify(federation, "-verify_ip", "192.0.2.7").returncode == 0
    assert openssl_verify(federation, "-verify_hostname", "fl.example.org").returncode == 0
    assert timedelta(days=99) < renewed.not_valid_after_utc - NOW < timedelta(days=101)
    with pytest.raises(BadInput, match="this authority has run out"):
        renew(federation.paths.home, None, now=NOW + timedelta(days=101))


def test_renewal_with_a_foreign_key_is_refused(federation: Federation):
    before = federation.paths.server_certificate.read_bytes()
    federation.paths.ca_key.unlink()
    save_private(federation.paths.ca_key, new_site_key(), None)
    with pytest.raises(BadInput, match="ca.key: not the key of"):
        renew(federation.paths.home, None)
    assert federation.paths.server_certificate.read_bytes() == before


def test_a_federation_opens_without_its_authority_key_and_needs_everything_else(federation: Federation):
    home = federation.paths.home
    federation.paths.ca_key.unlink()
    assert open_federation(home) == federation
    with pytest.raises(BadInput, match="there is no key at"):
        renew(home, None)
    for name in ("server.key", "server.crt", "ca.crt", "job-signing.key", "job-signing.pub", "registry.json"):
        aside = home.parent / "aside"
        (home / name).rename(aside)
        with pytest.raises(BadInput, match=name):
            open_federation(home)
        aside.rename(home / name)
    with pytest.raises(BadInput, match="no federation here"):
        open_federation(home / "nowhere")


def test_a_home_of_mixed_federations_is_refused(tmp_path: Path, federation: Federation):
    other = init(tmp_path / "other", "liver", ADDRESS, None).paths
    paths = federation.paths
    for mine, theirs, reason in (
        (paths.server_certificate, other.server_certificate, "not issued by"),
        (paths.signing_public, other.signing_public, "do not belong together"),
        (paths.ca_certificate, paths.server_certificate, "not the certificate of an authority"),
    ):
        kept = mine.read_bytes()
        mine.write_bytes(theirs.read_bytes())
        with pytest.raises(BadInput, match=reason):
            open_federation(paths.home)
        mine.write_bytes(kept)
    changed = json.loads(paths.federation.read_text()) | {"address": "evil.example.org:443"}
    paths.federation.write_text(json.dumps(changed))
    with pytest.raises(BadInput, match="do not belong together"):
        open_federation(paths.home)


def test_no_private_key_is_in_a_kit_or_a_request(tmp_path: Path, federation: Federation):
    berlin = tmp_path / "berlin"
    a_site(federation, berlin, "berlin")
    sent = (berlin / "request.json").read_text() + (berlin / "kit.json").read_text()
    assert "PRIVATE" not in sent
    for path in (
        federation.paths.ca_key,
        federation.paths.server_key,
        federation.paths.signing_key,
        berlin / "site.key",
    ):
        secret = path.read_text()
        assert not any(line in sent for line in secret.splitlines() if not line.startswith("-"))
        key = load_private(path, None)
        numbers = key.private_bytes_raw() if hasattr(key, "private_bytes_raw") else _number(key)
        assert base64.b64encode(numbers).decode() not in sent and numbers.hex() not in sent


def _number(key) -> bytes:
    return key.private_numbers().private_value.to_bytes(48, "big")


def test_a_kit_for_another_site_is_refused(tmp_path: Path, federation: Federation):
    a_site(federation, tmp_path / "berlin", "berlin")
    init_site(tmp_path / "munich", "munich", None)
    with pytest.raises(BadInput, match="a kit for site berlin, but this is munich"):
        kit_for(tmp_path / "munich", tmp_path / "berlin" / "kit.json")
    with pytest.raises(BadInput, match="no request here"):
        kit_for(tmp_path, tmp_path / "berlin" / "kit.json")


def test_joining_writes_a_configuration_that_trusts_this_coordinator_and_is_never_replaced(
    tmp_path: Path, federation: Federation
):
    berlin = tmp_path / "berlin"
    kit = a_site(federation, berlin, "berlin")
    config = load_site_config(berlin / "site.yaml")
    assert config.site == "berlin"
    assert config.policy.coordinators == [key_fingerprint(federation.signing_public)]
    assert os.path.samefile(config.key, berlin / "site.key") and os.path.samefile(config.kit, berlin / "kit.json")
    assert os.path.samefile(config.manifest, berlin / "manifest.csv") and os.path.samefile(config.data_root, berlin)
    (berlin / "site.yaml").write_text("edited")
    assert not join(berlin, kit, berlin / "manifest.csv", berlin)
    assert (berlin / "site.yaml").read_text() == "edited"
    with pytest.raises(BadInput, match="there is no such manifest"):
        join(berlin, kit, berlin / "nowhere.csv", berlin)
