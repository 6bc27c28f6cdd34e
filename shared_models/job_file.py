"""The job file on disk: read with a sentence for every mistake (file, line, key path), and written out resolved.

Two layers: the models of `shared_models.job` say what each key may hold; `check_meaning` says what keys must be
together. Both report everything they find, not only the first thing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from shared_models import zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_sentences import Path as KeyPath
from shared_models.job_sentences import Refusal, nearest, refusals


def load_job(path: Path) -> Job:
    """The job in a file. Raises BadInput: one line per mistake, each with file, line and key path."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot read this job file ({error.strerror or error})") from None
    try:
        return parse_job(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def parse_job(text: str, source: str) -> Job:
    """The job in a text; `source` names it in messages. Raises BadInput as `load_job` does."""
    root, values = _read_yaml(text, source)
    found = list(_duplicates(root)) or refusals(Job, values)
    if not found:
        job = Job.model_validate(values, strict=True)
        found = check_meaning(job)
        if not found:
            return job
    lines = [(_line(root, refusal.path), refusal) for refusal in found]
    lines.sort(key=lambda pair: pair[0])
    raise BadInput("\n".join(f"{source}:{line}: {_dotted(refusal)}" for line, refusal in lines))


def dump_job(job: Job) -> str:
    """The resolved job as YAML, every default written out; `parse_job` gives the same job back."""
    return yaml.dump(job.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def check_meaning(job: Job) -> list[Refusal]:
    """What is wrong between keys that are each fine alone; empty when the job makes sense."""
    found = [Refusal(path, "expected a finite number") for path in _not_finite(job.model_dump())]
    found += _names(job)
    found += _numbers(job)
    if job.model.name in zoo.MODELS:
        found += refusals(zoo.MODELS[job.model.name], job.model.arguments, at=("model", "arguments"))
    elif hint := nearest(job.model.name, list(zoo.MODELS)):
        found.append(Refusal(("model", "name"), f"there is no model '{job.model.name}'{hint}"))
    if not found:
        try:
            zoo.check(job)
        except BadInput as error:
            found.append(_refusal_of(error))
    return found


def _names(job: Job) -> Iterator[Refusal]:
    """Names that must differ from each other."""
    for section, key, names in (("task", "classes", job.task.classes), ("data", "images", job.data.images)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Refusal((section, key), f"'{twice[0]}' is listed twice")
        for name in names:
            if not name.strip() or not name.isprintable():
                yield Refusal((section, key), f"{name!r} is no name that can be shown")
    roles = {"label": job.data.label, "patient": job.data.patient}
    for role, column in roles.items():
        if column in job.data.images:
            yield Refusal(("data", role), f"column '{column}' is one of data.images already")
    if job.data.label == job.data.patient:
        yield Refusal(("data", "label"), f"column '{job.data.label}' is data.patient already")


def _numbers(job: Job) -> Iterator[Refusal]:
    """Numbers that must fit each other."""
    if job.data.channels < len(job.data.images):
        need = len(job.data.images)
        yield Refusal(("data", "channels"), f"{need} image columns give at least {need} channels, not fewer")
    if job.evaluation.validation_share + job.evaluation.test_share >= 1:
        yield Refusal(("evaluation",), "validation_share and test_share leave nothing to train on")
    if job.training.optimizer.momentum and job.training.optimizer.name != "sgd":
        yield Refusal(
            ("training", "optimizer", "momentum"), f"only sgd has it; leave it out for {job.training.optimizer.name}"
        )
    if job.simulation is None:
        return
    hospitals = job.simulation.hospitals
    for key in ("sites_per_round", "quorum"):
        wanted = getattr(job.federation, key)
        if hospitals is not None and wanted is not None and wanted > hospitals:
            yield Refusal(("federation", key), f"{wanted} sites of only {hospitals} hospitals (simulation.hospitals)")
    partition, classes = job.simulation.partition, len(job.task.classes)
    if partition.name == "pathological" and partition.classes_per_hospital > classes:
        path = ("simulation", "partition", "classes_per_hospital")
        yield Refusal(path, f"{partition.classes_per_hospital} classes of only {classes} (task.classes)")


def _not_finite(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    for key, inner in _inside(value):
        yield from _not_finite(inner, (*path, key))


def _inside(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def _refusal_of(error: BadInput) -> Refusal:
    """A sentence that may start with a key path, `model.name: ...`, taken apart."""
    match = re.match(r"([a-z_]+(?:\.\w+)*): (.*)", str(error), re.DOTALL)
    return Refusal(tuple(match[1].split(".")), match[2]) if match else Refusal(("model",), str(error))


def _dotted(refusal: Refusal) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in refusal.path).lstrip(".")
    return f"{path}: {refusal.sentence}" if path else refusal.sentence


# --- YAML: values, and the line that each came from ---


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which would let a small file grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes what `_Loader` would take for a number."""


# YAML 1.1 reads `1e-3` as text, because it has no dot; everybody who writes it means the number.
_SHORT_FLOAT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _SHORT_FLOAT, list("-+0123456789"))


def _read_yaml(text: str, source: str) -> tuple[yaml.MappingNode, dict[Any, Any]]:
    """The tree of nodes (they know their lines) and the values of a YAML mapping."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise BadInput(f"{source}:1: empty; expected a job, `consilium job init` writes an example")
        if not isinstance(root, yaml.MappingNode):
            raise BadInput(f"{source}:{root.start_mark.line + 1}: expected keys with values (`name: ...`)")
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        tab = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise BadInput(f"{where}: not valid YAML: {error.problem or error.context}{tab}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(f"{source}:{line}: not valid YAML: character {error.character!r} is not allowed") from None
    except ValueError as error:  # a value that looks like a date or a number, but is none
        raise BadInput(f"{source}: not valid YAML: {error}; put such a value in quotes") from None
    except RecursionError:
        raise BadInput(f"{source}: nested too deeply to be a job") from None


def _duplicates(node: yaml.Node, path: KeyPath = ()) -> Iterator[Refusal]:
    """Keys that are given twice: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                yield Refusal((*path, name), f"given twice, in lines {first[name]} and {line}; keep one")
            first.setdefault(name, line)
            yield from _duplicates(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, (*path, index))


def _line(root: yaml.Node, path: KeyPath) -> int:
    """The line of a key, or of the innermost section around it when the key is not there."""
    node, line = root, root.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if str(key.value) == str(step)]
            if not pairs:
                break
            line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line
