"""No image outside the folder that the hospital allows is opened, whatever its manifest says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.data.manifest import read_manifest
from shared_models.errors import BadInput
from tests.client.data.conftest import CHEST, RETINA, make_job

JOB = make_job(CHEST)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An allowed folder with an image, beside one with a secret."""
    allowed = tmp_path / "data"
    allowed.mkdir()
    (allowed / "a.png").write_bytes(b"image")
    (tmp_path / "secret.png").write_bytes(b"secret")
    return allowed


def write(folder: Path, image: str, label: str = "1") -> Path:
    path = folder / "manifest.csv"
    path.write_text(f"patient,image,label\nP1,{image},{label}\n", encoding="utf-8")
    return path


def refused(path: Path, root: Path, job=JOB) -> str:
    with pytest.raises(BadInput) as caught:
        read_manifest(path, job, root=root)
    return str(caught.value)


def test_images_inside_the_root_are_read_by_relative_and_absolute_path(root: Path):
    for image in ("a.png", str(root / "a.png"), "../data/a.png", "images.npz::images[0]"):
        [case] = read_manifest(write(root, image), JOB, root=root)
        assert case.images == (image,)


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "../data/../secret.png", "../all.npz::images[3]"])
def test_a_path_that_leads_out_is_refused_with_its_line_and_column(root: Path, image: str):
    told = refused(write(root, image), root)
    assert f"{root / 'manifest.csv'}, line 2, column 'image': " in told
    assert f"outside {root}" in told
    assert "data_root" in told


def test_a_symbolic_link_that_leads_out_is_refused_and_one_that_stays_is_not(root: Path):
    (root / "out.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent)
    (root / "in.png").symlink_to(root / "a.png")
    assert str(root.parent / "secret.png") in refused(write(root, "out.png"), root)
    assert "outside" in refused(write(root, "folder/secret.png"), root)
    assert read_manifest(write(root, "in.png"), JOB, root=root)


def test_links_in_a_circle_are_refused_in_one_sentence(root: Path):
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    assert "leads nowhere" in refused(write(root, "a"), root)


def test_a_neighbour_whose_name_begins_alike_is_outside(root: Path):
    (root.parent / "database").mkdir()
    assert "outside" in refused(write(root, "../database/a.png"), root)


def test_a_mask_outside_is_refused_and_a_class_with_the_name_of_a_path_is_none(root: Path):
    told = refused(write(root, "a.png", "../secret.png"), root, make_job(RETINA))
    assert "column 'label'" in told
    [case] = read_manifest(write(root, "a.png", "../secret"), JOB, root=root)
    assert case.label == "../secret"


def test_without_a_root_images_may_lie_anywhere(root: Path):
    assert read_manifest(write(root, "../secret.png"), JOB)


def test_a_root_that_is_itself_a_link_holds_what_it_leads_to(root: Path):
    (root.parent / "link").symlink_to(root)
    assert read_manifest(write(root, "a.png"), JOB, root=root.parent / "link")


def test_a_site_whose_manifest_leads_out_has_no_data(root: Path, tmp_path: Path):
    np.savez(tmp_path / "all.npz", images=np.zeros((4, 32, 32), np.uint8))
    manifest = write(root, "../all.npz::images[0]")
    with pytest.raises(BadInput, match="outside"):
        SiteData(manifest, JOB, "north", CaseCache(tmp_path / "cache", 2**20), root=root)
    assert not (root / "preflight.json").exists()
