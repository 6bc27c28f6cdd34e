"""The picture of virtual scanners: one patient, as every hospital would have them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.data.manifest import Case
from client.data.preprocess import Decoded, decode, finish
from client.data.readers import read
from client.pictures import WIDTH, canvas, figure_png, grey_window, show_image, slice_of
from server.checkpoint import write_atomically
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.seeds import derive_seed
from simulation.datasets.source import SourceCase
from simulation.shift import Scanner

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
HEADING, LINE = 0.16, 0.065  # heights of a heading and of a caption's line, in widths of an image
HOSPITALS = 15  # with the data set's own image, four rows
LETTERS = 40  # of a line below an image
ATTEMPTS = 20  # at a patient whose files can be read


def draw_scanners(job: Job, cases: Sequence[SourceCase], scanners: Mapping[str, Scanner], out: Path) -> None:
    """Write a PNG with one patient's image as in the data set, and as the scanner of every hospital has it.

    The patient is drawn at random (from the job's seed). Volumes show the slice with the largest mask, or the middle
    one. Grey images are shown each between their own 1st and 99th percentile, as normalisation would have them, and
    colours between those of the data set's image, all three alike. A data set whose files cannot be read gets no
    picture: what is wrong with them is preflight's to say.
    """
    case = _readable(job, cases)
    if case is None:
        return
    own = {"data set": Scanner("", (), job.seed)}
    shown = own | {name: scanners[name] for name in list(scanners)[:HOSPITALS]}
    samples = {name: _seen(job, case, scanner) for name, scanner in shown.items()}
    captions = {name: textwrap.wrap(scanner.words, LETTERS) for name, scanner in shown.items()}
    columns, rows = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    pitch = 1.05 + HEADING + LINE * max(map(len, captions.values()))

    def draw(figure: Figure) -> None:
        axes = canvas(figure, columns, rows * pitch)
        for place, (name, lines) in enumerate(captions.items()):
            row, left = divmod(place, COLUMNS)
            top = row * pitch
            axes.text(left + 0.03, top + 0.09, name, fontsize=9, fontweight="bold", va="center")
            _image(axes, job, samples[name], samples["data set"], left, top + HEADING)
            caption = "\n".join(lines)
            axes.text(left + 0.03, top + HEADING + 1, caption, fontsize=7, color="#3A4552", va="top")
        if len(scanners) > HOSPITALS:
            axes.set_xlabel(f"The first {HOSPITALS} of {len(scanners)} hospitals")

    write_atomically(out, figure_png(draw, WIDTH / columns * pitch * rows + 0.2))


def _readable(job: Job, cases: Sequence[SourceCase]) -> Case | None:
    order = np.random.default_rng(derive_seed(job.seed, "scanner picture")).permutation(len(cases))
    for index in order[:ATTEMPTS]:
        found = cases[index]
        case = Case(found.id, found.patient, found.images, found.label, "train", found.columns)
        if not case.images[0]:  # a modality that this patient lacks
            continue
        try:
            decode(case, Path("/"), job)
        except BadInput:
            continue
        return case
    return None


def _seen(job: Job, case: Case, scanner: Scanner) -> dict[str, Any]:
    """The first image, and the mask where the task has one, turned as a site turns them but not normalised."""
    dims, channels = job.data.spatial_dims, job.data.channels // len(job.data.images)
    image = scanner.image(read(case.images[0], Path("/"), dims, channels), f"{case.id}/{job.data.images[0]}")
    label = image.values
    if job.task.label == "mask":
        label = scanner.mask(read(case.label, Path("/"), dims, None)).values
    as_it_is = job.model_copy(update={"data": job.data.model_copy(update={"spacing": None, "normalisation": "none"})})
    return finish(Decoded(image.values.astype(np.float32), label, image.affine), case, as_it_is)


def _image(
    axes: Axes, job: Job, sample: Mapping[str, Any], original: Mapping[str, Any], left: float, top: float
) -> None:
    image = np.asarray(sample["image"])
    mask = np.asarray(sample["label"])[0] if job.task.label == "mask" else None
    where = slice_of(mask, image.shape[1:])
    window: list[tuple[float, float]] = []
    if len(image) == 3:
        lows, highs = zip(*grey_window(np.asarray(original["image"]), where), strict=True)
        window = [(min(lows), max(highs))] * 3
    show_image(axes, image, where, sample["spacing"], left, top, window)
