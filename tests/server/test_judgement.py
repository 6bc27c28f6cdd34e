"""Differences and values over all hospitals: of one model for all, and of models that each has its own of."""

import numpy as np
import pytest

from server.judgement import judge
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import replicate_weights

JOB = Job.model_validate(
    {
        "name": "judged",
        "task": {"kind": "classification", "classes": ["healthy", "ill"]},
        "data": {"spatial_dims": 2, "crop": [8, 8]},
        "model": {"name": "cnn"},
        "training": {"local_steps": 1},
        "federation": {"rounds": 1},
        "evaluation": {"bootstrap": 50},
    }
)
LABELS = {"north": [1, 1, 1, 0, 1, 1, 0, 1], "south": [0, 0, 0, 1, 0, 0, 1, 0]}


def sums_of(site, ill):
    """Metric sums of a site where the model gave these probabilities of being ill."""
    records = [
        CaseRecord(f"c{i}", f"p{i}", {"probabilities": [1 - p, p], "label": [float(label)]})
        for i, (p, label) in enumerate(zip(ill, LABELS[site], strict=True))
    ]
    return task_of(JOB).sums(records, replicate_weights([r.patient for r in records], 50, seed=1))


# The federated model ranks well; the tuned ones only know which hospital they stand in.
FEDERATED = {"north": [0.9, 0.8, 0.7, 0.2, 0.6, 0.9, 0.3, 0.4], "south": [0.1, 0.2, 0.3, 0.8, 0.2, 0.1, 0.5, 0.6]}
TUNED = {"north": [0.9] * 8, "south": [0.1] * 8}
OWN = {"north": [0.6] * 8, "south": [0.4] * 8}


@pytest.fixture(scope="module")
def found():
    models = {"federated": FEDERATED, "pooled": FEDERATED, "fine-tuned": TUNED}
    sums = {name: {site: sums_of(site, ill) for site, ill in given.items()} for name, given in models.items()}
    sums |= {f"local:{site}": {site: sums_of(site, OWN[site])} for site in OWN}
    return judge(JOB, sums)


def value(entry):
    return entry["value"]


def test_scores_of_different_models_are_not_ranked_together(found):
    tuned = found["models"]["fine-tuned"]
    assert value(tuned["north"]["auroc"]) == value(tuned["south"]["auroc"]) == 0.5
    assert value(tuned["all"]["auroc"]) == 0.5  # ranked together, the hospital alone would give 0.75
    assert tuned["all"]["auroc"]["low"] == tuned["all"]["auroc"]["high"] == 0.5
    assert value(found["models"]["federated"]["all"]["auroc"]) > 0.8
    # A mean over cases is the same thing however the models are spread.
    assert value(tuned["all"]["accuracy"]) == pytest.approx(12 / 16)


def test_every_model_is_held_against_each_hospitals_own_the_federated_and_the_pooled(found):
    assert set(found["differences"]) == {
        *("federated-local", "pooled-local", "fine-tuned-local"),
        *("fine-tuned-federated", "federated-pooled", "fine-tuned-pooled"),
    }
    for name, rows in found["differences"].items():
        assert set(rows) == {"north", "south", "all"}, name


def test_a_difference_is_paired_and_over_all_hospitals_their_plain_mean(found):
    rows = found["differences"]["fine-tuned-federated"]
    models = found["models"]
    for site in LABELS:
        expected = value(models["fine-tuned"][site]["auroc"]) - value(models["federated"][site]["auroc"])
        assert value(rows[site]["auroc"]) == pytest.approx(expected)
    assert value(rows["all"]["auroc"]) == pytest.approx(np.mean([value(rows[site]["auroc"]) for site in LABELS]))
    same = found["differences"]["federated-pooled"]["north"]["brier"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)  # the same draws of patients for both


def test_without_local_and_pooled_models_the_two_main_differences_are_empty():
    alone = judge(JOB, {"federated": {site: sums_of(site, ill) for site, ill in FEDERATED.items()}})
    assert alone["differences"] == {"federated-local": {}, "federated-pooled": {}}
