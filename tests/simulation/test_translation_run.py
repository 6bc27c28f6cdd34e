"""Whole simulations of translations, on images that a second makes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from simulation.run import simulate
from simulation.run_folder import SimulationRequest

PAIRED = {
    "task": {"kind": "translation", "how": {"mode": "paired", "noise": 0.2}},
    "data": {"images": ["image"], "label": "image", "spatial_dims": 2, "crop": [16, 16], "normalisation": "minmax"},
    "model": {
        "name": "pix2pix",
        "arguments": {"channels": [4, 8, 8], "discriminator_channels": 4, "discriminator_layers": 1},
    },
    "columns": {"image": "images", "patient": "patient"},
}
UNPAIRED = {
    "task": {
        "kind": "translation",
        "how": {
            "mode": "unpaired", "domains": ["old", "new"], "mask": "organ", "mask_classes": ["background", "organ"],
            "segmenter_steps": 10,
        },
    },
    "data": {"label": "scanner", "spatial_dims": 2, "crop": [16, 16]},
    "model": {
        "name": "cyclegan",
        "arguments": {"channels": 4, "blocks": 1, "discriminator_channels": 4, "discriminator_layers": 1},
    },
    "columns": {"image": "images", "patient": "patient", "organ": "masks", "scanner": "scanner"},
}  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A folder with scans.npz: 40 patients, a bright square each, in one half of the scans a dark one."""
    folder, rng = tmp_path_factory.mktemp("scans"), np.random.default_rng(0)
    masks = np.zeros((40, 16, 16), np.uint8)
    for mask in masks:
        top, left = rng.integers(1, 8, 2)
        mask[top : top + 6, left : left + 6] = 1
    new = np.arange(40) % 2
    images = 100 + rng.normal(0, 3, masks.shape) + masks * np.where(new, 60, -60)[:, None, None]
    patients = np.array([f"p{number}" for number in range(40)])
    scanner = np.array(["old", "new"])[new]
    np.savez(folder / "scans.npz", images=images.astype(np.uint8), masks=masks, patient=patients, scanner=scanner)
    return folder


def run(job, folder, out):
    """The report of a run of one round over two hospitals, without baselines."""
    dataset = {"name": "folder", "table": "scans.npz", "columns": job["columns"]}
    content = {
        "name": "scans",
        "seed": 3,
        **{key: job[key] for key in ("task", "data", "model")},
        "training": {"optimizer": {"name": "adam", "beta": 0.5}, "batch_size": 4, "local_epochs": 1},
        "federation": {"rounds": 1},
        "evaluation": {"bootstrap": 20},
        "simulation": {"dataset": dataset, "partition": {"name": "iid"}, "hospitals": 2},
    }
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content))
    assert simulate(SimulationRequest(path, folder, out, workers=1, compare=())) == 0
    for picture in ("cases", "partition"):
        assert min(Image.open(out / "pictures" / f"{picture}.png").size) > 300
    return json.loads((out / "report.json").read_text())


def test_a_paired_translation_ends_with_its_report(scans, tmp_path):
    report = run(PAIRED, scans, tmp_path / "run")
    assert report["headline_metric"] == "psnr" and report["metrics"]["psnr"]["label"] == "PSNR (dB)"
    found = report["models"]["federated"]["all"]
    assert found["psnr_source"]["value"] == pytest.approx(20 * np.log10(1 / 0.2), abs=0.7)
    assert all(found[f"{m}{end}"]["n"] == 8 for m in ("psnr", "ssim", "l1") for end in ("", "_source", "_median"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Best, median and worst case" in page and "ROC " not in page and "PSNR, median filter (dB)" in page


def test_an_unpaired_translation_ends_with_its_report(scans, tmp_path):
    report = run(UNPAIRED, scans, tmp_path / "run")
    assert report["headline_metric"] == "cycle_psnr"
    found = report["models"]["federated"]["all"]
    assert found["cycle_psnr"]["n"] == found["cycle_ssim"]["n"] == found["dice_before"]["n"] > 0
    assert found["cycle_psnr"]["n"] + found["dice_second"]["n"] == 8
    assert report["sites"]["hospital-1"]["classes"]["train"].keys() == {"old", "new"}
