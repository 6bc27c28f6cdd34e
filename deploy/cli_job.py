"""`consilium job`: write, check and describe a job file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_models.errors import BadInput
from shared_models.page import plural

if TYPE_CHECKING:
    from shared_models.algorithms.algorithm import Algorithm
    from shared_models.job import Job
    from shared_models.job_federation import Aggregation

app = typer.Typer(no_args_is_help=True, help="Write, check and describe a job file.")


class TaskKind(StrEnum):
    """The tasks that there is an example for."""

    segmentation = "segmentation"
    classification = "classification"


@app.command()
def init(
    task: Annotated[TaskKind, typer.Option(help="What the network is asked.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="An existing file is not touched.")] = Path("job.yaml"),
) -> None:
    """Write a commented example in which every key is explained.

    consilium job init --task segmentation
    consilium job init --task classification --out chest.yaml
    """
    example = resources.files("shared_models").joinpath("job_templates", f"{task.value}.yaml").read_text("utf-8")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(example)
    except FileExistsError:
        raise BadInput(f"{out} exists already; give another --out") from None
    typer.echo(f"Wrote {out}. Next: consilium job check {out}")


@app.command()
def check(job: Annotated[Path, typer.Argument(metavar="JOB.yaml")]) -> None:
    """Check a job without running it, and print what it would do.

    Every mistake is named with its line. Exit code 0 when there is none, else 2.

    consilium job check job.yaml
    """
    from rich.console import Console
    from rich.table import Table

    from shared_models.job_file import load_job

    loaded = load_job(job)
    selection_metric(job)
    if loaded.simulation is not None and loaded.simulation.names is not None:
        from simulation.unreliable import check_participation

        check_participation(loaded, loaded.simulation.names)
    table = Table.grid(padding=(0, 2))
    for name, text in _summary(loaded):
        table.add_row(name, text)
    console = Console(highlight=False, markup=False)
    console.print(f"{loaded.name}: {job} is a job that can run.")
    console.print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of job files, for editors.

    An editor that knows it completes keys and marks mistakes as you type.

    consilium job schema > job.schema.json
    """
    import json

    from shared_models.job import Job

    typer.echo(json.dumps(Job.model_json_schema(), indent=2))


def selection_metric(path: Path) -> str:
    """The validation metric that picks the best round of the job in a file.

    Raises:
        BadInput: the file is no job, or the metric is none of the task's, or smaller is better.
    """
    from shared_models.job_file import read_job
    from shared_models.tasks import task_of

    job = read_job(path)
    metrics, wanted = task_of(job).metric_info(), job.selection_metric()
    known = [name for name, info in metrics.items() if info["larger_is_better"]]
    if wanted in known:
        return wanted
    problem = "of which smaller is better" if wanted in metrics else f"which {job.task.kind} does not have"
    raise BadInput(f"{path}: evaluation.select: '{wanted}', {problem}; expected one of {', '.join(known)}")


def _summary(job: Job) -> list[tuple[str, str]]:
    """What a job does, as rows of a name and a text."""
    from shared_models.weights import travelling
    from shared_models.zoo import build

    network = build(job)
    parameters = sum(p.numel() for p in network.parameters())
    megabytes = sum(array.nbytes for array in travelling(network, job.federation.share).values()) / 1e6
    shares = job.evaluation
    judged = f"validation {shares.validation_share:.0%} and test {shares.test_share:.0%} of each hospital's patients"
    return [
        ("task", ": ".join(filter(None, [job.task.kind, ", ".join(job.task.classes)]))),
        ("data", _data(job)),
        *_plan(job),
        ("hospitals", _hospitals(job)),
        *_differences(job),
        ("model", f"{job.model.name}, {parameters:,} parameters"),
        *([("", f"begins with the weights of {job.model.pretrained}")] if job.model.pretrained else []),
        ("training", _training(job)),
        *_memory(job),
        ("federation", _federation(job)),
        *(("", f"! {text}") for text in _without_effect(job)),
        ("travels", f"{megabytes:.3g} MB to a hospital and back, each round; images stay"),
        ("evaluation", f"{judged} where the data has no split of its own"),
        ("", f"best round by validation {job.selection_metric()}; {shares.bootstrap} bootstrap replicates by patient"),
    ]


def _data(job: Job) -> str:
    data = job.data
    channels = f"{data.channels} channel{'s' if data.channels > 1 else ''}"
    spacing = f", resampled to {_by(data.spacing)} mm" if data.spacing else ""
    return f"{data.spatial_dims}D, {channels}, patches of {_by(data.crop)}{spacing}, normalisation {data.normalisation}"


def _plan(job: Job) -> list[tuple[str, str]]:
    """What will be decided before the first round, where anything is."""
    statistics = job.federation.statistics
    if statistics is None:
        return []
    keys = ", ".join(f"data.{key}" for key in statistics.decide)
    most = math.prod(job.data.crop)
    rows = [("plan", f"made before the first round from all hospitals' statistics; it decides {keys}")]
    if "crop" in statistics.decide:
        rows.append(("", f"the crop will have at most {most:,} voxels, as {_by(job.data.crop)} has"))
    if statistics.harmonise:
        rows.append(("", "images will be harmonised by landmarks"))
    return rows


