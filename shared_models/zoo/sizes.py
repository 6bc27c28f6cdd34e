"""Which image sizes fit networks that halve them: rules that several families share."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from shared_models.zoo.entry import Shape


def problem_of_a_u(shape: Shape, steps: Sequence[int]) -> str | None:
    """Why a U that goes down to 1/step of the image along every axis does not come up to its size again."""
    for size, step in zip(shape.crop, steps, strict=True):
        if size % step:
            return f"every axis must be a multiple of {step}, the product of the strides"
    return too_few_voxels(shape, [size // step for size, step in zip(shape.crop, steps, strict=True)])


def too_few_voxels(shape: Shape, deepest: Sequence[int]) -> str | None:
    """Why a deepest feature map of this size does not do: instance norm cannot train on one voxel."""
    if shape.normalisation == "instance" and prod(deepest) == 1:
        return "one voxel is left at the deepest layer, too few for instance norm: it takes a larger crop or group norm"
    return None
