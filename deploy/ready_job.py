"""A job file for any network of the zoo that runs as it is: on public data, or on made-up slices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from shared_models.errors import BadInput
from shared_models.zoo import MODELS
from shared_models.zoo.entry import Shape

if TYPE_CHECKING:
    from shared_models.zoo.entry import Entry

PHANTOM = {"dataset": {"name": "phantom"}, "partition": {"name": "natural", "column": "scanner"}}
HIPPOCAMPUS = {"dataset": {"name": "decathlon", "task": "Task04_Hippocampus"}}
CHEST = {"dataset": {"name": "medmnist", "flag": "pneumoniamnist"}}
NODULES = {"dataset": {"name": "medmnist", "flag": "nodulemnist3d"}}
IID = {"partition": {"name": "iid"}, "hospitals": 3}

FINDINGS = {2: ["normal", "pneumonia"], 3: ["benign", "malignant"]}


@dataclass(frozen=True)
class Source:
    """Images that a job can take: what they are, who has them, and the patch sizes to choose from, smallest first."""

    words: str
    simulation: dict[str, Any]
    crops: tuple[tuple[int, ...], ...]
    batch_size: int


MASKS = {
    2: Source("brain slices of four scanners, made on this machine", PHANTOM, ((96, 96),), 8),
    3: Source("hippocampus, T1 MRI (Decathlon, CC BY-SA 4.0)", HIPPOCAMPUS | IID, ((48, 64, 48), (64, 64, 64)), 2),
}
CLASSES = {
    2: Source("chest X-rays (PneumoniaMNIST, CC BY 4.0)", CHEST | IID, ((28, 28), (32, 32)), 32),
    3: Source("lung nodules in CT (NoduleMNIST3D, CC BY 4.0)", NODULES | IID, ((28, 28, 28), (32, 32, 32)), 16),
}


@dataclass(frozen=True)
class Recipe:
    """What goes with an ability of a network."""

    sources: dict[int, Source]
    data: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "adamw", "learning_rate": 0.001})


ADVERSARIAL = {"name": "adam", "learning_rate": 0.0002, "beta": 0.5}  # Radford et al. 2016, section 4
RECIPES = {
    "segmentation": Recipe(MASKS),
    "classification": Recipe(CLASSES),
    "paired translation": Recipe(MASKS, {"images": ["image"], "label": "image"}, ADVERSARIAL),
    "unpaired translation": Recipe(CLASSES, {}, ADVERSARIAL),
    "synthesis": Recipe(CLASSES, {"normalisation": "minmax"}, ADVERSARIAL),
    "reconstruction": Recipe(CLASSES, {"normalisation": "minmax"}),
}


def ready_job(name: str, dims: int | None = None) -> dict[str, Any]:
    """The sections of a job for a network of the zoo with its default arguments.

    Args:
        dims: 2 or 3; None is 2D, where the network can.

    Raises:
        BadInput: the network cannot take images with so many axes.
    """
    kind = MODELS[name]
    dims = dims or min(kind.spatial_dims)
    if dims not in kind.spatial_dims:
        able = " and ".join(f"{known}D" for known in sorted(kind.spatial_dims))
        raise BadInput(f"'{name}' cannot take {dims}D images; it is for {able}")
    entry, ability = kind(), min(kind.tasks)
    recipe = RECIPES[ability]
    source = recipe.sources[dims]
    task = _task(ability, dims)
    return {
        "name": name.replace("_", "-"),
        "task": task,
        "data": {"spatial_dims": dims, "crop": _crop(entry, source, len(task.get("classes", []))), **recipe.data},
        "model": {"name": name, "arguments": entry.model_dump(), "normalisation": kind.normalisation},
        "training": {"optimizer": recipe.optimizer, "batch_size": source.batch_size, "local_epochs": 1},
        "federation": {"rounds": 10},
        "simulation": source.simulation,
    }


def as_yaml(job: dict[str, Any]) -> str:
    """The text of a ready job, with a word about its images and how to run it."""
    kind, dims = MODELS[job["model"]["name"]], job["data"]["spatial_dims"]
    head = (
        f"# {job['model']['name']}: {kind.paper}\n"
        f"# Images: {RECIPES[min(kind.tasks)].sources[dims].words}; `consilium job init` explains every key.\n"
        "#   consilium simulate FILE\n"
    )
    return head + yaml.safe_dump(job, sort_keys=False, default_flow_style=None, width=110)


def _task(ability: str, dims: int) -> dict[str, Any]:
    if ability == "segmentation":
        tissues = ["grey matter", "white matter"] if dims == 2 else ["anterior", "posterior"]
        return {"kind": "segmentation", "classes": ["background", *tissues]}
    if ability == "paired translation":
        return {"kind": "translation", "how": {"mode": "paired", "noise": 0.5}}
    if ability == "unpaired translation":
        return {"kind": "translation", "how": {"mode": "unpaired", "domains": FINDINGS[dims]}}
    return {"kind": "anomaly" if ability == "reconstruction" else ability, "classes": FINDINGS[dims]}


def _crop(entry: Entry, source: Source, classes: int) -> list[int]:
    """The first patch size that the network takes."""
    for crop in source.crops:
        shape = Shape(len(crop), 1, max(1, classes), crop, classes, entry.normalisation)
        if entry.problem(shape) is None:
            return list(crop)
    raise AssertionError(f"no patch size of {source.words} suits {type(entry).__name__}")
