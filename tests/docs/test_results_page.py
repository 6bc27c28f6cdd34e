"""docs/results.md says what was measured: it is made of the stored numbers, by jobs that can be run."""

from __future__ import annotations

import json

import pytest

from benchmarks.results import JOBS, NUMBERS, PAGE, PICTURES, STUDIES, attack, hospitals, tuning, whole_page
from shared_models import zoo
from shared_models.job import Job
from shared_models.job_file import check_meaning, load_job

ROWS = [(study, network) for study, of in STUDIES.items() for network in of.networks]


def test_the_page_is_made_of_the_stored_numbers() -> None:
    assert PAGE.read_text() == whole_page(json.loads(NUMBERS.read_text()))


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


@pytest.mark.parametrize(
    ("study", "method"), [(study, method) for study, method, seed in hospitals.rows() if seed == 1]
)
def test_the_job_of_every_study_of_hospitals_can_be_run(study: str, method: str) -> None:
    assert check_meaning(Job.model_validate(hospitals.job_of(JOBS, study, method, seed=1))) == []


def test_every_study_of_hospitals_has_every_row_with_every_seed() -> None:
    numbers = json.loads(NUMBERS.read_text())
    for study in hospitals.STUDIES:
        tried = {method for of, method, _ in hospitals.rows() if of == study}
        methods = {hospitals.ADAM if method.startswith(hospitals.ADAM) else method for method in tried}
        assert set(numbers[study]) == methods | {"Local", "Ensemble", "Pooled"}
        assert {of["server_rate"] for of in numbers[study][hospitals.ADAM].values()} <= set(hospitals.SERVER_RATES)
        assert all(set(of) == {str(seed) for seed in hospitals.SEEDS} for of in numbers[study].values())


@pytest.mark.parametrize(
    "values", [*(attack.job_of(JOBS, row) for row in attack.AGGREGATIONS), *map(tuning.job_of, tuning.OPTIMIZERS)]
)
def test_the_jobs_of_the_single_questions_can_be_run(values: dict[str, object]) -> None:
    assert check_meaning(Job.model_validate(values)) == []


def test_the_single_questions_have_every_row() -> None:
    numbers = json.loads(NUMBERS.read_text())
    assert set(numbers[attack.STUDY]) == set(attack.AGGREGATIONS)
    assert set(numbers[tuning.STUDY]) == set(tuning.OPTIMIZERS)
