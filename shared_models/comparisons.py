"""What the federated model can be compared with, and which of it fits a job.

Coordinator and site hold the same list: some of these models are trained at a site and travel, others a site makes in
a moment of the model that it is asked to judge (`VARIANTS`), and they stay there.
"""

from __future__ import annotations

from collections.abc import Collection

from shared_models.errors import BadInput
from shared_models.job import Job

COMPARISONS: dict[str, str] = {
    "local": "each hospital alone",
    "pooled": "one model on all hospitals' data",
    "ensemble": "the mean of the probabilities of all hospitals' own models",
    "leave_one_out": "for each hospital, a federation without it",
    "fine_tuned": "the federated model, trained for one more round at each hospital",
    "personalised": "the model that each hospital has of its own beside the federated one (algorithm ditto)",
    "temperature": "the federated model with probabilities calibrated at each hospital",
    "adapted": "the federated model with normalisation statistics of each hospital's own images",
}
"""By the name that `--compare` takes."""

VARIANTS: dict[str, str] = {
    "fine_tuned": "fine-tuned",
    "personalised": "personalised",
    "temperature": "temperature-scaled",
    "adapted": "adapted",
}
"""Comparisons that a site makes of the federated model: the name of the variant, and of the model in the results."""

ENSEMBLE = "ensemble"
"""The variant of several models in one message; only in a simulation, as hospitals do not get each other's models."""

KEPT = "kept"
"""The model that the do-no-harm gate chose for a hospital: a site that judges one of this name writes it to disk."""

_SIMULATED = {
    "pooled": "nobody has the data of all hospitals",
    ENSEMBLE: "a hospital does not get the others' own models",
    "leave_one_out": "it takes as many federations as there are hospitals",
}
_WITH_PROBABILITIES = ("classification", "segmentation")


def read_comparisons(text: str) -> tuple[str, ...]:
    """The names in the text of `--compare`; () for none.

    Raises:
        BadInput: a name is unknown, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("none",):
        return ()
    unknown = [name for name in names if name not in (*COMPARISONS, "all")]
    if unknown or not names:
        found = f"'{unknown[0]}'" if unknown else "nothing"
        raise BadInput(f"--compare takes {', '.join(COMPARISONS)} with commas between, or all, or none; found {found}")
    return names


def chosen(
    names: Collection[str], job: Job, *, hospitals: int | None, without_one: str | None = None
) -> tuple[list[str], dict[str, str]]:
    """The comparisons of a run in their order, and of `all` those that are left out, with the reason.

    A job with the algorithm ditto has its personalised models anyway, and an ensemble needs the local models.

    Args:
        names: of `read_comparisons`.
        hospitals: how many there are in a simulation; None for real hospitals.
        without_one: why a federation without one hospital would stop, of `simulation.unreliable.no_leave_one_out`.

    Raises:
        BadInput: what was asked for by name does not fit.
    """
    wanted = set(COMPARISONS) if "all" in names else set(names)
    if job.federation.algorithm.name == "ditto":
        wanted.add("personalised")
    if ENSEMBLE in wanted:
        wanted.add("local")
    unfit = {name: _unfit(name, job, hospitals, wanted) for name in COMPARISONS if name in wanted}
    if without_one and "leave_one_out" in unfit:
        unfit["leave_one_out"] = unfit["leave_one_out"] or without_one
    reasons = {name: reason for name, reason in unfit.items() if reason}
    if reasons and "all" not in names:
        name, reason = next(iter(reasons.items()))
        raise BadInput(f"--compare {name} does not fit this run: {reason}")
    return [name for name in COMPARISONS if name in wanted and name not in reasons], reasons


def statistics_stay(job: Job) -> bool:
    """Whether a hospital that took no part has no normalisation statistics, and can judge a model only adapted."""
    return job.federation.share.normalisation == "no_statistics"


def _unfit(name: str, job: Job, hospitals: int | None, wanted: Collection[str]) -> str | None:
    """Why a comparison cannot be made, and what would help; None where it can."""
    if hospitals is None and name in _SIMULATED:
        return f"these are real hospitals, and {_SIMULATED[name]}; use it with `consilium simulate`"
    if name in (ENSEMBLE, "leave_one_out") and hospitals is not None and hospitals < 2:
        return f"it needs at least 2 hospitals, there is {hospitals}"
    if name == "leave_one_out" and hospitals is not None:
        return _no_leave_one_out(job, hospitals, wanted)
    if name == "personalised" and job.federation.algorithm.name != "ditto":
        return "only the algorithm ditto trains such models; use fine_tuned, or federation.algorithm.name: ditto"
    if name == "temperature" and job.task.kind != "classification":
        return f"a temperature changes the probabilities of a classification, and the task is {job.task.kind}"
    if name in (ENSEMBLE, "adapted") and job.task.kind not in _WITH_PROBABILITIES:
        return f"it is for {' and '.join(_WITH_PROBABILITIES)}, and the task is {job.task.kind}"
    if name == "adapted" and not has_running_statistics(job):
        return f"'{job.model.name}' has no running statistics to estimate; set model.normalisation to batch"
    return None


def _no_leave_one_out(job: Job, hospitals: int, wanted: Collection[str]) -> str | None:
    quorum, share, how = job.federation.quorum, job.federation.share, job.federation.aggregation
    if quorum is not None and quorum > hospitals - 1:
        return f"federation.quorum is {quorum}, and a federation without one hospital has {hospitals - 1}"
    if how.fewest > hospitals - 1:
        needs = f"aggregation {how.name} needs {how.fewest} updates in every round"
        return f"{needs}, and a federation without one hospital has {hospitals - 1}"
    for key in ("normalisation", "heads"):
        if getattr(share, key) == "nothing":
            what = f"share.{key} is nothing, so a hospital that took no part lacks that part of the model"
            return f"{what}; use an algorithm that shares it, or silobn with adapted"
    if statistics_stay(job) and not ("adapted" in wanted and has_running_statistics(job)):
        return "a hospital that took no part has no normalisation statistics; add adapted, which estimates them"
    return None


def has_running_statistics(job: Job) -> bool:
    """Whether the job's network normalises by statistics that it gathered while it was trained."""
    from shared_models.weights import running_norms  # imports torch, and reading a policy should not
    from shared_models.zoo import build

    return bool(running_norms(build(job)))
