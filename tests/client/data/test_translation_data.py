"""The data of translations: targets beside images, domains as classes, and masks that only judging looks at."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from client.allowed import allowed_for
from client.app import prepare as answer_prepare
from client.data.augment import augmentation
from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.data.manifest import Case, read_manifest
from client.data.patches import random_patch
from client.data.preflight import preflight
from client.data.preprocess import case_keys, preparation, prepare
from client.data.readers import stamp
from client.egress import release
from client.policy import Policy
from client.site import Site
from client.training import _batches
from server.introduction import Prepared
from shared_models.errors import BadInput
from shared_models.job import Model
from shared_models.job_file import check_meaning
from tests.client.data.conftest import make_job

PAIRED = {"kind": "translation", "how": {"mode": "paired"}}
NOISY = {"kind": "translation", "how": {"mode": "paired", "noise": 0.1}}
UNPAIRED = {"kind": "translation", "how": {"mode": "unpaired", "domains": ["old", "new"]}}
MASKED = {
    "kind": "translation",
    "how": {**UNPAIRED["how"], "mask": "organ", "mask_classes": ["background", "organ"]},
}


def made(folder: Path, **changes: np.ndarray) -> Path:
    """Six images, targets and masks in one npz, and a manifest with one row each."""
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.normal(100, 20, (6, 12, 10)),
        "targets": rng.normal(5, 2, (6, 12, 10)),
        "masks": (rng.random((6, 12, 10)) > 0.5).astype(np.uint8),
        **changes,
    }
    np.savez(folder / "data.npz", **arrays)
    rows = ["case,patient,image,label,domain,organ,split"]
    for row in range(6):
        cells = [f"data.npz::{name}[{row}]" for name in ("images", "targets")]
        split = "train" if row < 4 else "test"
        rows.append(",".join([f"c{row}", f"P{row}", *cells, ["old", "new"][row % 2], f"data.npz::masks[{row}]", split]))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder / "manifest.csv"


def reasons(path: Path, job) -> dict[str, str]:
    return preflight(read_manifest(path, job), path.parent, job).quarantined


def test_a_target_is_prepared_like_an_image(tmp_path):
    job = make_job(PAIRED)
    path = made(tmp_path)
    case = read_manifest(path, job)[1]
    sample, raw = prepare(case, tmp_path, job), np.load(tmp_path / "data.npz")
    assert sample["label"].dtype == torch.float32 and sample["label"].shape == sample["image"].shape == (1, 12, 10)
    for key, name in (("image", "images"), ("label", "targets")):
        values = raw[name][1]
        expected = torch.from_numpy((values - values.mean()) / values.std()).float()
        assert torch.allclose(sample[key][0], expected, atol=1e-4)


def test_a_target_that_cannot_be_used_is_set_aside_with_its_reason(tmp_path):
    targets = np.random.default_rng(0).normal(size=(6, 12, 10))
    targets[0, 3, 3], targets[1] = np.nan, 7.0
    path = made(tmp_path, targets=targets)
    np.savez(tmp_path / "other.npz", small=np.random.rand(1, 5, 5), colour=np.random.rand(1, 12, 10, 3))
    text = path.read_text().replace("targets[2]", "targets[99]")
    text = text.replace("data.npz::targets[3]", "other.npz::small[0]").replace("data.npz::targets[4]", "")
    path.write_text(text.replace("data.npz::targets[5]", "other.npz::colour[0]"))
    found = reasons(path, make_job(PAIRED))
    expected = {
        "c0": "holds 1 value that is not finite",
        "c1": "is constant",
        "c2": "rows",
        "c3": "has the shape 5 x 5, but",
        "c4": "The column 'label' is empty: there is no target.",
        "c5": "has 3 channels, where the job expects 1",
    }
    assert all(text in found[case] for case, text in expected.items())


def test_a_target_is_resampled_linearly_to_the_grid_of_its_image(tmp_path):
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 2, (6, 8, 8)).astype(np.float32)
    for name in ("image", "target"):
        nibabel.save(nibabel.Nifti1Image(steps, np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}.nii")
    case = Case("c", "p", ("image.nii",), "target.nii", "train")
    job = make_job(PAIRED, spatial_dims=3, spacing=[1.0, 1.0, 1.0], normalisation="none")
    sample = prepare(case, tmp_path, job)
    assert torch.equal(sample["image"], sample["label"])
    assert len(sample["label"].unique()) > 2


def test_the_image_may_be_the_target_where_noise_makes_the_source(tmp_path):
    job = make_job(NOISY, images=["image"], label="image")
    assert check_meaning(job.model_copy(update={"model": job.model.model_copy(update={"name": "pix2pix"})})) == []
    sample = prepare(read_manifest(made(tmp_path), job)[0], tmp_path, job)
    assert torch.equal(sample["image"], sample["label"])


@pytest.mark.parametrize(("task", "data", "sentence"), [
    (NOISY, {"label": "clean"}, "with task.how.noise, the source is made of data.label: expected ['clean']"),
    (PAIRED, {"label": "image"}, "column 'image' is one of data.images already"),
    (MASKED, {"label": "organ"}, "column 'organ' is data.label already"),
])  # fmt: skip
def test_columns_that_do_not_fit_a_translation_are_refused(task, data, sentence):
    assert sentence in [refusal.sentence for refusal in check_meaning(make_job(task, **data))]


def test_augmentation_moves_image_and_target_alike_and_changes_intensities_of_the_image_alone(tmp_path):
    values = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    sample = {"image": values, "label": values.clone(), "id": "c"}
    move = augmentation(make_job(PAIRED, augmentation=["flip", "rotate", "affine"]), 3)
    changed = [move(sample) for _ in range(6)]
    assert all(torch.allclose(one["image"], one["label"], atol=1e-5) for one in changed)
    assert any(not torch.equal(one["label"], values) for one in changed)
    colour = augmentation(make_job(PAIRED, augmentation=["noise", "gamma", "blur", "scale_intensity"]), 3)
    changed = [colour(sample) for _ in range(6)]
    assert all(torch.equal(one["label"], values) for one in changed)
    assert any(not torch.equal(one["image"], values) for one in changed)
    patch = random_patch(sample, make_job(PAIRED, crop=[8, 8]), np.random.default_rng(0))
    assert torch.equal(patch["image"], patch["label"]) and patch["label"].shape == (1, 8, 8)


@pytest.mark.parametrize(("task", "label", "column"), [(PAIRED, "label", "label"), (MASKED, "domain", "organ")])
def test_no_target_and_no_mask_outside_the_allowed_folder_is_opened(tmp_path, task, label, column):
    path = made(tmp_path)
    job = make_job(task, label=label)
    assert len(read_manifest(path, job, root=tmp_path)) == 6
    array = {"label": "targets", "organ": "masks"}[column]
    path.write_text(path.read_text().replace(f"data.npz::{array}[2]", f"../data.npz::{array}[2]"))
    with pytest.raises(BadInput, match=f"line 4, column '{column}': "):
        read_manifest(path, job, root=tmp_path)


def test_a_mask_beside_the_domain_is_kept_in_the_cache(tmp_path):
    job, path = make_job(MASKED, label="domain"), made(tmp_path)
    masks = np.load(tmp_path / "data.npz")["masks"]
    for _ in range(2):  # the second time from the cache
        data = SiteData(path, job, "here", CaseCache(tmp_path / "cache", 10**9))
        for row, case in enumerate(data.cases("train")):
            sample = data.load(case)
            assert torch.equal(sample["mask"], torch.from_numpy(masks[row])[None])
            assert (sample["mask"].dtype, int(sample["label"])) == (torch.uint8, row % 2)
    assert "mask" not in prepare(data.cases("train")[0], tmp_path, make_job(UNPAIRED, label="domain"))


def test_the_cache_key_covers_targets_and_masks(tmp_path):
    jobs = [make_job(PAIRED), make_job(MASKED, label="domain"), make_job(UNPAIRED, label="domain")]
    assert len({preparation(job) for job in jobs}) == 3
    path = made(tmp_path)
    other = path.read_text().replace("masks[0]", "masks[1]").replace("targets[0]", "targets[1]")
    changes = []
    for job in jobs:
        keys = []
        for text in (path.read_text(), other):
            (tmp_path / "m.csv").write_text(text)
            case = read_manifest(tmp_path / "m.csv", job)[0]
            stamps = {str(tmp_path / "data.npz"): stamp(tmp_path / "data.npz")}
            keys.append(case_keys([case], tmp_path, job, stamps)["c0"])
        changes.append(keys[0] != keys[1])
    assert changes == [True, True, False]


def test_a_bad_mask_sets_its_case_aside_and_a_missing_column_is_named(tmp_path):
    job = make_job(MASKED, label="domain")
    masks = np.zeros((6, 12, 10), np.uint8)
    masks[3] = 2
    path = made(tmp_path, masks=masks)
    path.write_text(path.read_text().replace("data.npz::masks[1]", ""))
    assert reasons(path, job) == {
        "c1": "The column 'organ' is empty: there is no mask.",
        "c3": "The mask data.npz::masks[3] holds the label 2; expected 0 to 1 (background, organ).",
    }
    path.write_text(path.read_text().replace("organ", "organs", 1))
    with pytest.raises(BadInput, match=r"column 'organ' \(task.how.mask of the job\) is missing; the nearest is 'org"):
        read_manifest(path, job)


@pytest.mark.parametrize(("task", "model", "label", "classes"), [
    (PAIRED, {"name": "pix2pix", "arguments": {"channels": [4, 8]}}, "label", {}),
    (UNPAIRED, {"name": "cyclegan", "arguments": {"channels": 4}}, "domain", {"old": 2, "new": 2}),
])  # fmt: skip
def test_a_site_can_say_what_it_has(tmp_path, task, model, label, classes):
    job, path = make_job(task, label=label).model_copy(update={"model": Model(**model)}), made(tmp_path)
    site = Site("here", path, tmp_path / "site", tmp_path / "cache")
    reply = answer_prepare(site, job, RecordDict({"instruction": ConfigRecord({})}))
    released = release(reply, allowed_for(job, "prepare", site="here", policy=Policy()))
    summary = Prepared.model_validate_json(str(released.content["prepared"]["summary"]), strict=True)
    assert summary.cases == {"train": 4, "validation": 0, "test": 2}
    assert summary.classes["train"] == classes and summary.warnings == []
    assert json.loads(reply["prepared"]["summary"])["quarantined"] == {}


def test_every_batch_of_an_unpaired_translation_holds_both_domains():
    job = make_job(UNPAIRED)
    job = job.model_copy(update={"training": job.training.model_copy(update={"batch_size": 4, "local_epochs": 3})})
    labels = ["old"] * 20 + ["new"] * 9
    batches = list(_batches(labels, job, np.random.default_rng(0), job.training.steps(len(labels))))
    assert Counter(index for batch in batches for index in batch) == Counter(list(range(29)) * 3)
    assert {Counter(labels[index] for index in batch)["new"] for batch in batches} == {1, 2}
    assert {len(batch) for batch in batches} == {3, 4}
