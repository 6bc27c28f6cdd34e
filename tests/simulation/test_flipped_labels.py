"""A hospital whose labels are flipped, in its training and validation cases and never in its test cases."""

import numpy as np
import pytest

from shared_models.job import Job
from simulation.datasets.source import SourceCase
from simulation.flipped_labels import redraws, with_flipped_classes
from tests.simulation.conftest import JOB

SPLITS = {"p0": "train", "p1": "validation", "p2": "test"}


def job(task):
    simulation = {**JOB["simulation"], "faulty": {"hospital-2": {"kind": "label_flip"}}}
    return Job.model_validate({**JOB, "task": task, "simulation": simulation})


def cases(*labels):
    return [SourceCase(f"c{n}", f"p{n}", (), label, "", "") for n, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("mode", "labels", "flipped"),
    [
        ("single_label", ("a", "2", "a"), ["c", "a", "a"]),  # by name or number; the test case stays
        ("single_label", ("b", "elsewhere", "b"), ["b", "elsewhere", "b"]),  # preflight finds what is no class
        ("multi_label", ("a;b", "", "c"), ["c;b", "", "c"]),
    ],
)
def test_classes_are_reversed_but_for_test_patients(mode, labels, flipped):
    the_job = job({"kind": "classification", "classes": ["a", "b", "c"], "mode": mode})
    own = cases(*labels)
    assert [case.label for case in with_flipped_classes(own, SPLITS, the_job, "hospital-2")] == flipped
    assert with_flipped_classes(own, SPLITS, the_job, "hospital-1") == own


def test_of_masks_the_foreground_is_reversed():
    the_job = job({"kind": "segmentation", "classes": ["background", "a", "b", "c"]})
    mask = np.array([[[0, 1, 2], [3, 3, 9]]], np.uint8)
    (flip,) = redraws(the_job, "hospital-2")
    found = flip(cases("mask.png")[0], mask)
    np.testing.assert_array_equal(found, [[[0, 3, 2], [1, 1, 9]]])
    assert found.dtype == mask.dtype
    assert redraws(the_job, "hospital-1") == []
    # A mask's file name is no class.
    assert with_flipped_classes(cases("a"), SPLITS, the_job, "hospital-2")[0].label == "a"
