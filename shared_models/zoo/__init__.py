"""The networks: one file per architecture family, one registry.

An entry is a strict pydantic model: its fields are the arguments a job may give (named as in MONAI), its `build` makes
the network. MONAI is imported only when a network is built, so that reading a job stays quick.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pydantic import ValidationError

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.seeds import derive_seed
from shared_models.zoo.cnn import Cnn
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.resnet import ResNet18, ResNet34, ResNet50
from shared_models.zoo.unet import UNet
from shared_models.zoo.vit import ViT

if TYPE_CHECKING:
    from torch import nn

MODELS: dict[str, type[Entry]] = {
    "cnn": Cnn,
    "unet": UNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "vit": ViT,
}


def check(job: Job) -> Entry:
    """The zoo entry of a job with its arguments, or BadInput that names what does not fit."""
    name, arguments = job.model.name, job.model.arguments
    if name not in MODELS:
        raise BadInput(f"model.name: there is no model '{name}'; the zoo has {', '.join(sorted(MODELS))}")
    kind = MODELS[name]
    if job.task.kind not in kind.tasks:
        fitting = ", ".join(sorted(n for n, entry in MODELS.items() if job.task.kind in entry.tasks))
        raise BadInput(f"model.name: '{name}' cannot do {job.task.kind}; models that can: {fitting}")
    for key in arguments:
        if key not in kind.model_fields:
            near = difflib.get_close_matches(key, kind.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(kind.model_fields)}"
            raise BadInput(f"model.arguments.{key}: '{name}' has no such argument; {hint}")
    try:
        entry = kind.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["model.arguments", *map(str, first["loc"])])
        raise BadInput(f"{where}: {first['msg']}, found {first['input']!r}") from None
    problem = entry.problem(shape_of(job))
    if problem:
        raise BadInput(f"model '{name}' does not fit data.crop {job.data.crop}: {problem}")
    return entry


def shape_of(job: Job) -> Shape:
    """What the network of a job takes in and gives out."""
    return Shape(job.data.spatial_dims, job.data.channels, len(job.task.classes), tuple(job.data.crop))


def build(job: Job) -> nn.Module:
    """The network of a job, initialised from the job seed without touching torch's global random state."""
    import torch

    entry = check(job)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(job.seed, "initial weights"))
        return entry.build(shape_of(job))
