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

from shared_models import compatibility, yaml_file, zoo
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_scanners import misfit
from shared_models.job_sentences import Path as KeyPath
from shared_models.job_sentences import Refusal, nearest, refusals


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
    found += _intensities(job)
    found += _differences(job)
    found += _missing_parts(job)
    if job.model.name in zoo.MODELS:
        found += refusals(zoo.MODELS[job.model.name], job.model.arguments, at=("model", "arguments"))
    elif hint := nearest(job.model.name, list(zoo.MODELS)):
        found.append(Refusal(("model", "name"), f"there is no model '{job.model.name}'{hint}"))
    if not found:
        try:
            found += compatibility.check(job, zoo.check(job))
        except BadInput as error:
            found.append(_refusal_of(error))
    return found


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
    if job.data.annotated is not None:
        roles["data", "annotated"] = job.data.annotated
    if job.mask_column:
        roles["task", "how", "mask"] = job.mask_column
    for path, column in roles.items():
        if column in taken and not (noisy and path == ("data", "label")):
            yield Refusal(path, f"column '{column}' is {taken[column]} already")
        taken.setdefault(column, ".".join(map(str, path)))
    for column in sorted(job.evaluation.subgroups.keys() & {*taken, "case", "split"}):
        role = taken.get(column, "one that every manifest has")
        text = f"column '{column}' is {role}; name a column that describes patients"
        yield Refusal(("evaluation", "subgroups"), text)
    if job.evaluation.subgroups and job.task.kind == "synthesis":
        yield Refusal(("evaluation", "subgroups"), "synthesis judges images that are nobody's; leave this out")


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


def _intensities(job: Job) -> Iterator[Refusal]:
    """One scale for all images would be that of a translation's target, too, which has another one."""
    if job.task.label != "image":
        return
    if job.data.normalisation in ("window", "landmarks"):
        text = f"{job.data.normalisation} is of the source, and the target has other intensities: expected percentile"
        yield Refusal(("data", "normalisation"), text)
    if job.federation.statistics and job.federation.statistics.harmonise:
        text = "the landmarks are of the source, and the target has other intensities: leave this out"
        yield Refusal(("federation", "statistics", "harmonise"), text)


def _differences(job: Job) -> Iterator[Refusal]:
    """Scanners, annotators and faults that do not fit the data or the task, and hospitals that there are not."""
    if job.simulation is None:
        return
    if job.simulation.names is not None:
        for path, text in job.simulation.unknown_hospitals(job.simulation.names):
            yield Refusal(path, text)
    scanners = job.simulation.scanners
    for name, chain in (scanners.by_hospital or {} if scanners else {}).items():
        for place, effect in enumerate(chain):
            if why := misfit(effect, job.data.spatial_dims, job.data.channels // len(job.data.images)):
                yield Refusal(("simulation", "scanners", "by_hospital", name, place), why)
    for name, annotator in job.simulation.annotators.items():
        path = ("simulation", "annotators", name)
        if annotator.masks and job.task.kind != "segmentation":
            yield Refusal((*path, "masks"), f"a {job.task.kind} task has no masks to learn from; leave this out")
        if annotator.mislabelled and (job.task.kind != "classification" or len(job.task.classes) < 2):
            instead = "use masks instead" if job.task.kind == "segmentation" else "leave this out"
            text = f"only the cases of a classification into several classes can be mislabelled; {instead}"
            yield Refusal((*path, "mislabelled"), text)
    for name, habits in job.simulation.participation.items():
        if habits.joins > job.federation.rounds:
            text = f"round {habits.joins} of only {job.federation.rounds} (federation.rounds): it would never be there"
            yield Refusal(("simulation", "participation", name, "joins"), text)
    for name, fault in job.simulation.faulty.items():
        path, rounds = ("simulation", "faulty", name), job.federation.rounds
        if fault.kind != "label_flip":
            if fault.from_round > rounds:
                yield Refusal((*path, "from_round"), f"round {fault.from_round} of only {rounds} (federation.rounds)")
        elif job.task.label == "image":
            yield Refusal((*path, "kind"), f"a {job.task.kind} task has no classes to flip; choose another kind")
        elif job.task.label == "mask" and len(job.task.classes) < 3:
            text = "flipping masks needs two classes beside the background; choose another kind"
            yield Refusal((*path, "kind"), text)
        elif len(job.task.classes) < 2:
            yield Refusal((*path, "kind"), "a single class has none to be flipped with; choose another kind")


def _missing_parts(job: Job) -> Iterator[Refusal]:
    """Organs that are not annotated, images that are not taken, and classes that hospitals lack."""
    data, simulation, kind = job.data, job.simulation, job.task.kind
    if data.annotated is not None and kind != "segmentation":
        yield Refusal(("data", "annotated"), f"only masks are annotated in part; leave this out for {kind}")
    if data.missing_channels == "zeros" and len(data.images) < 2:
        yield Refusal(("data", "missing_channels"), "zeros needs several data.images, one of which is always there")
    if simulation is None:
        return
    organs = job.task.classes[1:]
    if simulation.partly_labelled and (kind != "segmentation" or len(organs) < 2):
        text = "expected a segmentation task with at least two classes beside the background; leave this out"
        yield Refusal(("simulation", "partly_labelled"), text)
    elif simulation.partly_labelled != "rotate":
        yield from _of(organs, simulation.partly_labelled, "partly_labelled", "a class beside the background")
        nobody = set(organs) - {name for own in simulation.partly_labelled.values() for name in own}
        if nobody and len(simulation.partly_labelled) == simulation.hospitals:
            yield Refusal(("simulation", "partly_labelled"), f"no hospital annotates {', '.join(sorted(nobody))}")
    yield from _of(data.images, simulation.missing_channels, "missing_channels", "one of data.images", all_but_one=True)
    if simulation.missing_channels and data.missing_channels != "zeros":
        text = "their cases would be set aside: set data.missing_channels to zeros, or leave this out"
        yield Refusal(("simulation", "missing_channels"), text)
    if simulation.missing_classes and kind != "classification":
        yield Refusal(("simulation", "missing_classes"), f"a {kind} task has no class for a case; leave this out")
    else:
        classes, lacking = job.task.classes, simulation.missing_classes
        yield from _of(classes, lacking, "missing_classes", "one of task.classes", all_but_one=True)
        nowhere = [name for name in classes if all(name in own for own in lacking.values())]
        if nowhere and len(lacking) == simulation.hospitals:
            yield Refusal(("simulation", "missing_classes"), f"no hospital is left with {', '.join(nowhere)}")


def _of(
    names: list[str], by_hospital: dict[str, list[str]], key: str, what: str, all_but_one: bool = False
) -> Iterator[Refusal]:
    """A list of `names` for each hospital, neither empty nor, with `all_but_one`, all of them."""
    for hospital, own in by_hospital.items():
        path = ("simulation", key, hospital)
        odd = next((name for name in own if name not in names), None)
        if odd is not None:
            yield Refusal(path, f"'{odd}' is not {what}: {', '.join(names)}")
        elif not own:
            yield Refusal(path, "the list is empty; name at least one, or leave the hospital out")
        elif all_but_one and set(own) == set(names):
            yield Refusal(path, f"nothing is left of {', '.join(names)}; leave one out")


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
