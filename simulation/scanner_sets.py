"""The ready sets of scanners: what `simulation.scanners.set` stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import TypeAdapter

from shared_models.job import Job
from shared_models.job_scanners import AnyEffect
from shared_models.seeds import derive_seed

Recipe = Mapping[str, Mapping[str, tuple[float, float]]]
"""Effects in their order, each with the range that every number is drawn from."""

MILD: dict[str, list[Recipe]] = {
    "volume": [
        {"gamma": {"gamma": (1.15, 1.4)}, "rician_noise": {"level": (0.05, 0.1)}},
        {"bias_field": {"strength": (0.1, 0.2)}, "blur": {"sigma": (0.3, 0.5)}},
        {"gamma": {"gamma": (0.7, 0.85)}, "gaussian_noise": {"level": (0.05, 0.1)}},
        {"slice_thickness": {"factor": (1.3, 1.6)}, "bias_field": {"strength": (0.05, 0.15)}},
    ],
    "grey": [
        {"gamma": {"gamma": (1.15, 1.4)}, "gaussian_noise": {"level": (0.05, 0.1)}},
        {"illumination": {"strength": (0.1, 0.25)}, "blur": {"sigma": (0.3, 0.5)}},
        {"gamma": {"gamma": (0.7, 0.85)}, "gaussian_noise": {"level": (0.05, 0.1)}},
        {"field_of_view": {"share": (0.9, 0.95)}, "gamma": {"gamma": (0.85, 0.95)}},
    ],
    "colour": [
        {"colour": {"strength": (0.2, 0.3)}, "gaussian_noise": {"level": (0.03, 0.08)}},
        {"illumination": {"strength": (0.1, 0.25)}, "blur": {"sigma": (0.3, 0.6)}},
        {"gamma": {"gamma": (0.7, 0.85)}, "colour": {"strength": (0.1, 0.2)}},
        {"field_of_view": {"share": (0.9, 0.95)}, "gamma": {"gamma": (1.15, 1.3)}},
    ],
}

# The first of each is worst for a model that has never seen it, and so is at one hospital, however few there are.
STRONG: dict[str, list[Recipe]] = {
    "volume": [
        {"inverted": {}, "gamma": {"gamma": (1.2, 1.6)}, "rician_noise": {"level": (0.1, 0.2)}},
        {"bias_field": {"strength": (0.25, 0.35)}, "rician_noise": {"level": (0.3, 0.5)}},
        {"slice_thickness": {"factor": (2.0, 3.0)}, "blur": {"sigma": (0.6, 1.0)}},
        {"gamma": {"gamma": (2.5, 3.5)}, "gaussian_noise": {"level": (0.2, 0.4)}},
        {"motion": {"degrees": (5.0, 8.0), "voxels": (1.0, 2.0)}, "gamma": {"gamma": (0.4, 0.6)}},
        {"resolution": {"factor": (1.5, 2.0)}, "bias_field": {"strength": (0.2, 0.3)}},
    ],
    "grey": [
        {"inverted": {}, "gamma": {"gamma": (1.2, 1.6)}, "gaussian_noise": {"level": (0.1, 0.2)}},
        {"illumination": {"strength": (0.7, 0.9)}, "gaussian_noise": {"level": (0.4, 0.6)}},
        {"resolution": {"factor": (2.0, 2.5)}, "gamma": {"gamma": (0.4, 0.6)}},
        {"gamma": {"gamma": (2.5, 3.5)}, "gaussian_noise": {"level": (0.2, 0.4)}},
        {"blur": {"sigma": (1.0, 1.5)}, "illumination": {"strength": (0.5, 0.7)}},
        {"field_of_view": {"share": (0.65, 0.75)}, "gaussian_noise": {"level": (0.2, 0.3)}},
    ],
    "colour": [
        {"inverted": {}, "colour": {"strength": (0.4, 0.6)}},
        {"colour": {"strength": (0.9, 1.0)}, "gaussian_noise": {"level": (0.3, 0.5)}},
        {"illumination": {"strength": (0.7, 0.9)}, "blur": {"sigma": (1.2, 1.8)}},
        {"gamma": {"gamma": (2.0, 3.0)}, "gaussian_noise": {"level": (0.2, 0.4)}},
        {"resolution": {"factor": (2.5, 3.5)}, "colour": {"strength": (0.6, 0.8)}},
        {"field_of_view": {"share": (0.6, 0.7)}, "gamma": {"gamma": (0.4, 0.6)}},
    ],
}

BAD: dict[str, Recipe] = {
    "volume": {
        "motion": {"degrees": (6.0, 10.0), "voxels": (2.0, 3.0), "movements": (4, 4)},
        "bias_field": {"strength": (0.25, 0.35)},
        "rician_noise": {"level": (0.8, 1.0)},
    },
    "grey": {
        "blur": {"sigma": (1.0, 1.5)},
        "illumination": {"strength": (0.8, 0.9)},
        "gaussian_noise": {"level": (0.8, 1.0)},
    },
    "colour": {
        "blur": {"sigma": (1.5, 2.5)},
        "illumination": {"strength": (0.8, 0.9)},
        "gaussian_noise": {"level": (0.8, 1.0)},
    },
}


def chains_of_set(name: str, job: Job, hospitals: Sequence[str]) -> dict[str, list[AnyEffect]]:
    """The chain of every hospital in one of the ready sets, drawn from the job's seed.

    mild and strong deal their recipes in turn to hospitals in a random order; where there are more hospitals, a
    recipe comes again with other numbers. one-bad-site leaves all hospitals but one as they are.
    """
    generator = np.random.default_rng(derive_seed(job.seed, "scanner set", name))
    order = [hospitals[index] for index in generator.permutation(len(hospitals))]
    data = _kind_of(job)
    if name == "one-bad-site":
        return {hospital: [] for hospital in hospitals} | {order[0]: _drawn(BAD[data], generator)}
    recipes = (MILD if name == "mild" else STRONG)[data]
    dealt = {hospital: _drawn(recipes[place % len(recipes)], generator) for place, hospital in enumerate(order)}
    return {hospital: dealt[hospital] for hospital in hospitals}


def _kind_of(job: Job) -> str:
    if job.data.spatial_dims == 3:
        return "volume"
    return "colour" if job.data.channels == 3 * len(job.data.images) else "grey"


def _drawn(recipe: Recipe, generator: np.random.Generator) -> list[AnyEffect]:
    """Numbers of two digits, as a caption and a paper can give them."""
    chain = []
    for kind, ranges in recipe.items():
        numbers = {key: float(f"{generator.uniform(*ends):.2g}") for key, ends in ranges.items()}
        chain.append({"kind": kind, **numbers})
    return TypeAdapter(list[AnyEffect]).validate_python(chain)
