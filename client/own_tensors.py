"""The tensors of a model that stay at a site: kept from round to round, and the initial ones before the first.

They are kept by round, because a run that was killed goes on from an earlier one, and because the model of the best
round is judged with what the site had then.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save
from torch import nn

from client.site import Site
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.job import Job
from shared_models.weights import Weights, load, own
from shared_models.zoo import build

_NAME = re.compile(r"round-(\d{6})\.safetensors")


def keep_own(network: nn.Module, site: Site, job: Job, round_number: int) -> None:
    """Writes what stays of a network behind a round of training; nothing where all of it travels."""
    tensors = own(network, job.federation.share)
    if not tensors:
        return
    site.own.mkdir(parents=True, exist_ok=True)
    with whole_file(site.own / f"round-{round_number:06d}.safetensors") as file:
        file.write(save(tensors))
    if job.federation.share.normalisation == "all":  # discriminators: no model is judged with them, and they are large
        for number, path in _kept(site.own).items():
            if number < round_number - 1:
                path.unlink(missing_ok=True)


def load_own(network: nn.Module, site: Site, job: Job, round_number: int) -> None:
    """Writes what the site had behind a round, or behind the last that it took part in before, into the network.

    Raises:
        BadInput: a file is damaged.
    """
    if not _initial(job.canonical_json()):
        return
    past = {number: path for number, path in _kept(site.own).items() if number <= round_number}
    tensors = _read(past[max(past)]) if past else _initial(job.canonical_json())
    load(network, tensors, job.federation.share)


def _kept(folder: Path) -> dict[int, Path]:
    found = {path: _NAME.fullmatch(path.name) for path in folder.glob("round-*.safetensors")}
    return {int(match[1]): path for path, match in found.items() if match}


def _read(path: Path) -> Weights:
    try:
        return load_safetensors(path.read_bytes())
    except Exception as error:  # safetensors raises an error of its own that is no subclass of anything
        raise BadInput(
            f"{path} cannot be read ({type(error).__name__}): it holds this site's own part of the model; "
            "delete it, and the site goes on from the round before"
        ) from error


@functools.lru_cache(maxsize=2)
def _initial(job_text: str) -> Weights:
    job = Job.model_validate_json(job_text)
    return {name: array.copy() for name, array in own(build(job), job.federation.share).items()}
