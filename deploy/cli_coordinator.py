"""`consilium coordinator`: make a federation, keep it running, launch runs and watch them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy import cli_enrol
from deploy.cli_enrol import COORDINATOR, CoordinatorHome, PassphraseFile
from deploy.options import INTERRUPTED
from deploy.passphrase import ask_passphrase
from shared_models.errors import BadInput

if TYPE_CHECKING:
    from server.runs import Run

app = typer.Typer(
    no_args_is_help=True,
    help="""Make a federation of hospitals, launch runs and watch them.

    consilium coordinator init --name liver --address fl.example.org:443
    consilium coordinator admit request.json
    consilium coordinator start
    consilium coordinator run job.yaml
    """,
)
for _name, _function in cli_enrol.COORDINATOR_COMMANDS.items():
    app.command(_name)(_function)

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Its folder's name in runs/.")]


@app.command()
def start(
    home: CoordinatorHome = COORDINATOR,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where to listen; default all interfaces."),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Run the coordinator until Ctrl-C or SIGTERM.

    It keeps Flower's SuperLink alive on loopback, lets hospitals through to it
    by TLS and by nothing else, and works on runs one after the other. A run
    that was under way goes on from its last checkpoint.

    consilium coordinator start
    consilium coordinator start --listen 0.0.0.0:8443

    Exit codes
      0  ended by Ctrl-C or SIGTERM
      2  bad input: the folder, the passphrase or an address that is taken
    """
    from server.daemon import Coordinator
    from server.federation import open_federation
    from shared_models.enrolment import parse_address

    federation = open_federation(home)
    try:
        where = parse_address(listen) if listen else ("0.0.0.0", federation.port)
    except ValueError as error:
        raise BadInput(f"--listen: {error}") from None
    coordinator = Coordinator(federation, where, ask_passphrase(federation.paths.signing_key, passphrase_file))
    coordinator.run(lambda: typer.echo(f"Coordinator of {federation.name}, listening at {coordinator.listens_at}."))


@app.command()
def run(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml")],
    home: CoordinatorHome = COORDINATOR,
    sites: Annotated[
        str | None, typer.Option(metavar="A,B", help="Ask these sites only; default all that are active.")
    ] = None,
    compare: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="What the model is compared with: local (each site alone, if its policy allows), fine_tuned, "
            "personalised, temperature, adapted, all or none.",
        ),
    ] = "none",
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for sites that are not ready.")
    ] = 600,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it and return at once.")] = False,
) -> None:
    """Launch a job on the hospitals, and follow it.

    The first question to every site is whether it can do the job: a table
    shows the answers before round 1. Ctrl-C ends the following, not the run.

    consilium coordinator run job.yaml
    consilium coordinator run job.yaml --sites north,south --wait 3600
    consilium coordinator run job.yaml --detach

    Exit codes
      0  complete, and nobody was left out
      2  bad input: the job, the sites, or no coordinator is running
      3  stopped: what was done is kept, and can be resumed
      4  complete, but a hospital was left out; the report says which and why
      130  the following was interrupted; the run goes on
    """
    from deploy.cli_job import selection_metric
    from server.federation import open_federation
    from server.runs import create_run
    from server.status import read_daemon
    from shared_models.comparisons import read_comparisons

    comparisons, federation = read_comparisons(compare), open_federation(home)
    if not read_daemon(federation.paths).running:
        raise BadInput(f"no coordinator is running from {home}; `consilium coordinator start` starts it")
    selection_metric(job)
    known = {entry.name: entry.state for entry in federation.registry.entries()}
    named = [name.strip() for name in (sites or "").split(",") if name.strip()]
    if sites is not None and not named:
        raise BadInput("--sites names no site; leave it out to ask all that are active")
    for name in named:
        if name not in known:
            raise BadInput(f"--sites: '{name}' is no site here; `consilium coordinator list` shows them")
        if known[name] != "active":
            raise BadInput(f"--sites: {name} is {known[name]}; `consilium coordinator readmit {name}` lets it back in")
    created = create_run(
        federation.paths.runs, job, federation.name, sites=named, compare=comparisons, wait_seconds=wait
    )
    typer.echo(f"run      {created.path}")
    if not detach:
        raise typer.Exit(_follow(created))


