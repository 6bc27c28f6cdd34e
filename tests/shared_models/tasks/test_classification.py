import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score
from torch import nn

from shared_models.errors import BadInput
from shared_models.job_tasks import ClassificationTask
from shared_models.tasks import CaseRecord
from shared_models.tasks.bootstrap import difference, interval, pooled, replicate_weights
from shared_models.tasks.classification import Classification


def task(number, mode="single_label"):
    return Classification(
        ClassificationTask(kind="classification", classes=[f"k{i}" for i in range(number)], mode=mode)
    )


BINARY, MULTI_CLASS, FINDINGS = task(2), task(4), task(3, "multi_label")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def records_of(probabilities, labels, patients=None):
    return [
        CaseRecord(
            f"c{i}",
            patients[i] if patients else f"p{i}",
            {"probabilities": p.tolist(), "label": np.atleast_1d(label).astype(float).tolist()},
        )
        for i, (p, label) in enumerate(zip(probabilities, labels, strict=True))
    ]


def exclusive(number, classes, seed=0, strength=1.5):
    """Labels and probabilities of a classifier that knows something."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=number)
    logits = generator.normal(size=(number, classes)) + strength * np.eye(classes)[labels]
    return softmax(logits), labels


def findings(number, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random((number, classes)) < [0.5, 0.2, 0.05][:classes]).astype(int)
    return 1 / (1 + np.exp(-(generator.normal(size=(number, classes)) * 2 + 2 * labels - 1))), labels


def row_zero(which, records):
    sums = which.sums(records, np.ones((1, len(records))))
    return {name: values[0] for name, values in which.metrics(sums).items()}


@pytest.mark.parametrize("number", [30, 624, 5000])
def test_binary_ranking_matches_scikit_learn(number):
    probabilities, labels = exclusive(number, 2)
    metrics = row_zero(BINARY, records_of(probabilities, labels))
    assert metrics["auroc"] == metrics["auroc/k1"] and "auroc/k0" not in metrics
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=0.002)
    exact = average_precision_score(labels, probabilities[:, 1])
    assert metrics["average_precision"] == pytest.approx(exact, abs=0.002)
    predicted = probabilities.argmax(axis=1)
    assert metrics["accuracy"] == pytest.approx((predicted == labels).mean())
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["brier"] == pytest.approx(((probabilities[:, 1] - labels) ** 2).mean(), abs=1e-6)


def test_multi_class_ranking_matches_scikit_learn():
    probabilities, labels = exclusive(800, 4)
    metrics = row_zero(MULTI_CLASS, records_of(probabilities, labels))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=0.002)
    for k in range(4):
        exact = average_precision_score(labels == k, probabilities[:, k])
        assert metrics[f"average_precision/k{k}"] == pytest.approx(exact, abs=0.002)


def test_findings_match_scikit_learn():
    probabilities, labels = findings(1000)
    metrics = row_zero(FINDINGS, records_of(probabilities, labels))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=0.002)
    assert metrics["average_precision"] == pytest.approx(average_precision_score(labels, probabilities), abs=0.002)
    predicted = probabilities >= 0.5
    assert metrics["accuracy"] == pytest.approx((predicted == labels).mean())
    by_finding = [balanced_accuracy_score(labels[:, k], predicted[:, k]) for k in range(3)]
    assert metrics["balanced_accuracy"] == pytest.approx(np.mean(by_finding))


def barely_trained(number, spread, level, seed):
    """Labels and probabilities of a model that gives all images nearly the same log-odds, as single precision."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=number)
    log_odds = level + spread * (generator.normal(size=number) + labels)
    p = (1 / (1 + np.exp(-log_odds))).astype(np.float32).astype(float)
    return np.stack([1 - p, p], axis=1), labels


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.1, 0.3])
def test_ranking_is_right_although_all_images_have_nearly_the_same_probability(spread):
    for seed, level in enumerate([-5.5, -1.2, 0.0, 0.51, 1.27, 2.29, 6.5]):
        probabilities, labels = barely_trained(600, spread, level, seed)
        metrics = row_zero(BINARY, records_of(probabilities, labels))
        assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=0.002)
        exact = average_precision_score(labels, probabilities[:, 1])
        assert metrics["average_precision"] == pytest.approx(exact, abs=0.005)


def test_interval_of_a_barely_trained_model_is_that_of_its_exact_ranking():
    probabilities, labels = barely_trained(400, 0.01, 0.5, seed=0)
    records = records_of(probabilities, labels)
    weights = replicate_weights([record.patient for record in records], 100, seed=1)
    sums = BINARY.sums(records, weights)
    exact = [roc_auc_score(labels, probabilities[:, 1], sample_weight=times) for times in weights]
    np.testing.assert_allclose(BINARY.metrics(sums)["auroc"], exact, atol=0.003)
    roc = BINARY.curves(sums)["roc"]["k1"]
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(exact[0], abs=0.005)


