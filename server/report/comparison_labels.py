"""What differs between the jobs of several runs, in the words of their job files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared_models.job import Job

Settings = dict[str, Any]
"""Dotted key of the job file -> value; a list is one value."""


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
    """One text for each job, such as `algorithm.name=fedprox, optimizer.learning_rate=0.01`.

    A key is cut to its last two steps, or as few more as keep it apart from the others. A job without any of the keys
    has the label `as written`.
    """
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    short = {key: _short(key, keys) for key in keys}
    return [", ".join(f"{short[key]}={shown(value)}" for key, value in one.items()) or "as written" for one in found]


def shown(value: Any) -> str:
    """A value as it would stand in a job file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(key: str, keys: Sequence[str]) -> str:
    steps = key.split(".")
    for count in range(2, len(steps)):
        tail = ".".join(steps[-count:])
        if not any(other != key and f".{other}".endswith(f".{tail}") for other in keys):
            return tail
    return key


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
