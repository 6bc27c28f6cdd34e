"""The models of a report: in which order they stand, what they are called, and what each of them is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

LOCAL = "local"
"""Each hospital's own model at its own patients, taken together; a single one is `local:<hospital>`."""


@dataclass(frozen=True)
class ModelName:
    """How a model is called in a table and in a sentence, and what it is."""

    label: str
    noun: str
    meaning: str
    own: bool = False
    """Every hospital has one of its own."""


NAMES: dict[str, ModelName] = {
    LOCAL: ModelName("Local", "its local model", "each hospital's model of its own training patients alone", own=True),
    "federated": ModelName("Federated", "the federated model", "the one model that all hospitals trained"),
    "pooled": ModelName("Pooled", "the pooled model", "one model of all training patients, as if in one place"),
    "ensemble": ModelName("Ensemble", "the ensemble", "the mean of the probabilities of all local models"),
    "leave-one-out": ModelName(
        "Unseen hospital", "the model without it", "the federated model trained without the hospital it is judged at"
    ),
    "leave-one-out-adapted": ModelName(
        "Unseen, adapted",
        "the adapted model without it",
        "the same, with normalisation statistics of the hospital's own unlabelled images",
    ),
    "fine-tuned": ModelName(
        "Fine-tuned", "the fine-tuned model", "the federated model trained on at the hospital", own=True
    ),
    "personalised": ModelName(
        "Personalised", "its personalised model", "the model that the algorithm keeps at each hospital", own=True
    ),
    "temperature-scaled": ModelName(
        "Temperature-scaled",
        "the temperature-scaled model",
        "the federated model, its confidence corrected with the hospital's validation patients",
        own=True,
    ),
    "adapted": ModelName(
        "Adapted",
        "the adapted model",
        "the federated model, with normalisation statistics of the hospital's own unlabelled images",
        own=True,
    ),
    "kept": ModelName(
        "Kept", "the kept model", "whichever model did best on the hospital's own validation patients", own=True
    ),
}


def name_of(model: str) -> ModelName:
    """The name of any model; one that is not known here goes by its own."""
    if model.startswith(f"{LOCAL}:"):
        hospital = model.removeprefix(f"{LOCAL}:")
        return ModelName(f"Local: {hospital}", f"the local model of {hospital}", "trained at this hospital alone")
    return NAMES.get(model) or ModelName(model.capitalize(), f"the model '{model}'", "")


def is_single_local(model: str) -> bool:
    """Whether it is the local model of one hospital."""
    return model.startswith(f"{LOCAL}:")


def in_order(models: Iterable[str]) -> list[str]:
    """The known models in the order of `NAMES`, then any others."""
    found = list(models)
    return [name for name in NAMES if name in found] + [name for name in found if name not in NAMES]


def by_hospital(report: Row, model: str) -> dict[str, Row]:
    """Hospital (and `all`) -> metric -> numbers of a model; of `local`, every hospital's own at its own patients."""
    models: dict[str, dict[str, Row]] = report["models"]
    if model != LOCAL:
        return models.get(model, {})
    own = {name.removeprefix(f"{LOCAL}:"): found for name, found in models.items() if is_single_local(name)}
    return {hospital: found[hospital] for hospital, found in own.items() if hospital in found}


def compared_models(report: Row) -> list[str]:
    """Every model but the single local ones, which stand together as `local`, in order."""
    found = [model for model in report["models"] if not is_single_local(model)]
    return in_order([*found, LOCAL] if by_hospital(report, LOCAL) else found)