def test_a_few_confident_answers_do_not_hide_the_order_of_the_rest():
    probabilities, labels = barely_trained(600, 0.02, 0.5, seed=0)
    confident = np.arange(600) % 20 == 0
    probabilities[confident, 1] = np.where(labels[confident], 0.99, 0.02)
    probabilities[:, 0] = 1 - probabilities[:, 1]
    metrics = row_zero(BINARY, records_of(probabilities, labels))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=0.01)


def test_ties_count_half_and_certainty_is_a_probability_too():
    assert row_zero(BINARY, records_of(np.full((9, 2), 0.5), [0, 1, 0, 1, 0, 1, 0, 1, 0]))["auroc"] == 0.5
    certain = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert row_zero(BINARY, records_of(certain, [0, 1, 0, 1]))["auroc"] == 1.0
    assert row_zero(BINARY, records_of(certain, [1, 0, 1, 0]))["auroc"] == 0.0


def test_calibration_error_is_near_zero_for_honest_and_large_for_boastful_probabilities():
    generator = np.random.default_rng(0)
    p = generator.random(20000)
    labels = (generator.random(20000) < p).astype(int)
    honest = np.stack([1 - p, p], axis=1)
    assert row_zero(BINARY, records_of(honest, labels))["calibration_error"] < 0.015
    assert row_zero(task(1, "multi_label"), records_of(p[:, None], labels[:, None]))["calibration_error"] < 0.015
    boastful = np.where(honest > 0.5, 0.99, 0.01)
    assert row_zero(BINARY, records_of(boastful, labels))["calibration_error"] == pytest.approx(0.24, abs=0.02)


def test_calibration_error_is_the_weighted_gap_over_fifteen_bins():
    probabilities, labels = exclusive(500, 4)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 16)
    expected = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    error = row_zero(MULTI_CLASS, records_of(probabilities, labels))["calibration_error"]
    assert error == pytest.approx(expected, abs=1e-6)


def test_a_probability_on_an_edge_belongs_to_the_bin_below_it():
    probabilities = np.array([[3 / 15], [2.5 / 15], [3.5 / 15]])  # right, wrong, wrong: of two bins, not of one
    records = records_of(probabilities, np.array([[1], [0], [0]]))
    edge = abs((3 / 15 + 2.5 / 15) - 1) + 3.5 / 15
    assert row_zero(task(1, "multi_label"), records)["calibration_error"] == pytest.approx(edge / 3, abs=1e-6)


@pytest.mark.parametrize("which", [BINARY, MULTI_CLASS, FINDINGS])
def test_weights_act_like_repeated_cases(which):
    probabilities, labels = findings(40) if which is FINDINGS else exclusive(40, which.outputs)
    records = records_of(probabilities, labels, patients=[f"p{i // 3}" for i in range(40)])
    weights = replicate_weights([record.patient for record in records], 5, seed=2)
    sums = which.sums(records, weights)
    for row, times in enumerate(weights.astype(int)):
        repeated = [record for record, n in zip(records, times, strict=True) for _ in range(n)]
        expected = which.sums(repeated, np.ones((1, len(repeated))))
        for name in set(sums) - {"patients"}:
            assert np.array_equal(sums[name][row], expected[name][0]), name
    assert (sums["patients"] == 14).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([BINARY, MULTI_CLASS, FINDINGS]), st.integers(0, 60), st.integers(1, 5), st.integers(0, 99))
def test_pooled_sums_and_metrics_are_those_of_all_cases_bit_for_bit(which, number, sites, seed):
    probabilities, labels = findings(number, seed=seed) if which is FINDINGS else exclusive(number, which.outputs, seed)
    records = records_of(probabilities, labels)
    site_of = np.random.default_rng(seed).integers(sites, size=number)
    by_site = [[r for r, own in zip(records, site_of, strict=True) if own == site] for site in range(sites)]
    sums = [which.sums(own, np.ones((1, len(own)))) for own in by_site]
    everything = which.sums(records, np.ones((1, number)))
    for order in (sums, sums[::-1]):
        together = pooled(order)
        assert set(together) == set(everything)
        assert all(np.array_equal(together[name], everything[name]) for name in everything)
    metrics, expected = which.metrics(pooled(sums)), which.metrics(everything)
    assert all(np.array_equal(metrics[name], expected[name], equal_nan=True) for name in expected)


