"""Virtual scanners: what a hospital's scanner makes of an image, as a seeded chain of MONAI transforms.

What belongs to the scanner (the field of its coil, its contrast, its light) is drawn once for a hospital; noise and
motion are drawn for every case. Both follow from the job's seed and the names, and from nothing else.

Geometry: a NIfTI gets the new grid, and its affine says so. A picture or a row of an npz, which knows no voxel size,
keeps its size in pixels: it is sampled coarsely and interpolated back, or its middle is enlarged. Masks follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from client.data.readers import Volume
from shared_models.job import Job
from shared_models.job_scanners import (
    AnyEffect,
    BiasField,
    Blur,
    Colour,
    FieldOfView,
    Gamma,
    GaussianNoise,
    Histogram,
    Illumination,
    Inverted,
    Motion,
    Resolution,
    RicianNoise,
    SliceThickness,
)
from shared_models.seeds import derive_seed
from simulation.scanner_sets import chains_of_set

Mode = Literal["bilinear", "nearest-exact", "area"]  # of interpolation; masks take the nearest voxel
Affine4 = np.ndarray | None
UNCHANGED = "as in the data set"


@dataclass(frozen=True)
class Scanner:
    """The scanner of one hospital."""

    hospital: str
    chain: tuple[AnyEffect, ...]
    seed: int
    """The job's."""

    @property
    def words(self) -> str:
        """The chain as a caption has it."""
        return ", ".join(effect.words for effect in self.chain) or UNCHANGED

    @property
    def changes_grid(self) -> bool:
        """Whether masks have to follow."""
        return any(effect.kind in GEOMETRY for effect in self.chain)

    def image(self, volume: Volume, case: str) -> Volume:
        """An image (channels, *spatial) of a case as this scanner has it; whole numbers stay of their type."""
        values, affine = torch.from_numpy(volume.values.astype(np.float32)), volume.affine
        for place, effect in enumerate(self.chain):
            if effect.kind in GEOMETRY:
                values, affine = GEOMETRY[effect.kind](effect, values, affine, "bilinear")
                continue
            of = () if effect.kind in OF_THE_SCANNER else (case,)
            seed = derive_seed(self.seed, "scanner", self.hospital, place, *of) % 2**32  # numpy's RandomState
            values = INTENSITY[effect.kind](effect, values, seed)
        return Volume(_of_type(values.numpy(), volume.values.dtype), affine)

    def mask(self, volume: Volume) -> Volume:
        """A mask on the grid of its image."""
        values, affine = torch.from_numpy(volume.values.astype(np.float32)), volume.affine
        for effect in self.chain:
            if effect.kind in GEOMETRY:
                values, affine = GEOMETRY[effect.kind](effect, values, affine, "nearest-exact")
        return Volume(values.numpy().astype(volume.values.dtype), affine)


def scanners_of(job: Job, hospitals: Sequence[str]) -> dict[str, Scanner]:
    """The scanner of every hospital; empty without `simulation.scanners`."""
    assert job.simulation is not None, "open_dataset has refused a job without a simulation"
    wanted = job.simulation.scanners
    if wanted is None:
        return {}
    chains: Mapping[str, Sequence[AnyEffect]]
    if wanted.by_hospital is not None:
        chains = {name: wanted.by_hospital.get(name, []) for name in hospitals}
    else:
        assert wanted.set is not None
        chains = chains_of_set(wanted.set, job, hospitals)
    return {name: Scanner(name, tuple(chain), job.seed) for name, chain in chains.items()}


def _of_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "ui":
        return values.astype(dtype if dtype.kind == "f" else np.float32)
    limits = np.iinfo(dtype)
    return np.rint(values).clip(limits.min, limits.max).astype(dtype)


def _bias_field(effect: BiasField, values: Tensor, seed: int) -> Tensor:
    """A field of mean 1, so that whole numbers do not run out of their range."""
    from monai.transforms import RandBiasField

    field = _drawn(RandBiasField(coeff_range=(-effect.strength, effect.strength), prob=1), seed)(
        torch.ones_like(values)
    )
    return values * field / field.mean()


