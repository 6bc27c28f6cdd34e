"""Hospitals that annotate some organs only, or do not take every image."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.data.manifest import read_manifest
from client.data.preflight import preflight, print_report
from client.data.preprocess import case_keys
from client.training import _parts
from shared_models.errors import BadInput
from shared_models.job import Job
from tests.client.data.conftest import HIPPOCAMPUS, make_job

Write = Callable[..., Path]
ANTERIOR, POSTERIOR = 1, 2


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    """Four training cases and a test case of two images; every mask has both organs."""
    rng = np.random.default_rng(0)
    masks = np.zeros((5, 16, 16), np.uint8)
    masks[:, 2:6, 2:6], masks[:, 9:14, 9:14] = ANTERIOR, POSTERIOR
    images = {name: rng.integers(1, 255, (5, 16, 16)).astype(np.uint8) for name in ("t1", "flair")}
    np.savez(tmp_path / "data.npz", masks=masks, **images)
    return [
        {
            "patient": f"p{row}",
            "t1": f"data.npz::t1[{row}]",
            "flair": f"data.npz::flair[{row}]",
            "label": f"data.npz::masks[{row}]",
            "split": "test" if row == 4 else "train",
            "drawn": drawn,
        }
        for row, drawn in enumerate(["anterior", "posterior", "anterior ; posterior", "", ""])
    ]


def job_for(**data: Any) -> Job:
    return make_job(HIPPOCAMPUS, images=["t1", "flair"], channels=2, crop=[16, 16], **data)


def data_of(path: Path, job: Job) -> SiteData:
    return SiteData(path, job, "here", CaseCache(path.parent / "cache", 10**8))


def test_only_the_classes_that_a_case_names_count(rows: list[dict[str, str]], write_manifest: Write) -> None:
    data = data_of(write_manifest(rows), job_for(annotated="drawn"))
    samples = list(data.samples("train"))
    assert [sample["annotated"].tolist() for sample in samples] == [
        [True, True, False], [True, False, True], [True, True, True], [True, True, True],
    ]  # fmt: skip
    assert [sample["label"].unique().tolist() for sample in samples] == [[0, 1], [0, 2], [0, 1, 2], [0, 1, 2]]
    assert data.report.classes["train"] == {"background": 4, "anterior": 3, "posterior": 3}
    (batch,) = _parts(samples, job_for(annotated="drawn"), torch.device("cpu"))
    assert batch["annotated"].shape == (4, 3) and batch["annotated"].dtype == torch.bool


def test_without_the_key_the_column_is_any_column(rows: list[dict[str, str]], write_manifest: Write) -> None:
    data = data_of(write_manifest(rows), job_for())
    assert all("annotated" not in sample for sample in data.samples("train"))
    assert data.report.classes["train"] == {"background": 4, "anterior": 4, "posterior": 4}


def test_an_organ_that_nobody_annotates_is_unknown_and_not_absent(
    rows: list[dict[str, str]], write_manifest: Write
) -> None:
    path = write_manifest([row | {"drawn": "anterior" if row["split"] == "train" else ""} for row in rows])
    report = data_of(path, job_for(annotated="drawn")).report
    assert report.classes["train"] == {"background": 4, "anterior": 4}
    assert report.classes["test"] == {"background": 1, "anterior": 1, "posterior": 1}
    assert report.warnings == ["No training case annotates posterior: it is learnt from other hospitals only."]
    console = Console(width=100, record=True, file=io.StringIO())
    print_report(report, console)
    line = next(line for line in console.export_text().splitlines() if "train" in line and "│" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][-3:] == ["4", "4", "?"]


@pytest.mark.parametrize("cell", ["hippocampus", "anterior;tail", "background"])
def test_a_case_that_annotates_an_unknown_class_is_set_aside(
    rows: list[dict[str, str]], write_manifest: Write, cell: str
) -> None:
    rows[1]["drawn"] = cell
    report = data_of(write_manifest(rows), job_for(annotated="drawn")).report
    (reason,) = report.quarantined.values()
    assert f"'{cell.split(';')[-1]}' is annotated; expected anterior, posterior" in reason
    assert list(report.categories.values()) == ["label_values"]


def test_a_manifest_without_the_column_is_refused(rows: list[dict[str, str]], write_manifest: Write) -> None:
    with pytest.raises(BadInput, match=r"the column 'annotated' \(data.annotated of the job\) is missing"):
        read_manifest(write_manifest(rows), job_for(annotated="annotated"))


def test_what_is_annotated_is_part_of_cache_key_and_report(rows: list[dict[str, str]], write_manifest: Write) -> None:
    job, path = job_for(annotated="drawn"), write_manifest(rows)
    cases = read_manifest(path, job)
    keys = case_keys(cases[:1], path.parent, job, {})
    other = replace(cases[0], columns={"drawn": "posterior"})
    assert case_keys([other], path.parent, job, {}) != keys
    assert case_keys(cases[:1], path.parent, job_for(), {}) != keys
    first = preflight(cases, path.parent, job, report_folder=path.parent)
    again = preflight([other, *cases[1:]], path.parent, job, report_folder=path.parent)
    assert (first.classes["train"]["anterior"], again.classes["train"]["anterior"]) == (3, 2)


def test_an_image_that_the_hospital_does_not_take_is_zero(rows: list[dict[str, str]], write_manifest: Write) -> None:
    whole = list(data_of(write_manifest(rows), job_for()).samples("train"))
    rows[0]["flair"] = rows[1]["t1"] = ""
    path = write_manifest(rows)
    data = data_of(path, job_for(missing_channels="zeros"))
    without_flair, without_t1, *others = data.samples("train")
    assert torch.equal(without_flair["image"][0], whole[0]["image"][0]) and not without_flair["image"][1].any()
    assert torch.equal(without_t1["image"][1], whole[1]["image"][1]) and not without_t1["image"][0].any()
    assert all(torch.equal(sample["image"], before["image"]) for sample, before in zip(others, whole[2:], strict=True))
    assert not data.report.quarantined and data.report.intensity[0] > 0
    set_aside = data_of(path, job_for()).report.quarantined
    assert list(set_aside) == ["row-000001", "row-000002"]
    assert set_aside["row-000002"] == "The column 't1' is empty: there is no image."


def test_a_case_without_any_image_is_set_aside(rows: list[dict[str, str]], write_manifest: Write) -> None:
    rows[2] |= {"t1": "", "flair": ""}
    report = data_of(write_manifest(rows), job_for(missing_channels="zeros")).report
    assert report.quarantined == {"row-000003": "The column 't1' is empty: there is no image."}


WINDOW = {"window": [[-160.0, 240.0]] * 2}
LANDMARKS = {"landmarks": [[10.0 * step for step in range(1, 12)]] * 2}


@pytest.mark.parametrize(
    ("how", "more"),
    [("zscore", {}), ("percentile", {}), ("minmax", {}), ("none", {}), ("window", WINDOW), ("landmarks", LANDMARKS)],
)
def test_zeros_stay_zeros_whatever_the_normalisation(
    rows: list[dict[str, str]], write_manifest: Write, how: str, more: dict[str, Any]
) -> None:
    rows[0]["t1"] = ""
    job = job_for(missing_channels="zeros", normalisation=how, **more)
    sample = data_of(write_manifest(rows), job).samples("train")[0]
    assert not sample["image"][0].any() and sample["image"][1].any()