def test_sites_with_one_class_each_pool_to_the_auroc_of_all():
    probabilities, labels = exclusive(200, 2)
    records = records_of(probabilities, labels)
    sums = []
    for kind in (0, 1):
        own = [record for record, label in zip(records, labels, strict=True) if label == kind]
        weights = replicate_weights([record.patient for record in own], 300, seed=kind)
        sums.append(BINARY.sums(own, weights))
        alone = BINARY.metrics(sums[-1])
        assert np.isnan(alone["auroc"]).all() and BINARY.counts(sums[-1])["auroc"] == 0
        assert interval(alone["auroc"]).why and np.isfinite(alone["accuracy"]).all()
    together = BINARY.metrics(pooled(sums))
    result = interval(together["auroc"])
    assert result.value == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=0.002)
    assert result.low < result.value < result.high


def test_class_that_no_case_has_is_left_out_of_the_mean():
    probabilities, labels = exclusive(300, 4)
    kept = labels != 2
    records = records_of(probabilities[kept], labels[kept])
    sums = MULTI_CLASS.sums(records, np.ones((1, len(records))))
    metrics, counts = MULTI_CLASS.metrics(sums), MULTI_CLASS.counts(sums)
    assert np.isnan(metrics["auroc/k2"][0]) and counts["auroc/k2"] == 0
    assert metrics["auroc"][0] == pytest.approx(np.mean([metrics[f"auroc/k{k}"][0] for k in (0, 1, 3)]))
    assert np.isfinite(metrics["balanced_accuracy"][0]) and counts["auroc"] == kept.sum()
    assert "k2" not in MULTI_CLASS.curves(sums)["roc"]


@pytest.mark.parametrize("which", [BINARY, MULTI_CLASS, FINDINGS])
def test_the_only_case_of_a_class_gives_no_interval_to_a_mean_over_classes(which):
    """Every third replicate lacks that case, and would have the mean over the other classes."""
    labels = np.arange(30) % (which.outputs - 1)
    labels[0] = which.outputs - 1
    logits = np.random.default_rng(0).normal(size=(30, which.outputs))
    if which is FINDINGS:
        labels, probabilities = np.eye(3, dtype=int)[labels], 1 / (1 + np.exp(-logits))
    else:
        probabilities = softmax(logits)
    metrics = which.metrics(
        which.sums(records_of(probabilities, labels), replicate_weights([f"p{i}" for i in range(30)], 200, seed=0))
    )
    for name in ("auroc", "average_precision", "balanced_accuracy"):
        found = interval(metrics[name], 30)
        assert found.value is not None and found.low is None and "too few cases of a class" in found.why
    assert interval(metrics["accuracy"], 30).low is not None


def test_patients_of_one_class_have_no_balanced_accuracy():
    """It would be 1 for who always says that class."""
    probabilities = np.tile([0.9, 0.1], (12, 1))
    metrics = BINARY.metrics(BINARY.sums(records_of(probabilities, np.zeros(12, int)), np.ones((3, 12))))
    assert np.isnan(metrics["balanced_accuracy"]).all() and (metrics["accuracy"] == 1).all()


def test_better_model_is_better_with_certainty_although_intervals_overlap():
    probabilities, labels = exclusive(150, 2, strength=1.0)
    generator = np.random.default_rng(1)
    worse = softmax(np.log(probabilities) + generator.normal(size=probabilities.shape) * 0.7)
    patients = [f"p{i}" for i in range(150)]
    weights = replicate_weights(patients, 500, seed=1)
    a, b = (
        BINARY.metrics(BINARY.sums(records_of(p, labels, patients), weights))["auroc"] for p in (probabilities, worse)
    )
    paired = difference(a, b)
    assert paired.value == pytest.approx(a[0] - b[0])
    assert paired.high - paired.low < (interval(a).high - interval(a).low)


def test_curves_can_be_drawn():
    probabilities, labels = exclusive(3000, 2)
    curves = BINARY.curves(BINARY.sums(records_of(probabilities, labels), np.ones((1, 3000))))
    roc = curves["roc"]["k1"]
    assert (roc["fpr"][0], roc["tpr"][0], roc["fpr"][-1], roc["tpr"][-1]) == (0, 0, 1, 1)
    assert len(roc["fpr"]) == len(roc["tpr"]) <= 200
    assert np.trapezoid(roc["tpr"], roc["fpr"]) == pytest.approx(roc_auc_score(labels, probabilities[:, 1]), abs=0.005)
    reliability = curves["reliability"]
    assert sum(reliability["n"]) == 3000 and min(reliability["confidence"]) >= 0.5
    assert all(0 <= share <= 1 for share in reliability["observed"])
    json.dumps(curves, allow_nan=False)


def test_site_without_cases_gives_empty_sums_and_curves():
    for which in (BINARY, FINDINGS):
        sums = which.sums([], replicate_weights([], 3, seed=0))
        assert all(np.isnan(values).all() for values in which.metrics(sums).values())
        assert which.curves(sums) == {"roc": {}, "reliability": {"confidence": [], "observed": [], "n": []}}