def _rician_noise(effect: RicianNoise, values: Tensor, seed: int) -> Tensor:
    from monai.transforms import RandRicianNoise

    return _drawn(RandRicianNoise(prob=1, std=effect.level, relative=True, sample_std=False), seed)(values)


def _gaussian_noise(effect: GaussianNoise, values: Tensor, seed: int) -> Tensor:
    from monai.transforms import RandGaussianNoise

    return _drawn(RandGaussianNoise(prob=1, std=effect.level * float(values.std()), sample_std=False), seed)(values)


def _blur(effect: Blur, values: Tensor, seed: int) -> Tensor:
    """MONAI takes the outside for zero; the division makes the edge a mean of what is inside."""
    from monai.transforms import GaussianSmooth

    smooth = GaussianSmooth(effect.sigma)
    return _plain(smooth(values)) / _plain(smooth(torch.ones_like(values)))


def _gamma(effect: Gamma, values: Tensor, seed: int) -> Tensor:
    from monai.transforms import AdjustContrast

    return _plain(AdjustContrast(effect.gamma)(values))


def _histogram(effect: Histogram, values: Tensor, seed: int) -> Tensor:
    from monai.transforms import RandHistogramShift

    return _drawn(RandHistogramShift(effect.control_points, prob=1), seed)(values)


def _inverted(effect: Inverted, values: Tensor, seed: int) -> Tensor:
    return values.min() + values.max() - values


def _colour(effect: Colour, values: Tensor, seed: int) -> Tensor:
    """Every channel becomes a mean of the three, so that grey stays grey and nothing runs out of its range."""
    means = np.random.default_rng(seed).dirichlet([1, 1, 1], size=3)
    matrix = (1 - effect.strength) * np.eye(3) + effect.strength * means
    return torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix.astype(np.float32)), values)


def _illumination(effect: Illumination, values: Tensor, seed: int) -> Tensor:
    middle = np.random.default_rng(seed).uniform(-0.5, 0.5, 2)  # of an image that reaches from -1 to 1
    axes = [torch.linspace(-1, 1, size) - float(at) for size, at in zip(values.shape[1:], middle, strict=True)]
    away = axes[0][:, None] ** 2 + axes[1][None] ** 2
    return values * (1 - effect.strength * away / away.max())


