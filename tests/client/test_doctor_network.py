"""What the doctor says of the way to the coordinator: proxies, connections, certificates and clocks."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from client.doctor import Level, network
from deploy import provision
from shared_models.enrolment import Kit, introduced, write
from shared_models.keys import load_private, sign
from tests.client.joined_site import Joined, connect_proxy, ill, look, serving, the_one, worse


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def site(tmp_path: Path) -> Joined:
    return Joined(tmp_path)


# The coordinator


def test_another_authority_than_the_kits_is_named_and_not_trusted(site: Joined, tmp_path: Path):
    provision.init(tmp_path / "other", "other", f"127.0.0.1:{site.port}", None)
    with site.front(tmp_path / "other"):
        told = the_one(worse(look(site)), "certificate", Level.FAULT)
    assert "issued by CN=other,OU=Authority,O=Consilium, and not by the kit's CA" in told
    assert "if a firewall of yours looks into TLS, have it except this address" in told
    assert "ask the coordinator for a new kit" in told


def test_an_expired_certificate_is_said_to_be_renewed(tmp_path: Path):
    site = Joined(tmp_path, made=datetime.now(UTC) - timedelta(days=400))
    told = the_one(ill(site), "certificate", Level.FAULT)
    assert told.startswith("the server certificate of 127.0.0.1 expired on ")
    assert told.endswith("at the coordinator run: consilium coordinator renew")


def test_a_certificate_is_warned_of_thirty_days_ahead(tmp_path: Path):
    site = Joined(tmp_path, made=datetime.now(UTC) - timedelta(days=345))
    assert "expires in 19 days" in the_one(ill(site), "server certificate", Level.WARNING)


def test_an_authority_that_ends_is_told_even_where_nobody_answers(tmp_path: Path):
    site = Joined(tmp_path, made=datetime.now(UTC) - timedelta(days=3652 - 10))
    found = {(check, level): told for check, level, told in worse(look(site))}
    assert "every site joined again" in found["CA certificate", Level.WARNING]
    assert ("connection", Level.FAULT) in found


def test_a_certificate_for_another_host_is_refused(site: Joined):
    address = f"127.0.0.2:{site.port}"
    signed = introduced("lab", address, site.kit.ca_certificate)
    introduction = sign(load_private(site.home / "job-signing.key", None), signed)
    site.kit = Kit(**site.kit.model_dump() | {"address": address, "introduction": introduction})
    write(site.site / "kit.json", site.kit)
    told = the_one(ill(site), "certificate", Level.FAULT)
    assert f"the certificate of {address} is for 127.0.0.1, localhost, ::1, and not for 127.0.0.2" in told


def test_a_coordinator_that_does_not_run_cannot_be_connected_to(site: Joined):
    told = the_one(worse(look(site)), "connection", Level.FAULT)
    assert told == (
        f"the coordinator at 127.0.0.1:{site.port} cannot be connected to (connection refused); let connections out to "
        f"TCP port {site.port} of 127.0.0.1, set HTTPS_PROXY if there is a proxy, or ask whether the coordinator runs"
    )


def test_a_name_that_nobody_knows_is_told_apart_from_a_closed_port(tmp_path: Path):
    site = Joined(tmp_path, host="coordinator.invalid")
    told = the_one(worse(look(site)), "name", Level.FAULT)
    assert "for the name coordinator.invalid of the coordinator was found" in told


def test_a_server_that_says_nothing_costs_seconds_and_no_more(site: Joined, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", site.port)):
        told = the_one(worse(look(site)), "answer", Level.FAULT)
    assert f"127.0.0.1:{site.port} took the connection: no answer within 1 s" in told


def test_a_server_without_tls_is_told(site: Joined):
    with serving(BaseHTTPRequestHandler, site.port):
        told = the_one(worse(look(site)), "certificate", Level.FAULT)
    assert f"127.0.0.1:{site.port} did not agree on TLS" in told


def test_another_answer_than_the_fronts_is_a_warning(site: Joined):
    with site.other_server(format_datetime(datetime.now(UTC), usegmt=True), status=502):
        told = the_one(worse(look(site)), "answer", Level.WARNING)
    assert "answers 502 where a coordinator's front answers 403" in told


# Through a proxy


def test_the_coordinator_is_reached_through_a_proxy_of_the_environment(site: Joined, monkeypatch: pytest.MonkeyPatch):
    with site.front(), connect_proxy() as (proxy, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        rows = look(site)
        assert worse(rows) == []
        assert next(row.found for row in rows if row.check == "proxy") == proxy
        assert asked == [site.kit.address]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert worse(look(site)) == []
        assert len(asked) == 1, "an address of NO_PROXY went through the proxy"


def test_another_authority_is_found_through_a_proxy_as_well(site: Joined, tmp_path: Path, monkeypatch):
    provision.init(tmp_path / "other", "other", f"127.0.0.1:{site.port}", None)
    with site.front(tmp_path / "other"), connect_proxy() as (proxy, _):
        monkeypatch.setenv("https_proxy", f"http://{proxy}")
        assert "issued by CN=other" in the_one(worse(look(site)), "certificate", Level.FAULT)


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("403 Forbidden", "answers 403 Forbidden where a connection to {} was asked for; ask who runs it to allow"),
        ("407 Proxy Authentication Required", "set HTTPS_PROXY to http://NAME:PASSWORD@HOST:PORT"),
    ],
)
def test_a_proxy_that_refuses_is_told_with_its_reason(site: Joined, monkeypatch, refusal: str, told: str):
    with site.front(), connect_proxy(refusal) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        assert told.format(site.kit.address) in the_one(worse(look(site)), "proxy", Level.FAULT)


@pytest.mark.parametrize(
    ("proxy", "check", "told"),
    [
        ("http://me:hush@127.0.0.1:1", "connection", "the proxy at 127.0.0.1:1 cannot be connected to (connection"),
        ("http://me:hush@proxy.invalid:3128", "name", "for the name proxy.invalid of the proxy was found"),
        ("ftp://me:hush@127.0.0.1:1", "proxy", "cannot be used; expected a proxy such as http://proxy.example.org"),
        ("http://me:hush#1@127.0.0.1:1", "proxy", "cannot be used; expected a proxy such as http://proxy.example.org"),
        ("http://127.0.0.1:me:hush", "proxy", "cannot be used; expected a proxy such as http://proxy.example.org"),
    ],
)
def test_a_wrong_proxy_is_told_without_its_password(site: Joined, monkeypatch, proxy: str, check: str, told: str):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with site.front():
        rows = look(site)
    assert told in the_one(worse(rows), check, Level.FAULT)
    assert not any("hush" in f"{row.found} {row.sentence}" for row in rows)


# Clocks


@pytest.mark.parametrize(
    ("theirs", "level", "found"),
    [
        (0, Level.OK, "agrees with the coordinator's"),
        (20, Level.OK, "agrees with the coordinator's"),
        (100, Level.WARNING, "behind the coordinator's"),
        (280, Level.FAULT, "behind the coordinator's"),
        (86400, Level.FAULT, "behind the coordinator's"),
        (-20, Level.FAULT, "ahead of the coordinator's"),
    ],
)
def test_clocks_are_compared_as_flower_compares_them(site: Joined, theirs: int, level: Level, found: str):
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=theirs), usegmt=True)
    with site.other_server(date):
        (row,) = [row for row in look(site) if row.check == "clock"]
    assert (row.level, row.found.endswith(found)) == (level, True), row
    if level:
        assert "refuses a site that is more than 5 s ahead or 300 s behind; set it right" in row.sentence


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_an_answer_without_a_date_is_a_warning(site: Joined, date: str | None):
    with site.other_server(date):
        assert "the clocks were not compared" in the_one(worse(look(site)), "clock", Level.WARNING)
