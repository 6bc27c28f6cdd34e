"""The work that every contender does: the same data, network, batches and arithmetic."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SITES, SAMPLES, SIDE, SEED = 8, 200, 28, 7
FIRST_STEP = "first_step"  # a file whose time tells the harness when the first step began


@dataclass(frozen=True)
class Workload:
    """One comparison: a network, how much a site does in a round, and how many rounds."""

    name: str
    channels: tuple[int, ...]
    hidden: int
    batch: int
    steps: int
    rounds: int

    def job(self) -> dict[str, Any]:
        """The job file of Consilium."""
        return {
            "name": self.name,
            "seed": SEED,
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [SIDE, SIDE], "normalisation": "zscore"},
            "model": {"name": "cnn", "arguments": {"channels": list(self.channels), "hidden": self.hidden}},
            "training": {
                "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9},
                "batch_size": self.batch,
                "local_steps": self.steps,
            },
            "federation": {"rounds": self.rounds},
            "evaluation": {"every": 0, "validation_share": 0.0, "test_share": 0.0},
            "simulation": {
                "dataset": {
                    "name": "folder",
                    "table": "data.npz",
                    "columns": {"image": "images", "label": "labels", "patient": "patient", "hospital": "hospital"},
                },
                "partition": {"name": "natural", "column": "hospital"},
            },
        }


WORKLOADS = {
    "small": Workload("small", (32, 64), 150, batch=40, steps=5, rounds=10),  # 0.5 M parameters
    "large": Workload("large", (64, 128, 256), 8400, batch=100, steps=1, rounds=5),  # 20 M parameters
}


def write_data(folder: Path) -> None:
    """Writes data.npz: 200 images of 28x28 for each of 8 hospitals."""
    rng = np.random.default_rng(SEED)
    count = SITES * SAMPLES
    labels = rng.integers(0, 2, count)
    images = (rng.normal(100, 30, (count, SIDE, SIDE)) + 40 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    hospital = np.array([f"site-{i // SAMPLES}" for i in range(count)])
    np.savez(folder / "data.npz", images=images, labels=labels, patient=np.arange(count).astype(str), hospital=hospital)


def load_site(folder: Path, site: int) -> tuple[Any, Any]:
    """The tensors of one site as the plain loop wants them: float32 (200, 1, 28, 28), normalised, and int64 (200,)."""
    import torch

    with np.load(folder / "data.npz") as arrays:
        rows = slice(site * SAMPLES, (site + 1) * SAMPLES)
        images = torch.from_numpy(arrays["images"][rows].astype(np.float32))[:, None]
        labels = torch.from_numpy(arrays["labels"][rows].astype(np.int64))
    mean, std = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
    return (images - mean) / std, labels


def network(workload: Workload) -> Any:
    """The network, written out in plain PyTorch."""
    import torch
    from torch import nn

    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    previous, side = 1, SIDE
    for width in workload.channels:
        layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        previous, side = width, side // 2
    features = previous * side * side
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, workload.hidden), nn.ReLU(), nn.Linear(workload.hidden, 2)
    )


def train(model: Any, images: Any, labels: Any, workload: Workload, seed: int) -> None:
    """One site's round in plain PyTorch."""
    import torch

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    for step in range(workload.steps):
        batch = order[step * workload.batch : (step + 1) * workload.batch]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


def tell(event: str) -> None:
    """Tells the harness that something happened now."""
    print(json.dumps({"event": event}), flush=True)


def workload_and_folder() -> tuple[Workload, Path]:
    """What a contender is started with: the name of a workload and the folder of the data."""
    return WORKLOADS[sys.argv[1]], Path(sys.argv[2])
