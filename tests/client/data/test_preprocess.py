"""Preparing a case: every kind of file, geometry, normalisation, and what is said of a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from client.data.manifest import Case
from client.data.preprocess import prepare
from shared_models.errors import BadInput
from shared_models.job import Job
from tests.client.data.conftest import CHEST, HIPPOCAMPUS, RETINA, make_job

HIPPOCAMPUS_JOB = make_job(HIPPOCAMPUS, spatial_dims=3)


def case(*images: object, label: object = "", **columns: Any) -> Case:
    return Case("one", "P1", tuple(map(str, images)), str(label), "train", **columns)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def refusal(bad: Case, folder: Path, job: Job) -> str:
    with pytest.raises(BadInput) as error:
        prepare(bad, folder, job)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_real_volume_with_its_mask(hippocampus_rows: list[dict[str, str]], tmp_path: Path) -> None:
    row = hippocampus_rows[1]
    sample = prepare(case(row["image"], label=row["label"]), tmp_path, HIPPOCAMPUS_JOB)
    assert sample["image"].shape == sample["label"].shape == (1, 34, 52, 35)
    assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.uint8)
    assert abs(float(sample["image"].mean())) < 1e-4
    assert float(sample["image"].std()) == pytest.approx(1, abs=1e-3)
    assert [int((sample["label"] == value).sum()) for value in (1, 2)] == [1550, 1803]  # as cases.csv counts them
    assert sample["spacing"] == (1.0, 1.0, 1.0)
    assert type(sample["image"]) is torch.Tensor


def test_a_colour_photograph_with_a_black_and_white_mask(retina_rows: list[dict[str, str]], tmp_path: Path) -> None:
    row = retina_rows[0]
    job = make_job(RETINA, channels=3, normalisation="minmax")
    sample = prepare(case(row["image"], label=row["label"]), tmp_path, job)
    assert sample["image"].shape == (3, 480, 500)
    assert (float(sample["image"].min()), float(sample["image"].max())) == (0.0, 1.0)
    assert sample["label"].unique().tolist() == [0, 1]
    grey = prepare(case(row["image"], label=row["label"]), tmp_path, make_job(RETINA))
    assert grey["image"].shape == (1, 480, 500)


def test_rows_of_a_real_npz(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "nih_cxr" / "nih_cxr_1000x96.npz"
    expected = np.load(file)["images"][17].astype(np.float32)
    sample = prepare(case(f"{file}::images[17]", label="pneumonia"), tmp_path, make_job(CHEST, normalisation="none"))
    assert torch.equal(sample["image"], torch.from_numpy(expected)[None])
    assert (sample["label"].shape, int(sample["label"]), sample["label"].dtype) == ((), 1, torch.int64)
    assert "1000 rows" in refusal(case(f"{file}::images[1000]", label="0"), tmp_path, make_job(CHEST))
    assert "images, labels" in refusal(case(f"{file}::pictures[1]", label="0"), tmp_path, make_job(CHEST))


def test_volumes_and_channels_last_in_an_npz(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volumes, colours = rng.random((2, 5, 6, 7)), rng.random((2, 8, 9, 3))
    np.savez(tmp_path / "some.npz", volumes=volumes, colours=colours)
    sample = prepare(case("some.npz::volumes[1]", label="0"), tmp_path, make_job(CHEST, spatial_dims=3))
    assert sample["image"].shape == (1, 5, 6, 7)
    job = make_job(CHEST, channels=3, normalisation="none")
    sample = prepare(case("some.npz::colours[1]", label="0"), tmp_path, job)
    assert np.array_equal(sample["image"].numpy(), np.moveaxis(colours[1], -1, 0).astype(np.float32))


def test_npz_of_python_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", images=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "objects.npz" in refusal(case("objects.npz::images[0]", label="0"), tmp_path, make_job(CHEST))


def test_plain_pictures_are_read_without_monai(shared_data: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from tests.client.data.conftest import CHEST, make_job
from client.data.manifest import Case
from client.data.dataset import SiteData
from client.data.patches import random_patch
from client.data.preprocess import prepare
prepare(Case("a", "a", (r"{shared_data}/pneumoniamnist/pneumoniamnist.npz::train_images[0]",), "1", "train"),
        Path(), make_job(CHEST))
prepare(Case("a", "a", (r"{shared_data}/chase_retina/01L_image.jpg",), "1", "train"), Path(), make_job(CHEST))
print([name for name in ("monai", "nibabel", "pandas", "matplotlib") if name in sys.modules])
"""
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "[]"


