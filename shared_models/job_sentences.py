"""What pydantic refuses, said in one sentence a person can act on: the key path, what was expected, what was found."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shared_models.page import listed

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Refusal:
    """One thing that is wrong in a job: where (a key path) and what, without a full stop."""

    path: Path
    sentence: str


def refusals(model: type[BaseModel], values: Any, at: Path = ()) -> list[Refusal]:
    """Everything that keeps `values` from being a `model`; empty when it is one. Paths start with `at`.

    Types are taken as written (strict): the text '8' is not the number 8, and true is not 1.
    """
    try:
        model.model_validate(values, strict=True)
    except ValidationError as error:
        found = [_refusal(model, dict(problem), at) for problem in error.errors(include_url=False)]
        return list(dict.fromkeys(found))  # a list of one of two kinds is refused once for each of them
    return []


def dotted(path: Path) -> str:
    """A key path as a person writes it: `simulation.scanners.by_hospital.hospital-1[0].kind`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def nearest(word: object, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known word that looks most like it, or an empty string."""
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def shown(value: object) -> str:
    """A value as it may stand in a sentence: like in the file, and short."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section of keys"
    text = repr(value) if isinstance(value, (str, int, float, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class _Place:
    """Where an error location leads: the path as in the file, and what the models want there."""

    path: Path
    annotation: Any  # None where the models know nothing
    constraints: Sequence[Any]
    parent: type[BaseModel]  # the innermost section on the way
    # What the innermost section could be, by the value that tells one kind from another.
    kinds: Mapping[str, type[BaseModel]]


def _refusal(model: type[BaseModel], problem: dict[str, Any], at: Path) -> Refusal:
    place = _follow(model, problem["loc"])
    kind, found, context = problem["type"], problem["input"], problem.get("ctx", {})
    path = at + place.path
    if kind == "extra_forbidden":
        return Refusal(path, "unknown key" + _known_keys(model, place, path))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'")
        known = list(_by_tag(place.annotation, key))
        choice = f"expected one of {', '.join(known)}"
        if kind == "union_tag_not_found":
            return Refusal((*path, key), f"missing; {choice}")
        return Refusal((*path, key), f"{choice}; found {shown(context['tag'])}{nearest(context['tag'], known)}")
    if kind == "value_error":
        return Refusal(path, str(context["error"]))
    if kind == "invalid_key":
        return Refusal(path, f"expected a key that is text, found {shown(found)}")
    wanted = f"expected {_wanted(place.annotation, place.constraints)}"
    if kind == "missing":
        return Refusal(path, f"missing; {wanted}")
    if kind == "literal_error":
        known = [str(value) for value in _choices(place.annotation)]
        return Refusal(path, f"{wanted}; found {shown(found)}{nearest(found, known)}")
    hint = "; put it in quotes" if kind == "string_type" and not isinstance(found, (dict, list, type(None))) else ""
    return Refusal(path, f"{wanted}, found {shown(found)}{hint or _as_section(place.annotation, found)}")


def _known_keys(model: type[BaseModel], place: _Place, path: Path) -> str:
    """What to write instead of an unknown key: the nearest one here, the same one elsewhere, or all there are."""
    key, here = str(place.path[-1]), list(place.parent.model_fields)
    where = f"in {dotted(path[:-1])}" if path[:-1] else "at the top"
    if owners := [name for name, kind in place.kinds.items() if key in kind.model_fields]:
        return f" here; it is a key of {listed(owners)}; known {where}: {', '.join(here)}"
    if suggestion := nearest(key, here):
        return suggestion
    elsewhere = dict.fromkeys(name for name in all_keys(model) if name.split(".")[-1] == key)
    if elsewhere:
        return f" here; did you mean {' or '.join(elsewhere)}?"
    return f"; known {where}: {', '.join(here)}"


def _as_section(annotation: Any, found: object) -> str:
    """`; write {name: median}` for a text that is the value of one key of the section that belongs here."""
    inner = _without_none(annotation)
    sections = [inner] if _is_section(inner) else _sections(inner)
    fields = [field for section in sections for field in section.model_fields.items()]
    keys = {key for key, field in fields if found in _choices(_without_none(field.annotation))}
    return f"; write {{{keys.pop()}: {found}}}" if isinstance(found, str) and len(keys) == 1 else ""


def all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model and its sections; one that several kinds of a section have comes several times."""
    for name, field in model.model_fields.items():
        yield prefix + name
        annotation = _without_none(field.annotation)
        for section in [annotation] if _is_section(annotation) else _sections(annotation):
            yield from all_keys(section, f"{prefix}{name}.")


def _follow(model: type[BaseModel], location: Sequence[str | int]) -> _Place:
    """Walk an error location through the models; the tag that pydantic adds for a union is not a key and is dropped."""
    path: list[str | int] = []
    annotation: Any = model
    field = FieldInfo(annotation=model)
    parent = model
    kinds: Mapping[str, type[BaseModel]] = {}
    for number, step in enumerate(location, 1):
        if _is_section(annotation):
            parent = annotation
            path.append(step)
            field = annotation.model_fields.get(str(step)) or FieldInfo(annotation=None)
            annotation = field.annotation
            if _is_section(_without_none(annotation)):
                annotation = _without_none(annotation)
            continue
        if _sections(annotation):
            kinds = _by_tag(annotation, str(field.discriminator))
            annotation = kinds[str(step)]
            continue
        if lists := _kinds_of_list(annotation):
            # Which kind pydantic tried is no key either; where the whole list is wrong, both are said.
            annotation = lists[str(step)] if number < len(location) else annotation
            continue
        if step != "[key]":
            path.append(step)
            inner = typing.get_args(_without_none(annotation))
            annotation = inner[-1] if inner else None
        field = FieldInfo.from_annotation(annotation)  # an entry may have bounds, or a key that tells sections apart
        annotation = field.annotation
    return _Place(tuple(path), annotation, field.metadata, parent, kinds if parent in kinds.values() else {})


def _wanted(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """What a field takes, in words, with its bounds: `an integer >= 1 or null`."""
    if typing.get_origin(annotation) is Annotated:  # an entry of a list, with bounds of its own
        field = FieldInfo.from_annotation(annotation)
        return _wanted(field.annotation, field.metadata)
    inner = _without_none(annotation)
    optional = " or null" if inner is not annotation else ""
    if _choices(inner):
        choices = ", ".join(map(str, _choices(inner)))
        return (f"one of {choices}" if len(_choices(inner)) > 1 else choices) + optional
    if kinds := _kinds_of_list(inner):
        return " or ".join(_wanted(kind, constraints) for kind in kinds.values()) + optional
    origin, bounds = typing.get_origin(inner), _bounds(constraints)
    if origin is list:
        least = next((c.min_length for c in constraints if hasattr(c, "min_length")), 0)
        item: Any = FieldInfo.from_annotation(typing.get_args(inner)[0]).annotation
        one, many = {int: ("integer", "integers"), float: ("number", "numbers"), str: ("text", "texts")}.get(
            item, ("entry", "entries")
        )
        return f"a list of {f'at least {least} ' if least else ''}{one if least == 1 else many}{optional}"
    if origin is dict or _is_section(inner) or _sections(inner):
        keys = f" ({', '.join(inner.model_fields)})" if _is_section(inner) else ""
        return f"a section of keys{keys}{optional}"
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    return f"{names.get(inner, 'something else')}{bounds}{optional}"


def _bounds(constraints: Sequence[Any]) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    parts = [f"{sign} {getattr(c, name):g}" for c in constraints for name, sign in signs.items() if hasattr(c, name)]
    patterns = [c.pattern for c in constraints if getattr(c, "pattern", None)]
    return (" " + " and ".join(parts) if parts else "") + "".join(f" of the form {pattern}" for pattern in patterns)


def _without_none(annotation: Any) -> Any:
    """`X` of `X | None`; anything else as it is."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [member for member in typing.get_args(annotation) if member is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The members of a union of sections."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return []
    return [member for member in typing.get_args(annotation) if _is_section(member)]


def _kinds_of_list(annotation: Any) -> dict[str, Any]:
    """The members of a union of lists, by the name that pydantic gives them, such as `list[str]`."""
    members = typing.get_args(annotation)
    lists = len(members) > 1 and all(typing.get_origin(member) is list for member in members)
    return {str(member): member for member in members} if lists else {}


def _by_tag(annotation: Any, key: str) -> dict[str, type[BaseModel]]:
    """The members of a union of sections, by the value of the key that tells them apart."""
    return {_choices(member.model_fields[key].annotation)[0]: member for member in _sections(annotation)}


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
