"""What a site may say of a failure: a code and a few checked parameters, from which both sides make the same sentence.

An exception's text may hold a path or a patient's name, so it stays in the site's log. What leaves is a code of FAULTS;
the coordinator makes the sentence itself, so that it never shows a site's own words.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared_models.errors import BadInput

LARGEST_PARAMETERS = 8 * 1024  # bytes of JSON
MOST_REFUSALS = 32
_MOST_CHARACTERS = 400  # of one text of a refusal

WORKER_DIED = "the worker process died, perhaps for lack of memory; a new one was started"
"""What a simulation says of its own worker."""

UNREADABLE = "its reply is larger than an answer to this question can be, or cannot be read"
"""What the coordinator says of bytes that are no message."""

QUARANTINE: dict[str, str] = {
    "file_missing": "a file does not exist, or the manifest names none",
    "file_unreadable": "a file cannot be read",
    "channels": "the number of channels is not the job's",
    "label_values": "a label is not one of the job's classes",
    "label_missing": "there is no label",
    "shape": "the number of spatial dimensions is not the job's",
    "position": "its files differ in shape or in where they lie, or do not say where they lie",
    "not_finite": "an image holds values that are not finite",
    "constant": "an image is constant or empty",
    "other": "another reason, which the site's own report has",
}
"""Why a case was set aside: code -> the category that may leave its site."""

ORDERS: dict[str, str] = {
    "unsigned": "it is not signed",
    "altered": "it was altered after it was signed",
    "untrusted": "it is signed by a key that this hospital does not trust",
    "expired": "its time is over, or the clocks of coordinator and site differ",
    "replayed": "it was made for another run, or was used before",
    "wrong_site": "it is for another site or federation",
    "wrong_version": "it is for another version of consilium",
    "wrong_job": "the job is not the one that was signed",
    "malformed": "it is not in the form of an order",
}
"""Why an order was not acted on, by `BadOrder.code`."""

WITHHELD: dict[str, str] = {
    "record": "a record that this question has no use for, or one that is missing",
    "tensor": "a tensor of another name, shape or type than the model's",
    "value": "a value that is not finite or out of range",
    "number": "a number that is not declared, or none where one is",
    "text": "a text outside the vocabulary",
    "few_patients": "too few patients behind a training or a metric",
}
"""What the site's door found in an answer that it did not let out."""

# Exceptions that were not foreseen leave as the name of their class, or of the nearest class of these.
_LIBRARY_ERRORS = {"LinAlgError", "SafetensorError", "ValidationError", "UnpicklingError", "BadZipFile"}
KNOWN_ERRORS = frozenset(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
) | frozenset(_LIBRARY_ERRORS)

_TOKEN = re.compile(r"[A-Za-z0-9_.:+/='-]{0,100}")
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?(e[+-]?[0-9]{1,3})?|[0-9:]{5}(-[0-9:]{5})?")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_BETWEEN_TOKENS = re.compile(r"[ ,;()]+")

_WORDS = """
    a adapted after again algorithm_since alone an and another as asking at baseline best_used bounds can day digits
    evaluate federation.algorithm.name federation.rounds federation.statistics fields fine_tuned fingerprint form h here
    hospital's hours images in job key keys last_used least letters lists local model model.name more most name no
    none number of offer on one or other out patients personalised policy policy: query.prepare query.statistics
    question replicates required round run site split statistics steps such task.classifier_steps
    task.how.segmenter_steps task.kind temperature test that the these this time to today tomorrow train train.alone
    training training.local_steps unknown validation variant whole wider with within without work yet _ . : -
"""
WORDS = frozenset(_WORDS.split())
"""What a refusal is written with, beside numbers, the job's own words and the policy's lists."""

RULES = frozenset(
    [f"policy.{rule}" for rule in (
        "coordinators", "tasks", "models", "algorithms", "metrics", "max_rounds", "max_local_steps",
        "max_hours_per_day", "min_patients", "local_baseline", "statistics", "opening_hours", "protections.clip",
        "protections.noise", "protections.secure_aggregation",
    )]
    + [f"order.{rule}" for rule in (
        "question", "fields", "round", "best_used", "last_used", "algorithm_since", "steps", "replicates", "split",
        "model", "variant",
    )]
)  # fmt: skip
"""What a refusal may name as the rule that says no."""

NO_VARIANT: dict[str, str] = {
    "no_personal": "it has no personal model, as it was in no round yet",
    "no_validation": "it has no validation patients to fit a temperature on",
    "no_temperature": "no temperature is best where its validation patients are all classified rightly, or no better "
    "than by chance",
    "no_statistics": "the network has no running statistics",
}
"""Why a site cannot make the variant of a model that it was asked to judge."""