def test_spacing_resamples_image_and_mask_alike(hippocampus_rows: list[dict[str, str]], tmp_path: Path) -> None:
    row = hippocampus_rows[0]
    job = make_job(HIPPOCAMPUS, spatial_dims=3, spacing=[2, 2, 2])
    sample = prepare(case(row["image"], label=row["label"]), tmp_path, job)
    assert sample["image"].shape == sample["label"].shape == (1, 18, 26, 18)
    assert sample["spacing"] == (2.0, 2.0, 2.0)
    assert sample["label"].unique().tolist() == [0, 1, 2]


def test_orientation_is_the_same_however_the_file_stores_it(tmp_path: Path) -> None:
    values = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    ras = save(tmp_path / "ras.nii.gz", values)
    lps = save(tmp_path / "lps.nii.gz", np.ascontiguousarray(values[::-1, ::-1]), np.diag([-1.0, -1, 1, 1]))
    job = make_job(CHEST, spatial_dims=3)
    samples = [prepare(case(file, label="0"), tmp_path, job) for file in (ras, lps)]
    assert torch.equal(samples[0]["image"], samples[1]["image"])


def test_a_nifti_slice_counts_as_two_dimensional(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 8, 1)).astype(np.float32)
    file = save(tmp_path / "slice.nii.gz", values, np.diag([2.0, 3.0, 1, 1]))
    sample = prepare(case(file, label="0"), tmp_path, make_job(CHEST, normalisation="none"))
    assert np.array_equal(sample["image"].numpy(), values[None, ..., 0])
    assert sample["spacing"] == (2.0, 3.0)


def test_a_slice_that_stands_upright_is_resampled_in_its_plane(tmp_path: Path) -> None:
    sagittal = np.array([[0, 0, 1.0, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    values = np.random.default_rng(0).random((6, 8, 1)).astype(np.float32)
    file = save(tmp_path / "slice.nii.gz", values, sagittal)
    assert prepare(case(file, label="0"), tmp_path, make_job(CHEST))["spacing"] == (2.0, 3.0)
    sample = prepare(case(file, label="0"), tmp_path, make_job(CHEST, spacing=[1, 1]))
    assert (sample["image"].shape, sample["spacing"]) == ((1, 11, 22), (1.0, 1.0))


def test_a_mask_of_single_bits(retina_rows: list[dict[str, str]], tmp_path: Path) -> None:
    row = retina_rows[0]
    Image.open(row["label"]).convert("1").save(tmp_path / "bits.png")
    expected, found = (
        prepare(case(row["image"], label=mask), tmp_path, make_job(RETINA)) for mask in (row["label"], "bits.png")
    )
    assert torch.equal(expected["label"], found["label"])


def test_modalities_are_stacked_as_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 4, 5, 6)).astype(np.float32)
    job = make_job(CHEST, spatial_dims=3, images=["t1", "t2"], channels=2, normalisation="none")
    files = [save(tmp_path / "t1.nii", first), save(tmp_path / "t2.nii", second)]
    sample = prepare(case(*files, label="0"), tmp_path, job)
    assert np.array_equal(sample["image"].numpy(), np.stack([first, second]))
    other = save(tmp_path / "other.nii", second[:3])
    assert "other.nii has the shape 3 x 5 x 6" in refusal(case(files[0], other, label="0"), tmp_path, job)


def test_normalisation_works_channel_by_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(2.0, size=(1, 40, 40, 2)) * [1.0, 1e5]
    np.savez(tmp_path / "two.npz", images=values)
    results = {
        how: prepare(case("two.npz::images[0]", label="0"), tmp_path, make_job(CHEST, channels=2, normalisation=how))
        for how in ("zscore", "percentile", "minmax")
    }
    assert torch.allclose(results["zscore"]["image"].mean(dim=(1, 2)), torch.zeros(2), atol=1e-5)
    for how in ("percentile", "minmax"):
        assert results[how]["image"].amin(dim=(1, 2)).tolist() == [0, 0]
        assert results[how]["image"].amax(dim=(1, 2)).tolist() == [1, 1]
    assert (results["percentile"]["image"] == 1).sum() > 2


def test_class_labels_by_name_index_and_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images=np.random.default_rng(0).random((1, 8, 8)))
    findings = {**CHEST, "classes": ["effusion", "mass", "nodule"], "mode": "multi_label"}

    def label(text: str, task: dict[str, Any]) -> Any:
        return prepare(case("one.npz::images[0]", label=text), tmp_path, make_job(task))["label"].tolist()

    assert (label("normal", CHEST), label("1", CHEST)) == (0, 1)
    assert label("nodule; 0", findings) == [1.0, 0.0, 1.0]
    assert label("", findings) == [0.0, 0.0, 0.0]
    told = refusal(case("one.npz::images[0]", label="pneumona"), tmp_path, make_job(CHEST))
    assert "'pneumona'" in told
    assert "normal, pneumonia" in told


