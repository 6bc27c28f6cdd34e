"""Annotators who differ: what becomes of masks and of classes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from shared_models.job_scanners import Annotator
from simulation.annotators import mislabelled, redraw
from simulation.datasets.source import SourceCase


def mask() -> np.ndarray:
    """Two organs that touch, one of them with a spike, in (1, 30, 30, 30)."""
    values = np.zeros((1, 30, 30, 30), np.uint8)
    values[0, 8:20, 10:15, 8:20] = 1
    values[0, 8:20, 15:20, 8:20] = 2
    values[0, 20:26, 12, 12] = 1
    return values


def drawn(seed: int = 0, **settings: Any) -> np.ndarray:
    return redraw(mask(), Annotator.model_validate(settings), seed)


def faces(values: np.ndarray) -> tuple[int, int]:
    """First and last voxel of the whole drawing along the second axis, away from the spike."""
    found = np.flatnonzero((values[0, 8:14, :, 14:20] > 0).any(axis=(0, 2)))
    return int(found[0]), int(found[-1])


@pytest.mark.parametrize(("masks", "moved"), [("larger", 1), ("smaller", -1)])
def test_an_outline_moves_by_so_many_voxels(masks: str, moved: int) -> None:
    for voxels in (1, 2, 3):
        found = drawn(masks=masks, voxels=voxels)
        assert faces(found) == (10 - moved * voxels, 19 + moved * voxels)
        assert found.dtype == np.uint8 and found.shape == mask().shape
    assert (found[0, 8:20, :15] != 2).all() and (found[0, 8:20, 15:, 8:20] != 1).all(), "organs keep their border"


def test_what_was_thin_is_lost_when_drawn_smaller_or_smoother() -> None:
    assert (drawn(masks="smaller")[0, 20:] == 0).all()
    smooth = drawn(masks="smoother", voxels=1.5)
    assert (smooth[0, 22:] == 0).all() and set(np.unique(smooth)) == {0, 1, 2}
    assert abs(int((smooth > 0).sum()) / int((mask() > 0).sum()) - 1) < 0.12


def test_a_noisy_outline_goes_out_and_in_and_is_another_for_every_patient() -> None:
    noisy = drawn(masks="noisier", voxels=1.5)
    body = mask() > 0
    assert ((noisy > 0) & ~body).sum() > 50 and ((noisy == 0) & body).sum() > 50
    assert np.array_equal(noisy, drawn(masks="noisier", voxels=1.5))
    assert not np.array_equal(noisy, drawn(seed=1, masks="noisier", voxels=1.5))


def test_an_empty_mask_stays_empty_and_a_full_one_can_be_drawn() -> None:
    empty, full = np.zeros((1, 9, 9), np.uint8), np.ones((1, 9, 9), np.uint8)
    for how in ("larger", "smaller", "smoother", "noisier"):
        annotator = Annotator.model_validate({"masks": how})
        assert not redraw(empty, annotator, 0).any()
        assert redraw(full, annotator, 0).all()


def cases(labels: list[str]) -> list[SourceCase]:
    return [SourceCase(f"c{n}", f"p{n}", ("/i.png",), label, "", label) for n, label in enumerate(labels)]


def test_a_share_of_the_cases_gets_another_class() -> None:
    classes = ["normal", "bacterial", "viral"]
    wrong = mislabelled(cases(["normal", "1", "viral"] * 20), 0.25, classes, multi_label=False, seed=0)
    assert len(wrong) == 15
    truth = {"0": "normal", "1": "bacterial", "2": "viral"}
    for case in cases(["normal", "1", "viral"] * 20):
        if case.id in wrong:
            assert wrong[case.id] in classes and wrong[case.id] != truth.get(case.label, case.label)
    assert len(Counter(wrong.values())) == 3


def test_one_finding_of_several_is_added_or_taken_away() -> None:
    found = cases(["a;b", "", "c", "1"])
    wrong = mislabelled(found, 1.0, ["a", "b", "c"], multi_label=True, seed=3)
    for case, true in zip(found, [{"a", "b"}, set(), {"c"}, {"b"}], strict=True):
        assert len(true ^ {name for name in wrong[case.id].split(";") if name}) == 1


def test_a_label_that_is_no_class_is_left_for_preflight() -> None:
    assert mislabelled(cases(["normal", "tumor", ""]), 1.0, ["normal", "viral"], multi_label=False, seed=0) == {
        "c0": "viral"
    }