def _hospitals(job: Job) -> str:
    if job.simulation is None:
        return "real ones with their own manifests; `consilium simulate` needs a section `simulation`"
    dataset, partition = job.simulation.dataset, job.simulation.partition
    source = " ".join(str(value) for key, value in dataset if key in ("name", "task", "flag", "table"))
    if partition.name == "natural":
        return f"one for each {partition.column} of {source}"
    settings = ", ".join(f"{key} {value}" for key, value in partition if key != "name")
    return f"{job.simulation.hospitals} from {source}, {partition.name}{f' ({settings})' if settings else ''}"


def _differences(job: Job) -> list[tuple[str, str]]:
    """How virtual hospitals differ, a row for each key of the job that says so."""
    if job.simulation is None:
        return []
    scanners = job.simulation.scanners
    rows = [("", f"scanners: {scanners.set}")] if scanners and scanners.set else []
    chains = scanners.by_hospital or {} if scanners else {}
    by_hospital: dict[str, dict[str, Any]] = {key: value for key, value in job.simulation if isinstance(value, dict)}
    for key, differences in {"scanners": chains, **by_hospital}.items():
        parts = [f"{hospital} {_difference(value)}" for hospital, value in differences.items()]
        rows += [("", f"{key.replace('_', ' ')}: {'; '.join(parts)}")] if parts else []
    if job.simulation.partly_labelled == "rotate":
        rows.append(("", "partly labelled: one class at each hospital, in turn"))
    return rows


def _difference(value: Any) -> str:
    """What one hospital has of its own: a chain of effects, a list of names, or a section."""
    if isinstance(value, list):
        return ", ".join(str(getattr(entry, "words", entry)) for entry in value) or "as they are"
    return ", ".join(f"{key} {setting}" for key, setting in value.model_dump(exclude_defaults=True).items())


def _training(job: Job) -> str:
    training, optimizer = job.training, job.training.optimizer
    passes = "1 epoch" if training.local_epochs == 1 else f"{training.local_epochs} epochs"
    amount = f"{training.local_steps} steps" if training.local_steps else passes
    augmentation = f", augmented by {', '.join(training.augmentation)}" if training.augmentation else ""
    rate = f"learning rate {optimizer.learning_rate:g}, {optimizer.schedule}"
    parts = f" in {training.accumulate} parts" if training.accumulate > 1 else ""
    options = ("mixed_precision", "gradient_checkpointing", "channels_last", "compile")
    chosen = "".join(f", {name.replace('_', ' ')}" for name in options if getattr(training, name))
    return f"{amount} a round, batches of {training.batch_size}{parts}, {optimizer.name}, {rate}{augmentation}{chosen}"


def _memory(job: Job) -> list[tuple[str, str]]:
    """What a hospital needs to train, and a warning where this machine does not have it."""
    import torch

    from shared_models.memory import REMEDIES, free_memory, training_memory

    estimate = training_memory(job)
    if estimate is None:
        return [("memory", "cannot be told beforehand for this task")]
    parts = ", ".join(f"{name} {value / 1e6:,.1f} MB" for name, value in dataclasses.asdict(estimate).items())
    rows = [("memory", f"at least {estimate.total / 1e6:,.1f} MB for a training step at a hospital: {parts}")]
    free = free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if free is not None and estimate.total > free:
        rows.append(("", f"! will not fit where no more is free than here, {free / 1e6:,.0f} MB: use {REMEDIES}"))
    return rows


def _federation(job: Job) -> str:
    federation = job.federation
    who = (
        f"{federation.sites_per_round} hospitals drawn each" if federation.sites_per_round else "all hospitals in each"
    )
    algorithm, how = federation.algorithm, federation.aggregation
    fewest = f" and at least {how.fewest}" if how.fewest > 1 else ""
    quorum = f"at least {max(federation.quorum, how.fewest)}" if federation.quorum else f"more than half{fewest}"
    server = algorithm.server_optimizer.name
    stepped = f" with server {server}" if server != "none" else ""
    combined = f", updates combined by {how.name}{_settings(how)}" if how.name != "mean" else ""
    weighting = ", all hospitals count alike" if federation.weighting == "equal" else ""
    deadline = f" within {federation.deadline_seconds:g} s" if federation.deadline_seconds else ""
    until = f"; stops after {federation.patience} validations without a better one" if federation.patience else ""
    rounds = f"{federation.rounds} rounds of {algorithm.name}{_settings(algorithm)}{stepped}"
    return f"{rounds}, {who}, {quorum} must reply{deadline}{combined}{weighting}{until}"


def _without_effect(job: Job) -> Iterator[str]:
    """What a job may say and cannot mean."""
    rounds, every, patience = job.federation.rounds, job.evaluation.every, job.federation.patience
    validations = math.ceil(rounds / every) if every else 1  # the last round is always validated
    if patience and validations < patience + 2:  # a best one, so many without a better one, and one that is saved
        text = f"federation.patience {patience} ends no run of {plural(validations, 'validation')} early"
        yield f"{text}: lower it, or leave it out"
    simulated = job.simulation
    if simulated and simulated.faulty and len(simulated.faulty) == simulated.hospitals:
        yield "all hospitals are faulty (simulation.faulty): there is no honest one to learn from"


def _settings(section: Algorithm | Aggregation) -> str:
    """` (mu 0.01)`: what this kind of section has of its own, or nothing."""
    own = {key: value for key, value in section if key not in ("name", "server_optimizer") and value is not None}
    return f" ({', '.join(f'{key} {value:g}' for key, value in own.items())})" if own else ""


def _by(sizes: list[int] | list[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