def _motion(effect: Motion, values: Tensor, seed: int) -> Tensor:
    """K-space lines along the first axis are acquired in order, and between some of them the patient moves.

    The middle of k-space, which holds the contrast, is of the patient as the mask has it (Shaw et al. 2019,
    "MRI k-space motion artefact augmentation").
    """
    from monai.transforms import Affine

    generator = np.random.default_rng(seed)
    dims, lines = values.ndim - 1, values.shape[1]
    axes = tuple(range(1, dims + 1))
    # Within the middle half, where a movement shows.
    ends = np.sort(generator.integers(lines // 4, lines - lines // 4 + 1, effect.movements))
    spectrum = torch.fft.fftshift(torch.fft.fftn(values, dim=axes), dim=axes)
    acquired = spectrum.clone()
    for start, end in zip([0, *ends], [*ends, lines], strict=True):
        angles = generator.uniform(-effect.degrees, effect.degrees, 1 if dims == 2 else 3)
        shifts = generator.uniform(-effect.voxels, effect.voxels, dims)
        if start <= lines // 2 < end or start == end:
            continue
        turn = [math.radians(angle) for angle in angles]
        move = Affine(rotate_params=turn, translate_params=list(shifts), padding_mode="border", image_only=True)
        moved = torch.fft.fftshift(torch.fft.fftn(_plain(move(values)), dim=axes), dim=axes)
        acquired[:, start:end] = moved[:, start:end]
    return torch.fft.ifftn(torch.fft.ifftshift(acquired, dim=axes), dim=axes).real.contiguous()


def _drawn(transform: Any, seed: int) -> Callable[[Tensor], Tensor]:
    """A random transform of MONAI that draws the same every time."""
    transform.set_random_state(seed=seed)
    return lambda values: _plain(transform(values.clone()))


def _plain(values: Any) -> Tensor:
    return values.as_tensor() if hasattr(values, "as_tensor") else torch.as_tensor(values)


def _resolution(effect: Resolution, values: Tensor, affine: Affine4, mode: Mode) -> tuple[Tensor, Affine4]:
    return _coarser(values, affine, [effect.factor] * (values.ndim - 1), mode)


def _slice_thickness(effect: SliceThickness, values: Tensor, affine: Affine4, mode: Mode) -> tuple[Tensor, Affine4]:
    """Along the axis of the largest voxels; the last of several."""
    sizes = np.ones(3) if affine is None else np.linalg.norm(affine[:3, :3], axis=0).round(3)
    thick = 2 - int(sizes[::-1].argmax())
    return _coarser(values, affine, [effect.factor if axis == thick else 1.0 for axis in range(3)], mode)


def _coarser(values: Tensor, affine: Affine4, factors: Sequence[float], mode: Mode) -> tuple[Tensor, Affine4]:
    """Fewer voxels, each the mean of what it covers."""
    size = values.shape[1:]
    fewer = [max(1, round(voxels / factor)) for voxels, factor in zip(size, factors, strict=True)]
    if affine is None:
        return (values if mode == "nearest-exact" else _resized(_resized(values, fewer, "area"), size, mode)), None
    scale = np.array([voxels / left for voxels, left in zip(size, fewer, strict=True)])
    resized = _resized(values, fewer, "area" if mode == "bilinear" else mode)
    return resized, _moved(affine, (scale - 1) / 2, scale)  # the outer faces of both grids are the same


def _field_of_view(effect: FieldOfView, values: Tensor, affine: Affine4, mode: Mode) -> tuple[Tensor, Affine4]:
    size = values.shape[1:]
    left = [max(1, round(voxels * effect.share)) for voxels in size]
    starts = [(voxels - kept) // 2 for voxels, kept in zip(size, left, strict=True)]
    inside = values[(slice(None), *(slice(start, start + kept) for start, kept in zip(starts, left, strict=True)))]
    if affine is None:
        return _resized(inside, size, mode), None
    return inside.contiguous(), _moved(affine, np.array(starts), np.ones(len(size)))


def _resized(values: Tensor, size: Sequence[int], mode: Mode) -> Tensor:
    from monai.transforms import Resize

    linear = "trilinear" if len(size) == 3 else "bilinear"
    return _plain(Resize(tuple(size), mode=linear if mode == "bilinear" else mode)(values))


def _moved(affine: np.ndarray, start: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The affine (4, 4) of a grid whose first voxel lies at `start` of the old one, with voxels `scale` as large."""
    change = np.eye(4)
    change[range(len(scale)), range(len(scale))] = scale
    change[: len(start), 3] = start
    return affine @ change


INTENSITY: dict[str, Callable[[Any, Tensor, int], Tensor]] = {
    "bias_field": _bias_field,
    "rician_noise": _rician_noise,
    "gaussian_noise": _gaussian_noise,
    "blur": _blur,
    "gamma": _gamma,
    "histogram": _histogram,
    "motion": _motion,
    "colour": _colour,
    "illumination": _illumination,
    "inverted": _inverted,
}
"""By kind: (effect, image (channels, *spatial), seed) -> image."""

OF_THE_SCANNER = ("bias_field", "histogram", "colour", "illumination")
"""Drawn once for a hospital; what else is random is drawn for every case."""

GEOMETRY: dict[str, Callable[[Any, Tensor, Affine4, Mode], tuple[Tensor, Affine4]]] = {
    "resolution": _resolution,
    "slice_thickness": _slice_thickness,
    "field_of_view": _field_of_view,
}
"""By kind: (effect, values, affine, interpolation) -> values and affine on the new grid."""