def test_loss_takes_either_kind_of_label():
    logits = torch.tensor([[9.0, -9.0, -9.0], [-9.0, 9.0, -9.0]])
    assert task(3).loss(logits, torch.tensor([0, 1])).item() < 1e-3
    assert FINDINGS.loss(logits.bfloat16(), torch.tensor([[1.0, 0, 0], [0, 1, 0]])).item() < 1e-3
    assert FINDINGS.loss(logits, torch.tensor([[0, 1, 0], [0, 1, 0]])).item() > 1


@pytest.mark.parametrize("which", [MULTI_CLASS, FINDINGS])
def test_inference_centres_images_of_any_size(job_for, which):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, which.outputs), nn.Dropout(0.9))

        def forward(self, images):
            assert images.shape[2:] == (8, 8)
            return self.layers(images)

    torch.manual_seed(0)
    network, job = Network(), job_for({"kind": "classification", "classes": which.classes})
    images = torch.randn(5, 1, 8, 8)
    probabilities = which.infer(network, images, job)
    assert probabilities.shape == (5, which.outputs) and not probabilities.requires_grad
    if which.single:
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))
    larger = nn.functional.pad(images, (2, 2, 3, 3), value=7.0)
    torch.testing.assert_close(which.infer(network, larger, job), probabilities)
    torch.testing.assert_close(which.infer(network, images[1:2], job), probabilities[1:2])
    assert which.infer(network, images[:, :, 1:6, 2:4], job).shape == (5, which.outputs)


def test_judging_keeps_probabilities_and_label():
    sample = {"id": "c1", "patient": "p1", "label": torch.tensor(1)}
    record = BINARY.judge(torch.tensor([0.25, 0.75]), sample)
    assert record == CaseRecord("c1", "p1", {"probabilities": [0.25, 0.75], "label": [1.0]})
    assert CaseRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
    several = FINDINGS.judge(torch.tensor([0.1, 0.2, 0.3]), sample | {"label": torch.tensor([1.0, 0.0, 1.0])})
    assert several.values["label"] == [1, 0, 1]
    with pytest.raises(BadInput, match=r"c1.*not finite"):
        BINARY.judge(torch.tensor([torch.nan, 0.5]), sample)
    with pytest.raises(BadInput, match=r"c1.*single_label task with 2 classes"):
        BINARY.judge(torch.tensor([0.25, 0.75]), sample | {"label": torch.tensor(2)})
    with pytest.raises(BadInput, match=r"c1.*multi_label"):
        FINDINGS.judge(torch.tensor([0.1, 0.2, 0.3]), sample)


def with_loss(mode, **options):
    section = ClassificationTask(kind="classification", classes=["a", "b"], mode=mode, **options)
    return Classification(section).loss


def test_a_case_counts_by_the_weight_of_its_class():
    # softmax of (0, ln 3) is (1/4, 3/4)
    logits = torch.tensor([[0.0, np.log(3)], [0.0, np.log(3)]]).float()
    loss = with_loss("single_label", class_weights=[1.0, 3.0])(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((1 * np.log(4) + 3 * np.log(4 / 3)) / (1 + 3))
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx(expected.item())


def test_a_positive_finding_counts_by_its_weight():
    # the sigmoid of ln 3 is 3/4
    logits, label = torch.tensor([[np.log(3), np.log(3)]]).float(), torch.tensor([[1.0, 0.0]])
    loss = with_loss("multi_label", class_weights=[5.0, 7.0])(logits, label)
    assert loss.item() == pytest.approx((5 * np.log(4 / 3) + 1 * np.log(4)) / (5 + 1))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_counts_less_what_is_certain_already(gamma):
    logits = torch.tensor([[0.0, np.log(3)], [0.0, np.log(3)]]).float()
    one = with_loss("single_label", focal_gamma=gamma)(logits, torch.tensor([0, 1]))
    terms = (3 / 4) ** gamma * np.log(4), (1 / 4) ** gamma * np.log(4 / 3)
    assert one.item() == pytest.approx(sum(terms) / 2)
    both = with_loss("single_label", focal_gamma=gamma, class_weights=[1.0, 3.0])(logits, torch.tensor([0, 1]))
    assert both.item() == pytest.approx((terms[0] + 3 * terms[1]) / 4)
    findings = with_loss("multi_label", focal_gamma=gamma)(logits[:1, 1:].repeat(1, 2), torch.tensor([[0.0, 1.0]]))
    assert findings.item() == pytest.approx(sum(terms) / 2)


def test_a_focal_loss_of_what_is_certain_has_a_gradient_that_is_a_number():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    with_loss("single_label", focal_gamma=0.5)(logits, torch.tensor([0])).backward()
    assert logits.grad.isfinite().all()
