"""The picture of a patient seen by every scanner, as a run keeps it for its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from simulation.run_folder import SimulationRequest, create

INVERTED = {"by_hospital": {"hospital-2": [{"kind": "inverted"}]}}


def picture(job: Path, data: Path, out: Path) -> Path:
    create(SimulationRequest(job, data_dir=data, out=out))
    return out / "pictures" / "scanners.png"


def test_a_run_keeps_a_picture_only_where_there_are_scanners(squares: Path, write_job, tmp_path: Path) -> None:
    assert not picture(write_job(), squares, tmp_path / "plain").exists()
    shown = picture(write_job(simulation={"scanners": {"set": "strong"}}), squares, tmp_path / "strong")
    assert shown.exists()
    again = picture(write_job(simulation={"scanners": {"set": "strong"}}), squares, tmp_path / "again")
    assert shown.read_bytes() == again.read_bytes()


def tiles(path: Path, columns: int) -> list[np.ndarray]:
    """The upper part of every column, which has the images of the first row."""
    pixels = np.asarray(Image.open(path).convert("L")).astype(int)
    width = pixels.shape[1] // columns
    return [pixels[60 : width - 20, place * width + 20 : (place + 1) * width - 20] for place in range(columns)]


def test_a_patient_is_shown_by_the_data_set_and_by_every_hospital(squares: Path, write_job, tmp_path: Path) -> None:
    original, first, second, third = tiles(
        picture(write_job(simulation={"scanners": INVERTED}), squares, tmp_path / "run"), 4
    )
    alike = [float(np.corrcoef(original.ravel(), tile.ravel())[0, 1]) for tile in (first, second, third)]
    assert alike[0] > 0.8 and alike[2] > 0.8
    assert alike[1] < -0.5, "black for white"


def test_many_hospitals_take_more_rows(squares: Path, write_job, tmp_path: Path) -> None:
    heights = []
    for hospitals in (3, 4):
        changes = {"hospitals": hospitals, "scanners": {"set": "mild"}}
        path = picture(write_job(simulation=changes), squares, tmp_path / str(hospitals))
        heights.append(Image.open(path).height)
    assert heights[1] > 1.6 * heights[0]
