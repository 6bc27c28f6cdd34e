"""Brain slices that need no download: deformed copies of the MNI152 template, seen by scanners that differ.

The template and its maps of grey and white matter (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033) come with
nilearn. Everything is drawn from the job's seed: a patient has an anatomy (a smooth random deformation), a scanner
has a contrast, a gain, a bias field, a resolution and a noise level.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_simulation import PhantomDataset
from shared_models.seeds import derive_seed
from simulation.datasets.files import cache_folder, new_file
from simulation.datasets.source import SourceCase, read_array

CLASSES = 3  # background (with cerebrospinal fluid), grey matter, white matter
HOSPITALS = 4  # where the partition, being natural, does not say how many
FIELD_OF_VIEW_MM = 224.0
LEVELS_MM = (-8.0, 44.0)  # of the axial slices, from the basal ganglia to above the ventricles
RECIPE = "1"  # changes whenever the same seed would give other pixels


@dataclass(frozen=True)
class Scanner:
    """What makes the images of one scanner look alike.

    Attributes:
        grey, fluid: signal of grey matter and cerebrospinal fluid, where white matter has 1.
        gain: white matter in stored units.
        bias: standard deviation of the logarithm of the receive field.
        blur_mm: standard deviation of the in-plane point spread.
        noise: standard deviation of the complex noise, where white matter has 1 (Rician in the magnitude).
    """

    grey: float
    fluid: float
    gain: float
    bias: float
    blur_mm: float
    noise: float


RANGES = {
    "grey": (0.55, 0.85),
    "fluid": (0.1, 0.4),
    "gain": (300.0, 3000.0),
    "bias": (0.03, 0.25),
    "blur_mm": (0.3, 2.2),
    "noise": (0.01, 0.07),
}


def cases(job: Job, dataset: PhantomDataset, data_dir: Path | None) -> list[SourceCase]:
    """Make the slices, or find them made: one npz with ``images`` and ``masks`` in a folder named after its recipe.

    Columns: `scanner`, for a natural partition, and `level_mm`, the height of the slice in MNI space.
    """
    segments = job.task.kind == "segmentation" and len(job.task.classes) == CLASSES
    denoises = job.task.label == "image" and job.data.label in job.data.images
    if not (segments or denoises) or job.data.spatial_dims != 2:
        raise BadInput(
            f"job {job.name!r}: the phantom is for 2D segmentation with three classes (background, grey matter, white "
            "matter), or for denoising in 2D (translation with task.how.noise); the job has task.kind "
            f"{job.task.kind}, {len(job.task.classes)} classes and spatial_dims {job.data.spatial_dims}"
        )
    count = (job.simulation.hospitals if job.simulation else None) or HOSPITALS
    recipe = f"{RECIPE} {job.seed} {count} {dataset.model_dump_json()}"
    name = f"phantom-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    archive = (data_dir / name if data_dir else cache_folder(name)) / "phantom.npz"
    if not archive.is_file():
        arrays = make(job.seed, count, dataset)
        with new_file(archive) as file:
            np.savez(file, allow_pickle=False, **arrays)
    scanners, patients, levels = (read_array(archive, array).tolist() for array in ("scanner", "patient", "level_mm"))
    return [
        SourceCase(
            id=f"{patient}-{row % dataset.slices_per_patient + 1}",
            patient=patient,
            images=(f"{archive}::images[{row}]",),
            label=f"{archive}::masks[{row}]",
            split="",
            label_key="",
            columns={"scanner": scanner, "level_mm": f"{level:.0f}"},
        )
        for row, (scanner, patient, level) in enumerate(zip(scanners, patients, levels, strict=True))
    ]


def make(seed: int, scanners: int, dataset: PhantomDataset) -> dict[str, np.ndarray]:
    """Every slice of every patient.

    Returns:
        Arrays of n slices: ``images`` (n, size, size) uint16, ``masks`` (n, size, size) uint8, ``scanner``,
        ``patient`` (n,) text and ``level_mm`` (n,).
    """
    atlas = _atlas()
    columns: dict[str, list] = {"images": [], "masks": [], "scanner": [], "patient": [], "level_mm": []}
    for name, scanner in _scanners(seed, scanners).items():
        for number in range(1, dataset.patients_per_hospital + 1):
            patient = f"{name.removeprefix('scanner-')}-{number:03d}"
            generator = np.random.default_rng(derive_seed(seed, "phantom", name, patient))
            levels = np.sort(generator.uniform(*LEVELS_MM, size=dataset.slices_per_patient))
            grid = _anatomy(generator, dataset.size)
            field = _smooth(generator, dataset.size, 60.0)
            for level in levels:
                tissue = _slice(atlas, grid, level)
                columns["masks"].append(_mask(tissue))
                columns["images"].append(_acquire(tissue, scanner, field, generator))
                columns["scanner"].append(name)
                columns["patient"].append(patient)
                columns["level_mm"].append(level)
    return {name: np.asarray(values) for name, values in columns.items()}


def _scanners(seed: int, count: int) -> dict[str, Scanner]:
    """Scanners spread evenly over the range of every property, in an order of its own for each (a Latin hypercube)."""
    generator = np.random.default_rng(derive_seed(seed, "phantom", "scanners"))
    places = {name: (generator.permutation(count) + 0.5) / count for name in RANGES}
    names = [
        f"scanner-{chr(ord('a') + index)}" if count <= 26 else f"scanner-{index + 1:03d}" for index in range(count)
    ]
    return {
        name: Scanner(**{key: low + (high - low) * float(places[key][index]) for key, (low, high) in RANGES.items()})
        for index, name in enumerate(names)
    }


def _atlas() -> np.ndarray:
    """Template intensity and the maps of grey and white matter, (3, x, y, z) float32, 1 mm, with their MNI origin."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    maps = [load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    low, high = (round(level - float(maps[0].affine[2, 3])) for level in (LEVELS_MM[0] - 1, LEVELS_MM[1] + 2))
    return np.stack([image.get_fdata(dtype=np.float32)[:, :, low:high] for image in maps])


