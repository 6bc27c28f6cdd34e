"""docs/results.md says what was measured: it is made of the stored numbers, by jobs that can be run."""

from __future__ import annotations

import json

import pytest
import yaml

from benchmarks.results import JOBS, NUMBERS, PAGE, PICTURES, STUDIES
from benchmarks.results_page import page
from shared_models import zoo
from shared_models.job import Job
from shared_models.job_file import check_meaning, load_job

ROWS = [(study, network) for study, of in STUDIES.items() for network in of.networks]


def test_the_page_is_made_of_the_stored_numbers() -> None:
    jobs = {study: yaml.safe_load((JOBS / f"{study}.yaml").read_text()) for study in STUDIES}
    assert PAGE.read_text() == page(json.loads(NUMBERS.read_text()), jobs)


def test_every_row_of_every_study_has_numbers_and_every_gan_its_picture() -> None:
    numbers = json.loads(NUMBERS.read_text())
    assert [
        (study, network) for study in STUDIES for network in STUDIES[study].networks if network in numbers[study]
    ] == ROWS
    assert all((PICTURES / f"results-{study}.png").exists() for study in ("denoise", "look", "synthesis"))


@pytest.mark.parametrize(("study", "network"), ROWS)
def test_the_job_of_every_row_can_be_run(study: str, network: str) -> None:
    job = load_job(JOBS / f"{study}.yaml")
    job = Job.model_validate(job.model_dump() | {"model": STUDIES[study].networks[network]})
    assert check_meaning(job) == []
    assert zoo.check(job)
