"""Initial weights of a network from a file: what fits by name and shape is taken, and what does not is said."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared_models.errors import BadInput
from shared_models.weights import schema

_WRAPPED = re.compile(r"^((module|_orig_mod|_module)\.)+")
"""What DataParallel, torch.compile and Opacus put before the names."""


@dataclass(frozen=True)
class Matched:
    """How a file with weights fits a network.

    Attributes:
        file: its name, without the folder.
        sha256: of the file's bytes, as hexadecimal digits.
        matched: tensors of the network that the file has, of `tensors`.
        share: of the network's numbers that they hold, 0..1.
        missing: tensors of the network that the file does not have.
        other_shape: those that it has in another shape or as integers.
        unexpected: tensors of the file that the network does not have.
    """

    file: str
    sha256: str
    matched: int
    tensors: int
    share: float
    missing: list[str]
    other_shape: list[str]
    unexpected: list[str]

    def to_json(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers."""
        return asdict(self)


def load_pretrained(network: nn.Module, path: Path) -> Matched:
    """Writes the tensors of a file into the network where name and shape are the same, in place.

    Args:
        path: a .safetensors file, or a torch checkpoint, which is read without running code: a state dict, or a
            dictionary that has one under "state_dict" or "model".

    Raises:
        BadInput: the file cannot be read, holds anything but tensors, or none of them fits.
    """
    found = {_WRAPPED.sub("", name): tensor for name, tensor in _read(path).items()}
    entries = schema(network)
    wanted = {entry.name: entry.shape for entry in entries if entry.kind not in ("constant", "alias")}
    there = [name for name in wanted if name in found]
    fits = [name for name in there if found[name].is_floating_point() and found[name].shape == wanted[name]]
    if not fits:
        raise BadInput(
            f"model.pretrained: none of the {len(found)} tensors in {path} has the name and shape of one of the "
            f"network's {len(wanted)}: it has {_such_as(list(found))}, the network {_such_as(list(wanted))}; "
            "use a file of the same network with the same model.arguments"
        )
    state = network.state_dict()
    with torch.no_grad():
        for name in fits:
            state[name].copy_(found[name])
    taken, all_of_it = (sum(state[name].numel() for name in names) for names in (fits, wanted))
    return Matched(
        file=path.name,
        sha256=_sha256(path),
        matched=len(fits),
        tensors=len(wanted),
        share=taken / all_of_it,
        missing=[name for name in wanted if name not in found],
        other_shape=[name for name in there if name not in fits],
        unexpected=sorted(found.keys() - {entry.name for entry in entries}),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise BadInput(f"model.pretrained: {path} cannot be read ({error.strerror or error})") from None
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file, or one that is made on purpose, raises what it likes
        raise BadInput(
            f"model.pretrained: {path} is damaged, or holds more than tensors, such as code, which is never run "
            f"({type(error).__name__}); save the network's state_dict() and name that file"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = content.items() if isinstance(content, Mapping) else ()
    found = {str(name): tensor for name, tensor in tensors if isinstance(tensor, Tensor)}
    if not found:
        raise BadInput(f"model.pretrained: {path} holds no tensors by name; save the network's state_dict()")
    bad = [name for name, tensor in found.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise BadInput(
            f"model.pretrained: {_such_as(bad)} in {path} has values that are not finite; use another checkpoint"
        )
    return found


def _such_as(names: list[str]) -> str:
    return f"'{names[0][:80]}'"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
