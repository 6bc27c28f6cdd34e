"""`consilium site ledger`, as hospital IT meets it: a real site folder, its output and its exit codes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.config import write_site_config
from client.ledger import Ledger
from deploy.cli_ledger import app
from shared_models.errors import BadInput
from shared_models.keys import key_fingerprint, new_signing_key, new_site_key, public_line, save_private

KEY = new_site_key()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a site that has answered once and refused once."""
    home = tmp_path / "site"
    home.mkdir()
    save_private(home / "site.key", KEY, None)
    (home / "site.pub").write_text(public_line(KEY) + "\n")
    write_site_config(
        home / "site.yaml",
        site="aachen",
        kit=home / "kit.json",
        key=home / "site.key",
        manifest=home / "manifest.csv",
        data_root=home,
        work=home / "work",
        coordinator=key_fingerprint(public_line(new_signing_key())),
    )
    (home / "work").mkdir(mode=0o700)
    ledger = Ledger(home / "work" / "ledger.jsonl", KEY, "aachen")
    ledger.append("started", version="0.1.0")
    ledger.append("refused", run="lungs-1", job="lungs", rule="policy.max_rounds", asked="100\x1b[2J", allowed="50")
    tensors = [{"name": f"conv{i}", "shape": [100], "bytes": 750_000, "sha256": "0" * 64} for i in range(4)]
    ledger.append(
        "answer", run="lungs-1", question="train", round=7, patients=24, tensors=tensors, numbers={"loss": 0.5, "n": 3}
    )
    return home


@pytest.fixture
def ledger(site: Path) -> Callable[..., Result]:
    def run(command: str, *arguments: str) -> Result:
        return CliRunner().invoke(app, [command, "--config", str(site / "site.yaml"), *arguments])

    return run


def test_verify_says_whole_by_which_key_and_which_hash_is_last(ledger) -> None:
    result = ledger("verify")
    assert result.exit_code == 0
    assert "is whole: 3 entries" in result.stdout and key_fingerprint(public_line(KEY)) in result.stdout
    assert len(result.stdout.split("Hash of the last: ")[1].strip()) == 64


def test_verify_names_the_changed_line_and_ends_with_1(ledger, site) -> None:
    path = site / "work" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"patients":24', b'"patients":25'))
    result = ledger("verify")
    assert result.exit_code == 1
    assert "line 3 was changed" in result.stdout and "3 lines, 1 fault." in result.stdout


def test_verify_says_of_a_torn_line_that_it_is_no_fault(ledger, site) -> None:
    with (site / "work" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"asked":"10')
    result = ledger("verify")
    assert result.exit_code == 0
    assert "torn, as a power loss leaves it" in result.stdout and "is whole: 3 entries" in result.stdout


def test_verify_with_the_key_of_another_site_finds_every_line(ledger, site) -> None:
    (site / "site.pub").write_text(public_line(new_site_key()) + "\n")
    result = ledger("verify")
    assert result.exit_code == 1
    assert result.stdout.count("is not signed by this site's key") == 3


def no_public_key(site: Path) -> None:
    (site / "site.pub").unlink()


def another_file(site: Path) -> None:
    (site / "site.pub").write_text("ssh-rsa AAAA")


def no_ledger(site: Path) -> None:
    for path in (site / "work").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("command", "harm", "found"),
    [
        ("verify", no_public_key, "site.pub cannot be read: No such file"),
        ("export", another_file, "'ssh-rsa AAAA' is not a public key"),
        ("verify", no_ledger, "there is no ledger at"),
        ("show", no_ledger, "there is no ledger at"),
        ("export", no_ledger, "there is no ledger at"),
    ],
)
def test_what_is_missing_is_named(ledger, site, command, harm, found) -> None:
    harm(site)
    result = ledger(command)
    assert isinstance(result.exception, BadInput) and found in str(result.exception)


def test_show_tells_what_left_for_which_run_and_round_newest_last(ledger) -> None:
    result = ledger("show")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    at = [number for number, line in enumerate(lines) if line.split()[0] in ("1", "2", "3")]
    started, refused, answer = (" ".join(lines[a:b]) for a, b in zip(at, [*at[1:], len(lines)], strict=True))
    assert "started" in started
    assert "refused" in refused and "\x1b" not in result.stdout
    assert "asked: 100" in refused and "policy.max_rounds" in refused
    for shown in ("answer: train", "lungs-1", "round 7,", "24 patients", "4 tensors, 3.0 MB, 2 numbers"):
        assert shown in answer


def test_show_leaves_older_entries_out(ledger) -> None:
    result = ledger("show", "--last", "1")
    assert "answer: train" in result.stdout and "refused" not in result.stdout


def test_export_writes_a_row_for_each_thing_that_left(ledger, tmp_path) -> None:
    out = tmp_path / "table.csv"
    result = ledger("export", "--out", str(out))
    assert result.exit_code == 0 and "Wrote 8 rows" in result.stdout
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows if row["item"]] == ["conv0", "conv1", "conv2", "conv3", "loss", "n"]


def test_export_of_a_tampered_ledger_says_that_it_proves_nothing(ledger, site, tmp_path) -> None:
    path = site / "work" / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    result = ledger("export", "--out", str(tmp_path / "table.csv"))
    assert result.exit_code == 1
    assert "1 fault in the ledger, so the table proves nothing" in result.stderr