def _anatomy(generator: np.random.Generator, size: int) -> np.ndarray:
    """Where each pixel of a patient lies in the template: (2, size, size) in mm from the middle of the slice.

    A rotation, a stretch and a smooth displacement; head first, as radiologists look at it.
    """
    axis = (np.arange(size) + 0.5) / size * FIELD_OF_VIEW_MM - FIELD_OF_VIEW_MM / 2
    angle = generator.normal(0, np.deg2rad(5))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = generator.uniform(0.92, 1.08, size=2)
    down, right = np.meshgrid(axis, axis, indexing="ij")
    straight = np.stack([right, -down])  # x to the right, y from the back to the forehead
    moved = np.einsum("ij,jhw->ihw", turn / stretch, straight)
    return moved + np.stack([3.5 * _smooth(generator, size, 22.0) for _ in range(2)])


def _smooth(generator: np.random.Generator, size: int, width_mm: float) -> np.ndarray:
    """A smooth random field (size, size) of mean 0 and standard deviation 1."""
    from scipy.ndimage import gaussian_filter

    sigma = width_mm * size / FIELD_OF_VIEW_MM
    margin = int(2 * sigma)
    field = gaussian_filter(generator.standard_normal((size + 2 * margin,) * 2), sigma)
    field = field[margin : margin + size, margin : margin + size]
    return (field - field.mean()) / field.std()


def _slice(atlas: np.ndarray, grid: np.ndarray, level_mm: float) -> np.ndarray:
    """Template intensity, grey and white matter of a deformed slice: (3, size, size), each within 0..1."""
    from scipy.ndimage import map_coordinates

    middle = (np.array(atlas.shape[1:3]) - 1) / 2
    place = np.stack([grid[0] + middle[0], grid[1] + middle[1], np.full(grid.shape[1:], level_mm - LEVELS_MM[0] + 1)])
    return np.stack([map_coordinates(volume, place, order=1) for volume in atlas]).clip(0, 1)


def _mask(tissue: np.ndarray) -> np.ndarray:
    """The likeliest of background, grey and white matter: (size, size) uint8."""
    grey, white = tissue[1:]
    return np.stack([1 - grey - white, grey, white]).argmax(0).astype(np.uint8)


def _acquire(tissue: np.ndarray, scanner: Scanner, field: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The magnitude image of a slice: (size, size) uint16."""
    from scipy.ndimage import gaussian_filter

    template, grey, white = tissue
    fluid = (1 - grey - white).clip(0, 1) * (template > 0.1)
    signal = white + scanner.grey * grey + scanner.fluid * fluid
    # What the two maps leave out of the template (deep nuclei, vessels) is texture that a scanner sees as well.
    signal += 0.5 * (template - (0.85 * white + 0.62 * grey + 0.35 * fluid)) * (template > 0.1)
    pixel_mm = FIELD_OF_VIEW_MM / len(signal)
    seen = gaussian_filter(signal * np.exp(scanner.bias * field), scanner.blur_mm / pixel_mm)
    noisy = np.abs(seen + scanner.noise * (generator.standard_normal((2, *seen.shape)) * [[[1]], [[1j]]]).sum(0))
    return np.rint(noisy * scanner.gain).astype(np.uint16)