def test_bad_volumes_are_refused_by_name(hippocampus_rows: list[dict[str, str]], tmp_path: Path) -> None:
    image, mask = Path(hippocampus_rows[0]["image"]), Path(hippocampus_rows[0]["label"])
    (tmp_path / "cut.nii.gz").write_bytes(image.read_bytes()[:4000])
    (tmp_path / "text.nii.gz").write_text("this is no image")
    values = nibabel.Nifti1Image.from_filename(image).get_fdata().astype(np.float32)
    labels = nibabel.Nifti1Image.from_filename(mask).get_fdata().astype(np.uint8)
    holed = values.copy()
    holed[3, 3, 3] = np.nan
    affine = nibabel.Nifti1Image.from_filename(mask).affine
    moved = affine.copy()
    moved[0, 3] += 0.5
    save(tmp_path / "nan.nii.gz", holed)
    save(tmp_path / "flat.nii.gz", np.full((4, 4, 4), 7, np.float32))
    save(tmp_path / "small.nii.gz", labels[1:])
    save(tmp_path / "moved.nii.gz", labels, moved)
    save(tmp_path / "three.nii.gz", np.where(labels == 2, 3, labels).astype(np.uint8), affine)
    save(tmp_path / "half.nii.gz", labels * np.float32(0.5), affine)
    flattened = np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(tmp_path / "nowhere.nii.gz", values, flattened)
    for bad_image, told in {
        "nowhere.nii.gz": "does not say where its voxels lie",
        "cut.nii.gz": "cannot be read as NIfTI",
        "text.nii.gz": "not a gzip file",
        "nan.nii.gz": "1 value that is not finite",
        "flat.nii.gz": "every value is 7",
        "none.nii.gz": "does not exist",
        "": "'image' is empty",
    }.items():
        text = refusal(case(bad_image, label=mask), tmp_path, HIPPOCAMPUS_JOB)
        assert bad_image in text
        assert told in text
        assert str(tmp_path) not in text
    for bad_mask, told in {
        "small.nii.gz": "34 x 51 x 35, but",
        "moved.nii.gz": "affines differ by 0.5",
        "three.nii.gz": "the label 3; expected 0 to 2",
        "half.nii.gz": "no whole numbers, such as 0.5",
        "none.nii.gz": "does not exist",
        "": "'label' is empty",
    }.items():
        text = refusal(case(image, label=bad_mask), tmp_path, HIPPOCAMPUS_JOB)
        assert bad_mask in text
        assert told in text
    assert "spatial_dims of the job says 2" in refusal(case(image, label="0"), tmp_path, make_job(CHEST))


def test_bad_pictures_are_refused_by_name(retina_rows: list[dict[str, str]], tmp_path: Path) -> None:
    image, mask = Path(retina_rows[0]["image"]), Path(retina_rows[0]["label"])
    (tmp_path / "cut.png").write_bytes(mask.read_bytes()[:3000])
    (tmp_path / "notes.txt").write_text("hello")
    assert "cut.png cannot be read as a picture" in refusal(case(image, label="cut.png"), tmp_path, make_job(RETINA))
    assert "is a colour picture" in refusal(case(image, label=image), tmp_path, make_job(RETINA))
    assert "no known kind" in refusal(case("notes.txt", label="0"), tmp_path, make_job(CHEST))
    assert "voxel size" in refusal(case(image, label="0"), tmp_path, make_job(CHEST, spacing=[1, 1]))
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "grey.png")
    assert "every value is 128" in refusal(case("grey.png", label="0"), tmp_path, make_job(CHEST))
