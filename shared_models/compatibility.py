"""What does not go together: algorithm, aggregation, network and training, with the reason and what to use instead.

Called when a job is read, with the network's entry in the zoo; nothing is built. docs/algorithms.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared_models.job import Job
from shared_models.job_sentences import Path, Refusal
from shared_models.zoo.entry import Entry

ALGORITHM: Path = ("federation", "algorithm", "name")

NOT_ROBUST = {
    "scaffold": "the sites' control variates add up only with the mean",
    "feddyn": "the server's state follows the mean of what the sites keep",
    "fednova": "it needs the mean of the sites' step counts beside that of their updates",
    "qfedavg": "it weighs the sites by their loss",
    "cyclic": "it has one model, and no updates to compare",
    "ring": "it hands every model on as it is",
}
"""Algorithms that only the mean is right for."""

OWN_SERVER_STEP = {
    "feddyn": "its server half corrects the mean by its own state",
    "qfedavg": "its server half has a step length of its own",
    "cyclic": "the model of the last site is the result",
    "ring": "the models go on to the next site as they are",
}
"""Algorithms that leave nothing to a server optimiser."""

OWN_WEIGHTS = {
    "qfedavg": "it weighs the sites by their loss",
    "cyclic": "it averages nothing",
    "ring": "it counts all sites alike",
}
"""Algorithms that `weighting` says nothing to."""

FOR_PARTIAL_LABELS = ("mean", "clipped_mean")
"""The other aggregations side with most hospitals, and most may not know an organ."""

FOR_GANS = ("fedavg", "fedprox", "fedbn", "silobn", "cyclic", "ring")
"""Of the others, the theory or the implementation is for one loss that one network goes down."""

WITHOUT_NORMALISATION = ("vit", "swin_unet")
"""Networks that have layer norms only, which `model.normalisation` does not replace."""


def check(job: Job, entry: Entry) -> Iterator[Refusal]:
    """Everything that does not go together in a job whose keys are each fine alone."""
    yield from _algorithm(job, entry)
    yield from _aggregation(job)
    yield from _partial_labels(job)
    yield from _what_stays_at_home(job, entry)
    yield from _batch_normalisation(job, entry)
    if job.training.gradient_checkpointing and type(entry).checkpointed is Entry.checkpointed:
        text = (
            f"'{job.model.name}' has no blocks to compute again; "
            "leave this out, or make data.crop or batch_size smaller"
        )
        yield Refusal(("training", "gradient_checkpointing"), text)


def _algorithm(job: Job, entry: Entry) -> Iterator[Refusal]:
    """The algorithm, and what the rest of the federation asks of it."""
    federation = job.federation
    name, optimizer = federation.algorithm.name, federation.algorithm.server_optimizer.name
    if entry.family == "GAN" and name not in FOR_GANS:
        text = f"{name} is for one network with one loss, and a GAN has two: expected one of {', '.join(FOR_GANS)}"
        yield Refusal(ALGORITHM, text)
    elif name == "moon" and (not entry.heads or job.task.kind not in ("segmentation", "classification")):
        text = "moon compares the features before a head, for segmentation and classification: expected fedprox"
        yield Refusal(ALGORITHM, text)
    if optimizer != "none" and name in OWN_SERVER_STEP:
        text = f"{name} takes none: {OWN_SERVER_STEP[name]}; expected none, or the algorithm fedavg or scaffold"
        yield Refusal(("federation", "algorithm", "server_optimizer", "name"), text)
    if federation.weighting == "equal" and name in OWN_WEIGHTS:
        yield Refusal(("federation", "weighting"), f"{name} takes no weights: {OWN_WEIGHTS[name]}; leave this out")
    if federation.sites_per_round is not None and name == "ring":
        text = "a ring passes through all sites in every round: leave this out, or use cyclic"
        yield Refusal(("federation", "sites_per_round"), text)
    if name == "qfedavg" and job.training.optimizer.name != "sgd":
        text = (
            f"qfedavg takes its step length from that of sgd, which {job.training.optimizer.name} has not: expected sgd"
        )
        yield Refusal(("training", "optimizer", "name"), text)
    if job.training.local_steps == 1 and name == "fedrep":
        text = "fedrep trains the head and then the body, and needs a step for each: expected at least 2"
        yield Refusal(("training", "local_steps"), text)
    if federation.patience is not None and job.evaluation.every == 0:
        text = "with evaluation.every 0 only the last round is validated: expected every at least 1, or no patience"
        yield Refusal(("federation", "patience"), text)


def _aggregation(job: Job) -> Iterator[Refusal]:
    """Robust aggregation: the algorithm must do without a mean, and a round must have updates enough."""
    federation = job.federation
    how, algorithm, path = federation.aggregation, federation.algorithm.name, ("federation", "aggregation", "name")
    if how.name != "mean" and algorithm in NOT_ROBUST:
        text = f"{algorithm} needs the mean: {NOT_ROBUST[algorithm]}; expected mean, or the algorithm fedavg or fedprox"
        yield Refusal(path, text)
        return
    needs = f"{how.name} needs {how.fewest} updates in every round"
    if how.name == "krum":
        needs = f"krum with faulty {how.faulty} and keep {how.keep} needs {how.fewest} updates in every round"
    remedy = "lower faulty or keep, or use median" if how.name == "krum" else "use clipped_mean"
    hospitals = job.simulation.hospitals if job.simulation else None
    if hospitals is not None and how.fewest > hospitals:
        yield Refusal(path, f"{needs}, and there are {hospitals} hospitals (simulation.hospitals): {remedy}")
    for key in ("sites_per_round", "quorum"):
        value = getattr(federation, key)
        if value is not None and value < how.fewest:
            yield Refusal(("federation", key), f"{needs}, and this is {value}: leave it out, or {remedy}")


def _partial_labels(job: Job) -> Iterator[Refusal]:
    """Organs that some hospitals annotate: the aggregation must let through what few hospitals know."""
    name, simulation = job.federation.aggregation.name, job.simulation
    partly = job.data.annotated is not None or (simulation is not None and simulation.partly_labelled)
    if partly and name not in FOR_PARTIAL_LABELS:
        key = "simulation.partly_labelled" if job.data.annotated is None else "data.annotated"
        text = (
            f"{name} sides with most hospitals, and an organ that most do not annotate ({key}) may never be learnt: "
            f"expected {' or '.join(FOR_PARTIAL_LABELS)}"
        )
        yield Refusal(("federation", "aggregation", "name"), text)


def _what_stays_at_home(job: Job, entry: Entry) -> Iterator[Refusal]:
    """`share`, and the algorithms that are a rule about it: there must be something that stays, and sense in it."""
    name, share = job.model.name, job.federation.share
    is_a_rule = job.federation.algorithm.stays_at_home
    kind, path = job.model.normalisation or entry.normalisation, ("federation", "share")
    if share.networks == "generators" and entry.family != "GAN":
        text = f"'{name}' has no discriminators that could stay at the sites; expected 'all'"
        yield Refusal((*path, "networks"), text)
    if share.normalisation == "nothing" and job.model.pretrained is not None:
        text = "with model.pretrained, the file's normalisation would be lost at the sites: expected 'all'"
        yield Refusal((*path, "normalisation"), text)
    where = ALGORITHM if "normalisation" in is_a_rule else (*path, "normalisation")
    if share.normalisation == "nothing" and kind == "none" and entry.family != "transformer":
        text = f"'{name}' has no normalisation that could stay at the sites: set model.normalisation, or use fedavg"
        yield Refusal(where, text)
    statistics = kind == "batch" and name not in WITHOUT_NORMALISATION
    if share.normalisation == "no_statistics" and not statistics:
        other = "use fedavg" if name in WITHOUT_NORMALISATION else "set model.normalisation to batch, or use fedbn"
        text = f"'{name}' has no running statistics that could stay at the sites: {other}"
        yield Refusal(where, text)
    if share.heads == "nothing" and not entry.heads and not (entry.family == "GAN" and "heads" in is_a_rule):
        text = f"'{name}' has no head that could stay at the sites: use fedbn or ditto"
        yield Refusal(ALGORITHM if "heads" in is_a_rule else (*path, "heads"), text)


def _batch_normalisation(job: Job, entry: Entry) -> Iterator[Refusal]:
    """What it makes of a step that does not see a whole batch once."""
    training = job.training
    if (job.model.normalisation or entry.normalisation) != "batch":
        return
    remedy = "set model.normalisation to instance or group, or"
    if training.accumulate > 1:
        text = f"batch normalisation would see parts of a batch, which is not the same step: {remedy} leave this out"
        yield Refusal(("training", "accumulate"), text)
    if training.gradient_checkpointing and type(entry).checkpointed is not Entry.checkpointed:
        text = f"batch normalisation would count every image twice: {remedy} leave this out"
        yield Refusal(("training", "gradient_checkpointing"), text)
    if training.batch_size == 1:
        text = f"batch normalisation has nothing to normalise over in a batch of one: {remedy} take at least 2"
        yield Refusal(("training", "batch_size"), text)
