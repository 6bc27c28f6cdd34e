"""`consilium site`: what a hospital does with its own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="A hospital's own data.")

QUARANTINED = 1


@app.callback()
def _group() -> None:
    """Keeps `check` a subcommand: typer would fold a group of one into the group itself."""


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST.csv")],
    job: Annotated[Path, typer.Option(metavar="JOB.yaml", help="Says what a case is.")],
) -> None:
    """Look at every case of a manifest as a run would.

    Every file is opened; image and mask must agree, labels must be declared;
    the same pixels in two splits are found. Prints what is there and what is
    unfit, with the reason.

    consilium site check manifest.csv --job job.yaml

    Exit codes
      0  every case is usable
      1  some cases are quarantined; a run would leave them out
      2  bad input: the manifest or the job, or too few usable cases
    """
    from rich.console import Console
    from rich.progress import Progress

    from client.data.manifest import read_manifest
    from client.data.preflight import preflight, print_report, refuse_unusable
    from shared_models.job_file import load_job

    loaded = load_job(job)
    cases = read_manifest(manifest, loaded)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Checking cases", total=len(cases))
        report = preflight(
            cases, manifest.parent, loaded, progress=lambda done, total: bar.update(task, completed=done)
        )
    print_report(report, Console())
    refuse_unusable(report, loaded)
    if report.quarantined:
        raise typer.Exit(QUARANTINED)
