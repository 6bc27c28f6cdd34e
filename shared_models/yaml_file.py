"""A YAML file of settings: read with a sentence for every mistake (file, line, key path), and written.

YAML is `safe_load`'s, without aliases, small, and closed to keys given twice. Everything that is wrong is reported,
not only the first thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel

from shared_models.errors import BadInput
from shared_models.job_sentences import Path as KeyPath
from shared_models.job_sentences import Refusal, dotted, refusals

LIMIT_BYTES = 2**20

M = TypeVar("M", bound=BaseModel)


def read_text(path: Path, kind: str) -> str:
    """The text of a file of this kind ("job"). Raises BadInput: not readable, too large, not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: cannot read this {kind} file ({error.strerror or error})") from None
    if len(raw) > LIMIT_BYTES:
        raise BadInput(_too_large(str(path), kind))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def parse(
    text: str,
    source: str,
    model: type[M],
    *,
    kind: str,
    example: str,
    meaning: Callable[[M], Sequence[Refusal]] | None = None,
) -> M:
    """The settings in a text.

    Args:
        source: names the text in messages.
        model: strict; says what each key may hold.
        kind: what the file is, such as "job".
        example: where to get one, such as "`consilium job init` writes an example".
        meaning: what is wrong between keys that are each fine alone.

    Raises:
        BadInput: one line per mistake, each with source, line and key path.
    """
    root, values = _read_yaml(text, source, kind, example)
    found: Sequence[Refusal] = list(_duplicates(root)) or refusals(model, values)
    if not found:
        result = model.model_validate(values, strict=True)
        found = meaning(result) if meaning else []
        if not found:
            return result
    lines = [(_line(root, refusal.path), refusal) for refusal in found]
    lines.sort(key=lambda pair: pair[0])
    raise BadInput("\n".join(f"{source}:{line}: {_dotted(refusal)}" for line, refusal in lines))


def read_values(text: str, source: str, *, kind: str, example: str) -> dict[Any, Any]:
    """The values of a text that no model has looked at yet; arguments and errors as of `parse`."""
    root, values = _read_yaml(text, source, kind, example)
    if found := list(_duplicates(root)):
        raise BadInput(f"{source}:{_line(root, found[0].path)}: {_dotted(found[0])}")
    return values


def dump(values: dict[str, Any]) -> str:
    """The values as YAML that `parse` reads back as they are."""
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    # U+0085 ends a line for YAML, and is read back as a space unless it is written as an escape.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120) if "\x85" in text else text


def _dotted(refusal: Refusal) -> str:
    path = dotted(refusal.path)
    return f"{path}: {refusal.sentence}" if path else refusal.sentence


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which would let a small file grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that quotes what `_Loader` would take for a number."""


# YAML 1.1 reads `1e-3` as text, because it has no dot; everybody who writes it means the number.
_SHORT_FLOAT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _SHORT_FLOAT, list("-+0123456789"))


def _read_yaml(text: str, source: str, kind: str, example: str) -> tuple[yaml.MappingNode, dict[Any, Any]]:
    """The tree of nodes (they know their lines) and the values of a YAML mapping."""
    if len(text) > LIMIT_BYTES:
        raise BadInput(_too_large(source, kind))
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise BadInput(f"{source}:1: empty; expected a {kind}, {example}")
        if not isinstance(root, yaml.MappingNode):
            raise BadInput(f"{source}:{root.start_mark.line + 1}: expected keys with values (`name: ...`)")
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        tab = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise BadInput(f"{where}: not valid YAML: {error.problem or error.context}{tab}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(f"{source}:{line}: not valid YAML: character {error.character!r} is not allowed") from None
    except ValueError as error:  # a value that looks like a date or a number, but is none
        raise BadInput(f"{source}: not valid YAML: {error}; put such a value in quotes") from None
    except RecursionError:
        raise BadInput(f"{source}: nested too deeply to be a {kind}") from None


def _too_large(source: str, kind: str) -> str:
    return f"{source}: larger than 1 MiB, which no {kind} needs; is it the right file?"


def _duplicates(node: yaml.Node, path: KeyPath = ()) -> Iterator[Refusal]:
    """Keys that are given twice: YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first:
                yield Refusal((*path, name), f"given twice, in lines {first[name]} and {line}; keep one")
            first.setdefault(name, line)
            yield from _duplicates(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, (*path, index))


def _line(root: yaml.Node, path: KeyPath) -> int:
    """The line of a key, or of the innermost section around it when the key is not there."""
    node, line = root, root.start_mark.line + 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if str(key.value) == str(step)]
            if not pairs:
                break
            line, node = pairs[-1][0].start_mark.line + 1, pairs[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line
