"""A case that is set aside, and a site that is refused, have a code that may leave beside the sentence that stays."""

import numpy as np
import pytest

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.data.manifest import read_manifest
from client.data.preflight import PreflightReport, preflight
from shared_models.faults import QUARANTINE, Fault
from shared_models.job import Job

GOOD = np.random.default_rng(0).integers(0, 255, (8, 8)).astype(np.float32)


def job(**data):
    return Job.model_validate(
        {
            "name": "squares",
            "task": {"kind": "segmentation", "classes": ["background", "square"]},
            "data": {"spatial_dims": 2, "crop": [8, 8], **data},
            "model": {"name": "unet"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
        }
    )


def site(folder, cases):
    """A manifest with one case for each (image, mask)."""
    rows = []
    for number, (image, mask) in enumerate(cases):
        for name, values in (("image", image), ("mask", mask)):
            if isinstance(values, np.ndarray):
                np.savez(folder / f"{name}{number}.npz", rows=values[None])
        rows.append(f"Jane{number},image{number}.npz::rows[0],mask{number}.npz::rows[0],train")
    (folder / "manifest.csv").write_text("patient,image,label,split\n" + "\n".join(rows) + "\n")
    return folder / "manifest.csv"


MASK = np.eye(8, dtype=np.uint8)
UNFIT = {
    "file_missing": (None, MASK),
    "channels": (np.stack([GOOD] * 3, axis=-1), MASK),
    "label_values": (GOOD, MASK * 7),
    "shape": (GOOD[0], MASK),
    "position": (GOOD, MASK[:4]),
    "not_finite": (np.where(GOOD > 100, np.nan, GOOD), MASK),
    "constant": (np.ones_like(GOOD), MASK),
    "file_unreadable": (GOOD.astype("<U8"), MASK),
}


@pytest.mark.parametrize("category", list(UNFIT))
def test_the_reason_of_a_case_has_a_category(tmp_path, category):
    manifest = site(tmp_path, [UNFIT[category], (GOOD, MASK)])
    report = preflight(read_manifest(manifest, job(), "here"), tmp_path, job())
    (case,) = report.quarantined
    assert report.categories == {case: category} and category in QUARANTINE
    assert PreflightReport.from_json(report.to_json()).categories == report.categories


@pytest.mark.parametrize(
    ("cases", "settings", "code", "parameters"),
    [
        (["constant"], {}, "too_few_cases", {"cases": 1, "checked": 1}),
        (["channels", "channels", "constant"], {}, "channels", {"cases": 2, "checked": 3}),
        (["label_values"], {}, "labels", {"cases": 1, "checked": 1}),
        (["shape"], {}, "shape", {"cases": 1, "checked": 1}),
        (["constant", None], {"max_quarantined": 0}, "unreadable_cases", {"cases": 1, "checked": 2, "tolerated": 0}),
    ],
)
def test_a_site_that_cannot_take_part_says_why_in_a_code(tmp_path, cases, settings, code, parameters):
    manifest = site(tmp_path, [UNFIT[case] if case else (GOOD, MASK) for case in cases])
    with pytest.raises(Fault) as caught:
        SiteData(manifest, job(**settings), "here", CaseCache(tmp_path / "cache", 2**20))
    assert (caught.value.code, caught.value.parameters) == (code, parameters)
    assert "0.npz::rows[0]" in str(caught.value)  # the sentence that stays is as helpful as ever
