"""The random half of preparing a training case: MONAI's random dictionary transforms, seeded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from shared_models.job import Job

_BORDER = "border"  # outside the image its edge goes on: zero would be a new tissue for some normalisations


def augmentation(job: Job, seed: int) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """The transforms named by job.training.augmentation, in that order; None when there are none.

    The result maps a sample to a new one with plain tensors of the same shapes and dtypes. The same seed and the same
    sequence of calls give the same samples. What lies on the image's grid follows spatial transforms: a mask that is
    the label with nearest-neighbour interpolation, a target linearly. Intensities change in the image alone. A mask
    beside the label stays as it is: only the judging of whole cases looks at it.
    """
    if not job.training.augmentation:
        return None
    from monai.data import MetaTensor
    from monai.transforms import Compose

    keys = ["image"] if job.task.label == "class" else ["image", "label"]
    transforms = [transform for name in job.training.augmentation for transform in _transforms(name, job, keys)]
    compose = Compose(transforms)
    compose.set_random_state(seed=seed % 2**32)  # the range that numpy's RandomState takes

    def augment(sample: dict[str, Any]) -> dict[str, Any]:
        changed = compose({key: sample[key] for key in keys})
        plain = {key: value.as_tensor() if isinstance(value, MetaTensor) else value for key, value in changed.items()}
        return {**sample, **{key: plain[key].to(sample[key].dtype).contiguous() for key in keys}}

    return augment


def _transforms(name: str, job: Job, keys: list[str]) -> list[Any]:
    import monai.transforms as mt

    dims = job.data.spatial_dims
    # Noise and shift are meant for images of unit deviation; an image scaled to 0..1 has about a quarter of it.
    unit = 1.0 if job.data.normalisation in ("zscore", "landmarks") else 0.25
    modes = ["bilinear", "nearest" if job.task.label == "mask" else "bilinear"][: len(keys)]
    image = ["image"]
    match name:
        case "flip":
            return [mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(dims)]
        case "rotate":
            return [_affine(keys, modes, dims, degrees=15)]
        case "affine":
            shift = [0.05 * size for size in job.data.crop]
            return [_affine(keys, modes, dims, degrees=10, scale_range=(0.1,) * dims, translate_range=shift)]
        case "scale_intensity":
            return [mt.RandScaleIntensityd(image, factors=0.1, prob=0.5)]
        case "shift_intensity":
            return [mt.RandShiftIntensityd(image, offsets=0.1 * unit, prob=0.5)]
        case "noise":
            return [mt.RandGaussianNoised(image, std=0.1 * unit, prob=0.5)]
        case "blur":
            return [mt.RandGaussianSmoothd(image, (0.25, 1.0), (0.25, 1.0), (0.25, 1.0), prob=0.25)]
        case "gamma":
            return [mt.RandAdjustContrastd(image, gamma=(0.7, 1.5), prob=0.5)]
        case _:
            raise ValueError(f"no transform for the augmentation {name!r}")


def _affine(keys: list[str], modes: list[str], dims: int, degrees: float, **ranges: Any) -> Any:
    from monai.transforms import RandAffined

    angles = (math.radians(degrees),) * (1 if dims == 2 else 3)
    return RandAffined(keys, prob=0.5, rotate_range=angles, mode=modes, padding_mode=_BORDER, **ranges)
