"""What several commands have in common: options, and the exit code of Ctrl-C."""

from __future__ import annotations

from enum import StrEnum

import typer

from shared_models.errors import BadInput

INTERRUPTED = 130  # what shells report for Ctrl-C


class Device(StrEnum):
    """What the networks train on."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def refuse_others(context: typer.Context, only: str) -> None:
    """Raises BadInput when options were given that what is resumed would not look at."""
    given = [
        name
        for name in context.params
        if name != only and (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        names = ", ".join("JOB.yaml" if name == "job" else f"--{name.replace('_', '-')}" for name in given)
        raise BadInput(f"--resume takes everything from its folder; leave out {names}")
