"""`consilium site doctor`: is everything at this hospital as a run needs it?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.passphrase import VARIABLE, ask_passphrase

if TYPE_CHECKING:
    from rich.console import Console

    from client.doctor import Row

SITE = Path("site/site.yaml")


def doctor(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The hospital's site.yaml.")] = SITE,
    job: Annotated[
        Path | None, typer.Option(metavar="JOB.yaml", help="Read every image as this job would, too.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the passphrase; so can CONSILIUM_PASSPHRASE.")
    ] = None,
) -> None:
    """Look at everything that this site needs, and say what to do about faults.

    Python and packages, device, memory, disk, files and their modes, key, kit,
    policy, manifest, ledger, and the way to the coordinator: proxy, connection,
    certificates, clocks. Changes nothing and sends nothing. Takes seconds;
    with --job as long as it takes to open every image.

    consilium site doctor
    consilium site doctor --config /etc/consilium/site.yaml
    consilium site doctor --job job.yaml

    Exit codes
      0  all is well
      1  only warnings: it works, but see to them
      2  a fault: something will not work, or is not safe
    """
    from rich.console import Console
    from rich.progress import Progress

    from client.doctor import examine

    def passphrase_of(key: Path) -> bytes | None:
        if passphrase_file or VARIABLE in os.environ or sys.stdin.isatty():
            return ask_passphrase(key, passphrase_file)
        return None

    terminal = Console(stderr=True)
    bar = Progress(console=terminal, transient=True, disable=not terminal.is_terminal)
    task = bar.add_task("Opening cases", total=None)

    def progress(done: int, total: int) -> None:
        bar.start()  # not before: a person may have had a passphrase to type
        bar.update(task, completed=done, total=total)

    try:
        rows = list(examine(config, passphrase_of, job, progress))
    finally:
        bar.stop()
    _print(rows, Console(highlight=False, markup=False))
    if worst := max(row.level for row in rows):
        raise typer.Exit(int(worst))


def _print(rows: list[Row], console: Console) -> None:
    """The table, and under it a sentence for every row that is not well."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", "check", "found"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "found")
    words = ("ok", "warning", "FAULT")
    for row in rows:
        table.add_row(words[row.level], _plain(row.check), _plain(row.found))
    console.print(table)
    if any(row.level for row in rows):
        console.print()
    for row in sorted(rows, key=lambda row: -row.level):
        if row.level:
            console.print(f"{words[row.level]}: {_plain(row.sentence)}", soft_wrap=True)


def _plain(text: str) -> str:
    """A text without what a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
