"""Requests and kits come from outside: what is altered, forged, oversized or mistaken is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.provision import admit, init
from shared_models.enrolment import LARGEST, Kit, Request, make_request, parse_address, read_kit, read_request, write
from shared_models.errors import BadInput
from shared_models.keys import canonical_json, new_signing_key, new_site_key, public_line, sign

NOT_NAMES = ["../x", "a/b", "..", ".hidden", "", "Berlin", "a b", "a\n", "münchen", "x" * 64, "a\0b", "-rf"]


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    write(path, make_request("berlin", new_site_key()))
    return path


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    folder = tmp_path_factory.mktemp("federation")
    init(folder / "coordinator", "liver", "fl.example.org:443", None)
    write(folder / "request.json", make_request("berlin", new_site_key()))
    return admit(folder / "coordinator", folder / "request.json")


def changed(path: Path, **values: Any) -> Path:
    """The document in a file, some of its values replaced."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def test_a_request_is_read_as_it_was_made(tmp_path: Path):
    made = make_request("berlin", new_site_key())
    write(tmp_path / "request.json", made)
    assert read_request(tmp_path / "request.json") == made


def test_a_request_that_another_key_signed_is_refused(request_file: Path):
    values = json.loads(request_file.read_text())
    del values["signature"]
    forged = sign(new_site_key(), canonical_json(values).encode())
    with pytest.raises(BadInput, match="signature is not of this key"):
        read_request(changed(request_file, signature=forged))


@pytest.mark.parametrize(
    "change",
    [
        {"site": "munich"},
        {"created": "2020-01-01T00:00:00Z"},
        {"public_key": public_line(new_site_key())},
        {"signature": "AAAA"},
        {"signature": "?"},
    ],
)
def test_a_request_that_was_altered_is_refused(request_file: Path, change: dict[str, str]):
    with pytest.raises(BadInput, match="altered on the way or forged"):
        read_request(changed(request_file, **change))


@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_that_could_lead_out_of_a_folder_is_none(request_file: Path, name: str):
    with pytest.raises(BadInput, match="no name for a site"):
        make_request(name, new_site_key())
    with pytest.raises(BadInput, match="site: expected text of the form"):
        read_request(changed(request_file, site=name))


def test_a_key_of_another_kind_is_refused(request_file: Path):
    with pytest.raises(BadInput, match="public_key: expected a key of the kind ecdsa-sha2-nistp384"):
        read_request(changed(request_file, public_key=public_line(new_signing_key())))


def test_unknown_and_missing_keys_are_named(request_file: Path):
    values = json.loads(request_file.read_text())
    del values["created"]
    request_file.write_text(json.dumps(values | {"run": "rm"}))
    with pytest.raises(BadInput) as refusal:
        read_request(request_file)
    assert "created: missing" in str(refusal.value)
    assert "run: unknown key" in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"schema": "consilium-enrolment/1", "site": "a", "site": "b"}', "a key is given twice"),
        (b'{"schema": NaN}', "NaN is not JSON"),
        (b"[1]", "not a file of consilium"),
        (b"null", "not a file of consilium"),
        (b'{"schema": ["x"]}', "expected one with schema 'consilium-enrolment/1'"),
        (b" " * (LARGEST + 1), "larger than 64 KiB"),
    ],
)
def test_a_file_that_is_no_request_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=reason) as refusal:
        read_request(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "nowhere.json"):
        with pytest.raises(BadInput, match="there is no such file"):
            read_request(path)


@given(content=st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(lambda v: repr(v).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_ends_in_anything_but_a_sentence(tmp_path: Path, content: bytes):
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        read_request(path)


def test_a_kit_in_place_of_a_request_is_recognised(tmp_path: Path, kit: Kit):
    write(tmp_path / "kit.json", kit)
    assert read_kit(tmp_path / "kit.json") == kit
    with pytest.raises(BadInput, match=f"schema '{Kit.schema_name}'; expected one with schema '{Request.schema_name}'"):
        read_request(tmp_path / "kit.json")


def test_a_kit_holds_nothing_secret(tmp_path: Path, kit: Kit):
    write(tmp_path / "kit.json", kit)
    assert "PRIVATE" not in (tmp_path / "kit.json").read_text()


def test_a_kit_with_another_authority_or_address_is_refused(tmp_path: Path, kit: Kit):
    other = init(tmp_path / "other", "liver", "fl.example.org:443", None)
    for change in ({"ca_certificate": other.ca_certificate}, {"address": "evil.example.org:443"}, {"federation": "x"}):
        write(tmp_path / "kit.json", kit)
        with pytest.raises(BadInput, match="not the one that this signing key vouches for"):
            read_kit(changed(tmp_path / "kit.json", **change))


def test_a_kit_takes_an_authority_alone(tmp_path: Path, kit: Kit):
    home = init(tmp_path / "other", "liver", "fl.example.org:443", None).paths
    cases = {
        home.server_certificate.read_text(): "expected the certificate of an authority",
        kit.ca_certificate + home.server_key.read_text(): "nothing beside it",
        "not a certificate": "no certificate",
    }
    for pem, reason in cases.items():
        write(tmp_path / "kit.json", kit)
        with pytest.raises(BadInput, match=f"ca_certificate: .*{reason}"):
            read_kit(changed(tmp_path / "kit.json", ca_certificate=pem))


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("fl.example.org:443", "fl.example.org", 443),
        ("localhost:18000", "localhost", 18000),
        ("192.0.2.7:1", "192.0.2.7", 1),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, host: str, port: int):
    assert parse_address(address) == (host, port)


@pytest.mark.parametrize(
    "address",
    [
        "fl.example.org",
        "fl.example.org:0",
        "fl.example.org:65536",
        "fl.example.org:44x",
        ":443",
        "https://fl.example.org:443",
        "a b:443",
        "-x.org:443",
        "1.2.3:443",
        "1.2.3.256:443",
        "2001:db8::7:443",
        "[fl.example.org]:443",
        "[fe80::1%eth0]:443",
        "a..b:443",
        "",
    ],
)
def test_what_cannot_be_dialled_is_no_address(address: str):
    with pytest.raises(ValueError, match="is no address; expected HOST:PORT"):
        parse_address(address)
