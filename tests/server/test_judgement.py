"""Differences and values over all hospitals: of one model for all, and of models that each has its own of."""

import numpy as np
import pytest

from server import judgement
from server.baselines import keep_rankings
from server.checkpoint import RunState
from server.evenness import subgroups
from server.events import EventLog, read_events
from server.judgement import judge, undefined
from server.participation import Site
from shared_models.job import Job
from shared_models.subgroups import PREFIX
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
ONE_MODEL = {"federation": {"rounds": 1}}
AT_HOME = [
    {"federation": {"rounds": 1, "algorithm": {"name": "fedper"}}},
    {"federation": {"rounds": 1, "algorithm": {"name": "fedbn"}}, "model": {"name": "cnn", "normalisation": "batch"}},
    {"federation": {"rounds": 1, "algorithm": {"name": "silobn"}}, "model": {"name": "cnn", "normalisation": "batch"}},
    {"federation": {"rounds": 1, "share": {"heads": "nothing"}}},
]
LABELS = {"north": [1, 1, 1, 0, 1, 1, 0, 1], "south": [0, 0, 0, 1, 0, 0, 1, 0]}


def job(changes):
    return Job.model_validate(JOB.model_dump(mode="json", exclude={"federation"}) | changes)


def sums_of(site, ill, labels=None):
    """Metric sums of a site where the model gave these probabilities of being ill."""
    records = [
        CaseRecord(f"c{i}", f"p{i}", {"probabilities": [1 - p, p], "label": [float(label)]})
        for i, (p, label) in enumerate(zip(ill, LABELS[site] if labels is None else labels, strict=True))
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


def noise(patients=60):
    """Scores that say nothing of a patient, and all of how many are ill at the hospital: 90, 50 or 10 of 100."""
    rng = np.random.default_rng(3)
    of = {"a": 0.9, "b": 0.5, "c": 0.1}
    return {
        site: sums_of(site, share + rng.uniform(-0.05, 0.05, patients), rng.random(patients) < share)
        for site, share in of.items()
    }


@pytest.mark.parametrize("changes", AT_HOME)
def test_layers_at_home_earn_nothing_by_telling_the_hospital(changes):
    """The scores of one model of all hospitals may be ranked together, those of hospitals' own models may not."""
    together, apart = (judge(job(of), {"federated": noise()}) for of in (ONE_MODEL, changes))
    assert value(together["models"]["federated"]["all"]["auroc"]) > 0.75
    found = apart["models"]["federated"]
    at_home = [value(found[site]["auroc"]) for site in "abc"]
    assert value(found["all"]["auroc"]) == pytest.approx(np.mean(at_home)) and max(at_home) < 0.7
    assert found["all"]["auroc"]["low"] < 0.5 < found["all"]["auroc"]["high"] and found["all"]["auroc"]["n"] == 180
    assert found["all"]["average_precision/ill"] != together["models"]["federated"]["all"]["average_precision/ill"]
    assert found["all"]["brier"] == together["models"]["federated"]["all"]["brier"]  # a mean over cases
    balanced = np.mean([value(found[site]["balanced_accuracy"]) for site in "abc"])
    assert value(found["all"]["balanced_accuracy"]) == pytest.approx(balanced, abs=1e-6) and balanced < 0.6
    assert value(together["models"]["federated"]["all"]["balanced_accuracy"]) > 0.65
    # What a model of all hospitals can be held by against it.
    of_one_model = together["mean_over_hospitals"]["federated"]
    assert of_one_model["auroc"] == found["all"]["auroc"] and not apart["mean_over_hospitals"]


def test_nor_do_they_in_a_group_of_patients():
    def found(changes):
        women = job({**changes, "evaluation": {"bootstrap": 50, "subgroups": {"sex": ["F"]}}})
        by_site = {
            site: sums | {PREFIX + name: np.stack([row, 0 * row], axis=1) for name, row in sums.items()}
            for site, sums in noise().items()
        }
        return subgroups(women, by_site, {})[0]["metrics"]["auroc"]

    at_home = [task_of(JOB).metrics(sums)["auroc"][0] for sums in noise().values()]
    assert value(found(ONE_MODEL)) > 0.75
    assert value(found(AT_HOME[0])) == pytest.approx(np.mean(at_home)) and max(at_home) < 0.7


@pytest.mark.parametrize(("other", "name"), [("pooled", "federated-pooled"), ("ensemble", "ensemble-federated")])
def test_a_model_with_layers_at_home_is_held_against_one_model_hospital_by_hospital(other, name):
    models = {"federated": TUNED, other: FEDERATED}
    sums = {model: {site: sums_of(site, ill) for site, ill in given.items()} for model, given in models.items()}
    rows = judge(job(AT_HOME[0]), sums)["differences"][name]
    gaps = [value(rows[site]["auroc"]) for site in LABELS]
    assert value(rows["all"]["auroc"]) == pytest.approx(np.mean(gaps))
    ranked_together = judge(job(ONE_MODEL), sums)["differences"][name]
    assert abs(value(ranked_together["all"]["auroc"]) - value(rows["all"]["auroc"])) > 0.05


def test_where_each_hospital_has_one_class_models_of_their_own_have_no_ranking():
    sums = {"federated": {"a": sums_of("a", [0.9] * 8, [1] * 8), "b": sums_of("b", [0.1] * 8, [0] * 8)}}
    found = judge(job(AT_HOME[0]), sums)
    assert value(found["models"]["federated"]["all"]["auroc"]) is None
    assert undefined(found).endswith("so there is none over all")
    assert value(judge(job(ONE_MODEL), sums)["models"]["federated"]["all"]["auroc"]) == 1


def test_whether_a_hospital_without_a_value_counts_over_all_is_said():
    sums = {"federated": noise() | {"d": sums_of("d", [0.5] * 8, [0] * 8)}}
    apart, together = judge(job(AT_HOME[0]), sums), judge(job(ONE_MODEL), sums)
    assert apart["models"]["federated"]["all"]["auroc"]["n"] == 180
    assert together["models"]["federated"]["all"]["auroc"]["n"] == 188
    assert undefined(apart).endswith("do not count in the AUROC over all, which is the mean over the others")
    assert undefined(together).endswith("these hospitals count in the AUROC over all")


ONE_CASE = {"d": [1, *[0] * 29]}
"""A hospital with a single ill patient: whatever its AUROC is, redrawing often loses the patient."""


def test_anomalies_are_ranked_at_home_where_hospitals_keep_models_of_their_own():
    changes = {"task": {"kind": "anomaly", "classes": ["healthy", "ill"]}, "model": {"name": "vae"}}
    asked = Job.model_validate(JOB.model_dump(mode="json", exclude={"task", "model"}) | changes)

    def sums(site, scores):
        records = [
            CaseRecord(f"c{i}", f"p{i}", {"error": [score], "label": [float(label)]})
            for i, (score, label) in enumerate(zip(scores, LABELS[site], strict=True))
        ]
        return task_of(asked).sums(records, replicate_weights([r.patient for r in records], 50, seed=1))

    both = {site: sums(site, ill) for site, ill in FEDERATED.items()}
    evaluations = judge(asked, {"federated": both, "kept": both})
    kept = evaluations["models"]["kept"]
    mean = np.mean([kept[site]["auroc"]["value"] for site in LABELS])
    assert kept["all"]["auroc"]["value"] == pytest.approx(mean)
    assert evaluations["curves"]["kept"]["all"]["roc"]["all but healthy"]["tpr"][-1] == 1


def test_over_all_may_be_of_the_cases_of_other_hospitals_and_no_mean():
    """As of a translation, where a hospital has images of one domain only."""
    metrics = {"psnr": {"label": "PSNR", "headline": True}}
    rows = {"north": {"psnr": {"value": 20.0, "n": 8}}, "south": {"psnr": {"value": None, "n": 0, "why": "undefined"}}}
    found = {"metrics": metrics, "models": {"federated": rows | {"all": {"psnr": {"value": 20.0, "n": 8}}}}}
    said = "PSNR has no value at south (undefined); the PSNR over all is of the cases of the others"
    assert undefined(found) == said


def test_a_hospital_whose_value_has_no_interval_is_in_no_mean():
    federated = noise() | {"d": sums_of("d", [0.1, *[0.5] * 29], ONE_CASE["d"])}
    own = noise() | {"d": sums_of("d", [0.9, *[0.5] * 29], ONE_CASE["d"])}
    sums = {"federated": federated} | {f"local:{site}": {site: of} for site, of in own.items()}
    found = judge(job(AT_HOME[0]), sums)
    at = found["models"]["federated"]
    assert (value(at["d"]["auroc"]), at["d"]["auroc"]["low"]) == (0.0, None)
    assert value(at["all"]["auroc"]) == pytest.approx(np.mean([value(at[site]["auroc"]) for site in "abc"]))
    assert at["all"]["auroc"]["low"] is not None and at["all"]["auroc"]["n"] == 180
    assert (at["all"]["auroc"]["hospitals"], at["all"]["auroc"]["of"]) == (3, 4)
    difference = found["differences"]["federated-local"]
    assert value(difference["d"]["auroc"]) == pytest.approx(-1, abs=0.01)
    assert {key: difference["all"]["auroc"][key] for key in ("value", "low", "high", "hospitals", "of")} == {
        "value": 0, "low": 0, "high": 0, "hospitals": 3, "of": 4,
    }  # fmt: skip
    assert difference["all"]["brier"]["hospitals"] == 4  # of which every hospital has an interval
    curve = found["curves"]["federated"]["all"]["roc"]["ill"]
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(value(at["all"]["auroc"]), abs=0.01)


def test_where_no_hospital_has_an_interval_all_with_a_value_count():
    few = {site: sums_of(site, [0.1, *[0.5] * 29], ONE_CASE["d"]) for site in "ab"}
    overall = judge(job(AT_HOME[0]), {"federated": few})["models"]["federated"]["all"]["auroc"]
    assert (overall["value"], overall["low"], overall["hospitals"], overall["of"]) == (0, None, 2, 2)


def test_a_temperature_changes_no_ranking():
    squeezed = {site: [0.5 + (p - 0.5) * 1e-4 for p in ill] for site, ill in FEDERATED.items()}
    models = {"federated": FEDERATED, "temperature-scaled": squeezed}
    sums = {model: {site: sums_of(site, ill) for site, ill in given.items()} for model, given in models.items()}
    keep_rankings(JOB, sums)
    difference = judge(JOB, sums)["differences"]["temperature-scaled-federated"]
    for place in (*LABELS, "all"):
        for name in ("auroc", "average_precision"):
            assert [difference[place][name][key] for key in ("value", "low", "high")] == [0, 0, 0]
    assert value(difference["all"]["brier"]) > 0


def test_metrics_that_lack_a_value_where_the_main_one_does_are_named_with_it():
    found = judge(job(ONE_MODEL), {"federated": noise() | {"d": sums_of("d", [0.5] * 8, [0] * 8)}})
    assert undefined(found).startswith("AUROC has no value at d (")
    assert "), nor have Average precision and Balanced accuracy; these hospitals" in undefined(found)
    found["models"]["federated"]["d"]["average_precision"] |= {"value": 0.5}
    assert "), nor has Balanced accuracy; these hospitals" in undefined(found)


def test_the_roc_curve_of_hospitals_own_models_has_the_area_that_is_told():
    found = judge(job(AT_HOME[0]), {"federated": noise()})
    curve = found["curves"]["federated"]["all"]["roc"]["ill"]
    area = np.trapezoid(curve["tpr"], curve["fpr"])
    assert area == pytest.approx(value(found["models"]["federated"]["all"]["auroc"]), abs=0.01)


@pytest.mark.parametrize(("changes", "best"), [(ONE_MODEL, 2), (AT_HOME[0], 1)])
def test_the_round_is_chosen_by_rankings_within_hospitals_where_layers_stay_at_home(
    tmp_path, monkeypatch, changes, best
):
    """The first round ranks each hospital's patients without a fault; the second one only tells the hospitals apart."""
    low = {"north": 0.2, "south": 0.6}
    within = {site: [low[site] + 0.2 * label for label in labels] for site, labels in LABELS.items()}
    sites = {site: Site(site, number, {"validation": 8}) for number, site in enumerate(LABELS)}
    state, events = RunState({}), EventLog(tmp_path / "events.jsonl")
    for number, given in enumerate((within, TUNED), 1):
        sums = {site: sums_of(site, ill) for site, ill in given.items()}
        monkeypatch.setattr(judgement, "collect", lambda *rest, sums=sums: sums)
        state.round = number
        judgement.validate(None, sites, job(changes), state, events)
    assert state.best_round == best
    told = [event["metrics"]["auroc"] for event in read_events(tmp_path / "events.jsonl")]
    assert told == pytest.approx([1.0, 0.5] if best == 1 else [28 / 64, 0.75])
