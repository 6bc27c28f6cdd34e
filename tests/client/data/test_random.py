"""What is random about training: augmentation and patches."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data.augment import augmentation
from client.data.patches import random_patch
from shared_models.job import Augmentation
from tests.client.data.conftest import CHEST, HIPPOCAMPUS, make_job


def volume(*size: int) -> dict[str, Any]:
    """A ball of label 1 and 2 in noise."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, length) for length in size], indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.4
    label = (inside * (1 + (axes[0] > 0)))[None].to(torch.uint8)
    image = torch.randn((1, *size), generator=torch.Generator().manual_seed(0)) + label
    return {"image": image, "label": label, "id": "ball"}


@pytest.mark.parametrize("name", get_args(Augmentation))
@pytest.mark.parametrize("size", [(20, 24), (12, 14, 16)])
def test_an_augmentation_changes_images_repeatably(name: str, size: tuple[int, ...]) -> None:
    job = make_job(HIPPOCAMPUS, augmentation=[name], spatial_dims=len(size))
    sample = volume(*size)
    untouched = sample["image"].clone()
    runs = []
    for seed in (1, 1, 2):
        augment = augmentation(job, seed)
        assert augment is not None
        runs.append([augment(sample) for _ in range(12)])
    for first, again in zip(runs[0], runs[1], strict=True):
        assert torch.equal(first["image"], again["image"])
        assert torch.equal(first["label"], again["label"])
    assert any(not torch.equal(a["image"], b["image"]) for a, b in zip(runs[0], runs[2], strict=True))
    for changed in runs[0]:
        assert type(changed["image"]) is torch.Tensor
        assert type(changed["label"]) is torch.Tensor
        assert (changed["image"].shape, changed["image"].dtype) == (untouched.shape, torch.float32)
        assert changed["label"].dtype == torch.uint8
        assert set(changed["label"].unique().tolist()) <= {0, 1, 2}
        if name not in ("flip", "rotate", "affine"):
            assert torch.equal(changed["label"], sample["label"])
    assert any(not torch.equal(changed["image"], untouched) for changed in runs[0])
    assert torch.equal(sample["image"], untouched)


def test_image_and_mask_move_together() -> None:
    augment = augmentation(make_job(HIPPOCAMPUS, augmentation=["flip", "affine"], spatial_dims=3), 3)
    assert augment is not None
    sample = volume(24, 24, 24)
    sample["image"] = sample["label"].float()
    for _ in range(8):
        changed = augment(sample)
        agree = (changed["image"].round() == changed["label"]).float().mean()
        assert agree > 0.97


def test_a_class_label_is_left_alone_and_no_augmentation_is_none() -> None:
    augment = augmentation(make_job(CHEST, augmentation=["flip", "noise"]), 2**62)
    assert augment is not None
    label = torch.tensor(1)
    assert augment({"image": torch.randn(1, 16, 16), "label": label})["label"] is label
    assert augmentation(make_job(CHEST), 1) is None


@given(
    size=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    crop=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_a_patch_has_the_size_of_the_crop_and_holds_what_fits(size: list[int], crop: list[int], seed: int) -> None:
    values = torch.arange(1, 1 + int(np.prod(size)), dtype=torch.float32).view(1, *size)
    sample = {"image": values, "label": (values % 3).to(torch.uint8), "id": "a"}
    job = make_job(HIPPOCAMPUS, spatial_dims=3, crop=crop)
    patch = random_patch(sample, job, np.random.default_rng(seed))
    again = random_patch(sample, job, np.random.default_rng(seed))
    assert patch["image"].shape == patch["label"].shape == (1, *crop)
    assert torch.equal(patch["image"], again["image"])
    inside = patch["image"] > 0
    assert int(inside.sum()) == int(np.prod([min(pair) for pair in zip(size, crop, strict=True)]))
    assert torch.equal(patch["label"][inside], (patch["image"][inside] % 3).to(torch.uint8))


def test_half_of_the_patches_look_at_a_rare_structure() -> None:
    label = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label[0, 40, 9] = 1
    sample = {"image": torch.rand(1, 64, 64), "label": label}
    rng, job = np.random.default_rng(0), make_job(HIPPOCAMPUS, spatial_dims=2, crop=[8, 8])
    share = np.mean([int(random_patch(sample, job, rng)["label"].sum()) for _ in range(400)])
    assert 0.4 < share < 0.65
