"""The cells of a sweep: every combination of a grid's values, with every seed, as a job file of its own."""

from __future__ import annotations

import copy
import itertools
import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from shared_models import yaml_file
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_federation import Federation
from shared_models.job_sentences import all_keys, nearest

Grid = dict[str, list[Any]]
"""Key as it was typed -> its values, in the order of the command line."""

EXAMPLE = "as in --grid algorithm.name=fedavg,fedprox"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its job file and its run directory.
        settings: key as it was typed -> its value here.
    """

    name: str
    settings: dict[str, Any]
    seed: int


def parse_grid(texts: Sequence[str]) -> Grid:
    """The grid of options like `algorithm.name=fedavg,fedprox`; a value is one of YAML, also `{name: sgd}`.

    Raises:
        BadInput: no key, no value, one given twice, or a key that a job does not have at its top or in `federation`.
    """
    grid: Grid = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise BadInput(f"--grid {text}: expected a key, '=' and values with commas, {EXAMPLE}")
        if key in ("seed", "name"):
            remedy = "use --seeds" if key == "seed" else "it changes nothing of a run"
            raise BadInput(f"--grid {text}: {key} is not for the grid; {remedy}")
        if _path(key) in map(_path, grid):
            raise BadInput(f"--grid {key} is given twice; put all of its values into one")
        read = yaml_file.read_values(f"values: [{values}]", f"--grid {key}", kind="grid", example=EXAMPLE)
        found = read.get("values")
        if len(read) != 1 or not isinstance(found, list) or not found:
            raise BadInput(f"--grid {text}: expected values with commas between them, {EXAMPLE}")
        twice = [value for index, value in enumerate(found) if value in found[:index]]
        if twice:
            raise BadInput(f"--grid {text}: the value {twice[0]} is there twice")
        try:
            json.dumps(found, allow_nan=False)
        except (TypeError, ValueError):
            raise BadInput(f"--grid {text}: a date or a number that is not finite; put it in quotes") from None
        grid[key] = found
    return grid


def cells(grid: Grid, first_seed: int, seeds: int) -> list[Cell]:
    """All combinations with the first seed, then all with the next: a sweep that is stopped has whole rows to compare.

    The last key varies fastest.
    """
    found: list[Cell] = []
    for seed in range(first_seed, first_seed + seeds):
        for values in itertools.product(*grid.values()):
            words = "-".join(_word(value) for value in values)
            name = f"{len(found) + 1:03d}{f'-{words}' if words else ''}-seed-{seed}"
            found.append(Cell(name, dict(zip(grid, values, strict=True)), seed))
    return found


def job_of(base: Mapping[str, Any], folder: Path, cell: Cell) -> dict[str, Any]:
    """The job of a cell, as it is written to its file; nothing is checked but that the keys lead somewhere.

    A new `name` begins its section anew: only keys that every kind of it takes stay (of an algorithm its
    `server_optimizer`); a model loses its `arguments`.

    Args:
        base: the values of the sweep's job file.
        folder: where that file is: `model.pretrained` is relative to it.

    Raises:
        BadInput: a key leads into a value that is no section.
    """
    job = copy.deepcopy(dict(base))
    paths = [(_path(key), value) for key, value in cell.settings.items()]
    # Whole sections first, then names, which may drop keys, then the keys of what they name.
    for path, value in sorted(paths, key=lambda pair: (len(pair[0]), pair[0][-1] != "name")):
        section = _section(job, path[:-1])
        if path[-1] == "name" and section.get("name") != value:
            _start_anew(section, path[:-1])
        section[path[-1]] = copy.deepcopy(value)
    job["seed"] = cell.seed
    model = job.get("model")
    if isinstance(model, dict) and isinstance(model.get("pretrained"), str):
        model["pretrained"] = str((folder / model["pretrained"]).absolute())
    return job


def varied(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of a job, from its root, that some cells have other values of than others.

    Args:
        found: the settings of each cell; those of a section are its keys.
    """
    values: dict[str, list[Any]] = {}
    for settings in found:
        for key, value in settings.items():
            values.setdefault(key, []).append(value)
    keys: list[str] = []
    for key, several in values.items():
        if all(value == several[0] for value in several):
            continue
        path = ".".join(_path(key))
        inside = [f"{path}.{name}" for value in several if isinstance(value, dict) for name in value]
        keys += dict.fromkeys(inside or [path])
    return keys


def _path(key: str) -> tuple[str, ...]:
    """The steps from the job's root; `federation.` may be left out."""
    steps = tuple(key.split("."))
    if steps[0] in Job.model_fields:
        return steps
    if steps[0] in Federation.model_fields:
        return ("federation", *steps)
    inside = dict.fromkeys(name for name in all_keys(Job) if name.split(".")[-1] == steps[0])
    whole = " or ".join(".".join([name, *steps[1:]]) for name in inside)
    near = nearest(steps[0], [*Job.model_fields, *Federation.model_fields])
    hint = f"; did you mean {whole}?" if whole else near
    raise BadInput(f"--grid {key}: a job has no key '{steps[0]}'{hint}; `consilium job schema` has all keys")


def _section(job: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The section at a path, made where it is not there."""
    section = job
    for depth, step in enumerate(path, 1):
        if section.get(step) is None:  # null says that there is none, as run directories' job.yaml do
            section[step] = {}
        inner = section[step]
        if not isinstance(inner, dict):
            raise BadInput(f"{'.'.join(path[:depth])}: this is {inner!r}, and no section that has keys")
        section = inner
    return section


def _start_anew(section: dict[str, Any], path: Sequence[str]) -> None:
    kinds = _kinds(path)
    if len(kinds) > 1:
        common = set.intersection(*(set(kind.model_fields) for kind in kinds))
        for key in section.keys() - common:
            del section[key]
    elif list(path) == ["model"]:
        section.pop("arguments", None)
    elif path[-1] == "server_optimizer":
        section.pop("learning_rate", None)  # its default goes with the name


def _kinds(path: Sequence[str]) -> list[type[BaseModel]]:
    """The kinds of section that may stand at a path: several where a name tells them apart, none where none does."""
    kinds: list[type[BaseModel]] = [Job]
    for step in path:
        fields = [kind.model_fields[step].annotation for kind in kinds if step in kind.model_fields]
        found = {member: None for field in fields for member in (typing.get_args(field) or (field,))}
        kinds = [member for member in found if isinstance(member, type) and issubclass(member, BaseModel)]
    return kinds


def _word(value: Any) -> str:
    """A value as part of a file's name; a number keeps its signs."""
    if isinstance(value, dict):
        return "-".join(map(_word, value.values()))[:40] or "value"
    if isinstance(value, int | float):
        return str(value)
    text = "null" if value is None else str(value)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-.")[:40] or "value"
