"""Small jobs to build tasks from."""

from collections.abc import Callable
from typing import Any

import pytest

from shared_models.job import Job


@pytest.fixture(scope="session")
def job_for() -> Callable[..., Job]:
    """A job with the given `task` section and crop."""

    def build(task: dict[str, Any], crop: tuple[int, ...] = (8, 8)) -> Job:
        return Job.model_validate(
            {
                "name": "test",
                "task": task,
                "data": {"spatial_dims": len(crop), "crop": list(crop)},
                "model": {"name": "unet"},
                "training": {"local_steps": 1},
                "federation": {"rounds": 1},
            }
        )

    return build
