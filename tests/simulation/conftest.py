"""A tiny data set that trains in a second: two kinds of squares, as an npz that is a table."""

from pathlib import Path

import numpy as np
import pytest
import yaml

JOB = {
    "name": "squares",
    "seed": 3,
    "task": {"kind": "classification", "classes": ["small", "large"]},
    "data": {"spatial_dims": 2, "crop": [16, 16]},
    "model": {"name": "cnn", "arguments": {"channels": [4, 8], "hidden": 8}},
    "training": {"optimizer": {"learning_rate": 0.01}, "batch_size": 8, "local_epochs": 1},
    "federation": {"rounds": 3},
    "evaluation": {"bootstrap": 20, "validation_share": 0.2, "test_share": 0.2},
    "simulation": {
        "dataset": {
            "name": "folder",
            "table": "squares.npz",
            "columns": {"image": "images", "label": "labels", "patient": "patient"},
        },
        "partition": {"name": "iid"},
        "hospitals": 3,
    },
}


@pytest.fixture(scope="session")
def squares(tmp_path_factory) -> Path:
    """A folder with squares.npz: 90 patients, an image each."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 2
    images = rng.normal(100, 20, size=(90, 16, 16))
    for image, label in zip(images, labels, strict=True):
        size = 8 if label else 3
        image[2 : 2 + size, 2 : 2 + size] += 100
    np.savez(
        folder / "squares.npz",
        images=images.clip(0, 255).astype(np.uint8),
        labels=labels,
        patient=np.array([f"p{i}" for i in range(90)]),
    )
    return folder


@pytest.fixture
def write_job(tmp_path):
    """Writes the job of the squares, changed where a test says so: `write_job(federation={"rounds": 2})`."""

    def write(**changes) -> Path:
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in JOB.items()}
        for section, values in changes.items():
            content[section] = {**content[section], **values} if isinstance(values, dict) else values
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
