"""Hospitals that do harm, by fault or on purpose: what becomes of an honest update on its way out.

w is the model that the hospital was sent, w_k the one that it trained; `shared_models.job_participation` has the
formula of every fault. What an algorithm sends beside the model, such as SCAFFOLD's control variates, stays honest.
A label flip is no matter of updates: `simulation.flipped_labels` changes the hospital's data.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.checkpoint import load_weights, save_weights
from shared_models.job import Job
from shared_models.job_participation import (
    ColludingFault,
    NoiseFault,
    ScalingFault,
    SignFlipFault,
    StaleFault,
)
from shared_models.seeds import derive_seed
from shared_models.weights import Weights

Tensor = NDArray[np.float32]


def tampered(job: Job, site: str, number: int, sent: Weights, update: Weights, folder: Path) -> Weights:
    """What a hospital sends in a round in the place of its honest update, by `simulation.faulty`.

    Args:
        number: the round.
        sent, update: w and w_k by name of tensor.
        folder: of the hospital in the run, one for each federation; a stale one keeps there what it sends.
    """
    fault = job.simulation.faulty.get(site) if job.simulation else None
    if fault is None or fault.kind == "label_flip" or number < fault.from_round:
        return update
    if isinstance(fault, StaleFault):
        return _first(update, folder / "stale.safetensors")
    if isinstance(fault, SignFlipFault):
        return {name: w - _float(fault.strength) * (update[name] - w) for name, w in sent.items()}
    if isinstance(fault, ScalingFault):
        return {name: w + _float(fault.strength) * (update[name] - w) for name, w in sent.items()}
    if isinstance(fault, NoiseFault):
        seed = derive_seed(job.seed, "noise", site, number)
        return _noisy(sent, {name: fault.strength * _size(update[name] - w) for name, w in sent.items()}, seed)
    assert isinstance(fault, ColludingFault)
    # Neither the site nor what it learnt is in the noise, so that all who collude send the very same.
    seed = derive_seed(job.seed, "colluding", number)
    return _noisy(sent, {name: fault.strength * _size(w) for name, w in sent.items()}, seed)


def _first(update: Weights, path: Path) -> Weights:
    """The update that was given first, also after the run was stopped and resumed."""
    if not path.exists():
        save_weights(path, update)
    return load_weights(path)


def _noisy(sent: Weights, deviations: dict[str, float], seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: sent[name] + _float(deviations[name]) * rng.standard_normal(sent[name].shape, np.float32)
        for name in sorted(sent)
    }


def _size(tensor: Tensor) -> float:
    """The root mean square of a tensor's values."""
    return float(np.sqrt(np.mean(np.square(tensor, dtype=np.float64)))) if tensor.size else 0.0


def _float(value: float) -> np.float32:
    """A strength that leaves float32 tensors float32."""
    return np.float32(value)
