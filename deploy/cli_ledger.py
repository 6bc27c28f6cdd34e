"""`consilium site ledger`: prove what left this hospital."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_models.errors import BadInput

if TYPE_CHECKING:
    from client.config import SiteConfig

app = typer.Typer(
    no_args_is_help=True,
    help="""Prove what left this hospital.

    The ledger has a signed line for everything that the site was asked, what it
    allowed and what left it: every tensor by name, shape and SHA-256.

    consilium site ledger verify
    consilium site ledger show --last 50
    consilium site ledger export --out ledger.csv
    """,
)

FAULTS = 1
Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The hospital's site.yaml.")]
SITE = Path("site/site.yaml")
_SHOWN = {"n", "time", "kind", "site", "run", "round", "question", "patients", "tensors", "numbers"}
_NOT_SHOWN = {"previous", "hash", "signature", "flower_run", "job_hash", "federation", "manifest", "cases"}


@app.command()
def verify(config: Config = SITE) -> None:
    """Check every line of the ledger, from the first to the last.

    A line that was changed, removed, moved, inserted or signed by another key is
    named. Note the hash of the last line now and then, outside this machine: it
    shows later that nobody put an older copy of the ledger back.

    consilium site ledger verify
    consilium site ledger verify --config /etc/consilium/site.yaml

    Exit codes
      0  whole: every line is as this site wrote it
      1  at least one fault, each named
      2  bad input: site.yaml, or there is no ledger or no public key
    """
    from client.ledger import verify_ledger
    from shared_models.keys import key_fingerprint

    site = _load(config)
    ledger, public = _ledger(site), _public(site)
    found = verify_ledger(ledger, public)
    for fault in found.faults:
        typer.echo(fault)
    if found.torn:
        typer.echo("The last line is torn, as a power loss leaves it; the site repairs that before its next entry.")
    key = key_fingerprint(public)
    if found.faults:
        typer.echo(f"{ledger}: {_count(found.entries, 'line')}, {_count(len(found.faults), 'fault')}. Site key {key}.")
        raise typer.Exit(FAULTS)
    typer.echo(f"{ledger} is whole: {_count(found.entries, 'entry', 'entries')}, signed by the site key {key}.")
    typer.echo(f"Hash of the last: {found.head or 'none yet'}")


@app.command()
def show(
    config: Config = SITE,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="How many entries, the newest last.")] = 20,
) -> None:
    """Show the last entries: when, what, for which run and round, and what left.

    Two lines an entry; times are UTC (Z). What is shown is not checked;
    `verify` does that.

    consilium site ledger show
    consilium site ledger show --last 100

    Exit codes
      0  shown
      2  bad input: site.yaml, no ledger, or a line that is no entry
    """
    from client.ledger import read_ledger

    for entry in deque(read_ledger(_ledger(_load(config))), maxlen=last):
        heading, left = _told(entry)
        typer.echo(_plain(heading))
        if left:
            typer.echo(_plain(f"      {left}"))


@app.command()
def export(
    config: Config = SITE,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The table to write.")] = Path("ledger.csv"),
) -> None:
    """Write the ledger as a table (CSV) for an auditor.

    One row for each tensor and each number that left, with its shape, bytes and
    SHA-256, and one row for any other entry. The ledger is verified as well.

    consilium site ledger export --out ledger.csv

    Exit codes
      0  written, and the ledger is whole
      1  written, but the ledger has faults; `verify` names them
      2  bad input: site.yaml, no ledger or public key, a line that is no entry, or --out
    """
    from client.ledger import verify_ledger
    from client.ledger_table import export_csv

    site = _load(config)
    ledger, public = _ledger(site), _public(site)
    faults = verify_ledger(ledger, public).faults
    typer.echo(f"Wrote {_count(export_csv(ledger, out), 'row')} to {out}")
    if faults:
        typer.echo(f"{_count(len(faults), 'fault')} in the ledger, so the table proves nothing; see `verify`", err=True)
        raise typer.Exit(FAULTS)


def _load(config: Path) -> SiteConfig:
    from client.config import load_site_config

    return load_site_config(config)


def _ledger(site: SiteConfig) -> Path:
    return site.work / "ledger.jsonl"


def _public(site: SiteConfig) -> str:
    """The site's public key, which lies beside its private one."""
    from shared_models.keys import load_public

    path = site.key.with_suffix(".pub")
    try:
        with path.open("rb") as file:
            public = file.read(4096).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise BadInput(f"the site's public key {path} cannot be read: {reason}") from None
    load_public(public)
    return public


def _told(entry: dict[str, Any]) -> tuple[str, str]:
    """One entry in words: what it is of, and what left or why nothing did."""
    question, when = entry.get("question"), entry["time"][:19].replace("T", " ")
    patients = entry.get("patients")
    what = f"{entry['kind']}: {question}" if question else entry["kind"]
    of = [_text(entry["run"])] if entry.get("run") else []
    of += [f"round {_text(entry['round'])}"] if entry.get("round") is not None else []
    of += (
        [_count(patients, "patient") if isinstance(patients, int) else f"patients: {_text(patients)}"]
        if patients
        else []
    )
    return f"{entry['n']:>4}  {when}Z  {what}{'  ' if of else ''}{', '.join(of)}", _left(entry)


def _left(entry: dict[str, Any]) -> str:
    """What left, counted; or what else there is to know of an entry with which nothing left."""
    from rich.filesize import decimal

    tensors, numbers = entry.get("tensors"), entry.get("numbers")
    parts = []
    if tensors and isinstance(tensors, list):
        sizes = [tensor.get("bytes") for tensor in tensors if isinstance(tensor, dict)]
        size = sum(value for value in sizes if isinstance(value, int))
        parts.append(f"{_count(len(tensors), 'tensor')}, {decimal(size)}")
    if numbers and isinstance(numbers, dict | list):
        parts.append(_count(len(numbers), "number"))
    rest = {key: value for key, value in entry.items() if key not in _SHOWN | _NOT_SHOWN}
    if rest.get("sent") == rest.get("sentence"):
        rest.pop("sentence", None)
    if not parts:
        return "; ".join(f"{key}: {_text(value)}" for key, value in rest.items() if value not in ("", None))
    return ", ".join(parts)


def _text(value: Any) -> str:
    """A value in words: ``{"train": 24}`` is ``24 train``."""
    if isinstance(value, dict) and all(isinstance(count, int) for count in value.values()):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def _plain(text: str) -> str:
    """A text without what a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
