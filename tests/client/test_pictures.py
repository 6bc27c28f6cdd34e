"""Pictures of single cases, drawn from real files: that every part is there, seen in the pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.data.manifest import Case
from client.data.preprocess import prepare
from client.pictures import PREDICTION, REFERENCE, best_to_worst, draw_cases, draw_classified
from shared_models.job import Job
from tests.pixels import share_of

SEGMENTATION = {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]}
CLASSIFICATION = {"kind": "classification", "classes": ["normal", "pneumonia"]}
RIGHT, WRONG = "#00664B", "#A33C00"


def job(task: dict[str, Any], spatial_dims: int) -> Job:
    return Job.model_validate(
        {
            "name": "pictures",
            "task": task,
            "data": {"spatial_dims": spatial_dims, "crop": [16] * spatial_dims},
            "model": {"name": "any"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
    )


def saved(folder: Path, content: bytes) -> Path:
    (folder / "drawn.png").write_bytes(content)
    return folder / "drawn.png"


@pytest.mark.parametrize("given", ["prediction", "probabilities"])
def test_cases_show_reference_and_prediction(tmp_path: Path, shared_data: Path, given: str) -> None:
    the_job, data = job(SEGMENTATION, 3), shared_data / "hippocampus"
    image, label = (str(data / folder / "hippocampus_001.nii.gz") for folder in ("imagesTr", "labelsTr"))
    sample = prepare(Case("p", "p", (image,), label, "test"), tmp_path, the_job)
    shifted = np.roll(sample["label"][0].numpy(), 4, axis=0)
    answer = shifted if given == "prediction" else np.eye(3, dtype=np.float32)[shifted].transpose(3, 0, 1, 2)
    samples = [{**sample, given: answer, "title": f"{rank}: $p_1$"} for rank in ("Best", "Median", "Worst")]
    picture = saved(tmp_path, draw_cases(the_job, samples))
    assert share_of(REFERENCE, picture) > 0.0005
    assert share_of(PREDICTION, picture) > 0.0005


def test_cases_of_two_dimensions_with_nothing_in_them_are_drawn_too() -> None:
    image = np.random.default_rng(0).normal(size=(1, 20, 30)).astype(np.float32)
    empty = np.zeros((1, 20, 30), dtype=np.uint8)
    sample = {"image": image, "label": empty, "prediction": empty[0], "title": "Only"}
    width, height = Image.open(io.BytesIO(draw_cases(job(SEGMENTATION, 2), [sample]))).size
    assert height < width / 2


@pytest.mark.parametrize(("probability", "seen", "unseen"), [(0.9, RIGHT, WRONG), (0.2, WRONG, RIGHT)])
@pytest.mark.parametrize("mode", ["single_label", "multi_label"])
@pytest.mark.parametrize("dims", [2, 3])
def test_classified_cases_say_whether_the_model_is_right(
    tmp_path: Path, probability: float, seen: str, unseen: str, mode: str, dims: int
) -> None:
    image = np.random.default_rng(0).normal(size=(1, *[20] * dims)).astype(np.float32)
    label = np.int64(1) if mode == "single_label" else np.array([0.0, 1.0])
    sample = {
        "id": "$case$ 7 with a name that is far too long to stand below a small image",
        "image": image,
        "label": label,
        "spacing": (1.0,) * dims,
        "probabilities": np.array([1 - probability, probability]),
    }
    rows = {"Most wrong": [sample], "Most right": [sample] * 3}
    picture = saved(tmp_path, draw_classified(job(CLASSIFICATION | {"mode": mode}, dims), rows))
    assert share_of(seen, picture) > 0.00005
    assert share_of(unseen, picture) == 0


def test_the_middle_case_is_drawn_only_where_there_is_one() -> None:
    assert best_to_worst(["a", "b", "c", "d", "e"]) == {"Best": "a", "Median": "c", "Worst": "e"}
    assert best_to_worst(["a", "b"]) == {"Best": "a", "Worst": "b"}
    assert best_to_worst(["a"]) == {"Only": "a"}
    assert best_to_worst([]) == {}
