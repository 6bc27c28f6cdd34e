"""`consilium models`: which networks there are, and a job that trains each."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_models.errors import BadInput

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from shared_models.zoo.entry import Entry

app = typer.Typer()

WIDTH = 120  # of the table where there is no terminal that has a width of its own


class Dims(StrEnum):
    """Axes of an image."""

    two = "2"
    three = "3"


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with parameters in 2D and 3D.")] = False,
) -> None:
    """The networks that a job can choose: a table, and one in detail.

    Parameters are counted with default arguments on the images of the job that
    `show NAME --job` prints; building all networks takes some seconds.

    consilium models
    consilium models --json
    consilium models show unet
    consilium models show unet --job > job.yaml
    """
    if context.invoked_subcommand:
        return
    import json
    import sys

    from shared_models.zoo import MODELS

    print("counting parameters ...", file=sys.stderr)
    rows = [_row(name, kind) for name, kind in MODELS.items()]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_table(rows)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in the table of `consilium models`.")],
    job: Annotated[bool, typer.Option("--job", help="Print only a job that trains it, to be put in a file.")] = False,
    dims: Annotated[
        Dims | None, typer.Option(help="Of the images; without it 2, where the network can.", show_default=False)
    ] = None,
) -> None:
    """One network: what it does, its arguments, its layers, what travels, and a job.

    The job runs as it is, on public data or on made-up slices.

    consilium models show unet
    consilium models show unet --dims 3
    consilium models show unet --job > job.yaml
    consilium simulate job.yaml
    """
    from deploy.ready_job import as_yaml, ready_job
    from shared_models.job_sentences import nearest, shown
    from shared_models.zoo import MODELS

    if name not in MODELS:
        hint = nearest(name, list(MODELS)) or "; `consilium models` shows all"
        raise BadInput(f"there is no model {shown(name)}{hint}")
    ready = ready_job(name, int(dims) if dims else None)
    if job:
        typer.echo(as_yaml(ready), nl=False)
        return
    from shared_models.job import Job
    from shared_models.zoo import build

    console = _console()
    _print_entry(console, name, MODELS[name])
    _print_arguments(console, MODELS[name])
    _print_network(console, build(Job.model_validate(ready)), ready["data"])
    console.print("A job that runs as it is; with --job only this is printed, to be put in a file:\n")
    typer.echo(as_yaml(ready), nl=False)


def _row(name: str, kind: type[Entry]) -> dict[str, Any]:
    """One line of the table."""
    from deploy.ready_job import ready_job
    from shared_models.job import Job
    from shared_models.zoo import build

    parameters = {}
    for dims in sorted(kind.spatial_dims):
        network = build(Job.model_validate(ready_job(name, dims)))
        parameters[f"{dims}D"] = sum(parameter.numel() for parameter in network.parameters())
    return {
        "family": kind.family,
        "name": name,
        "tasks": sorted(kind.tasks),
        "size_rule": kind.size_rule,
        "parameters": parameters,
        "normalisation": kind.normalisation,
        "paper": kind.paper,
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    import re

    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("family", "name", "task", "size of images"):
        table.add_column(header, no_wrap=header in ("family", "name"))
    for dims in ("2D", "3D"):
        table.add_column(f"M in {dims}", justify="right")
    table.add_column("norm")
    table.add_column("paper")
    for before, row in zip([None, *rows], rows, strict=False):
        family = row["family"] if before is None or before["family"] != row["family"] else ""
        counts = [row["parameters"].get(dims) for dims in ("2D", "3D")]
        table.add_row(
            family,
            row["name"],
            ", ".join(row["tasks"]),
            row["size_rule"],
            *(f"{count / 1e6:.1f}" if count else "-" for count in counts),
            row["normalisation"],
            re.split(r", | \(|;", row["paper"])[0],
        )
    console = _console()
    console.print(table)
    console.print("M: million parameters with default arguments, for the job that trains it as it is.")
    console.print("`consilium models show NAME` prints that job and every detail.")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def _print_entry(console: Console, name: str, kind: type[Entry]) -> None:
    import inspect

    from rich.table import Table

    console.print(f"{name}, {kind.family}\n\n{inspect.getdoc(kind)}\n", soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_row("tasks", ", ".join(sorted(kind.tasks)))
    table.add_row("images", " and ".join(f"{dims}D" for dims in sorted(kind.spatial_dims)))
    table.add_row("data.crop", kind.size_rule)
    table.add_row("normalisation", f"{kind.normalisation}, unless model.normalisation says otherwise")
    table.add_row("paper", kind.paper)
    console.print(table)


def _print_arguments(console: Console, kind: type[Entry]) -> None:
    import json

    from rich import box
    from rich.table import Table

    arguments = kind.model_json_schema().get("properties", {})
    if not arguments:
        console.print("\nIt takes no arguments.")
        return
    table = Table(title="\nmodel.arguments", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("name", "type", "default", "bounds", ""):
        table.add_column(header, no_wrap=header == "name")
    for name, schema in arguments.items():
        default = json.dumps(schema["default"]) if "default" in schema else "needed"
        table.add_row(name, _type(schema), default, _bounds(schema), schema.get("description", ""))
    console.print(table)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    depth = 0
    while schema["type"] == "array":
        depth, schema = depth + 1, schema["items"]
    if depth:
        return f"list of {'lists of ' * (depth - 1)}{schema['type']}s"
    return {"boolean": "true or false"}.get(schema["type"], schema["type"])


def _bounds(schema: dict[str, Any]) -> str:
    """In signs, those of a list's length first."""
    signs = {
        "exclusiveMinimum": ">",
        "minimum": "≥",
        "exclusiveMaximum": "<",
        "maximum": "≤",
        "multipleOf": "multiple of",
    }
    lengths = {"minItems": "at least", "maxItems": "at most"}
    found = [f"{words} {schema[key]} entries" for key, words in lengths.items() if key in schema]
    if "minItems" in schema and schema["minItems"] == schema.get("maxItems"):
        found = [f"{schema['minItems']} entries"]
    found += [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
    if "items" in schema and (inner := _bounds(schema["items"])):
        found.append(f"each {inner.removeprefix('each ')}")
    return ", ".join(found)


def _print_network(console: Console, network: nn.Module, data: dict[str, Any]) -> None:
    """Layers of normalisation and tensors by kind, of the network that the ready job builds."""
    from collections import Counter
    from math import prod

    from rich import box
    from rich.table import Table

    from shared_models.weights import NORM_MODULES, schema

    parameters = sum(parameter.numel() for parameter in network.parameters())
    crop = " x ".join(map(str, data["crop"]))
    console.print(f"\nWith these defaults, for images of {crop}: {parameters:,} parameters.")
    layers = Counter(type(module).__name__ for module in network.modules() if isinstance(module, NORM_MODULES))
    counts = ", ".join(f"{count} {kind}" for kind, count in layers.most_common())
    console.print(f"Normalisation layers: {counts or 'none'}.\n")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("tensors", "number", "MB that travel"):
        table.add_column(header, justify="left" if header == "tensors" else "right")
    entries = schema(network)
    for kind in dict.fromkeys(entry.kind for entry in entries):
        own = [entry for entry in entries if entry.kind == kind]
        megabytes = sum(4 * prod(entry.shape) for entry in own if entry.travels) / 1e6
        table.add_row(kind, str(len(own)), f"{megabytes:.3g}")
    console.print(table)
