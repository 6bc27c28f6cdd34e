"""The phantom: made offline from the job's seed, brains that a scanner can be told from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import SourceCase, open_dataset


def job_for(seed: int = 0, classes: int = 3) -> Job:
    return Job.model_validate(
        {
            "name": "phantom",
            "seed": seed,
            "task": {"kind": "segmentation", "classes": ["background", "grey", "white", "more"][:classes]},
            "data": {"spatial_dims": 2, "crop": [64, 64]},
            "model": {"name": "unet"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {
                "dataset": {"name": "phantom", "patients_per_hospital": 4, "slices_per_patient": 2, "size": 64},
                "partition": {"name": "natural", "column": "scanner"},
            },
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SourceCase]]:
    folder = tmp_path_factory.mktemp("phantom")
    return folder, open_dataset(job_for(), folder)


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    (archive,) = folder.glob("phantom-*/phantom.npz")
    with np.load(archive) as arrays:
        return dict(arrays)


def test_four_scanners_with_patients_of_their_own(made: tuple[Path, list[SourceCase]]) -> None:
    folder, cases = made
    assert len(cases) == 4 * 4 * 2 and len({case.id for case in cases}) == len(cases)
    scanners = {case.patient: case.columns["scanner"] for case in cases}
    assert len(scanners) == 16 and sorted(set(scanners.values())) == [f"scanner-{letter}" for letter in "abcd"]
    assert cases[9].images[0].endswith("phantom.npz::images[9]") and cases[9].label.endswith("::masks[9]")
    arrays = arrays_of(folder)
    assert arrays["images"].shape == arrays["masks"].shape == (32, 64, 64)


def test_masks_are_tissue_and_every_patient_is_another(made: tuple[Path, list[SourceCase]]) -> None:
    masks = arrays_of(made[0])["masks"]
    shares = np.stack([(masks == label).mean((1, 2)) for label in range(3)], axis=1)
    assert (shares[:, 0] > 0.5).all() and (shares[:, 1:] > 0.08).all()
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    assert not masks[:, [0, -1]].any(), "the brain lies within the field of view"


def test_white_matter_is_brighter_and_scanners_differ(made: tuple[Path, list[SourceCase]]) -> None:
    arrays = arrays_of(made[0])
    white, grey = [], []
    for scanner in range(4):
        images, masks = (arrays[name][scanner * 8 : scanner * 8 + 8] for name in ("images", "masks"))
        white.append(images[masks == 2].mean())
        grey.append(images[masks == 1].mean())
    assert all(light > dark for light, dark in zip(white, grey, strict=True))
    contrast = np.array(grey) / white
    assert max(white) > 2.5 * min(white), "gains are a factor apart"
    assert contrast.max() - contrast.min() > 0.1


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(
    made: tuple[Path, list[SourceCase]], tmp_path: Path
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    for folder, seed in ((again, 0), (other, 1)):
        folder.mkdir()
        open_dataset(job_for(seed), folder)
    for name, array in arrays_of(made[0]).items():
        assert np.array_equal(array, arrays_of(again)[name])
    assert not np.array_equal(arrays_of(made[0])["images"], arrays_of(other)["images"])


def test_it_is_made_once_and_in_the_cache_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    cases = open_dataset(job_for(), None)
    (archive,) = tmp_path.glob("phantom-*/phantom.npz")
    before = archive.stat().st_mtime_ns
    assert open_dataset(job_for(), None) == cases
    assert archive.stat().st_mtime_ns == before
    assert [path.name for path in archive.parent.iterdir()] == ["phantom.npz"]


def test_a_job_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"three classes .* the job has task.kind segmentation, 4 classes"):
        open_dataset(job_for(classes=4), tmp_path)
