"""Pictures of translated cases, seen in the pixels, and where a hospital finds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.pictures import PREDICTION, REFERENCE
from client.report import ReportFacts, draw_own_cases, judge_own, write_report
from client.training import judge_cases
from client.translation_pictures import draw_translated
from shared_models.job import Job
from shared_models.tasks import task_of
from tests.pixels import share_of

PAIRED = {"mode": "paired"}
NOISY = {"mode": "paired", "noise": 0.1}
UNPAIRED = {"mode": "unpaired", "domains": ["$old$", "new"]}
MASKED = {**UNPAIRED, "mask": "organ", "mask_classes": ["background", "organ"]}


def job(how: dict[str, Any], dims: int = 2, **data: Any) -> Job:
    return Job.model_validate(
        {
            "name": "pictures",
            "task": {"kind": "translation", "how": how},
            "data": {"spatial_dims": dims, "crop": [16] * dims, "normalisation": "minmax", **data},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


def drawn(folder: Path, how: dict[str, Any], made: torch.Tensor, dims: int = 2, rows: int = 1, **more: Any) -> Path:
    """The picture of cases whose image is a ramp."""
    image = torch.linspace(0, 1, 16**dims).view(1, *[16] * dims)
    label = image if how["mode"] == "paired" else torch.tensor(0)
    sample = {"id": "c", "patient": "p", "image": image, "label": label, "spacing": (1.0,) * dims, **more}
    samples = [{**sample, "probabilities": made, "title": "Only: c"}] * rows
    path = folder / "drawn.png"
    path.write_bytes(draw_translated(job(how, dims), samples))
    return path


@pytest.mark.parametrize("dims", [2, 3])
def test_a_denoised_case_stands_beside_its_median_filter(tmp_path: Path, dims: int) -> None:
    made = torch.rand(1, *[16] * dims)
    shapes = {}
    for name, how in (("paired", PAIRED), ("noisy", NOISY)):
        width, height = Image.open(drawn(tmp_path, how, made, dims, rows=2)).size
        shapes[name] = height / width
    assert shapes["noisy"] == pytest.approx(shapes["paired"] * 3 / 4, rel=0.1)  # four images in a row instead of three


def test_all_images_of_a_row_have_the_grey_values_of_the_target(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 256).view(1, 16, 16)
    faithful = share_of("#FFFFFF", drawn(tmp_path, PAIRED, ramp))
    assert share_of("#FFFFFF", drawn(tmp_path, PAIRED, ramp + 10)) > faithful + 0.1


def test_masks_and_what_the_segmenter_finds_are_drawn_as_contours(tmp_path: Path) -> None:
    mask = torch.zeros(1, 16, 16, dtype=torch.uint8)
    mask[:, 4:10, 4:10] = 1
    made = torch.cat([torch.rand(2, 16, 16), mask.roll(3, 1), mask.roll(2, 2)])
    picture = drawn(tmp_path, MASKED, made, mask=mask)
    assert share_of(REFERENCE, picture) > 0.0005 and share_of(PREDICTION, picture) > 0.0005
    without_segmenter = drawn(tmp_path, MASKED, made[:2], mask=mask)
    assert share_of(REFERENCE, without_segmenter) > 0.0005
    assert share_of(REFERENCE, drawn(tmp_path, UNPAIRED, made[:2])) == 0


class Twice(nn.Module):
    """A generator that makes an image brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Conv2d(1, 1, 1)


def test_the_report_of_a_hospital_shows_its_translated_cases(tmp_path: Path) -> None:
    rng, the_job = np.random.default_rng(0), job(NOISY, label="image")
    np.savez(tmp_path / "data.npz", images=rng.random((8, 16, 16)))
    rows = [f"P{n},data.npz::images[{n}],{'train' if n < 4 else 'test'}" for n in range(8)]
    (tmp_path / "manifest.csv").write_text("\n".join(["patient,image,split", *rows]) + "\n")
    data = SiteData(tmp_path / "manifest.csv", the_job, "here", CaseCache(tmp_path / "cache", 10**9))
    network = Twice()
    records = judge_cases(network, data, data.cases("test"), the_job, task_of(the_job))
    pictures = draw_own_cases(the_job, network, data, records, tmp_path)
    assert [path.name for path in pictures] == ["cases.png"]
    facts = ReportFacts(
        site="here", federation="f", run="r", job=the_job, version="1", cohort=data.report,
        evaluations={"test": judge_own(the_job, records, 1)}, pictures=pictures,
    )  # fmt: skip
    page = write_report(tmp_path, facts).read_text()
    assert "Test cases by PSNR of the translated image" in page and "PSNR, median filter (dB)" in page
    assert "<dt>Classes</dt>" not in page
