"""A model's tensors by kind, which of them travel, and how they become Flower records and back.

The kind is decided by the type of the module that owns a tensor, never by its name. Only float tensors ever travel:
integer buffers and constants are rebuilt from the job at every site, and a tensor with two names travels once. Of those
that could travel, the job's `federation.share` keeps some at home; each site then has its own.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from shared_models.errors import BadInput
from shared_models.job_federation import Share

Kind = Literal["shared", "norm", "head", "statistic", "constant", "alias"]
Weights = dict[str, NDArray[np.float32]]

EVERYTHING = Share()
NORM_MODULES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a model's state: `shared`, `norm` and `head` are trained, `statistic` is any other float buffer."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    travels: bool
    """Whether the tensor leaves a site."""

    @property
    def trainable(self) -> bool:
        """Whether an optimiser, local or at the server, may step it."""
        return self.kind in ("shared", "norm", "head")

    @property
    def is_own(self) -> bool:
        """Whether every site has its own: it could travel, and the job keeps it at home."""
        return not self.travels and self.kind not in ("constant", "alias")


def schema(network: nn.Module, share: Share = EVERYTHING) -> list[TensorInfo]:
    """Every tensor of the network's state dict, in its order, with its kind and whether it travels."""
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in network.named_modules(remove_duplicate=False)
        for name in [*module._parameters, *module._buffers]
    }
    heads = {
        id(inner) for module in network.modules() if getattr(module, "is_head", False) for inner in module.modules()
    }
    at_home = tuple(f"{name}." for name in getattr(network, "discriminators", ()) if share.networks == "generators")
    seen: set[int] = set()
    entries = []
    for name, tensor in network.state_dict(keep_vars=True).items():
        owner = owners[name]
        kind: Kind = "alias" if id(tensor) in seen else _kind(tensor, owner, id(owner) in heads)
        travels = kind not in ("constant", "alias") and not name.startswith(at_home) and _shared(kind, owner, share)
        travels = travels and not (share.heads == "nothing" and id(owner) in heads)
        entries.append(TensorInfo(name, kind, tuple(tensor.shape), _dtype(tensor), travels))
        seen.add(id(tensor))
    return entries


def _kind(tensor: torch.Tensor, owner: nn.Module, in_head: bool) -> Kind:
    if not tensor.is_floating_point():
        return "constant"
    if not isinstance(tensor, nn.Parameter):
        return "statistic"
    if isinstance(owner, NORM_MODULES):
        return "norm"
    return "head" if in_head else "shared"


def _shared(kind: Kind, owner: nn.Module, share: Share) -> bool:
    if not isinstance(owner, NORM_MODULES) or share.normalisation == "all":
        return True
    return share.normalisation == "no_statistics" and kind != "statistic"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def running_norms(network: nn.Module) -> list[_NormBase]:
    """The normalisation layers that keep a running mean and variance, and use them when the network is judged."""
    return [module for module in network.modules() if isinstance(module, _NormBase) and module.track_running_stats]


def travelling(network: nn.Module, share: Share = EVERYTHING) -> Weights:
    """The tensors that travel, in float32: views of the network's memory where it is on the CPU, copies elsewhere."""
    return _values(network, [entry.name for entry in schema(network, share) if entry.travels])


def own(network: nn.Module, share: Share) -> Weights:
    """The tensors that stay at a site and are its own, as `travelling` gives the others; often none."""
    return _values(network, [entry.name for entry in schema(network, share) if entry.is_own])


def _values(network: nn.Module, names: list[str]) -> Weights:
    state = network.state_dict()
    return {name: state[name].detach().to("cpu", torch.float32).contiguous().numpy() for name in names}


def load(network: nn.Module, weights: Mapping[str, NDArray[np.float32]], share: Share = EVERYTHING) -> None:
    """Writes tensors into the network in place: those that travel, those that stay, or both.

    Raises:
        BadInput: a tensor is missing, unknown or of another shape.
    """
    entries = schema(network, share)
    travel = {e.name: e.shape for e in entries if e.travels}
    stay = {e.name: e.shape for e in entries if e.is_own}
    expected = next((some for some in (stay, travel | stay) if some.keys() == weights.keys()), travel)
    problem = mismatch(expected, {name: array.shape for name, array in weights.items()})
    if problem:
        raise BadInput(f"these weights are not of this model: {problem}; use the job that they were trained with")
    state = network.state_dict()
    with torch.no_grad():
        for name, array in weights.items():
            state[name].copy_(_as_tensor(array))


def _as_tensor(array: NDArray[np.float32]) -> torch.Tensor:
    """A tensor over the array's memory; it is only read, so a read-only array needs no copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def mismatch(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str | None:
    """Says in words how the found tensors differ from the expected ones; None when they agree."""
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing:
        return f"{len(missing)} of {len(expected)} tensors missing, such as {min(missing)[:80]!r}"
    if unexpected:
        return f"{len(unexpected)} unexpected tensors, such as {min(unexpected)[:80]!r}"
    for name, shape in expected.items():
        if found[name] != shape:
            return f"'{name}' has shape {found[name]}, expected {shape}"
    return None


def to_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """A Flower record in the format of numpy files, as Flower writes it, with one copy of the memory instead of two."""
    record = ArrayRecord()
    for name, array in arrays.items():
        header = io.BytesIO()
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(contiguous))
        data = b"".join([header.getvalue(), _bytes(contiguous)])
        record[name] = Array(dtype=str(contiguous.dtype), shape=contiguous.shape, stype="numpy.ndarray", data=data)
    return record


def from_record(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Read-only arrays over the record's own memory.

    Raises:
        BadInput: an entry is not a plain numpy array, or its bytes are not what its header says.
    """
    return {name: _parse(name, array) for name, array in record.items()}


def _parse(name: str, array: Array) -> NDArray[Any]:
    data = memoryview(array.data)
    head = io.BytesIO(data[:4096])
    try:
        version = np.lib.format.read_magic(head)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](head)
        if dtype.hasobject or (fortran and len(shape) > 1):
            raise ValueError("not a plain C-ordered array")
        return np.frombuffer(data[head.tell() :], dtype=dtype).reshape(shape)
    except Exception as error:  # numpy parses a header as Python, and one that is made on purpose raises what it likes
        kind = type(error).__name__  # their texts repeat what was found
        raise BadInput(f"tensor {name[:80]!r} cannot be read as a numpy array ({kind})") from None


def fingerprint(weights: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 over names, shapes and bytes, in order of name: two models with equal fingerprints are the same."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {weights[name].shape}\n".encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _bytes(array: NDArray[np.generic]) -> memoryview:
    """A C-ordered array's memory, without a copy."""
    return memoryview(array.reshape(-1).view(np.uint8).data)
