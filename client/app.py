"""The Flower `ClientApp`: the few questions that a site answers.

What an answer holds is in the four functions; whether a question is answered at all, and what may leave, is decided by
`client.hospital` in a deployment.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.alone import train_alone
from client.egress import Question
from client.hospital import Answer, Hospital
from client.own_tensors import keep_own, load_own
from client.site import Site, bootstrap_seed
from client.training import judge_cases, make_optimizers, train_round
from client.warm import check_memory, data_of, job_of, network_of
from shared_models.algorithms import algorithm_of
from shared_models.errors import BadInput, ConsiliumError
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.tasks import task_of
from shared_models.tasks.bootstrap import replicate_weights
from shared_models.weights import from_record, load, to_record


def prepare(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Are your data and your memory fit for this job? Answers with counts, and the reasons of what was set aside."""
    report = data_of(site, job).report
    check_memory(job, site.device)
    summary = {
        "cases": {split: report.splits[split]["cases"] for split in report.splits},
        "patients": {split: report.splits[split]["patients"] for split in report.splits},
        "classes": report.classes,
        "quarantined": report.quarantined,
        "duplicates": len(report.duplicates),
        "warnings": report.warnings,
    }
    return RecordDict({"prepared": ConfigRecord({"site": site.name, "summary": json.dumps(summary)})})


def train(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Train the global model on your data for one round."""
    data, task, network = data_of(site, job), task_of(job), network_of(job, site.device)
    number = _number(content, "round")
    load_own(network, site, job, number - 1)
    _load(network, job, content)
    progress = train_round(network, make_optimizers(network, job, task), data, job, task, site.name, number)
    network.zero_grad(set_to_none=True)  # the gradients' memory serves for the reply
    keep_own(network, site, job, number)
    tensors, weight = algorithm_of(job).contribution(network, job.federation.share, progress.cases)
    numbers: dict[str, int | float | list[int] | list[float]] = {
        "weight": weight,
        "cases": progress.cases,
        "skipped": len(data.report.quarantined),
        "steps": progress.steps,
        "loss": progress.loss,
        "seconds": progress.seconds,
    }
    return RecordDict({"weights": to_record(tensors), "numbers": MetricRecord(numbers)})


def alone(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Train the given model on your data only, for as many rounds as the federation: the local baseline.

    It is a whole model, with what stays at home in a federation: nobody else has the rest of it.
    """
    network = network_of(job, site.device)
    _load(network, job, content)
    steps = _number(content, "steps") or None
    best, numbers, curve = train_alone(network, data_of(site, job), job, task_of(job), site.name, steps)
    return RecordDict(
        {
            "weights": to_record(best),
            "numbers": MetricRecord({**numbers}),
            "curve": ConfigRecord({"json": json.dumps(curve)}),
        }
    )


def evaluate(site: Site, job: Job, content: RecordDict) -> RecordDict:
    """Judge a model on your patients of a split: metric sums, with those of your own bootstrap replicates."""
    data, task, network = data_of(site, job), task_of(job), network_of(job, site.device)
    load_own(network, site, job, _number(content, "round"))
    _load(network, job, content)
    instruction = content.config_records["instruction"]
    split, replicates = str(instruction["split"]), _number(content, "replicates")
    cases = data.cases(split)
    records = judge_cases(network, data, cases, job, task)
    if split == "test":
        folder = site.folder / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        name = str(instruction["model"]).replace(":", "-")
        (folder / f"{name}.json").write_text(json.dumps([record.to_json() for record in records]))
    seed = bootstrap_seed(site, job, split)
    weights = replicate_weights([case.patient for case in cases], replicates, seed)
    sums = {name: np.asarray(values, np.float64) for name, values in task.sums(records, weights).items()}
    return RecordDict({"sums": to_record(sums)})


def _number(content: RecordDict, key: str) -> int:
    value = content.config_records["instruction"].get(key)
    if not isinstance(value, int) or value < 0:
        raise Fault(f"the instruction's '{key}' is {value!r}, expected a whole number of at least 0", "message")
    return value


def _load(network: nn.Module, job: Job, content: RecordDict) -> None:
    try:
        load(network, _weights(content), job.federation.share)
    except Fault:
        raise
    except BadInput as error:
        raise Fault(str(error), "weights") from None


def _weights(content: RecordDict) -> dict[str, Any]:
    record = content.get("weights")
    if not isinstance(record, ArrayRecord):
        raise Fault("the message has no record 'weights'", "message")
    return from_record(record)


def _simulated(answer: Answer) -> Callable[[Message, Context], Message]:
    """A handler for a virtual hospital: it holds public data, so an error leaves as our own full sentence."""

    def handler(message: Message, context: Context) -> Message:
        try:
            site = Site.from_node_config(context.node_config)
            job = job_of(str(message.content.config_records["instruction"]["job"]))
            content = answer(site, job, message.content)
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


def _deployed(hospital: Hospital, question: Question, answer: Answer) -> Callable[[Message, Context], Message]:
    """A handler for a real hospital, which decides itself what it answers and what of it leaves."""
    return lambda message, context: Message(hospital.answer(message, question, answer), reply_to=message)


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


ANSWERS: dict[Question, Answer] = {"prepare": prepare, "train": train, "alone": alone, "evaluate": evaluate}


def make_client_app(hospital: Hospital | None = None) -> ClientApp:
    """The one ClientApp: of a real hospital, or, without one, of the virtual hospitals of a simulation."""
    app = ClientApp()
    handlers = {
        question: _deployed(hospital, question, answer) if hospital else _simulated(answer)
        for question, answer in ANSWERS.items()
    }
    app.query("prepare")(handlers["prepare"])
    app.train()(handlers["train"])
    app.train("alone")(handlers["alone"])
    app.evaluate()(handlers["evaluate"])
    return app


app = make_client_app()
