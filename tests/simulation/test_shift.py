"""Virtual scanners: what an effect does to an image, where it leaves it in space, what the ready sets deal out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from client.data.readers import Volume, read
from shared_models.job import Job
from shared_models.job_scanners import AnyEffect, misfit
from simulation.scanner_sets import BAD, MILD, STRONG
from simulation.shift import GEOMETRY, INTENSITY, OF_THE_SCANNER, Scanner, scanners_of

HOSPITALS = [f"hospital-{number}" for number in range(1, 8)]
RANDOM = {"bias_field", "rician_noise", "gaussian_noise", "histogram", "motion", "colour", "illumination"}


def scanner(*chain: dict[str, Any], hospital: str = "hospital-1", seed: int = 0) -> Scanner:
    return Scanner(hospital, tuple(TypeAdapter(list[AnyEffect]).validate_python(list(chain))), seed)


def volume(dtype: str = "float32", affine: np.ndarray | None = None) -> Volume:
    """A bright ball in a darker block, 24 x 28 x 20 voxels."""
    grid = np.stack(np.meshgrid(*map(np.arange, (24, 28, 20)), indexing="ij"))
    away = np.sqrt(((grid - np.array([10, 14, 9])[:, None, None, None]) ** 2).sum(axis=0))
    values = 40 + 3 * grid[0] + np.where(away < 5, 120, 0)
    return Volume(values[None].astype(dtype), np.eye(4) if affine is None else affine)


def photograph() -> Volume:
    rows, columns = np.meshgrid(np.arange(30), np.arange(40), indexing="ij")
    red, green = 90 + 3 * columns, 60 + 4 * rows
    return Volume(np.stack([red, green, 255 - red]).clip(0, 255).astype(np.uint8), None)


def image_for(kind: str) -> Volume:
    return photograph() if kind in ("colour", "illumination") else volume("uint8")


@pytest.mark.parametrize("kind", [*INTENSITY, *GEOMETRY])
def test_an_effect_changes_the_image_the_same_way_every_time(kind: str) -> None:
    image = image_for(kind)
    seen = scanner({"kind": kind}).image(image, "case")
    assert seen.values.dtype == image.values.dtype
    assert seen.values.shape != image.values.shape or (seen.values != image.values).mean() > 0.1
    assert np.array_equal(scanner({"kind": kind}).image(image, "case").values, seen.values)
    floats = scanner({"kind": kind}).image(Volume(image.values.astype(np.float32), image.affine), "case")
    assert floats.values.dtype == np.float32 and np.isfinite(floats.values).all()


@pytest.mark.parametrize("kind", [*INTENSITY, *GEOMETRY])
def test_what_is_random_differs_between_scanners_and_noise_and_motion_between_patients(kind: str) -> None:
    image = image_for(kind)

    def same(first: Scanner, second: Scanner, cases: tuple[str, str] = ("case", "case")) -> bool:
        pair = [one.image(image, case).values for one, case in zip((first, second), cases, strict=True)]
        return np.array_equal(*pair)

    here, there = scanner({"kind": kind}), scanner({"kind": kind}, hospital="hospital-2")
    assert same(here, there) == (kind not in RANDOM)
    assert same(here, scanner({"kind": kind}, seed=1)) == (kind not in RANDOM)
    assert same(here, here, ("case", "another")) == (kind not in RANDOM or kind in OF_THE_SCANNER)


def test_whole_numbers_stop_at_their_limits() -> None:
    bright = Volume(np.full((1, 40, 40), 250, np.uint8), None)
    bright.values[0, :20] = 5
    noisy = scanner({"kind": "gaussian_noise", "level": 0.5}).image(bright, "case").values[0]
    assert noisy[20:].mean() > 200 and noisy[:20].mean() < 60, "20 more than 250 is 255, not 14"
    assert noisy.max() == 255 and noisy.min() == 0


def centre_mm(seen: Volume) -> np.ndarray:
    """Where the ball lies, in mm."""
    assert seen.affine is not None
    places = np.argwhere(seen.values[0] > seen.values[0].mean() + 1.5 * seen.values[0].std())
    return (seen.affine @ np.append(places.mean(axis=0), 1))[:3]


TURNED = np.array([[-0.9, 0, 0, 12.0], [0, 0, 1.5, -7.0], [0, 1.1, 0, 30.0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    "effect",
    [
        {"kind": "resolution", "factor": 1.7},
        {"kind": "slice_thickness", "factor": 2.5},
        {"kind": "field_of_view", "share": 0.75},
    ],
    ids=lambda effect: effect["kind"],
)
def test_anatomy_stays_where_it_was_and_the_mask_with_it(effect: dict[str, Any]) -> None:
    image = volume(affine=TURNED)
    mask = Volume((image.values > 155).astype(np.uint8), TURNED)
    seen, drawn = scanner(effect).image(image, "case"), scanner(effect).mask(mask)
    assert seen.values.shape == drawn.values.shape and seen.values.size < image.values.size
    assert seen.affine is not None and np.array_equal(seen.affine, drawn.affine)
    assert drawn.values.dtype == np.uint8 and set(np.unique(drawn.values)) == {0, 1}
    for before, after in ((image, seen), (mask, drawn)):
        assert np.abs(centre_mm(before) - centre_mm(after)).max() < 0.6, "less than half of a larger voxel"


def test_slices_thicken_along_the_axis_that_is_coarsest() -> None:
    seen = scanner({"kind": "slice_thickness", "factor": 2}).image(volume(affine=np.diag([1.0, 3.0, 1.0, 1.0])), "case")
    assert seen.values.shape == (1, 24, 14, 20)
    assert seen.affine is not None and seen.affine[1, 1] == 6.0
    assert scanner({"kind": "slice_thickness", "factor": 2}).image(volume(), "case").values.shape == (1, 24, 28, 10)


def test_a_picture_keeps_its_size_and_its_mask_follows_the_field_of_view_alone() -> None:
    picture = photograph()
    mask = Volume((picture.values[:1] > 150).astype(np.uint8), None)
    coarse = scanner({"kind": "resolution", "factor": 3})
    assert coarse.image(picture, "case").values.shape == picture.values.shape
    assert np.array_equal(coarse.mask(mask).values, mask.values)
    near = scanner({"kind": "field_of_view", "share": 0.5})
    seen, drawn = near.image(picture, "case"), near.mask(mask)
    assert seen.values.shape == picture.values.shape and drawn.values.shape == mask.values.shape
    assert np.array_equal(drawn.values[0, 0], mask.values[0, 0, 10:30].repeat(2))
    # Enlarged alike: what the mask marks is still what is bright.
    assert ((seen.values[0] > 150) == (drawn.values[0] == 1)).mean() > 0.97


def test_effects_keep_what_they_promise_to_keep() -> None:
    image = volume()
    flat = Volume(np.full((1, 12, 12, 12), 7.0, np.float32), np.eye(4))
    assert np.allclose(scanner({"kind": "blur", "sigma": 2}).image(flat, "case").values, 7, atol=1e-4)
    assert np.isclose(scanner({"kind": "bias_field"}).image(flat, "case").values.mean(), 7, rtol=1e-4)
    inverted = scanner({"kind": "inverted"})
    assert np.allclose(inverted.image(inverted.image(image, "case"), "case").values, image.values, atol=1e-3)
    moved = scanner({"kind": "motion", "degrees": 10, "voxels": 3, "movements": 4}).image(image, "case").values
    assert np.isclose(moved.mean(), image.values.mean(), rtol=1e-4), "the middle of k-space is of the patient at rest"
    assert np.abs(moved - image.values).max() > 20
    grey = Volume(np.repeat(photograph().values[:1], 3, axis=0), None)
    assert np.array_equal(scanner({"kind": "colour", "strength": 1}).image(grey, "case").values, grey.values)


def job(scanners: dict[str, Any], spatial_dims: int = 3, channels: int = 1, seed: int = 0) -> Job:
    return Job.model_validate(
        {
            "name": "shifted",
            "seed": seed,
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": spatial_dims, "channels": channels, "crop": [16] * spatial_dims},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
            "simulation": {
                "dataset": {"name": "folder", "table": "t.csv"},
                "partition": {"name": "iid"},
                "hospitals": 7,
                "scanners": scanners,
            },
        }
    )


KINDS = {"volume": (3, 1), "grey": (2, 1), "colour": (2, 3)}


@pytest.mark.parametrize("data", KINDS)
def test_a_ready_set_gives_every_hospital_a_chain_of_its_own_that_fits_the_data(data: str) -> None:
    dims, channels = KINDS[data]
    for name in ("mild", "strong"):
        found = scanners_of(job({"set": name}, dims, channels), HOSPITALS)
        assert list(found) == HOSPITALS and len({one.chain for one in found.values()}) == len(HOSPITALS)
        assert all(not misfit(effect, dims, channels) for one in found.values() for effect in one.chain)
        assert found == scanners_of(job({"set": name}, dims, channels), HOSPITALS)
        assert found != scanners_of(job({"set": name}, dims, channels, seed=1), HOSPITALS)
    for hospitals in (HOSPITALS[:2], HOSPITALS[:3]):
        strong = scanners_of(job({"set": "strong"}, dims, channels), hospitals)
        assert sum("inverted" in one.words for one in strong.values()) == 1, "the worst is always among them"
    bad = [one for one in scanners_of(job({"set": "one-bad-site"}, dims, channels), HOSPITALS).values() if one.chain]
    assert len(bad) == 1


def test_every_recipe_can_be_followed() -> None:
    """However many hospitals there are."""
    for data, (dims, channels) in KINDS.items():
        for name, recipes in (("mild", MILD[data]), ("strong", STRONG[data]), ("one-bad-site", [BAD[data]])):
            many = [f"h{number}" for number in range(2 * len(recipes))]
            dealt = [one.chain for one in scanners_of(job({"set": name}, dims, channels), many).values() if one.chain]
            kinds = {tuple(effect.kind for effect in chain) for chain in dealt}
            assert kinds == {tuple(recipe) for recipe in recipes}


def test_chains_by_hospital_leave_the_others_alone() -> None:
    chain = [{"kind": "gamma", "gamma": 2.0}, {"kind": "blur"}]
    found = scanners_of(job({"by_hospital": {"hospital-2": chain}}), HOSPITALS)
    assert found["hospital-2"].words == "gamma 2, blur 1 voxels"
    assert found["hospital-1"].words == "as in the data set"
    image = volume("uint8")
    assert np.array_equal(found["hospital-1"].image(image, "case").values, image.values)


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    ranks = scores.argsort().argsort() + 1.0
    positive = labels == 1
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (~positive).sum()))


def test_a_model_of_one_hospital_fails_at_another_under_strong_scanners(shared_data: Path) -> None:
    """A linear classifier of chest X-rays: good at home, worse than chance where black is white."""
    archive = shared_data / "pneumoniamnist" / "pneumoniamnist.npz"
    with np.load(archive) as arrays:
        labels = arrays["train_labels"][:500, 0]
    images = [read(f"{archive}::train_images[{row}]", Path("/"), 2, 1) for row in range(500)]

    def seen_by(one: Scanner) -> np.ndarray:
        seen = np.stack([one.image(image, str(row)).values.ravel() for row, image in enumerate(images)]).astype(float)
        return (seen - seen.mean(axis=1, keepdims=True)) / seen.std(axis=1, keepdims=True)  # as a site normalises

    strong = scanners_of(job({"set": "strong"}, 2), ["hospital-1", "hospital-2"])
    first, second = (seen_by(one) for one in strong.values())
    train, test = slice(0, 350), slice(350, 500)
    gram = first[train] @ first[train].T + 1000 * np.eye(350)
    weights = first[train].T @ np.linalg.solve(gram, 2.0 * labels[train] - 1)
    at_home, away = auroc(first[test] @ weights, labels[test]), auroc(second[test] @ weights, labels[test])
    assert at_home > 0.9 and away < 0.6, (at_home, away)
