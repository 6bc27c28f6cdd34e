"""The job file on disk: read with a sentence for every mistake (file, line, key path), and written out resolved.

Two layers: the models of `shared_models.job` say what each key may hold; `check_meaning` says what keys must be
together. Both report everything they find, not only the first thing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared_models import yaml_file, zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_sentences import Path as KeyPath
from shared_models.job_sentences import Refusal, nearest, refusals
from shared_models.zoo.entry import Entry


def load_job(path: Path) -> Job:
    """The job in a file; a relative `model.pretrained` is made absolute, from the file's folder.

    Raises:
        BadInput: one line per mistake, each with file, line and key path.
    """

    def meaning(job: Job) -> list[Refusal]:
        return check_meaning(job) + _pretrained(job, path.parent)

    job = _parse(yaml_file.read_text(path, "job"), str(path), meaning)
    if job.model.pretrained is None:
        return job
    file = str((path.parent / job.model.pretrained).absolute())
    return job.model_copy(update={"model": job.model.model_copy(update={"pretrained": file})})


def read_job(path: Path) -> Job:
    """As `load_job`, where the file with pretrained weights need not be: at a site, or once a run has begun."""
    return parse_job(yaml_file.read_text(path, "job"), str(path))


def parse_job(text: str, source: str) -> Job:
    """The job in a text; `source` names it in messages. Raises BadInput as `load_job` does."""
    return _parse(text, source, check_meaning)


def _parse(text: str, source: str, meaning: Callable[[Job], list[Refusal]]) -> Job:
    example = "`consilium job init` writes an example"
    return yaml_file.parse(text, source, Job, kind="job", example=example, meaning=meaning)


def dump_job(job: Job) -> str:
    """The resolved job as YAML, every default written out; `parse_job` gives the same job back."""
    return yaml_file.dump(job.model_dump(mode="json"))


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
            found += _model(job, zoo.check(job))
        except BadInput as error:
            found.append(_refusal_of(error))
    return found


def _model(job: Job, entry: Entry) -> Iterator[Refusal]:
    """What the rest of the job asks of a network that cannot give it."""
    name, share, training = job.model.name, job.federation.share, job.training
    if share.networks == "generators" and entry.family != "GAN":
        path = ("federation", "share", "networks")
        yield Refusal(path, f"'{name}' has no discriminators that could stay at the sites; expected 'all'")
    if share.normalisation == "nothing" and job.model.pretrained is not None:
        text = "with model.pretrained, the file's normalisation would be lost at the sites: expected 'all'"
        yield Refusal(("federation", "share", "normalisation"), text)
    batch = (job.model.normalisation or entry.normalisation) == "batch"
    remedy = "set model.normalisation to instance or group, or leave this out"
    if training.accumulate > 1 and batch:
        text = f"batch normalisation would see parts of a batch, which is not the same step: {remedy}"
        yield Refusal(("training", "accumulate"), text)
    if training.gradient_checkpointing and type(entry).checkpointed is Entry.checkpointed:
        text = f"'{name}' has no blocks to compute again; leave this out, or make data.crop or batch_size smaller"
        yield Refusal(("training", "gradient_checkpointing"), text)
    elif training.gradient_checkpointing and batch:
        text = f"batch normalisation would count every image twice: {remedy}"
        yield Refusal(("training", "gradient_checkpointing"), text)


def _pretrained(job: Job, folder: Path) -> list[Refusal]:
    """Whether the file with initial weights is there."""
    name = job.model.pretrained
    if name is not None and not (folder / name).is_file():
        return [Refusal(("model", "pretrained"), f"there is no file {(folder / name).absolute()}")]
    return []


def _names(job: Job) -> Iterator[Refusal]:
    """Names that must differ from each other."""
    for section, key, names in (("task", "classes", job.task.classes), ("data", "images", job.data.images)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield Refusal((section, key), f"'{twice[0]}' is listed twice")
        for name in names:
            if not name.strip() or not name.isprintable():
                yield Refusal((section, key), f"{name!r} is no name that can be shown")
    yield from _columns(job)


def _columns(job: Job) -> Iterator[Refusal]:
    """Every role in a manifest has a column of its own, but a target that noise makes the source of."""
    noisy = job.task.kind == "translation" and job.task.how.mode == "paired" and job.task.how.noise is not None
    if noisy and job.data.images != [job.data.label]:
        text = f"with task.how.noise, the source is made of data.label: expected ['{job.data.label}']"
        yield Refusal(("data", "images"), text)
    taken = {column: "one of data.images" for column in job.data.images}
    roles: dict[KeyPath, str] = {("data", "label"): job.data.label, ("data", "patient"): job.data.patient}
    if job.mask_column:
        roles["task", "how", "mask"] = job.mask_column
    for path, column in roles.items():
        if column in taken and not (noisy and path == ("data", "label")):
            yield Refusal(path, f"column '{column}' is {taken[column]} already")
        taken.setdefault(column, ".".join(map(str, path)))


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
