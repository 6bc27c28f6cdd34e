"""`consilium compare`: several runs in one table, one figure and their tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_models.errors import BadInput, SitesLeftOut

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]

WIDTH = 100


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; the first is the reference.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.html", help="The page to write, or to write again; its JSON lies beside it.")
    ] = Path("compare.html"),
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare by this one; default the first run's main metric.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Which model of each run, such as personalised or kept.")
    ] = "federated",
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON, not as tables.")] = False,
) -> None:
    """Put several runs into one table and one figure, and test their differences.

    The first column says what differs between the runs' jobs. Runs that differ
    only in their seed are one method, with the standard deviation over seeds.
    Every method is tested against the first, on the same test patients and,
    from three seeds in common on, over seeds.

    consilium compare runs/fedavg runs/fedprox runs/scaffold
    consilium compare runs/*/ --metric balanced_accuracy --out tables/skew.html
    consilium compare runs/ditto runs/fedavg --model kept --json

    Exit codes
      0  every run is in the table
      2  bad input: none can be compared, or one is no run directory
      4  a run was left out: unfinished, or on another task or data; it is said
    """
    from server.report.comparison import compare_runs
    from server.report.comparison_page import write_comparison

    for folder in runs:
        if (folder / "sweep.json").is_file():
            page = folder / "compare.html"
            raise BadInput(f"{folder} is a sweep, whose comparison is {page}; its runs are {folder / 'runs' / '*'}")
    comparison = compare_runs(runs, metric, model)
    numbers = write_comparison(comparison, out)
    if json:
        typer.echo(numbers.read_text(encoding="utf-8"))
    else:
        show(comparison)
        typer.echo(f"Wrote {out} and {numbers}.")
    if comparison["left_out"]:
        raise typer.Exit(SitesLeftOut.exit_code)


def show(comparison: Row) -> None:
    """The tables of a comparison in the terminal, at most 100 columns wide."""
    from rich.console import Console

    from server.report.comparison_answer import do_not_rely
    from shared_models.page import plural

    console = Console(highlight=False, markup=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    smaller = "" if comparison["larger_is_better"] else ", smaller is better"
    console.print(f"{comparison['label']} of the {comparison['model']} model, {comparison['split']} patients{smaller}")
    console.print(_methods(comparison))
    console.print()
    console.print(_costs(comparison))
    if comparison["tests"]:
        reference = comparison["tests"][0]["reference"]
        console.print(f"\nAgainst {reference}; p corrected by Holm for {plural(len(comparison['tests']), 'method')}")
        console.print(_tests(comparison))
    console.print()
    if comparison["doubts"]:
        console.print(f"{do_not_rely(comparison)}:")
    for doubt in comparison["doubts"]:
        console.print(f"! {doubt['who']}: {doubt['text']}")
    for sentence in comparison["answer"]:
        console.print(sentence)
    for row in comparison["left_out"]:
        console.print(f"! {row['run']} is left out: {row['why']}")


def _methods(comparison: Row) -> Table:
    from shared_models.page import count, fixed

    digits = comparison["digits"]
    table = _table("method", "all patients", "n", "mean of hospitals", "worst hospital", "spread")
    for method in comparison["methods"]:
        seeds = f"\n{len(method['seeds'])} seeds" if len(method["seeds"]) > 1 else ""
        deviation = f" ± {fixed(method['sd'], digits)}" if method["sd"] is not None else ""
        table.add_row(
            method["label"] + seeds,
            f"{fixed(method['value'], digits)}{deviation}\n{_interval(method, digits)}",
            count(method["n"]),
            *(_over_hospitals(method[key], digits) for key in ("mean_of_hospitals", "worst", "spread")),
        )
    return table


def _over_hospitals(row: Row | None, digits: int) -> str:
    """A number with its interval, or its deviation over seeds, and the hospitals that it is of."""
    from server.report.comparison_page import hospitals_of
    from shared_models.page import fixed

    if row is None:
        return fixed(None, digits)
    bounds = f"\n{_interval(row, digits)}" if row["low"] is not None else ""
    deviation = f" ± {fixed(row['sd'], digits)}" if row["sd"] is not None else ""
    where = hospitals_of(row).replace(", ", ",\n")
    return f"{fixed(row['value'], digits)}{deviation}{bounds}\n{where}"


def _costs(comparison: Row) -> Table:
    from shared_models.page import duration, fixed, size

    digits = comparison["digits"]
    table = _table("method", "− local", "− pooled", "rounds", "time", "traffic")
    for method in comparison["methods"]:
        differences = [method[f"minus_{other}"] or {"value": None} for other in ("local", "pooled")]
        table.add_row(
            method["label"],
            *(fixed(row["value"], digits, signed=True) for row in differences),
            fixed(method["rounds"], 0),
            duration(method["seconds"]),
            size(method["bytes"]),
        )
    return table


def _tests(comparison: Row) -> Table:
    from shared_models.page import fixed

    digits = comparison["digits"]
    table = _table("method", "over patients", "p", "over seeds", "p", "verdict, patients")
    for test in comparison["tests"]:
        cells = []
        for kind, of in (("patients", f"n = {test['patients']['n']}"), ("seeds", "")):
            row = test[kind]
            if row["difference"] is None:
                cells += [row["why"] or "", "–"]
                continue
            bounds = row["why"] if row["low"] is None else " ".join(filter(None, [_interval(row, digits, True), of]))
            cells += [f"{fixed(row['difference'], digits, signed=True)}\n{bounds}", _p(row["p_holm"])]
        table.add_row(test["method"], *cells, test["verdict"])
    return table


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for heading in headings:
        # Only words may be folded: the first column, reasons and verdicts.
        words = heading == "method" or "over" in heading or "verdict" in heading
        justify = "left" if words else "right"
        table.add_column(heading, justify=justify, no_wrap=not words, overflow="fold")  # type: ignore[arg-type]
    return table


def _interval(row: Row, digits: int, signed: bool = False) -> str:
    from shared_models.page import fixed

    if row["low"] is None or row["high"] is None:
        return "no interval"
    return f"[{fixed(row['low'], digits, signed)}, {fixed(row['high'], digits, signed)}]"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
