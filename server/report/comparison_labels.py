"""What differs between the jobs of several runs, in the words of their job files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shared_models.job import Job
from shared_models.job_simulation import Simulation

Settings = dict[str, Any]
"""Dotted key of the job file -> value; a list is one value, and so is what a simulation makes of its hospitals."""

MOST_PARTS = 5
"""What a label says of jobs that differ in more than a reader can take in; compare.json has all of it."""
MOST_HOSPITALS = 3
"""As many hospitals are named in a label; of more, how many there are."""
MADE = {f"simulation.{key}" for key in Simulation.model_fields} - {"simulation.dataset", "simulation.partition"}
"""How a simulation's hospitals were made to differ, an attack among it: never left out of a label."""
ONE_JOB = "federation.algorithm.name"
"""What the label says of a job that has none beside it to differ from."""


def settings_of(job: Job) -> Settings:
    """Every key of the resolved job but its name, its seed, and what of `share` the algorithm's name says already.

    A key of `MADE` is there with what differs from its default, or with None.
    """
    found = _flat(job.model_dump(mode="json", exclude={"name", "seed"}))
    for key in job.federation.algorithm.stays_at_home:
        found.pop(f"federation.share.{key}", None)
    if job.simulation is not None:
        made = job.simulation.model_dump(mode="json", exclude_defaults=True)
        found |= {key: made.get(key.removeprefix("simulation.")) for key in found.keys() & MADE}
    return found


def differing(jobs: Sequence[Settings], always: Sequence[str] = ()) -> list[Settings]:
    """For each job its values of the keys that tell the jobs apart, in the order of the job file.

    A key that only some jobs have tells them apart as well, unless it belongs to a name or kind that accounts for it,
    as fedprox's mu does beside fedavg.

    Args:
        always: dotted keys that are wanted also where all jobs agree, such as those that a sweep varies.
    """
    keys = list(dict.fromkeys(key for job in jobs for key in job))
    asked = {key for key in keys for wanted in always if f"{wanted}.".startswith(f"{key}.")}
    found = [key for key in keys if key in asked or _tells(key, keys, jobs)] or [ONE_JOB]
    return [{key: job[key] for key in found if key in job} for job in jobs]


def _tells(key: str, keys: Sequence[str], jobs: Sequence[Settings]) -> bool:
    if len({_text(job[key]) for job in jobs if key in job}) > 1:
        return True
    heads = _heads(key, keys)
    if key.startswith("federation.share."):  # what an algorithm keeps at home is said by its name: see `settings_of`
        heads.append(ONE_JOB)
    by_heads: dict[str, set[bool]] = {}
    for job in jobs:
        by_heads.setdefault(_text([job.get(head) for head in heads]), set()).add(key in job)
    return any(len(has) > 1 for has in by_heads.values())


def labels(found: Sequence[Settings]) -> list[str]:
    """One text for each job, such as `algorithm.name=fedprox (mu=0.01), faulty={hospital-2: sign_flip}`.

    A key is written without its section, unless that keeps it apart from another, and in brackets without all that it
    shares with the name or kind that it belongs to. What a job has not is left out of a label that says something
    else, and so are details and what is more than `MOST_PARTS`, all where the labels differ without them. One job has
    its details, which a sweep may have varied.
    """
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    short = {key: _short(key, keys) for key in keys}
    parts = [_parts(one, short, details=True, empty=True) for one in found]
    for details, cut, empty in ((len(found) == 1, True, False), (True, True, False), (True, False, False)):
        shorter = [_parts(one, short, details, empty) for one in found]
        if cut:
            shorter = [_cut(each) for each in shorter]
        if len(set(map(_text, shorter))) == len(set(map(_text, parts))):
            parts = shorter
            break
    return [", ".join(each.values()) for each in parts]


