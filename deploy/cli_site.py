"""`consilium site`: what a hospital does."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy import cli_doctor, cli_enrol, cli_jobs, cli_ledger
from deploy.cli_enrol import PassphraseFile
from deploy.passphrase import ask_passphrase
from shared_models.errors import BadInput

app = typer.Typer(
    no_args_is_help=True,
    help="""A hospital: join a federation, decide what it may do here, prove what left.

    consilium site init --name north           make a key here, and a request
    consilium site join kit.json ...           with what the coordinator sent back
    consilium site doctor                      is everything as it should be?
    consilium site start                       run the daemon
    consilium site jobs                        what is asked of us?
    consilium site ledger show                 what left
    """,
)
for _name, _function in [*cli_enrol.SITE_COMMANDS.items(), *cli_jobs.COMMANDS.items()]:
    app.command(_name)(_function)
app.command()(cli_doctor.doctor)
app.command("doctor")(cli_doctor.doctor)
app.add_typer(cli_ledger.app, name="ledger")

QUARANTINED = 1
UNHEALTHY = 3


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
    from shared_models.job_file import read_job

    loaded = read_job(job)
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


Config = Annotated[Path, typer.Option(metavar="site.yaml", help="The site's configuration.")]
SITE_YAML = Path("site/site.yaml")


@app.command()
def start(config: Config = SITE_YAML, passphrase_file: PassphraseFile = None) -> None:
    """Run the hospital's daemon until Ctrl-C or SIGTERM.

    It dials out to the coordinator and listens on loopback only. It runs the
    code that is installed here, and never what a coordinator sends; what it
    may do is the policy in site.yaml, what left is in the ledger.

    consilium site start
    consilium site start --config /etc/consilium/site.yaml

    Exit codes
      0  ended by Ctrl-C or SIGTERM
      2  bad input: site.yaml, the kit, the key or its passphrase
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from client.config import load_site_config
    from client.daemon import SiteDaemon
    from shared_models.enrolment import read_kit
    from shared_models.keys import load_private

    loaded = load_site_config(config)
    kit = read_kit(loaded.kit)
    passphrase = ask_passphrase(loaded.key, passphrase_file)
    key = load_private(loaded.key, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise BadInput(f"{loaded.key} is no site's key; `consilium site init` makes one")
    daemon = SiteDaemon(config, loaded, kit, key, passphrase)
    typer.echo(f"Site {kit.site} of {kit.federation}, dialling {kit.address}.")
    daemon.run()


@app.command()
def status(config: Config = SITE_YAML) -> None:
    """Say how the daemon is, and whether a job waits for a decision.

    The same is at http://127.0.0.1:PORT/health for a monitor, with status 200
    when all is well and 503 when it is not.

    consilium site status

    Exit codes
      0  all is well
      3  not running, or something is wrong
    """
    import json
    import urllib.error
    import urllib.request

    from client.approvals import list_jobs
    from client.config import load_site_config

    health: Any = None
    loaded = load_site_config(config)
    address = f"http://127.0.0.1:{loaded.health_port}/health"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    try:
        with opener.open(address, timeout=5) as answer:
            content = answer.read()
    except urllib.error.HTTPError as unhealthy:
        content = unhealthy.read()
    except OSError:
        typer.echo(f"Site {loaded.site}: no daemon answers at {address}; `consilium site start` starts it.")
        raise typer.Exit(UNHEALTHY) from None
    with suppress(ValueError):  # another program may answer anything
        health = json.loads(content)
    whose = health.get("site") if isinstance(health, dict) else None
    if whose != loaded.site:
        what = f"the daemon of the site {whose}" if whose else "another program"
        typer.echo(f"Site {loaded.site}: {what} answers at {address}; set another health_port in site.yaml.")
        raise typer.Exit(UNHEALTHY)
    for line in _health_lines(health):
        typer.echo(line)
    with suppress(BadInput):  # a damaged file of a job is for `consilium site jobs` to name
        if waiting := sum(job.state == "waiting" for job in list_jobs(loaded.work / "jobs")):
            typer.echo(f"{waiting} {'job waits' if waiting == 1 else 'jobs wait'} for you: `consilium site jobs`")
    if not health["healthy"]:
        raise typer.Exit(UNHEALTHY)


def _health_lines(health: dict[str, Any]) -> list[str]:
    def clock(when: float) -> str:
        return f"{datetime.fromtimestamp(when):%Y-%m-%d %H:%M:%S}"

    verdict = "all is well" if health["healthy"] else "something is wrong (`consilium site doctor` says what)"
    lines = [
        f"Site {health['site']} of {health['federation']}: {verdict}; the daemon runs since {clock(health['since'])}."
    ]
    reached = health["coordinator_reached"]
    when = f"reached last at {clock(reached)}" if reached else "not reached yet"
    lines.append(f"coordinator  {health['coordinator']}, {when}")
    for name in ("supernode", "worker"):
        child = health[name]
        state = f"running, process {child['pid']}" if child["alive"] else "not running; it is started again soon"
        again = f", started again {child['restarts']} times" if child["restarts"] > 0 else ""
        doing = f"; {child['doing']} since {clock(child['since'])}" if child["alive"] and "doing" in child else ""
        lines.append(f"{name:<12} {state}{again}{doing}")
    return [*lines, *health["warnings"]]
