"""What a remedy may name: everything there runs, and nothing that would is missing."""

import pytest

from server.report.alternatives import alternatives
from shared_models.algorithms import ALGORITHMS
from shared_models.job import Job
from shared_models.job_file import check_meaning


def job(model=None, **federation):
    return Job.model_validate(
        {
            "name": "squares",
            "task": {"kind": "classification", "classes": ["small", "large"]},
            "data": {"spatial_dims": 2, "crop": [32, 32]},
            "model": model or {"name": "cnn", "normalisation": "batch"},
            "training": {"local_epochs": 1, "optimizer": {"name": "sgd"}},
            "federation": {"rounds": 1, **federation},
        }
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_others_and_the_rules_that_go_with_it(name):
    made = job(algorithm={"name": name})
    assert check_meaning(made) == []
    found = alternatives(made)
    assert found["algorithm"] == [other for other in ("fedbn", "ditto", "fedprox") if other != name]
    only_the_mean = ("scaffold", "feddyn", "fednova", "qfedavg", "cyclic", "ring")
    assert found["aggregation"] == ([] if name in only_the_mean else ["median", "clipped_mean"])


def test_nothing_is_named_that_the_network_or_the_updates_are_not_there_for():
    assert alternatives(job({"name": "cnn"}))["algorithm"] == ["ditto", "fedprox"]  # no normalisation to keep at home
    assert alternatives(job(share={"normalisation": "no_statistics"}))["algorithm"] == ["ditto", "fedprox"]
    assert alternatives(job(quorum=2))["aggregation"] == ["clipped_mean"]