@app.command()
def log(run: RunName, home: CoordinatorHome = COORDINATOR) -> None:
    """Show a run from its beginning, and follow it while it goes on.

    consilium coordinator log liver-20260102-030405

    Exit codes are those of `consilium coordinator run`.
    """
    raise typer.Exit(_follow(_find(home, run)))


@app.command()
def status(home: CoordinatorHome = COORDINATOR) -> None:
    """Say what the coordinator is doing, and what a run is waiting for.

    On whom it waits, since when, and what happens next.

    consilium coordinator status

    Exit codes
      0  the coordinator is running
      2  bad input: no federation in this folder
      3  the coordinator is not running
    """
    from server.federation import open_federation
    from server.status import describe, read_daemon

    paths = open_federation(home).paths
    for line in describe(paths):
        typer.echo(line)
    if not read_daemon(paths).running:
        raise typer.Exit(3)


@app.command()
def stop(run: RunName, home: CoordinatorHome = COORDINATOR) -> None:
    """Stop a run; what was done is kept, and can be resumed.

    consilium coordinator stop liver-20260102-030405

    Exit codes
      0  it will stop
      2  bad input: no such run, or it is over already
    """
    found = _find(home, run)
    if found.state().phase in ("complete", "stopped"):
        raise BadInput(f"{run} is {found.state().phase} already")
    found.stop_file.touch()
    typer.echo(f"{run} will stop; `consilium coordinator resume {run}` continues it.")


@app.command()
def resume(
    run: RunName,
    home: CoordinatorHome = COORDINATOR,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it and return at once.")] = False,
) -> None:
    """Continue a run that was stopped, behind its last whole round.

    consilium coordinator resume liver-20260102-030405

    Exit codes are those of `consilium coordinator run`.
    """
    found = _find(home, run)
    if found.state().phase != "stopped":
        raise BadInput(f"{run} is {found.state().phase}, not stopped; there is nothing to resume")
    found.job()
    events = found.path / "events.jsonl"
    shown = events.stat().st_size if events.exists() else 0  # a run that was stopped in the queue has none
    found.move("queued", reason=None, exit_code=None)
    typer.echo(f"{run} is queued again.")
    if not detach:
        raise typer.Exit(_follow(found, shown))


@app.command()
def results(run: RunName, home: CoordinatorHome = COORDINATOR) -> None:
    """Say where the models and the report of a run are, and what it found.

    consilium coordinator results liver-20260102-030405

    Exit codes
      0  shown
      2  bad input: no such run, or it has no report yet
    """
    import json

    found = _find(home, run)
    report = found.path / "report.json"
    if not report.exists():
        raise BadInput(f"{run} has no report yet; `consilium coordinator status` says where it stands")
    content = json.loads(report.read_text())
    if found.state().phase == "stopped":
        typer.echo(f"It was stopped ({found.state().reason}), so these are results on the way.")
    for doubt in content.get("doubts", []):  # a report of an older version has none
        if doubt["grave"]:
            typer.echo(f"! {doubt['text']}")
    for sentence in content["answer"]:
        typer.echo(sentence)
    typer.echo(f"fingerprint  {content['run']['fingerprint']}")
    for path in sorted((found.path / "models").glob("*.safetensors")):
        typer.echo(f"model        {path}")
    typer.echo(f"report       {found.path / 'report.html'}")


def _find(home: Path, name: str) -> Run:
    from server.federation import open_federation
    from server.runs import find_run

    return find_run(open_federation(home).paths.runs, name)


def _follow(run: Run, start: int = 0) -> int:
    """Shows a run's events as they come, until it is over; returns its exit code."""
    from server.following import follow

    try:
        return follow(run, start)
    except KeyboardInterrupt:
        typer.echo(f"The run goes on; `consilium coordinator log {run.name}` follows it again.", err=True)
        return INTERRUPTED
