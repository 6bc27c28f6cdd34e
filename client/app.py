"""The Flower `ClientApp`: the few questions that a site answers.

What an answer holds is in the four functions; whether a question is answered at all, and what may leave, is decided by
`client.hospital` in a deployment.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.allowed import Question
from client.alone import train_alone
from client.data.dataset import SiteData
from client.hospital import Answer, Hospital
from client.own_tensors import Own, keep_own, load_own, read_own
from client.site import Site, bootstrap_seed
from client.statistics import statistics
from client.subgroups import subgroup_sums
from client.training import judge_cases, make_optimizers, train_round
from client.variants import judge_ensemble, keep_model, make_variant
from client.warm import check_memory, data_of, job_of, network_of
from shared_models.algorithms import Algorithm
from shared_models.algorithms.local_round import LocalRound
from shared_models.comparisons import ENSEMBLE, KEPT
from shared_models.errors import BadInput, ConsiliumError
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.tasks import Task, task_of
from shared_models.tasks.bootstrap import replicate_weights
from shared_models.weights import Weights, from_record, load, mismatch, own, schema, to_record, travelling


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
    number, algorithm, began = _number(content, "round"), job.federation.algorithm, time.monotonic()
    last_used = _number(content, "last_used")
    before = read_own(site, job, last_used)
    if before.model:
        load(network, before.model, job.federation.share)
    _load(network, job, content)
    personal = before.personal
    if not personal and algorithm.personal():
        personal = {name: array.copy() for name, array in travelling(network).items()}
    # Of a round before the federation's algorithm began anew, nobody else knows any more.
    kept = before.algorithm if before.round > _number(content, "algorithm_since") else {}
    local = LocalRound(network, job, algorithm, _received(network, algorithm, job, content), kept)
    optimizers = make_optimizers(network, job, task)
    progress = train_round(network, optimizers, data, job, task, site.name, number, local=local)
    del optimizers
    network.zero_grad(set_to_none=True)  # the gradients' memory serves for the reply
    sent = algorithm.contribution(local)
    own_part = {name: array.copy() for name, array in own(network, job.federation.share).items()}
    reply = RecordDict({"weights": to_record(sent.weights)})
    if sent.extra:
        reply["algorithm"] = to_record(sent.extra)
    personal = _train_personal(local, personal, data, task, site.name, number)
    behind = Own(model=own_part, algorithm=sent.kept, personal=personal, round=number)
    keeps = keep_own(behind, site, last_used, _number(content, "best_used"))
    numbers: dict[str, int | float | list[int] | list[float]] = {
        "weight": sent.weight,
        "cases": progress.cases,
        "skipped": len(data.report.quarantined),
        "steps": progress.steps,
        "loss": progress.loss,
        "seconds": time.monotonic() - began,
        "went_on_from": before.round if keeps else last_used,
    }
    reply["numbers"] = MetricRecord(numbers)
    return reply


def _train_personal(shared: LocalRound, start: Weights, data: SiteData, task: Task, site: str, number: int) -> Weights:
    """The site's own model after a round beside the global one, whole; {} where the algorithm has none.

    Args:
        shared: the round of the global model; its network is used again.
        start: the site's own model; in its first round the global one as it came, so that without a pull towards that
            it is the model of training alone.
    """
    rule, network, job = shared.algorithm.personal(), shared.network, shared.job
    if rule is None:
        return {}
    local = LocalRound(network, job, rule)
    local.start = shared.start  # the pull is towards the global model as it came
    load(network, start)
    train_round(network, make_optimizers(network, job, task), data, job, task, site, number, local=local)
    network.zero_grad(set_to_none=True)
    return {name: array.copy() for name, array in travelling(network).items()}


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
    instruction, last_used = content.config_records["instruction"], _number(content, "last_used")
    variant, model = str(instruction["variant"]), str(instruction["model"])
    split, replicates = str(instruction["split"]), _number(content, "replicates")
    cases = data.cases(split)
    if variant == ENSEMBLE:
        members = [from_record(record) for _, record in sorted(content.array_records.items())]
        records = judge_ensemble(network, members, data, cases, job, task)
    else:
        load_own(network, site, job, last_used)
        _load(network, job, content)
        made = make_variant(variant, network, data, site, job, task, last_used)
        records = judge_cases(made, data, cases, job, task)
    if model == KEPT:
        keep_model(network, site, job, variant)
    if split == "test":
        folder = site.folder / "evaluations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{model.replace(':', '-')}.json").write_text(json.dumps([record.to_json() for record in records]))
    seed = bootstrap_seed(site, job, split)
    weights = replicate_weights([case.patient for case in cases], replicates, seed)
    sums = {name: np.asarray(values, np.float64) for name, values in task.sums(records, weights).items()}
    sums |= subgroup_sums(site, job, model, split, cases, records, weights)
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


def _received(network: nn.Module, algorithm: Algorithm, job: Job, content: RecordDict) -> Weights:
    """The server's tensors of the algorithm."""
    record = content.get("algorithm")
    received = from_record(record) if isinstance(record, ArrayRecord) else {}
    expected = algorithm.receives(schema(network, job.federation.share))
    if problem := mismatch(expected, {name: array.shape for name, array in received.items()}):
        raise Fault(f"the algorithm's tensors are not those of this job: {problem}", "weights")
    return received


def _weights(content: RecordDict) -> dict[str, Any]:
    record = content.get("weights")
    if not isinstance(record, ArrayRecord):
        raise Fault("the message has no record 'weights'", "message")
    return from_record(record)


def _simulated(answer: Answer) -> Callable[[Message, Context], Message]:
    """A handler for a virtual hospital: it holds public data, so an error leaves as our own full sentence."""

    def handler(message: Message, context: Context) -> Message:
        try:
            instruction = message.content.config_records["instruction"]
            site, job = Site.from_node_config(context.node_config), job_of(str(instruction["job"]))
            if "without" in instruction:  # a federation of its own within the run, which leaves one hospital out
                site = replace(site, own=site.own / f"without-{instruction['without']!s}")
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


ANSWERS: dict[Question, Answer] = {
    "prepare": prepare,
    "statistics": statistics,
    "train": train,
    "alone": alone,
    "evaluate": evaluate,
}


def make_client_app(hospital: Hospital | None = None) -> ClientApp:
    """The one ClientApp: of a real hospital, or, without one, of the virtual hospitals of a simulation."""
    app = ClientApp()
    handlers = {
        question: _deployed(hospital, question, answer) if hospital else _simulated(answer)
        for question, answer in ANSWERS.items()
    }
    app.query("prepare")(handlers["prepare"])
    app.query("statistics")(handlers["statistics"])
    app.train()(handlers["train"])
    app.train("alone")(handlers["alone"])
    app.evaluate()(handlers["evaluate"])
    return app


app = make_client_app()
