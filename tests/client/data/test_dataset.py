"""A whole site: preflight with quarantine, and the cache behind it."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from rich.console import Console

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.data.manifest import read_manifest
from client.data.preflight import PreflightReport, preflight, print_report
from client.data.preprocess import prepare
from shared_models.errors import BadInput
from shared_models.job import Job
from tests.client.data.conftest import CHEST, HIPPOCAMPUS, RETINA, make_job

Rows = list[dict[str, str]]
WriteManifest = Callable[..., Path]
HIPPOCAMPUS_JOB = make_job(HIPPOCAMPUS, spatial_dims=3)
GIGABYTE = 10**9


@pytest.fixture
def cache(tmp_path: Path) -> CaseCache:
    return CaseCache(tmp_path / "cache", GIGABYTE)


@pytest.fixture
def chest_rows(shared_data: Path) -> Rows:
    """The first 60 radiographs of the NIH set, split by patient as the set says."""
    file = shared_data / "nih_cxr" / "nih_cxr_1000x96.npz"
    table = np.load(file)
    columns = zip(table["patient"], table["labels"], table["is_test"], strict=True)
    return [
        {
            "patient": patient.decode(),
            "image": f"{file}::images[{row}]",
            "label": str(label),
            "split": "test" if test else "train",
        }
        for row, (patient, label, test) in enumerate(columns)
    ][:60]


def entries(cache: CaseCache) -> list[Path]:
    return sorted(cache.folder.glob("*.safetensors"))


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def test_dirty_cases_are_set_aside_with_their_reason(
    shared_data: Path, hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    dirty = shared_data / "hippocampus" / "dirty_cases"
    faults = {
        "118": (str(dirty / "images" / "hippocampus_118.nii.gz"), ""),
        "010": ("", str(dirty / "labels" / "hippocampus_010.nii.gz")),
        "281": ("absent/hippocampus_281.nii.gz", str(dirty / "labels" / "hippocampus_281.nii.gz")),
    }
    for name, (image, label) in faults.items():
        hippocampus_rows.append(
            {"case": name, "patient": name, "image": image, "label": label, "split": "train", "group": ""}
        )
    data = SiteData(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB, "north", cache)
    assert data.report.quarantined == {
        "118": "The column 'label' is empty: there is no mask.",
        "010": "The column 'image' is empty: there is no image.",
        "281": "The file absent/hippocampus_281.nii.gz does not exist.",
    }
    assert data.report.checked == 11
    assert data.report.splits["train"] == {"cases": 5, "patients": 5}
    assert data.report.classes["test"] == {"background": 2, "anterior": 2, "posterior": 2}
    assert {case.id for case in data.cases("train")}.isdisjoint(faults)
    low, high = data.report.intensity
    assert (low, high > 2000) == (0, True)


def test_a_job_says_how_many_bad_cases_are_tolerable(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    hippocampus_rows[0]["label"] = "lost.nii.gz"
    manifest = write_manifest(hippocampus_rows)
    SiteData(manifest, make_job(HIPPOCAMPUS, spatial_dims=3, max_quarantined=1), "north", cache)
    with pytest.raises(BadInput, match=r"Site north has 1 unfit of 8 cases.*tolerates 0.*lost\.nii\.gz"):
        SiteData(manifest, make_job(HIPPOCAMPUS, spatial_dims=3, max_quarantined=0), "north", cache)


def test_a_hospital_without_a_usable_training_case_is_refused(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    for row in hippocampus_rows[:5]:
        row["image"] = "lost.nii.gz"
    with pytest.raises(BadInput, match=r"no usable training case: 5 of 8 .*lost\.nii\.gz does not exist"):
        SiteData(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB, "north", cache)


def test_a_hospital_with_one_class_is_warned_about_not_refused(
    chest_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    rows = [row for row in chest_rows if row["label"] == "1"]
    data = SiteData(write_manifest(rows), make_job(CHEST), "north", cache)
    assert "Every training case is of one class: pneumonia." in data.report.warnings


def test_pictures_that_stand_in_two_splits_are_found(
    retina_rows: Rows, write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    copy = tmp_path / "renamed.jpg"
    shutil.copyfile(retina_rows[0]["image"], copy)
    twin = {**retina_rows[0], "case": "twin", "patient": "other", "image": "renamed.jpg", "split": "test"}
    same_split = {**retina_rows[0], "case": "again"}
    manifest = write_manifest([*retina_rows, twin, same_split])
    data = SiteData(manifest, make_job(RETINA, channels=3), "north", cache)
    assert data.report.duplicates == [("01L", "twin")]
    assert any("more than one split" in warning for warning in data.report.warnings)


def test_an_empty_mask_is_listed_and_used(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    mask = nibabel.Nifti1Image.from_filename(hippocampus_rows[0]["label"])
    nibabel.save(nibabel.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), tmp_path / "empty.nii.gz")
    hippocampus_rows[0]["label"] = "empty.nii.gz"
    data = SiteData(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB, "north", cache)
    assert data.report.empty_masks == [hippocampus_rows[0]["case"]]
    assert data.report.quarantined == {}


def test_what_is_loaded_is_what_prepare_gives(
    hippocampus_rows: Rows, chest_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    for rows, job in ((hippocampus_rows, HIPPOCAMPUS_JOB), (chest_rows, make_job(CHEST))):
        manifest = write_manifest(rows)
        data = SiteData(manifest, job, "north", cache)
        for case in [*data.cases("train"), *data.cases("test")]:
            expected = prepare(case, data.folder, job)
            assert same(data.load(case), expected)
            assert same(data.load(case), expected)
    assert len(entries(cache)) == 8 + 1  # one file a volume, and all small radiographs in one


def test_small_cases_of_different_shapes_share_a_shelf(
    write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for number, size in enumerate([8, 9, 10]):
        np.savez(tmp_path / f"{number}.npz", images=rng.random((1, size, size + 1)))
        rows.append({"patient": str(number), "image": f"{number}.npz::images[0]", "label": "0", "split": "train"})
    data = SiteData(write_manifest(rows), make_job(CHEST), "north", cache)
    assert [tuple(data.load(case)["image"].shape) for case in data.cases("train")] == [
        (1, 8, 9),
        (1, 9, 10),
        (1, 10, 11),
    ]
    assert len(entries(cache)) == 1


def test_nothing_is_checked_twice_until_something_changes(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    for row in hippocampus_rows[:2]:
        for column in ("image", "label"):
            copy = tmp_path / f"{column}-{row['case']}.nii.gz"
            shutil.copyfile(row[column], copy)
            row[column] = copy.name
    manifest = write_manifest(hippocampus_rows)
    done: list[tuple[int, int]] = []

    def open_site(job: Job = HIPPOCAMPUS_JOB) -> SiteData:
        done.clear()
        return SiteData(manifest, job, "north", cache, progress=lambda *count: done.append(count))

    first = open_site()
    assert done == [(number, 8) for number in range(1, 9)]
    assert open_site().report == first.report
    assert done == []
    one, other = (tmp_path / f"image-{row['case']}.nii.gz" for row in hippocampus_rows[:2])
    one.write_bytes(b"broken on the way")
    assert list(open_site().report.quarantined) == [hippocampus_rows[0]["case"]]
    assert len(done) == 8
    one.unlink()
    assert "does not exist" in open_site().report.quarantined[hippocampus_rows[0]["case"]]
    shutil.copyfile(other, one)
    open_site()
    assert len(done) == 8
    open_site(make_job(HIPPOCAMPUS, spatial_dims=3, spacing=[2, 2, 2]))
    assert len(done) == 8


def test_another_spacing_or_other_content_is_never_served_from_before(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    copy = tmp_path / "image.nii.gz"
    shutil.copyfile(hippocampus_rows[0]["image"], copy)
    hippocampus_rows[0]["image"] = copy.name
    manifest = write_manifest(hippocampus_rows)

    def first_image(job: Job) -> torch.Tensor:
        data = SiteData(manifest, job, "north", cache)
        image: torch.Tensor = data.load(data.cases("train")[0])["image"]
        return image

    as_stored = first_image(HIPPOCAMPUS_JOB)
    coarse = first_image(make_job(HIPPOCAMPUS, spatial_dims=3, spacing=[2, 2, 2]))
    assert (as_stored.shape, coarse.shape) == ((1, 35, 51, 35), (1, 18, 26, 18))
    volume = nibabel.Nifti1Image.from_filename(copy)
    mirrored = np.ascontiguousarray(volume.get_fdata().astype(np.float32)[:, ::-1])
    nibabel.save(nibabel.Nifti1Image(mirrored, volume.affine), copy)
    assert torch.allclose(first_image(HIPPOCAMPUS_JOB), as_stored.flip(2))


def test_a_file_that_changes_during_the_run_is_not_passed_off_as_the_old_one(
    hippocampus_rows: Rows, write_manifest: WriteManifest, cache: CaseCache, tmp_path: Path
) -> None:
    copy = tmp_path / "image.nii.gz"
    shutil.copyfile(hippocampus_rows[0]["image"], copy)
    hippocampus_rows[0]["image"] = copy.name
    data = SiteData(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB, "north", cache)
    shutil.rmtree(cache.folder)
    shutil.copyfile(hippocampus_rows[1]["image"], copy)
    with pytest.raises(BadInput, match=r"image\.nii\.gz has changed since it was checked"):
        data.load(data.cases("train")[0])
    assert data.load(data.cases("train")[1])["id"] == hippocampus_rows[1]["case"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "deleted"])
@pytest.mark.parametrize("kind", ["volumes", "radiographs"])
def test_a_damaged_cache_entry_is_made_anew(
    damage: str, kind: str, hippocampus_rows: Rows, chest_rows: Rows, write_manifest: WriteManifest, cache: CaseCache
) -> None:
    rows, job = (hippocampus_rows, HIPPOCAMPUS_JOB) if kind == "volumes" else (chest_rows, make_job(CHEST))
    manifest = write_manifest(rows)
    SiteData(manifest, job, "north", cache)
    before = {path: path.read_bytes() for path in entries(cache)}
    for path, content in before.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes({"flipped": flipped, "cut": content[:middle], "emptied": b""}[damage])
    fresh = SiteData(manifest, job, "north", CaseCache(cache.folder, GIGABYTE))
    for split in ("train", "validation", "test"):
        for case in fresh.cases(split):
            assert same(fresh.load(case), prepare(case, fresh.folder, job))
    assert {path: path.read_bytes() for path in entries(cache)} == before


def test_the_cache_keeps_to_its_limit_and_readers_keep_their_pages(tmp_path: Path) -> None:
    limit = 1_000_000
    cache = CaseCache(tmp_path / "cache", limit)
    cache.put("first", {"image": torch.full((25_000,), 7.0)})
    held = cache.get("first")
    for number in range(30):
        cache.put(f"entry{number}", {"image": torch.full((25_000,), float(number))})
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= limit * 1.2
    assert cache.get("first") is None
    assert held is not None
    assert held["image"].unique().tolist() == [7.0]
    newest = cache.get("entry29")
    assert newest is not None
    assert newest["image"].unique().tolist() == [29.0]


def test_without_room_on_disk_cases_are_prepared_each_time(
    chest_rows: Rows, hippocampus_rows: Rows, write_manifest: WriteManifest, tmp_path: Path
) -> None:
    (tmp_path / "occupied").write_text("a file where the cache folder should be")
    for cache in (CaseCache(tmp_path / "nothing", 0), CaseCache(tmp_path / "occupied", GIGABYTE)):
        for rows, job in ((chest_rows, make_job(CHEST)), (hippocampus_rows, HIPPOCAMPUS_JOB)):
            data = SiteData(write_manifest(rows), job, "north", cache)
            case = data.cases("train")[0]
            assert same(data.load(case), prepare(case, data.folder, job))


def _sums(manifest: Path, folder: Path, start: Any, results: Any) -> None:
    start.wait()
    data = SiteData(manifest, make_job(RETINA, channels=3), "north", CaseCache(folder, GIGABYTE))
    results.put([float(data.load(case)["image"].double().sum()) for case in data.cases("train")])


def test_two_processes_share_one_cache(retina_rows: Rows, write_manifest: WriteManifest, cache: CaseCache) -> None:
    manifest = write_manifest(retina_rows)
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_sums, args=(manifest, cache.folder, start, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    sums = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sums[0] == sums[1]
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(entries(cache)) == len(retina_rows)
    assert [path for path in cache.folder.iterdir() if path.suffix == ".tmp"] == []


def test_the_report_survives_its_file(hippocampus_rows: Rows, write_manifest: WriteManifest, tmp_path: Path) -> None:
    hippocampus_rows[0]["label"] = "lost.nii.gz"
    cases = read_manifest(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB)
    report = preflight(cases, tmp_path, HIPPOCAMPUS_JOB, site="north")
    text = report.to_json()
    assert json.loads(text)["schema"] == 1
    assert PreflightReport.from_json(text) == report
    for broken in ("", "[]", '{"schema": 99}', '{"schema": 1, "files": {}}', text[:-40]):
        with pytest.raises(ValueError):
            PreflightReport.from_json(broken)


def test_the_printed_report_reads_well_without_colour(
    hippocampus_rows: Rows, write_manifest: WriteManifest, tmp_path: Path
) -> None:
    hippocampus_rows[0]["label"] = "lost[1].nii.gz"
    cases = read_manifest(write_manifest(hippocampus_rows), HIPPOCAMPUS_JOB)
    text = io.StringIO()
    print_report(preflight(cases, tmp_path, HIPPOCAMPUS_JOB, site="north"), Console(file=text, width=100))
    printed = text.getvalue()
    assert "north: 7 of 8 cases are usable." in printed
    assert "The file lost[1].nii.gz does not exist." in printed
    for part in ("anterior", "1 x 1 x 1", "Quarantined: not used (1)", hippocampus_rows[0]["case"]):
        assert part in printed
    assert "\x1b" not in printed
