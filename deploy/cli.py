"""The command `consilium`: every way in for a person.

Nothing heavy is imported before a command needs it, so that `--help` answers at once. Whatever goes wrong ends in one
sentence on stderr and a documented exit code; `--debug`, anywhere on the line, shows the traceback as well.
"""

from __future__ import annotations

import errno
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deploy import cli_compare, cli_coordinator, cli_job, cli_models, cli_site, cli_sweep
from deploy.options import INTERRUPTED, Device, refuse_others
from shared_models.errors import BadInput, ConsiliumError, RunStopped

BUG = 70  # EX_SOFTWARE of sysexits.h

app = typer.Typer(
    name="consilium",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Hospitals train one imaging model together; images never leave a hospital.

    consilium job init --task segmentation   write a commented example, job.yaml
    consilium job check job.yaml             is it right, what would it do?
    consilium models                         the networks to choose from
    consilium simulate job.yaml              run it, and get a report
    consilium compare RUN RUN                several runs in one table, with tests
    consilium sweep job.yaml --grid KEY=A,B  a run for every value and seed
    consilium coordinator --help             launch it on real hospitals
    consilium site --help                    be one of them

    Any command takes --debug, which shows the traceback behind an error.
    """,
)
app.add_typer(cli_job.app, name="job")
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_coordinator.app, name="coordinator")
app.add_typer(cli_site.app, name="site")
app.command()(cli_compare.compare)
app.command()(cli_sweep.sweep)


class Engine(StrEnum):
    """Where the virtual hospitals run."""

    inprocess = "inprocess"
    ray = "ray"


@app.command()
def simulate(
    context: typer.Context,
    job: Annotated[Path | None, typer.Argument(metavar="JOB.yaml")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with data sets already downloaded; without it they are fetched.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory to make; default runs/<job name>-<UTC time>.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="This machine, or Flower's Ray runtime (extra `ray`).")] = (
        Engine.inprocess
    ),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one for each core or GPU.")] = None,
    split: Annotated[
        Path | None, typer.Option(help="Replay who has which patient, from `consilium partition`.")
    ] = None,
    compare: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="What the federated model is compared with: local, pooled, ensemble, leave_one_out, fine_tuned, "
            "personalised, temperature, adapted, all or none.",
        ),
    ] = "local,pooled",
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Continue a run that was stopped.")] = None,
    device: Annotated[Device, typer.Option(help="What the networks train on.")] = Device.auto,
) -> None:
    """Run a job with virtual hospitals on this machine, and judge it.

    Splits the job's data set into hospitals, trains one model federatedly
    through Flower, compares it with what each hospital could do alone and with
    pooled training, and leaves a run directory with report.html and report.json.

    consilium simulate job.yaml
    consilium simulate job.yaml --data-dir ~/data --out runs/first
    consilium simulate job.yaml --split split.json --compare none
    consilium simulate job.yaml --compare local,fine_tuned,leave_one_out
    consilium simulate --resume runs/first

    Exit codes
      0  complete, and nobody was left out
      2  bad input: the job, the data or an option; nothing was trained
      3  stopped: what was done is kept, --resume continues it
      4  complete, but a hospital was left out of a round or a comparison;
         the report says which and why
      130  interrupted by Ctrl-C; --resume continues it
    """
    from shared_models.comparisons import read_comparisons
    from shared_models.job_file import load_job

    comparisons = read_comparisons(compare)
    if resume:
        refuse_others(context, "resume")
        run_dir, job_path = resume, resume / "job.yaml"
    elif job is None:
        raise BadInput("give a JOB.yaml, or --resume RUN_DIR to continue a run; `consilium job init` writes an example")
    else:
        run_dir, job_path = out or _new_run_dir(load_job(job).name), job

    try:
        # Before the data set is opened, and at once where the folder to resume is none.
        if job_path.is_file():
            cli_job.selection_metric(job_path)
        from simulation.run import simulate
        from simulation.run_folder import SimulationRequest

        request = SimulationRequest(
            job_path=job,
            data_dir=data_dir,
            out=None if resume else run_dir,
            engine=engine.value,
            workers=workers,
            split=split,
            compare=comparisons,
            resume=resume,
            device=device.value,
        )
        raise typer.Exit(simulate(request))
    except KeyboardInterrupt:
        _say(f"interrupted; {_how_to_go_on(run_dir)}")
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise RunStopped(f"the disk is full{where}; free some space, then {_how_to_go_on(run_dir)}") from error


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
) -> None:
    """Make the report of a run again.

    Writes report.html and report.json from what the run directory holds.

    consilium report runs/first
    """
    if not run_dir.is_dir():
        raise BadInput(f"{run_dir}: there is no such run directory")
    from server.report import write_report

    write_report(run_dir)
    typer.echo(f"Wrote {run_dir / 'report.html'} and {run_dir / 'report.json'}.")


@app.command()
def partition(
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it; an existing file is not touched.")],
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with data sets already downloaded; without it they are fetched.")
    ] = None,
) -> None:
    """Decide who has which patient, without training.

    The file can be published beside a paper, and replayed with --split.

    consilium partition job.yaml --out split.json
    consilium simulate job.yaml --split split.json
    """
    from shared_models.job_file import load_job

    loaded = load_job(job)
    if out.exists():
        raise BadInput(f"{out} exists already; give another --out")
    from simulation.datasets import open_dataset
    from simulation.hospitals import make_split

    split = make_split(loaded, data_dir, open_dataset(loaded, data_dir))
    split.save(out)
    patients = sum(len(members) for members in split.hospitals.values())
    typer.echo(f"Wrote {out}: {patients} patients in {len(split.hospitals)} hospitals, hash {split.hash[:16]}.")
    if left_out := sum(map(len, split.left_out.values())):
        typer.echo(f"! {left_out} patients are in no hospital, because of simulation.missing_classes.")


@app.command()
def version() -> None:
    """Print the versions that the numbers of a run depend on.

    consilium version
    """
    from importlib.metadata import version as version_of

    typer.echo(f"consilium {version_of('consilium')}")
    python = ".".join(map(str, sys.version_info[:3]))
    parts = [f"{name} {version_of(name)}" for name in ("torch", "monai", "flwr", "numpy")]
    typer.echo(f"python {python}, {', '.join(parts)}")


def main() -> None:
    """Run the command line; exits with the code that the help of each command documents."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        if isinstance(error, ConsiliumError):
            _say(str(error))
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.filename and error.strerror:
            _say(f"{error.filename}: {error.strerror}")
            sys.exit(BadInput.exit_code)
        again = "" if debug else "; run it again with --debug and report what it prints"
        _say(f"this is a bug: {type(error).__name__}: {' '.join(str(error).split())}{again}")
        sys.exit(BUG)


def _new_run_dir(name: str) -> Path:
    return Path("runs") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _how_to_go_on(run_dir: Path) -> str:
    if (run_dir / "run.json").exists():
        return f"continue with: consilium simulate --resume {run_dir}"
    return "no round was begun, so there is nothing to resume"


def _say(text: str) -> None:
    """Every line of an error on stderr, with who says it."""
    for line in text.splitlines():
        print(f"consilium: {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
