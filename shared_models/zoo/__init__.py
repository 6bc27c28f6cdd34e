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
from shared_models.zoo.autoencoder import AutoEncoder, VariationalAutoEncoder
from shared_models.zoo.cnn import Cnn
from shared_models.zoo.cyclegan import CycleGan
from shared_models.zoo.dcgan import Dcgan
from shared_models.zoo.densenet import DenseNet121, DenseNet169, DenseNet201
from shared_models.zoo.dynunet import DynUNet
from shared_models.zoo.entry import Entry, Shape
from shared_models.zoo.pix2pix import Pix2Pix
from shared_models.zoo.residual_unet import ResidualUNet
from shared_models.zoo.resnet import ResNet18, ResNet34, ResNet50, ResNet101, SEResNet50
from shared_models.zoo.resnet_unet import ResNetUNet
from shared_models.zoo.swin_unet import SwinUNet
from shared_models.zoo.swin_unetr import SwinUnetr
from shared_models.zoo.transunet import TransUNet
from shared_models.zoo.unet import AttentionUNet, UNet
from shared_models.zoo.unet_plus_plus import UNetPlusPlus
from shared_models.zoo.unetr import Unetr
from shared_models.zoo.vit import ViT
from shared_models.zoo.vnet import VNet

if TYPE_CHECKING:
    from torch import nn

MODELS: dict[str, type[Entry]] = {
    "cnn": Cnn,
    "unet": UNet,
    "residual_unet": ResidualUNet,
    "dynunet": DynUNet,
    "attention_unet": AttentionUNet,
    "unet_plus_plus": UNetPlusPlus,
    "vnet": VNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "seresnet50": SEResNet50,
    "resnet_unet": ResNetUNet,
    "densenet121": DenseNet121,
    "densenet169": DenseNet169,
    "densenet201": DenseNet201,
    "vit": ViT,
    "unetr": Unetr,
    "swin_unetr": SwinUnetr,
    "swin_unet": SwinUNet,
    "transunet": TransUNet,
    "pix2pix": Pix2Pix,
    "cyclegan": CycleGan,
    "dcgan": Dcgan,
    "autoencoder": AutoEncoder,
    "vae": VariationalAutoEncoder,
}


def check(job: Job) -> Entry:
    """The zoo entry of a job with its arguments, or BadInput that names what does not fit."""
    name, arguments = job.model.name, job.model.arguments
    if name not in MODELS:
        raise BadInput(f"model.name: there is no model '{name}'; the zoo has {', '.join(sorted(MODELS))}")
    kind = MODELS[name]
    ability, dims = job.task.ability, job.data.spatial_dims
    if ability not in kind.tasks or dims not in kind.spatial_dims:
        what = f"{ability} in {dims}D"
        able = [n for n, entry in MODELS.items() if ability in entry.tasks and dims in entry.spatial_dims]
        raise BadInput(f"model.name: '{name}' cannot do {what}; models that can: {', '.join(sorted(able))}")
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
    data = job.data
    outputs = job.task.outputs(data.channels)
    normalisation = job.model.normalisation or MODELS[job.model.name].normalisation
    return Shape(data.spatial_dims, data.channels, outputs, tuple(data.crop), len(job.task.classes), normalisation)


def build(job: Job) -> nn.Module:
    """The network of a job, initialised from the job seed without touching torch's global random state."""
    import torch

    from shared_models.zoo.normalisation import normalise

    entry = check(job)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(job.seed, "initial weights"))
        network = entry.build(shape_of(job))
    network = normalise(network, job.model.normalisation or entry.normalisation, job.data.spatial_dims)
    for name in entry.heads:
        network.get_submodule(name).is_head = True  # type: ignore[assignment]
    return network
