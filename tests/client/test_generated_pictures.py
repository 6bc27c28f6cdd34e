"""Pictures of synthesis and of anomaly detection: that what matters is there, seen in the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from client.anomaly_pictures import draw_reconstructed
from client.synthetic_pictures import TOO_NEAR, draw_synthetic
from shared_models.job import Job
from tests.pixels import share_of


def job(kind: str, dims: int) -> Job:
    return Job.model_validate(
        {
            "name": "pictures",
            "task": {"kind": kind, "classes": ["normal", "ill"]},
            "data": {"spatial_dims": dims, "crop": [16] * dims},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


class Copier(nn.Module):
    """Its generator gives back the images that it was trained on, with more or less noise."""

    def __init__(self, images: torch.Tensor, noise: float) -> None:
        super().__init__()
        self.generator = nn.Linear(1, 1)
        self.generator.latent = 1
        self.generator.forward = lambda z, classes: images[classes] + noise * torch.randn(images[classes].shape)


@pytest.mark.parametrize(("noise", "red"), [(0.0, True), (5.0, False)])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_copied_training_image_is_marked(tmp_path: Path, dims: int, noise: float, red: bool) -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 1, *[16] * dims)
    training: list[dict[str, Any]] = [
        {"image": image, "label": torch.tensor(i % 2), "patient": f"p{i}"} for i, image in enumerate(images)
    ]
    content = draw_synthetic(job("synthesis", dims), Copier(images, noise), training, "north-clinic", seed=1)
    (tmp_path / "drawn.png").write_bytes(content)
    assert (share_of(TOO_NEAR, tmp_path / "drawn.png") > 0) is red


@pytest.mark.parametrize("dims", [2, 3])
def test_an_error_is_bright_where_it_is(tmp_path: Path, dims: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(1, *[16] * dims)
    wrong = image.clone()
    wrong[(0, *[slice(4, 12)] * dims)] += 3
    sample = {"image": image, "label": torch.tensor(1), "spacing": (1.0,) * dims}
    shares = []
    for made in (image, wrong):
        samples = [
            {**sample, "probabilities": made, "title": "Best"},
            {**sample, "probabilities": wrong, "title": "Worst"},
        ]
        (tmp_path / "drawn.png").write_bytes(draw_reconstructed(job("anomaly", dims), samples))
        shares.append(share_of("#000000", tmp_path / "drawn.png"))
    assert shares[0] > shares[1] + 0.01, "a perfect reconstruction has a dark map"
