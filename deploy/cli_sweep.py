"""`consilium sweep`: a run for every combination of a grid's values and every seed, and their comparison."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy import cli_compare, cli_job
from deploy.options import INTERRUPTED, Device, refuse_others
from shared_models.errors import BadInput

if TYPE_CHECKING:
    from simulation.sweep import Sweep

COMMAND = [str(Path(sys.executable).with_name("consilium"))]


def sweep(
    context: typer.Context,
    job: Annotated[Path | None, typer.Argument(metavar="JOB.yaml")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,...", help="A key of the job and the values to try; may be given several times."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many: the job's seed, and the ones that follow it.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder; default sweeps/<job name>.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with data sets already downloaded; without it they are fetched.")
    ] = None,
    compare: Annotated[str, typer.Option(help="Baselines of every run, as of `consilium simulate`.")] = "none",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of a run; default one a core or GPU.")] = None,
    device: Annotated[Device, typer.Option(help="What the networks train on.")] = Device.auto,
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP_DIR", help="Go on with a sweep that was stopped.")
    ] = None,
) -> None:
    """Run a job with every combination of some values, and compare the runs.

    A key is a dotted path in the job file; `federation.` may be left out. A
    value is anything that YAML knows, also a section. A new algorithm.name
    keeps the server_optimizer and drops what belonged to the old algorithm.

    consilium sweep job.yaml --grid algorithm.name=fedavg,fedprox --seeds 3
    consilium sweep job.yaml --grid training.optimizer.learning_rate=0.01,0.001
    consilium sweep job.yaml --grid "aggregation={name: mean},{name: median}"
    consilium sweep job.yaml --grid rounds=5,10 --grid training.batch_size=8,32
    consilium sweep --resume sweeps/pneumonia

    Every job is checked before the first one runs. Each run is an ordinary run
    directory in SWEEP_DIR/runs; the comparison of all is SWEEP_DIR/compare.html.
    All runs of one seed have the same patients in the same hospitals; another
    seed divides them otherwise. The same command again, or --resume, goes on:
    what is complete stays, a run that was cut off continues from its last round,
    and one that failed is tried again.

    Exit codes
      0  every run is complete, and nobody was left out
      2  bad input: the job, the grid or an option; nothing was run
      3  stopped, as by a full disk: what was done is kept, --resume goes on
      4  some runs failed or left a hospital out; sweep.json says why
      130  interrupted by Ctrl-C; --resume goes on
    """
    from simulation.sweep import SweepRequest, begin, check_cells, reopen, run_cells

    if resume:
        refuse_others(context, "resume")
        folder = resume
        opened = reopen(folder)
    elif job is None:
        raise BadInput("give a JOB.yaml with --grid or --seeds, or --resume SWEEP_DIR to go on with a sweep")
    else:
        from shared_models.job_file import load_job

        folder = out or Path("sweeps") / load_job(job).name
        data = str(data_dir.absolute()) if data_dir else None
        opened = begin(SweepRequest(str(job), grid or [], seeds, compare, data, workers, device.value), folder)
    try:
        _announce(opened, check_cells(opened, cli_job.selection_metric))
        run_cells(opened, COMMAND, typer.echo)
        _compare(opened)
    except KeyboardInterrupt:
        done = sum(row["status"] == "complete" for row in opened.rows)
        print(
            f"consilium: interrupted; {done} of {len(opened.rows)} runs are complete; go on with: "
            f"consilium sweep --resume {folder}",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(opened.exit_code())


def _announce(sweep: Sweep, invalid: list[dict[str, object]]) -> None:
    from simulation.sweep import COMPLETE, title

    done = sum(row["status"] == COMPLETE for row in sweep.rows)
    before = f", {done} of them complete already" if done else ""
    typer.echo(f"{len(sweep.rows)} runs in {sweep.folder}{before}; what each says is in {sweep.folder / 'logs'}.")
    for row in invalid:
        typer.echo(f"! not run: {title(row)}: {row['failures'][-1]['sentence']}")  # type: ignore[index]


def _compare(sweep: Sweep) -> None:
    from server.report.comparison import compare_runs
    from server.report.comparison_page import write_comparison
    from simulation.sweep import COMPLETE

    complete = [sweep.run_dir(row) for row in sweep.rows if row["status"] == COMPLETE]
    if not complete:
        typer.echo("No run is complete, so there is nothing to compare.")
        return
    comparison = compare_runs(complete, left_out=sweep.unfinished(), varied=sweep.varied())
    write_comparison(comparison, sweep.folder / "compare.html")
    typer.echo()
    cli_compare.show(comparison)
    typer.echo(f"compare  {sweep.folder / 'compare.html'}")