Check = Callable[[object], bool]


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _one_of(choices: Collection[str]) -> Check:
    return lambda value: isinstance(value, str) and value in choices


def _like(pattern: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


_version = _like(r"\d{1,4}(\.\d{1,4}){1,3}((a|b|rc|\.dev|\.post)\d{1,4})?")


@dataclass(frozen=True)
class _Kind:
    """One kind of failure: the sentence, and for every parameter in it what it may be."""

    sentence: str
    parameters: Mapping[str, Check] = field(default_factory=dict)


_UNFIT = {"cases": _count, "checked": _count}

FAULTS: dict[str, _Kind] = {
    # The site's data
    "manifest": _Kind("its manifest is not fit for this job: the site's log says in which line"),
    "unreadable_cases": _Kind(
        "{cases} of its {checked} cases are unfit, where data.max_quarantined of the job tolerates {tolerated}",
        {**_UNFIT, "tolerated": _count},
    ),
    "channels": _Kind("in {cases} of its {checked} cases the number of channels is not data.channels", _UNFIT),
    "labels": _Kind("in {cases} of its {checked} cases a label is not one of task.classes", _UNFIT),
    "shape": _Kind("in {cases} of its {checked} cases the number of axes is not data.spatial_dims", _UNFIT),
    "too_few_cases": _Kind("it has no usable training case: {cases} of its {checked} cases are unfit", _UNFIT),
    "no_training_cases": _Kind("none of its training cases is of a class that this task trains on"),
    "too_few_patients": _Kind(
        "it has {found} {split} patients, where its policy asks for at least {needed}",
        {"split": _one_of(("train", "validation", "test")), "found": _count, "needed": _count},
    ),
    "changed": _Kind("a file of a case has changed since it was checked: ask again, so that it is checked anew"),
    # The site's machine
    "memory": _Kind("out of memory: use a smaller data.crop, batch_size or network"),
    "does_not_fit": _Kind(
        "training takes at least {needed} MB of its memory, and {there} MB are free: use a smaller data.crop, "
        "batch_size or network, a larger training.accumulate, training.gradient_checkpointing or mixed_precision",
        {"needed": _count, "there": _count},
    ),
    "compiler": _Kind("it has no C++ compiler, which training.compile needs: leave that out of the job"),
    "disk": _Kind("its disk is full"),
    "system": _Kind("its system says: {errno}", {"errno": _one_of(frozenset(errno.errorcode.values()))}),
    "stopping": _Kind("its daemon is being stopped"),
    "error": _Kind("{name}; the site's log has the whole story", {"name": _one_of(KNOWN_ERRORS)}),
    "input": _Kind("it could not do its part; the site's log says why"),
    # The job and the message
    "diverged": _Kind("its training loss in round {round} is not finite; lower the learning rate", {"round": _count}),
    "overflow": _Kind(
        "every one of its training steps in round {round} overflowed float16; use more local steps, or leave "
        "mixed_precision out of the job",
        {"round": _count},
    ),
    "variant": _Kind("it cannot judge this variant of the model: {reason}", {"reason": _one_of(NO_VARIANT)}),
    "lost": _Kind("what it kept at home behind round {round} is lost", {"round": _count}),
    "weights": _Kind("the weights of the message are not of this job's model"),
    "message": _Kind("the message is not in the form of a question that it knows"),
    "version": _Kind(
        "it runs consilium {installed}, where the coordinator runs {expected}: install the same version",
        {"installed": _version, "expected": _version},
    ),
    "order": _Kind("it did not act on the order: {reason}", {"reason": _one_of(ORDERS)}),
    # The hospital's will
    "policy": _Kind("{refusals}", {"refusals": lambda value: _are_refusals(value, None)}),
    "waiting": _Kind("the job waits for the hospital's approval"),
    "refused_by_hospital": _Kind("the hospital has refused this job"),
    "withdrawn": _Kind("the hospital has withdrawn its approval of this job"),
    "closed": _Kind("outside its opening hours, {hours}", {"hours": _like(r"\d\d:\d\d-\d\d:\d\d")}),
    "withheld": _Kind("its door withheld the answer: {reason}", {"reason": _one_of(WITHHELD)}),
}


class Fault(BadInput):
    """A failure whose text stays at the site, while `code` and `parameters` may leave it.

    Args:
        text: the whole story, for the site's own log and screen.

    Raises:
        BadInput: the code or a parameter is not in the vocabulary.
    """

    def __init__(self, text: str, code: str, **parameters: Any) -> None:
        check(code, parameters)
        super().__init__(text)
        self.code = code
        self.parameters = parameters


def check(code: str, parameters: Mapping[str, object], words: Collection[str] | None = None) -> None:
    """Is this in the vocabulary?

    Args:
        words: names that the texts of a refusal may hold beside WORDS and numbers, such as those of the job. None, for
            the coordinator, which does not know a hospital's policy, looks at the form of the texts only.

    Raises:
        BadInput: an unknown code, or a parameter that is missing, unknown or not what it may be. The sentence does not
            repeat what was found.
    """
    kind = FAULTS.get(code) if isinstance(code, str) else None
    if kind is None:
        raise BadInput(f"a fault has an unknown code; expected one of {', '.join(FAULTS)}")
    if set(parameters) != set(kind.parameters):
        names = ", ".join(kind.parameters) or "none"
        raise BadInput(f"the fault '{code}' has {len(parameters)} parameters; expected {names}")
    for name, allowed in kind.parameters.items():
        if not allowed(parameters[name]) or (name == "refusals" and not _are_refusals(parameters[name], words)):
            raise BadInput(f"the parameter '{name}' of the fault '{code}' is outside the vocabulary of faults")


def _are_refusals(value: object, words: Collection[str] | None) -> bool:
    """A list of {"rule", "asked", "allowed", "remedy"}."""
    if not isinstance(value, list) or not 0 < len(value) <= MOST_REFUSALS:
        return False
    for refusal in value:
        if not isinstance(refusal, dict) or set(refusal) != {"rule", "asked", "allowed", "remedy"}:
            return False
        rule = refusal["rule"]
        if not isinstance(rule, str) or rule not in RULES:
            return False
        if not all(_is_phrase(refusal[key], rule, words) for key in ("asked", "allowed", "remedy")):
            return False
    return True


def _is_phrase(text: object, rule: str, words: Collection[str] | None) -> bool:
    if not isinstance(text, str) or not 0 < len(text) <= _MOST_CHARACTERS:
        return False
    tokens = [token.strip("'") for token in _BETWEEN_TOKENS.split(text)]
    if words is None:
        return all(map(_TOKEN.fullmatch, tokens))
    return all(
        not token
        or token in WORDS
        or token in words
        or _NUMBER.fullmatch(token)
        or (rule == "policy.coordinators" and _FINGERPRINT.fullmatch(token))
        for token in tokens
    )


def sentence(code: str, **parameters: Any) -> str:
    """The sentence of a fault, which starts after the site's name. Raises BadInput like `check`."""
    check(code, parameters)
    shown = dict(parameters)
    if code == "order":
        shown["reason"] = ORDERS[shown["reason"]]
    elif code == "withheld":
        shown["reason"] = WITHHELD[shown["reason"]]
    elif code == "variant":
        shown["reason"] = NO_VARIANT[shown["reason"]]
    elif code == "system":
        shown["errno"] = os.strerror(getattr(errno, shown["errno"]))
    elif code == "policy":
        shown["refusals"] = ". ".join(
            f"{r['rule']}: asked {r['asked']}, allowed {r['allowed']}; passes with {r['remedy']}"
            for r in shown["refusals"]
        )
    return FAULTS[code].sentence.format(**shown)


def fields(code: str, parameters: Mapping[str, object], words: Collection[str] | None = None) -> dict[str, str]:
    """The content of a message's record "fault". Raises BadInput like `check`."""
    check(code, parameters, words)
    text = json.dumps(parameters, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > LARGEST_PARAMETERS:
        raise BadInput(f"the parameters of the fault '{code}' are {len(text)} bytes; expected {LARGEST_PARAMETERS}")
    return {"code": code, "parameters": text}


def parse(record: Mapping[str, object]) -> tuple[str, dict[str, Any]]:
    """Code and parameters of a record "fault", with the form of both checked.

    Raises:
        BadInput: it is not what `fields` writes.
    """
    code, text = record.get("code"), record.get("parameters")
    if set(record) != {"code", "parameters"} or not isinstance(code, str) or not isinstance(text, str):
        raise BadInput("a fault record is not in the form of one; expected a code and its parameters")
    if len(text) > LARGEST_PARAMETERS:
        raise BadInput(f"the parameters of a fault are {len(text)} bytes; expected at most {LARGEST_PARAMETERS}")
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput("the parameters of a fault are not JSON") from None
    if not isinstance(parameters, dict):
        raise BadInput("the parameters of a fault are not a JSON object")
    check(code, parameters)
    return code, parameters


def read_fault(record: Mapping[str, object]) -> str:
    """The coordinator's sentence for a site's record "fault"; a record outside the vocabulary gets one, too."""
    try:
        code, parameters = parse(record)
    except BadInput:
        return "it gave a reason that is not in the vocabulary of this version of consilium"
    return sentence(code, **parameters)


def known_error(error: BaseException) -> str:
    """The nearest class of an exception whose name may leave a site: a name, too, can be made to hold a secret."""
    return next((c.__name__ for c in type(error).__mro__ if c.__name__ in KNOWN_ERRORS), "Exception")
