"""What differs between the jobs of several runs, in the words of their job files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared_models.job import Job

Settings = dict[str, Any]
"""Dotted key of the job file -> value; a list is one value."""

MOST_PARTS = 5
"""What a label says of jobs that differ in more than a reader can take in; compare.json has all of it."""


def settings_of(job: Job) -> Settings:
    """Every key of the resolved job but its name, its seed, and what of `share` the algorithm's name says already."""
    found = _flat(job.model_dump(mode="json", exclude={"name", "seed"}))
    for key in job.federation.algorithm.stays_at_home:
        found.pop(f"federation.share.{key}", None)
    return found


def differing(jobs: Sequence[Settings]) -> list[Settings]:
    """For each job its values of the keys that tell the jobs apart, in the order of the job file.

    A key that only some jobs have, such as fedprox's mu beside fedavg, tells them apart by being there; it is left
    out where the values of other keys do so already, and all that have it agree.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job))
    varied = [key for key in keys if len({_text(job[key]) for job in jobs if key in job}) > 1]
    found = [_only(job, varied) for job in jobs]
    if len(set(map(_text, found))) < len(set(map(_text, jobs))):
        partly = [key for key in keys if any(key not in job for job in jobs)]
        found = [_only(job, [key for key in keys if key in varied or key in partly]) for job in jobs]
    return found


def labels(found: Sequence[Settings]) -> list[str]:
    """One text for each job, such as `algorithm.name=fedprox (mu=0.01), optimizer.learning_rate=0.01`.

    A key is written without its section, unless that keeps it apart from another, and in brackets without all that it
    shares with the name or kind that it belongs to. Nulls, and what is more than `MOST_PARTS`, are left out where the
    labels differ without them. A job without any of the keys has the label `as written`.
    """
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    short = {key: _short(key, keys) for key in keys}
    full = [_parts(one, short) for one in found]
    without_null = [_parts({key: value for key, value in one.items() if value is not None}, short) for one in found]
    for parts in ([_brief(each) for each in without_null], without_null):
        if _count(parts) == _count(full) and parts.count([]) == full.count([]):
            return [", ".join(each) or "as written" for each in parts]
    return [", ".join(each) or "as written" for each in full]


def _parts(settings: Settings, short: dict[str, str]) -> list[str]:
    """`algorithm.name=fedprox (mu=0.01)` is one part: a name or kind, and what else of its section differs."""
    inside: dict[str, list[str]] = {}
    for key, value in settings.items():
        if head := _head(key, settings):
            inside.setdefault(head, []).append(f"{key.removeprefix(_section(head))}={shown(value)}")
        else:
            inside.setdefault(key, [])
    found = []
    for key, more in inside.items():
        text = f"{short[key]}={shown(settings[key])}"
        found.append(f"{text} ({', '.join(more)})" if more else text)
    return found


def _head(key: str, settings: Settings) -> str | None:
    """The name or kind among the settings whose section holds the key; of several the outermost."""
    heads = [other for other in settings if other != key and other.endswith((".name", ".kind"))]
    return min((head for head in heads if key.startswith(_section(head))), key=len, default=None)


def _section(key: str) -> str:
    return key.rpartition(".")[0] + "."


def _brief(parts: list[str]) -> list[str]:
    more = len(parts) - MOST_PARTS
    return [*parts[:MOST_PARTS], f"{more} more settings"] if more > 1 else parts


def _count(parts: Sequence[list[str]]) -> int:
    """How many different ones there are."""
    return len(set(map(_text, parts)))


def shown(value: Any) -> str:
    """A value as it would stand in a job file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(key: str, keys: Sequence[str]) -> str:
    """The key without its first step, where two are left and no other key ends like it."""
    _, _, rest = key.partition(".")
    apart = not any(other != key and f".{other}".endswith(f".{rest}") for other in keys)
    return rest if "." in rest and apart else key


def _flat(section: Settings, above: str = "") -> Settings:
    found: Settings = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def _only(job: Settings, keys: Sequence[str]) -> Settings:
    return {key: job[key] for key in keys if key in job}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
