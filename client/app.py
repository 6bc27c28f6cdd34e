"""The Flower `ClientApp`: the few questions that a site answers.

Nothing but the declared records leaves: prepared counts, weights, numbers and metric sums. An error leaves as our own
sentence, or, when it was not foreseen, as the name of its class; its full text stays in the site's folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.alone import train_alone
from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.site import Site
from client.training import judge_cases, make_optimizer, train_round
from shared_models.algorithms import algorithm_of
from shared_models.errors import BadInput, ConsiliumError
from shared_models.job import Job
from shared_models.seeds import derive_seed
from shared_models.tasks import task_of
from shared_models.tasks.bootstrap import replicate_weights
from shared_models.weights import from_record, load, to_record
from shared_models.zoo import build

app = ClientApp()

Answer = Callable[[Site, Job, RecordDict], RecordDict]


def answers(question: Answer) -> Callable[[Message, Context], Message]:
    """Turns a question's function into a Flower handler that never lets an exception's text out."""

    @functools.wraps(question)
    def handler(message: Message, context: Context) -> Message:
        try:
            site = Site.from_node_config(context.node_config)
            job = _job(str(message.content.config_records["instruction"]["job"]))
            content = question(site, job, message.content)
        except ConsiliumError as error:
            content = _fault(context, str(error))
        except MemoryError:
            content = _fault(context, "out of memory: use a smaller data.crop, batch_size or network")
        except Exception as error:
            _log_traceback(context)
            # The system's own words on a disk or a file are safe to send, and mostly all there is to know.
            words = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            content = _fault(context, f"{type(error).__name__}{words}; the site's errors.log has the whole story")
        return Message(content, reply_to=message)

    return handler


def _log_traceback(context: Context) -> None:
    """Into the site's folder; where that cannot be written, the answer still goes out."""
    folder = context.node_config.get("folder")
    if folder:
        with contextlib.suppress(OSError), open(f"{folder}/errors.log", "a", encoding="utf-8") as log:
            log.write(traceback.format_exc() + "\n")


def _fault(context: Context, sentence: str) -> RecordDict:
    name = str(context.node_config.get("site", "?"))
    return RecordDict(
        {"fault": ConfigRecord({"sentence": sentence}), "prepared": ConfigRecord({"site": name})},
    )


@app.query("prepare")
@answers
def prepare(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Are your data fit for this job? Answers with counts, and with the reasons of what was set aside."""
    report = _data(site, job).report
    summary = {
        "cases": {split: report.splits[split]["cases"] for split in report.splits},
        "patients": {split: report.splits[split]["patients"] for split in report.splits},
        "classes": report.classes,
        "quarantined": report.quarantined,
        "duplicates": len(report.duplicates),
        "warnings": report.warnings,
    }
    return RecordDict({"prepared": ConfigRecord({"site": site.name, "summary": json.dumps(summary)})})


@app.train()
@answers
def train(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Train the global model on your data for one round."""
    data, task, network = _data(site, job), task_of(job), _network(job, site.device)
    load(network, _weights(content))
    number = _number(content, "round")
    progress = train_round(network, make_optimizer(network, job), data, job, task, site.name, number)
    network.zero_grad(set_to_none=True)  # the gradients' memory serves for the reply
    tensors, weight = algorithm_of(job).contribution(network, progress.cases)
    numbers: dict[str, int | float | list[int] | list[float]] = {
        "weight": weight,
        "cases": progress.cases,
        "skipped": len(data.report.quarantined),
        "steps": progress.steps,
        "loss": progress.loss,
        "seconds": progress.seconds,
    }
    return RecordDict({"weights": to_record(tensors), "numbers": MetricRecord(numbers)})


@app.train("alone")
@answers
def alone(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Train the given model on your data only, for as many rounds as the federation: the local baseline."""
    network = _network(job, site.device)
    load(network, _weights(content))
    steps = _number(content, "steps") or None
    best, numbers, curve = train_alone(network, _data(site, job), job, task_of(job), site.name, steps)
    return RecordDict(
        {
            "weights": to_record(best),
            "numbers": MetricRecord({**numbers}),
            "curve": ConfigRecord({"json": json.dumps(curve)}),
        }
    )


@app.evaluate()
@answers
def evaluate(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Judge a model on your patients of a split: metric sums, with those of your own bootstrap replicates."""
    data, task, network = _data(site, job), task_of(job), _network(job, site.device)
    load(network, _weights(content))
    instruction = content.config_records["instruction"]
    split, replicates = str(instruction["split"]), _number(content, "replicates")
    cases = data.cases(split)
    records = judge_cases(network, data, cases, job, task)
    if split == "test":
        folder = site.folder / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        name = str(instruction["model"]).replace(":", "-")
        (folder / f"{name}.json").write_text(json.dumps([record.to_json() for record in records]))
    seed = derive_seed(job.seed, "bootstrap", site.name, split)
    weights = replicate_weights([case.patient for case in cases], replicates, seed)
    sums = {name: np.asarray(values, np.float64) for name, values in task.sums(records, weights).items()}
    return RecordDict({"sums": to_record(sums)})


def _number(content: RecordDict, key: str) -> int:
    value = content.config_records["instruction"].get(key)
    if not isinstance(value, int) or value < 0:
        raise BadInput(f"the instruction's '{key}' is {value!r}, expected a whole number of at least 0")
    return value


def _weights(content: RecordDict) -> dict[str, Any]:
    record = content.get("weights")
    if not isinstance(record, ArrayRecord):
        raise BadInput("the message has no record 'weights'")
    return from_record(record)


# What stays warm between the messages of one process: the job, the data of its sites, one network. The keys hold the
# job as text, because a parsed job has lists and cannot be hashed.
@functools.lru_cache(maxsize=4)
def _job(text: str) -> Job:
    return Job.model_validate_json(text)


def _data(site: Site, job: Job) -> SiteData:
    return _warm_data(site, job.canonical_json())


@functools.lru_cache(maxsize=128)
def _warm_data(site: Site, job_text: str) -> SiteData:
    cache = _warm_cache(site.cache, site.cache_bytes)
    return SiteData(site.manifest, _job(job_text), site.name, cache, report_folder=site.folder)


@functools.lru_cache(maxsize=8)
def _warm_cache(folder: Path, limit_bytes: int) -> CaseCache:
    """One for all sites of this process, so that a full disk is told once and the folder is measured once."""
    return CaseCache(folder, limit_bytes)


def _network(job: Job, device: str) -> nn.Module:
    return _warm_network(job.canonical_json(), device)


@functools.lru_cache(maxsize=1)
def _warm_network(job_text: str, device: str) -> nn.Module:
    return build(_job(job_text)).to(torch.device(device))
