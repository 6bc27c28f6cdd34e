"""What stays at a site from round to round: its own part of the model, and what the algorithm keeps for it.

It is kept by round. A site goes on from the last round that its update was used in: one that came late, that was
rejected, or whose round was tried again or lost when the run was killed, is as if it had never been, at both ends. And
the model of the best round is judged with what the site had then.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save
from torch import nn

from client.site import Site
from shared_models.errors import BadInput
from shared_models.faults import Fault
from shared_models.files import whole_file
from shared_models.job import Job
from shared_models.weights import Weights, load, own
from shared_models.zoo import build

_NAME = re.compile(r"round-(\d{6})\.safetensors")
_MODEL, _ALGORITHM, _PERSONAL = "model/", "algorithm/", "personal/"  # what a tensor in a file is


@dataclass(frozen=True)
class Own:
    """What a site has behind a round."""

    model: Weights = field(default_factory=dict)
    """The tensors of the model that stay, see `shared_models.weights.own`."""
    algorithm: Weights = field(default_factory=dict)
    """See `Algorithm.contribution`, `Contribution.kept`."""
    personal: Weights = field(default_factory=dict)
    """The whole of a model that is this site's alone."""
    round: int = 0
    """The round behind which the site has it; 0 before its first."""


def keep_own(own: Own, site: Site, last_used: int, best_used: int) -> bool:
    """Writes what a site has behind a round, and drops what nobody will ask for again; whether there is anything.

    Args:
        last_used: the round that it went on from: whether this one will count, it does not know yet.
        best_used: the last one that counted behind the best round so far, whose model is judged in the end; 0 before.
    """
    tensors = {
        prefix + name: array
        for prefix, part in ((_MODEL, own.model), (_ALGORITHM, own.algorithm), (_PERSONAL, own.personal))
        for name, array in part.items()
    }
    if not tensors:
        return False
    site.own.mkdir(parents=True, exist_ok=True)
    with whole_file(site.own / f"round-{own.round:06d}.safetensors") as file:
        file.write(save(tensors))
    kept = _kept(site.own)

    def up_to(last: int) -> int:
        """The round, or the last before it that this site took part in."""
        return max((number for number in kept if number <= last), default=0)

    # The one before `last_used` is gone on from if the coordinator's last checkpoint should be damaged.
    wanted = {own.round, up_to(last_used), up_to(up_to(last_used) - 1), up_to(best_used)}
    for number in kept.keys() - wanted:
        kept[number].unlink(missing_ok=True)
    return True


def read_own(site: Site, job: Job, round_number: int) -> Own:
    """What the site had behind a round, or behind the last that it took part in before; at first the initial model's.

    Raises:
        BadInput: a file is damaged.
    """
    past = {number: path for number, path in _kept(site.own).items() if number <= round_number}
    if not past:
        return Own(model=_initial(job.canonical_json()))
    tensors = _read(past[max(past)])
    model, algorithm, personal = (
        {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
        for prefix in (_MODEL, _ALGORITHM, _PERSONAL)
    )
    return Own(model, algorithm, personal, max(past))


def load_own(network: nn.Module, site: Site, job: Job, last_used: int) -> None:
    """Writes the site's own part of a model that is to be judged into the network; nothing where all of it travels.

    Args:
        last_used: the last round up to the model's own that an update of the site is in; 0 for none.

    Raises:
        Fault: what it had behind that round is lost: with another round's, the judgement would be of another model.
        BadInput: a file is damaged.
    """
    if _initial(job.canonical_json()):
        load(network, _read_exactly(site, job, last_used).model, job.federation.share)


def personal_model(site: Site, job: Job, last_used: int) -> Weights | None:
    """The site's personal model, whole; None before its first round. Arguments and errors are `load_own`'s."""
    return _read_exactly(site, job, last_used).personal or None


def _read_exactly(site: Site, job: Job, round_number: int) -> Own:
    found = read_own(site, job, round_number)
    if found.round != round_number:
        text = f"What stays at site {site.name} is gone from {site.own} for round {round_number}."
        raise Fault(text, "lost", round=round_number)
    return found


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
