"""Statistics, windows and landmarks in a job file: what makes no sense is refused, with the way out."""

import pytest
import yaml

from shared_models.errors import BadInput
from shared_models.job_file import dump_job, parse_job

ROW = [-2, -1.4, -0.9, -0.6, -0.3, 0, 0.4, 0.7, 1, 1.3, 1.7]


def job(data=None, statistics=None, **changes) -> str:
    values = {
        "name": "plain",
        "task": {"kind": "segmentation", "classes": ["background", "organ"]},
        "data": {"spatial_dims": 2, "crop": [32, 32], **(data or {})},
        "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
        "training": {"local_epochs": 1},
        "federation": {"rounds": 1, "statistics": statistics},
    }
    return yaml.safe_dump(values | changes)


@pytest.mark.parametrize(
    "text",
    [
        job(statistics={}),
        job(statistics={"decide": ["normalisation"], "harmonise": True}),
        job(data={"normalisation": "window", "window": [[-160, 240]]}),
        job(data={"normalisation": "landmarks", "landmarks": [ROW]}),
    ],
)
def test_a_job_that_makes_sense_comes_back_from_its_file(text):
    parsed = parse_job(text, "job.yaml")
    assert parse_job(dump_job(parsed), "job.yaml") == parsed


TRANSLATION = {
    "task": {"kind": "translation", "how": {"mode": "paired"}},
    "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (job(statistics={"decide": ["crop"], "harmonise": True}), "add normalisation to decide"),
        (job(statistics={"decide": ["crop", "crop"]}), "names a key twice"),
        (job(statistics={"decide": ["augmentation"]}), "augmentation"),
        (job(data={"normalisation": "window"}), "normalisation window and data.window need each other"),
        (job(data={"landmarks": [ROW]}), "normalisation landmarks and data.landmarks need each other"),
        (job(data={"normalisation": "window", "window": [[240, -160]]}), "rising numbers"),
        (job(data={"normalisation": "window", "window": [[0, 1], [0, 1]]}), "each of the 1 channels; found 2"),
        (job(data={"normalisation": "landmarks", "landmarks": [ROW[:5]]}), "landmarks"),
        (job(statistics={"harmonise": True}, **TRANSLATION), "the target has other intensities"),
        (job(data={"normalisation": "window", "window": [[0, 1]]}, **TRANSLATION), "the target has other intensities"),
    ],
)
def test_a_job_that_makes_none_is_refused(text, sentence):
    with pytest.raises(BadInput) as refused:
        parse_job(text, "job.yaml")
    assert sentence in str(refused.value) and "job.yaml:" in str(refused.value)