def _parts(settings: Settings, short: dict[str, str], details: bool, empty: bool) -> dict[str, str]:
    """Key -> text. A name or kind and what else of its section differs are one: `algorithm.name=fedprox (mu=0.01)`.

    Args:
        details: not only the kinds of what a simulation makes of its hospitals.
        empty: also what the job has not; it is there in any case where nothing else is.
    """
    there = {key: value for key, value in settings.items() if value is not None}
    if not there:
        return {key: _lack(key, settings, short[key]) for key in short}
    told = settings if empty else there
    inside: dict[str, list[str]] = {}
    for key, value in told.items():
        if heads := _heads(key, list(told)):
            head = min(heads, key=len)
            inside.setdefault(head, []).append(f"{key.removeprefix(_section(head))}={shown(value)}")
        else:
            inside.setdefault(key, [])
    texts = {
        key: f"{short[key]}={_made(key, told[key], details) if key in MADE else shown(told[key])}" for key in inside
    }
    return {key: f"{texts[key]} ({', '.join(more)})" if more else texts[key] for key, more in inside.items()}


def _lack(key: str, settings: Settings, short: str) -> str:
    if key not in settings:
        return f"{short} not set"
    return f"{short}={_made(key, None, details=False) if key in MADE else shown(None)}"


def _made(key: str, value: Any, details: bool) -> str:
    """What a simulation makes of its hospitals: `mild`, `{hospital-2: sign_flip}`, `{4 hospitals: noise}`."""
    if key == "simulation.scanners" and value:
        value = value.get("set") or value["by_hospital"]
    if not isinstance(value, dict):
        return "none" if value is None else shown(value)
    by_hospital = {hospital: _what(each, details) for hospital, each in value.items()}
    alike = set(by_hospital.values())
    if len(by_hospital) > MOST_HOSPITALS and (len(alike) == 1 or not details):
        by_hospital = {f"{len(by_hospital)} hospitals": alike.pop() if len(alike) == 1 else ""}
    return f"{{{', '.join(f'{hospital}: {what}' if what else hospital for hospital, what in by_hospital.items())}}}"


def _what(value: Any, details: bool) -> str:
    """What is done at one hospital: an effect, several, or the names of classes, organs or columns."""
    if isinstance(value, list):
        return "+".join(_what(each, details) for each in value)
    if not isinstance(value, dict):
        return shown(value)
    kind = value.get("kind")
    rest = " ".join(f"{key}={shown(each)}" for key, each in value.items() if key != "kind")
    return rest if kind is None else f"{kind} ({rest})" if rest and details else kind


def _heads(key: str, keys: Sequence[str]) -> list[str]:
    """The names and kinds among the keys whose sections hold a key."""
    heads = [other for other in keys if other != key and other.endswith((".name", ".kind"))]
    return [head for head in heads if key.startswith(_section(head))]


def _section(key: str) -> str:
    return key.rpartition(".")[0] + "."


def _cut(parts: dict[str, str]) -> dict[str, str]:
    """At most `MOST_PARTS`, or all of a simulation and one more."""
    simulated = {key: text for key, text in parts.items() if key.startswith("simulation.")}
    rest = [key for key in parts if key not in simulated]
    room = max(MOST_PARTS - len(simulated), 1)
    if len(rest) <= room + 1:  # instead of one more, its name has the same room
        return parts
    return {key: parts[key] for key in rest[:room]} | simulated | {"": f"{len(rest) - room} more settings"}


def shown(value: Any) -> str:
    """A value as it would stand in a job file."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(key: str, keys: Sequence[str]) -> str:
    """The key without its first step, where two are left and no other key ends like it."""
    if key in MADE:
        return key.removeprefix("simulation.")
    _, _, rest = key.partition(".")
    apart = not any(other != key and f".{other}".endswith(f".{rest}") for other in keys)
    return rest if "." in rest and apart else key


def _flat(section: Settings, above: str = "") -> Settings:
    found: Settings = {}
    for key, value in section.items():
        if isinstance(value, dict) and f"{above}{key}" not in MADE:
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
