"""`consilium compare`: runs in one table, with what differs between them, and tests that mean what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from server.report.comparison import compare_runs
from server.report.comparison_labels import Settings, differing, labels, settings_of
from server.report.comparison_page import write_comparison
from server.report.comparison_tests import holm, over_patients, over_seeds, same_cases, value_of
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import CaseRecord, task_of
from tests.server.compared_runs import class_cases, dice_cases, dice_of, finished, variant
from tests.server.fabricated_run import everywhere_helped

FEDPROX = {"algorithm": {"name": "fedprox", "mu": 0.01}}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a finished run with a Dice for each patient."""

    def make(name: str, values: dict[str, float], seed: int = 7, **federation: Any) -> Path:
        return finished(tmp_path / name, variant(seed=seed, **federation), dice_cases(values))

    return make


def names_of(*federations: dict[str, Any]) -> list[str]:
    return labels(differing([settings_of(variant(**federation)) for federation in federations]))


def test_the_label_says_what_differs_and_nothing_else():
    assert names_of({}, FEDPROX) == ["algorithm.name=fedavg", "algorithm.name=fedprox"]
    assert names_of({}, {"rounds": 3}) == ["federation.rounds=8", "federation.rounds=3"]
    assert names_of({}) == ["algorithm.name=fedavg"]


def simulated(**made: Any) -> Settings:
    """The settings of a job on virtual hospitals."""
    simulation = {"dataset": {"name": "phantom"}, "partition": {"name": "iid"}, "hospitals": 6, **made}
    return settings_of(Job.model_validate(variant().model_dump(mode="json") | {"simulation": simulation}))


SIGN_FLIP = {"hospital-2": {"kind": "sign_flip", "strength": 5}}


def test_an_attack_is_in_the_label_whatever_else_tells_the_runs_apart():
    honest, attacked = simulated(hospitals=4), simulated(hospitals=5, faulty=SIGN_FLIP)
    assert labels(differing([honest, attacked])) == ["hospitals=4", "hospitals=5, faulty={hospital-2: sign_flip}"]
    alike = [simulated(), simulated(faulty=SIGN_FLIP)]
    assert labels(differing(alike)) == ["faulty=none", "faulty={hospital-2: sign_flip}"]
    many = [{f"hospital-{n}": {"kind": "noise", "strength": strength} for n in range(20)} for strength in (1, 2)]
    assert labels(differing([simulated(faulty=faulty) for faulty in many])) == [
        "faulty={20 hospitals: noise (strength=1.0)}",
        "faulty={20 hospitals: noise (strength=2.0)}",
    ]
    stronger = {"hospital-2": {"kind": "sign_flip", "strength": 9}}
    assert labels(differing([alike[1], simulated(faulty=stronger)])) == [
        "faulty={hospital-2: sign_flip (strength=5.0)}",
        "faulty={hospital-2: sign_flip (strength=9.0)}",
    ]


@pytest.mark.parametrize(
    ("made", "label"),
    [
        ({"scanners": {"set": "mild"}}, "scanners=mild"),
        (
            {"scanners": {"by_hospital": {"hospital-3": [{"kind": "blur"}, {"kind": "gamma"}]}}},
            "scanners={hospital-3: blur+gamma}",
        ),
        ({"annotators": {"hospital-1": {"mislabelled": 0.3}}}, "annotators={hospital-1: mislabelled=0.3}"),
        ({"participation": {"hospital-1": {"answers": 0.5}}}, "participation={hospital-1: answers=0.5}"),
        ({"missing_classes": {"hospital-1": ["anterior"]}}, "missing_classes={hospital-1: anterior}"),
        ({"partly_labelled": "rotate"}, "partly_labelled=rotate"),
        (
            {"faulty": {f"hospital-{n}": {"kind": "noise"} for n in range(1, 5)}},
            "faulty={4 hospitals: noise}",
        ),
    ],
)
def test_what_a_simulation_makes_of_its_hospitals_is_never_dropped(made: dict[str, Any], label: str):
    """However much else differs, which is cut instead."""
    plain = simulated() | {f"data.key_{place}": 0 for place in range(9)}
    other = simulated(**made) | {f"data.key_{place}": 1 for place in range(9)}
    assert label in labels(differing([plain, other]))[1]
    assert "more settings" in labels(differing([plain, other]))[1]


def test_the_keys_that_a_sweep_varies_are_said_of_its_one_survivor():
    keys = ["training.optimizer.learning_rate", "simulation.faulty.hospital-2.strength"]
    found = differing([simulated(faulty=SIGN_FLIP)], keys)
    assert labels(found) == ["optimizer.learning_rate=0.001, faulty={hospital-2: sign_flip (strength=5.0)}"]


def test_a_parameter_of_one_algorithm_is_in_the_label_where_it_tells_runs_apart():
    stronger = {"algorithm": {"name": "fedprox", "mu": 0.1}}
    assert names_of({}, FEDPROX, stronger) == [
        "algorithm.name=fedavg",
        "algorithm.name=fedprox (mu=0.01)",
        "algorithm.name=fedprox (mu=0.1)",
    ]


def test_what_the_algorithm_keeps_at_home_is_said_by_its_name_alone():
    assert names_of({}, {"algorithm": {"name": "fedbn"}}) == ["algorithm.name=fedavg", "algorithm.name=fedbn"]


def test_keys_with_the_same_end_are_told_apart():
    one = {"algorithm.server_optimizer.name": "adam", "training.optimizer.name": "sgd", "a.optimizer.name": "x"}
    other = {"algorithm.server_optimizer.name": "none", "training.optimizer.name": "adam", "a.optimizer.name": "y"}
    assert labels(differing([one, other]))[0] == (
        "server_optimizer.name=adam, training.optimizer.name=sgd, a.optimizer.name=x"
    )


def test_a_null_is_in_the_label_only_where_nothing_else_tells_the_runs_apart():
    assert labels([{"model.normalisation": "batch"}, {"model.normalisation": None}]) == [
        "model.normalisation=batch",
        "model.normalisation=null",
    ]
    one = {"model.normalisation": "batch", "federation.rounds": 3}
    assert labels([one, {"model.normalisation": None, "federation.rounds": 5}])[1] == "federation.rounds=5"


def test_the_label_of_runs_that_are_all_unlike_stays_short_and_its_own():
    jobs = [{f"data.key_{place}": value + place for place in range(9)} for value in (0, 10)]
    shown = ["data.key_0=0, data.key_1=1, data.key_2=2, data.key_3=3, data.key_4=4, 4 more settings"]
    assert labels(jobs)[:1] == shown and labels(jobs)[1].startswith("data.key_0=10, ")
    in_the_rest = labels([jobs[0], jobs[0] | {"data.key_8": 80}])
    assert in_the_rest[0].endswith("data.key_8=8") and in_the_rest[1].endswith("data.key_8=80")


def test_a_key_that_only_some_jobs_have_tells_them_apart():
    """Unless a name that differs accounts for it."""
    assert labels(differing([{"a.b": 1, "a.c": 2}, {"a.b": 1}])) == ["a.c=2", "a.c not set"]


def test_runs_that_differ_in_the_seed_alone_are_one_method(run):
    means = (0.80, 0.82, 0.87)
    runs = [run(f"s{seed}", dice_of(mean, spread=0.01), seed) for seed, mean in enumerate(means)]
    (method,) = compare_runs(runs)["methods"]
    values = [one["value"] for one in method["runs"]]
    assert method["seeds"] == [0, 1, 2]
    assert method["value"] == pytest.approx(np.mean(values)) and method["sd"] == pytest.approx(np.std(values, ddof=1))
    assert method["low"] < method["value"] < method["high"] and method["n"] == 40


def test_the_numbers_of_a_method_are_those_of_its_run(run):
    (method,) = compare_runs([run("a", dice_of(0.8))])["methods"]
    (one,) = method["runs"]
    by_hospital = {name: row["value"] for name, row in one["hospitals"].items() if name != "all"}
    worst = min(by_hospital, key=by_hospital.__getitem__)
    told = method["worst"]
    assert {key: told[key] for key in ("value", "low", "high", "n")} == {
        key: one["hospitals"][worst][key] for key in ("value", "low", "high", "n")
    }
    assert told["hospitals"] == [worst] and told["low"] < told["value"] < told["high"]
    assert method["spread"]["value"] == pytest.approx(max(by_hospital.values()) - min(by_hospital.values()))
    assert method["mean_of_hospitals"]["value"] == pytest.approx(np.mean(list(by_hospital.values())))
    assert method["spread"]["hospitals"] == method["mean_of_hospitals"]["hospitals"] == 2
    assert method["rounds"] == 8 and method["seconds"] == pytest.approx(8 * 9.4)


def test_differences_from_the_baselines_are_taken_from_the_run(tmp_path: Path):
    (method,) = compare_runs([everywhere_helped(tmp_path / "a")])["methods"]
    assert method["minus_local"]["value"] == pytest.approx(0.04)
    assert method["minus_pooled"]["value"] == pytest.approx(-0.004)


def test_a_small_but_steady_gain_is_found_and_noise_is_not(run):
    reference = run("a", dice_of(0.8))
    comparison = compare_runs(
        [
            reference,
            run("b", dice_of(0.8, gain=0.01, noise=0.005), **FEDPROX),
            run("c", dice_of(0.8, noise=0.03), rounds=3),
        ]
    )
    better, unclear = comparison["tests"]
    assert (better["verdict"], unclear["verdict"]) == ("better", "no clear difference")
    assert better["reference"] == "federation.rounds=8, algorithm.name=fedavg"
    assert better["patients"]["low"] > 0 and better["patients"]["p"] < better["patients"]["p_holm"] < 0.001
    assert unclear["patients"]["low"] < 0 < unclear["patients"]["high"]


def test_labels_with_commas_are_kept_apart_in_a_sentence(run):
    learning = {"patience": 3}
    runs = [
        run(str(n), dice_of(0.8), weighting=weighting, **FEDPROX, **learning)
        for n, weighting in enumerate(("cases", "equal"))
    ]
    plain = run("plain", dice_of(0.8))
    labels = [method["label"] for method in compare_runs([plain, *runs])["methods"]]
    assert all("," in label for label in labels[1:])
    (said,) = [text for text in compare_runs([plain, *runs])["answer"] if text.startswith("No clear difference")]
    assert said.endswith(f"on the same patients: {labels[1]}; {labels[2]}.")


def test_worse_is_said_where_smaller_is_better(run):
    runs = [run("a", dice_of(0.8)), run("b", dice_of(0.8, gain=-0.03, noise=0.01), **FEDPROX)]
    comparison = compare_runs(runs, metric="hd95")
    assert comparison["tests"][0]["patients"]["difference"] > 0
    assert comparison["tests"][0]["verdict"] == "worse"
    assert comparison["answer"][0].startswith("algorithm.name=fedavg has the best HD95")


def test_the_test_over_patients_is_wilcoxons_on_their_own_differences():
    ours, theirs = dice_of(0.8, gain=0.01, noise=0.02), dice_of(0.8)
    row = over_patients(task_of(variant()), "dice", [([dice_cases(ours)], [dice_cases(theirs)])])
    gaps = np.array([ours[patient] - theirs[patient] for patient in ours])
    assert row["test"] == "Wilcoxon signed-rank" and row["n"] == 40
    assert row["p"] == pytest.approx(stats.wilcoxon(gaps).pvalue, rel=1e-3)
    assert row["difference"] == pytest.approx(gaps.mean(), abs=1e-6)
    standard_error = gaps.std() / len(gaps) ** 0.5
    assert row["low"] == pytest.approx(gaps.mean() - 1.96 * standard_error, abs=0.25 * standard_error)
    assert row["high"] == pytest.approx(gaps.mean() + 1.96 * standard_error, abs=0.25 * standard_error)


def few_large_losses(gains: int, losses: int) -> dict[str, float]:
    """Beside a Dice of 0.8 for everybody: small gains, and a few patients whose organ is all but lost."""
    return {f"p{number:02d}": 0.82 if number < gains else 0.3 for number in range(gains + losses)}


@pytest.mark.parametrize(("gains", "losses"), [(28, 2), (52, 8)])
def test_there_is_no_verdict_where_most_patients_gain_and_the_mean_falls(run, gains, losses):
    """With 8 of 60 the interval of the mean lies below 0, and the p value of the ranks, which favour the gains, too."""
    ours = few_large_losses(gains, losses)
    comparison = compare_runs([run("a", dict.fromkeys(ours, 0.8)), run("b", ours, **FEDPROX)])
    (test,) = comparison["tests"]
    assert test["patients"]["p"] < 0.001 and test["patients"]["difference"] < 0
    assert (test["patients"]["high"] < 0) == (losses == 8)
    assert test["verdict"] == "no clear difference"
    assert any(
        sentence.startswith("For algorithm.name=fedprox, the mean and most patients disagree")
        for sentence in comparison["answer"]
    )


def test_where_ranks_and_mean_agree_nothing_is_said_of_single_patients(run):
    runs = [run("a", dice_of(0.8)), run("b", dice_of(0.8, gain=-0.03, noise=0.01), **FEDPROX)]
    comparison = compare_runs(runs)
    assert comparison["tests"][0]["verdict"] == "worse"
    assert not any("disagree" in sentence for sentence in comparison["answer"])


def test_over_several_seeds_a_patient_counts_once():
    ours, theirs = dice_of(0.8, gain=0.02, noise=0.02), dice_of(0.8)
    pair = ([dice_cases(ours)], [dice_cases(theirs)])
    once, thrice = (over_patients(task_of(variant()), "dice", [pair] * seeds) for seeds in (1, 3))
    assert once == thrice


def test_a_patient_with_several_cases_is_drawn_with_all_of_them():
    """Ten copies of each patient's case tell nothing new: the interval must not shrink."""
    ours, theirs = dice_cases(dice_of(0.8, gain=0.01, noise=0.03)), dice_cases(dice_of(0.8))
    copies = [
        [type(one)(f"{one.case}-{copy}", one.patient, one.values) for one in records for copy in range(10)]
        for records in (ours, theirs)
    ]
    task = task_of(variant())
    single = over_patients(task, "dice", [([ours], [theirs])])
    many = over_patients(task, "dice", [([copies[0]], [copies[1]])])
    assert many["high"] - many["low"] == pytest.approx(single["high"] - single["low"], rel=1e-6)
    assert many["p"] == pytest.approx(single["p"], rel=1e-6)


def test_a_ranking_that_no_patient_has_alone_is_tested_by_bootstrap():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=120)
    good = {
        f"p{i:03d}": (float(np.clip(0.5 + 0.3 * (t - 0.5) + rng.normal(0, 0.1), 0.01, 0.99)), t)
        for i, t in enumerate(truth)
    }
    poor = {name: (float(rng.uniform(0.01, 0.99)), t) for name, (_, t) in good.items()}
    task = task_of(variant("classification"))
    row = over_patients(task, "auroc", [([class_cases(good)], [class_cases(poor)])])
    assert row["test"] == "paired bootstrap"
    assert 0.2 < row["low"] < row["difference"] < row["high"] and row["p"] == pytest.approx(2 / 1001)
    same = over_patients(task, "auroc", [([class_cases(good)], [class_cases(good)])])
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def known_by_hospital(noise: float = 0.3) -> dict[str, tuple[float, int]]:
    """Scores that tell the first hospital, of every other patient and mostly ill, from the second, mostly healthy."""
    rng = np.random.default_rng(2)
    found = {}
    for number in range(160):
        ill_there = 0.25 if number % 2 else 0.75
        truth = int(rng.random() < ill_there)
        found[f"p{number:03d}"] = (float(np.clip(ill_there + rng.uniform(-noise, noise), 0.01, 0.99)), truth)
    return found


def mean_of_hospitals(cases: list[CaseRecord]) -> float:
    task = task_of(variant("classification"))
    return float(np.mean([value_of(task, "auroc", [cases[place::2]]) for place in (0, 1)]))


def test_models_that_differ_by_hospital_are_ranked_within_each_and_tested(tmp_path: Path):
    ours, theirs = class_cases(known_by_hospital(0.2)), class_cases(known_by_hospital())
    runs = [
        finished(tmp_path / "a", variant("classification"), theirs, "fine-tuned"),
        finished(tmp_path / "b", variant("classification", **FEDPROX), ours, "fine-tuned"),
    ]
    comparison = compare_runs(runs, metric="auroc", model="fine-tuned")
    assert [method["value"] for method in comparison["methods"]] == pytest.approx(
        [mean_of_hospitals(theirs), mean_of_hospitals(ours)]
    )
    (test,) = comparison["tests"]
    assert test["patients"]["why"] is None and test["patients"]["test"] == "paired bootstrap"
    assert test["patients"]["difference"] == pytest.approx(mean_of_hospitals(ours) - mean_of_hospitals(theirs))
    assert test["patients"]["low"] < test["patients"]["difference"] < test["patients"]["high"]
    assert any("is the mean over the hospitals" in sentence for sentence in comparison["answer"])
    together = compare_runs(runs, metric="auroc")  # the federated model is one for all, with the same scores
    assert together["methods"][0]["value"] > comparison["methods"][0]["value"] + 0.1
    assert not any("mean over the hospitals" in sentence for sentence in together["answer"])


def test_one_model_beside_models_with_layers_at_home_is_ranked_within_hospitals_too(tmp_path: Path):
    cases = class_cases(known_by_hospital())
    fedbn = {"algorithm": {"name": "fedbn"}}
    runs = [
        finished(tmp_path / "a", variant("classification"), cases, "pooled"),
        finished(tmp_path / "b", variant("classification", **fedbn), cases, "pooled"),
    ]
    path = runs[0] / "evaluations.json"
    found = json.loads(path.read_text())
    found["differences"]["federated-pooled"]["all"]["auroc"]["value"] = 0.5  # of one ranking, which is not for here
    path.write_text(json.dumps(found))
    comparison = compare_runs(runs, metric="auroc")
    one, each = comparison["methods"]
    assert one["value"] == each["value"] == pytest.approx(mean_of_hospitals(cases))
    assert (one["low"], one["high"]) == (each["low"], each["high"])
    assert one["minus_pooled"]["value"] == each["minus_pooled"]["value"] == 0
    (test,) = comparison["tests"]
    assert test["patients"]["difference"] == test["seeds"]["difference"] == 0
    # A mean over cases is the same thing however models are spread.
    assert not compare_runs(runs, metric="accuracy")["mean_over_hospitals"]


def test_a_run_that_lacks_the_mean_over_the_hospitals_is_left_out(tmp_path: Path):
    cases = class_cases(known_by_hospital())
    old = finished(tmp_path / "a", variant("classification"), cases)
    found = json.loads((old / "evaluations.json").read_text())
    del found["mean_over_hospitals"]
    (old / "evaluations.json").write_text(json.dumps(found))
    new = finished(tmp_path / "b", variant("classification", algorithm={"name": "fedbn"}), cases)
    (left_out,) = compare_runs([old, new], metric="auroc")["left_out"]
    assert left_out["run"] == str(old) and "run it again" in left_out["why"]
    assert not compare_runs([old, new], metric="accuracy")["left_out"]


def test_calibration_is_no_mean_of_patients_and_accuracy_is():
    rng = np.random.default_rng(1)
    scores = {f"p{i:03d}": (float(rng.uniform(0.2, 0.9)), int(rng.integers(2))) for i in range(40)}
    other = {name: (min(0.99, score + 0.05), truth) for name, (score, truth) in scores.items()}
    task, pairs = task_of(variant("classification")), [([class_cases(scores)], [class_cases(other)])]
    found = {name: over_patients(task, name, pairs)["test"] for name in ("calibration_error", "accuracy")}
    assert found == {
        "calibration_error": "paired bootstrap",
        "accuracy": "Wilcoxon signed-rank",
    }


def test_other_test_patients_are_not_paired(run):
    fewer = dict(list(dice_of(0.9).items())[:30])
    comparison = compare_runs([run("a", dice_of(0.8)), run("b", fewer, **FEDPROX)])
    (test,) = comparison["tests"]
    assert test["verdict"] == "not tested" and test["patients"]["p_holm"] is None
    assert test["patients"]["why"] == "the test patients are not the same"
    assert comparison["answer"][:2] == [
        "No best Dice is named: there are no two methods with a value on the same test patients.",
        "Not tested against algorithm.name=fedavg (the test patients are not the same): algorithm.name=fedprox.",
    ]
    third = run("c", dice_of(0.7), rounds=3)
    best = compare_runs([run("d", dice_of(0.8), rounds=4), third, run("e", fewer, rounds=5)])["answer"][0]
    assert best.startswith("federation.rounds=4 has the best Dice of those on the same test patients: 0.784 (")


def test_equal_values_have_no_winner(run):
    values = dict.fromkeys(dice_of(0.8), 0.9)
    runs = [run("a", values), run("b", values | {"p00": 0.9001}, **FEDPROX)]
    assert compare_runs(runs)["answer"][0] == (
        "The methods have an equal Dice: algorithm.name=fedavg and algorithm.name=fedprox, 0.900 (95 % interval 0.900 "
        "to 0.900, n = 40 cases)."
    )
    runs.append(run("c", dict.fromkeys(values, 0.5), rounds=3))
    assert compare_runs(runs)["answer"][0].startswith(
        "Equal, and the best, is the Dice: federation.rounds=8, algorithm"
    )


def doubtful(folder: Path) -> Path:
    """A run with a hospital whose loss was no number, in a round of its own."""
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    reply = next(event for event in events if event["event"] == "site_replied")
    reply["loss"] = None
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_grave_doubts_stand_above_the_answer(run, tmp_path: Path):
    sound = run("a", dice_of(0.8))
    comparison = compare_runs([sound, doubtful(run("b", dice_of(0.8), **FEDPROX))])
    (doubt,) = comparison["doubts"]
    assert doubt["who"] == "algorithm.name=fedprox" and doubt["kinds"] == ["loss_undefined"]
    assert [bool(method["runs"][0]["doubts"]) for method in comparison["methods"]] == [False, True]
    write_comparison(comparison, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert "Do not rely on 1 of these 2 runs as it stands" in page and doubt["text"] in page
    assert page.index('class="grave"') < page.index('class="answer"')
    write_comparison(compare_runs([sound]), tmp_path / "sound.html")
    assert "Do not rely" not in (tmp_path / "sound.html").read_text()


def test_the_same_doubt_of_many_runs_is_said_once(run):
    runs = [doubtful(run(f"r{rounds}", dice_of(0.8), rounds=rounds)) for rounds in range(8, 13)]
    (doubt,) = compare_runs(runs)["doubts"]
    assert doubt["who"] == "5 of 5 runs" and len(doubt["runs"]) == 5
    one = compare_runs([doubtful(run("x", dice_of(0.8), 1)), run("y", dice_of(0.8), 2)])["doubts"]
    assert [row["who"] for row in one] == ["algorithm.name=fedavg, seed 1"]


def test_what_hospitals_come_to_over_seeds_has_its_deviation_and_their_names(run, tmp_path: Path):
    runs = [run(f"s{seed}", dice_of(0.8, gain=0.02 * seed), seed) for seed in range(3)]
    comparison = compare_runs(runs)
    (method,) = comparison["methods"]
    worst = [one["worst"] for one in method["runs"]]
    assert method["worst"]["value"] == pytest.approx(np.mean([row["value"] for row in worst]))
    assert method["worst"]["sd"] == pytest.approx(np.std([row["value"] for row in worst], ddof=1))
    assert set(method["worst"]["hospitals"]) == {row["hospital"] for row in worst}
    write_comparison(comparison, tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert f"&plusmn; {method['worst']['sd']:.3f}" in page and ", ".join(method["worst"]["hospitals"]) in page
    assert "2 hospitals" in page


def test_a_patient_at_another_hospital_is_the_same_patient():
    cases = dice_cases(dice_of(0.8))
    assert same_cases([cases[:9], cases[9:]], [cases[::-1]]) and not same_cases([cases], [cases[1:]])


def test_runs_without_a_seed_in_common_are_not_tested(run):
    (test,) = compare_runs([run("a", dice_of(0.8), 1), run("b", dice_of(0.9), 2, **FEDPROX)])["tests"]
    assert test["patients"]["why"] == test["seeds"]["why"] == "no seed in common"


def test_no_best_is_named_and_nothing_contradicted_over_other_seeds(run):
    runs = [run("a", dice_of(0.8), 1), run("b1", dice_of(0.9), 1, **FEDPROX), run("b2", dice_of(0.5), 2, **FEDPROX)]
    comparison = compare_runs(runs)
    assert comparison["tests"][0]["verdict"] == "better"
    assert "No best Dice is named" in comparison["answer"][0]
    assert not any("other way round" in sentence for sentence in comparison["answer"])


def test_without_values_of_patients_there_is_no_test_over_them(run):
    first, second = run("a", dice_of(0.8)), run("b", dice_of(0.9), **FEDPROX)
    (second / "sites" / "north" / "evaluations" / "federated.json").unlink()
    (test,) = compare_runs([first, second])["tests"]
    assert test["patients"]["why"] == f"{second} holds no values of single patients that agree with its evaluation"


def test_values_of_patients_that_contradict_the_evaluation_are_not_used(run):
    first, second = run("a", dice_of(0.8)), run("b", dice_of(0.9), **FEDPROX)
    path = second / "sites" / "north" / "evaluations" / "federated.json"
    path.write_text(path.read_text().replace("0.9", "0.4"))
    (test,) = compare_runs([first, second])["tests"]
    assert "agree with its evaluation" in test["patients"]["why"]


def test_over_seeds_it_is_the_paired_t_test():
    ours, theirs = {1: 0.84, 2: 0.86, 3: 0.85, 9: 0.1}, {1: 0.82, 2: 0.85, 3: 0.81, 8: 0.9}
    row = over_seeds(ours, theirs)
    expected = stats.ttest_rel([0.84, 0.86, 0.85], [0.82, 0.85, 0.81])
    assert row["seeds"] == [1, 2, 3]
    assert row["p"] == pytest.approx(expected.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert row["p_wilcoxon"] == pytest.approx(0.25)  # the least that three pairs can give


def test_too_few_seeds_are_said_and_equal_seeds_are_no_proof():
    assert over_seeds({1: 0.8, 2: 0.9}, {1: 0.7, 2: 0.7})["why"] == "2 seeds in common; a test needs 3"
    same = dict.fromkeys((1, 2, 3), 0.8)
    assert over_seeds(same, same)["p"] == 1.0
    summed = dict.fromkeys((1, 2, 3), 0.1 + 0.7)  # the same but for rounding
    assert over_seeds(same, summed)["p"] == 1.0


@pytest.mark.parametrize("first", [0.9, 0.75])
def test_the_same_gain_in_every_seed_has_no_p_value(first):
    """Rounding makes 0.9 - 0.8 and 0.8 - 0.7 differ by 1e-16, which is no spread to test against."""
    ours, theirs = {1: first, 2: 0.8, 3: 0.7}, {1: first - 0.1, 2: 0.7, 3: 0.6}
    row = over_seeds(ours, theirs)
    assert (row["p"], row["why"]) == (None, "every seed gave the same difference")
    assert row["difference"] == pytest.approx(0.1)


def test_the_same_gain_in_every_seed_is_not_said_to_be_of_too_few_seeds(run):
    runs = [run(f"a{seed}", dice_of(0.7), seed) for seed in range(3)]
    runs += [run(f"b{seed}", dice_of(0.75), seed, **FEDPROX) for seed in range(3)]
    comparison = compare_runs(runs)
    assert comparison["tests"][0]["verdict"] == "better" and comparison["tests"][0]["seeds"]["p"] is None
    assert "seeds in common" not in " ".join(comparison["answer"])


def test_a_gain_that_the_seeds_do_not_bear_out_is_said_to_be_uncertain(run):
    """Every patient gains in each seed, but in one seed ten times as much: that says little of the next seed."""
    runs = [run(f"a{seed}", dice_of(0.7), seed) for seed in range(3)]
    gains = (0.01, 0.02, 0.2)
    runs += [run(f"b{seed}", dice_of(0.7, gain=gain, noise=0.005), seed, **FEDPROX) for seed, gain in enumerate(gains)]
    comparison = compare_runs(runs)
    assert comparison["tests"][0]["verdict"] == "better" and comparison["tests"][0]["seeds"]["p_holm"] > 0.05
    assert (
        "Over the seeds that is not certain for algorithm.name=fedprox: it may be chance in training."
        in comparison["answer"]
    )


def test_holm_corrects_for_how_many_tests_there_are():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_runs_that_cannot_stand_in_the_table_are_left_out_with_a_reason(run, tmp_path: Path):
    first, repeated = run("a", dice_of(0.8)), run("again", dice_of(0.8))
    unfinished = run("b", dice_of(0.8), **FEDPROX)
    lines = (unfinished / "events.jsonl").read_text().splitlines()
    (unfinished / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    other_data = run("c", dice_of(0.8), rounds=3)
    (other_data / "split.json").write_text(json.dumps({"hospitals": {}, "dataset": {"name": "phantom"}}))
    classes = {f"p{i}": (0.1 + 0.02 * i, i % 2) for i in range(20)}
    other_task = finished(tmp_path / "d", variant("classification"), class_cases(classes))
    comparison = compare_runs([first, repeated, unfinished, other_data, other_task])
    reasons = {Path(row["run"]).name: row["why"] for row in comparison["left_out"]}
    assert len(comparison["methods"]) == 1
    assert reasons["again"] == f"it repeats {first}: the same job and seed"
    assert reasons["b"].startswith("it is not complete (the run has no end on record")
    assert reasons["c"] == f"it is on other data than {first}"
    assert reasons["d"] == f"its task is classification, that of {first} is segmentation"
    assert "4 runs left out; the reasons are listed below." in comparison["answer"]


def test_what_no_run_has_is_refused_with_what_there_is(run, tmp_path: Path):
    only = run("a", dice_of(0.8))
    with pytest.raises(BadInput, match="it has no metric 'auroc'; it has dice, "):
        compare_runs([only], metric="auroc")
    with pytest.raises(BadInput, match="it has no model 'kept'; it has federated"):
        compare_runs([only], model="kept")
    with pytest.raises(BadInput, match="not a run directory"):
        compare_runs([only, tmp_path])


def test_another_model_of_the_runs_can_be_compared(tmp_path: Path):
    made = [
        finished(tmp_path / name, variant(**federation), dice_cases(dice_of(0.8, gain=gain, noise=0.01)), "kept")
        for name, federation, gain in (("a", {}, 0.0), ("b", FEDPROX, 0.05))
    ]
    comparison = compare_runs(made, model="kept")
    assert comparison["model"] == "kept" and comparison["tests"][0]["verdict"] == "better"


def test_hospitals_that_contradict_the_patients_are_said(run):
    runs = [run("a", dice_of(0.8)), run("b", dice_of(0.8, gain=0.05, noise=0.01), **FEDPROX)]
    assert not any("other way round" in sentence for sentence in compare_runs(runs)["answer"])
    evaluated = runs[1] / "evaluations.json"
    found = json.loads(evaluated.read_text())
    here = [rows for name, rows in found["models"]["federated"].items() if name != "all"]
    here[0]["dice"]["value"] = 0.5  # one hospital that the mean over patients hides
    evaluated.write_text(json.dumps(found))
    said = [sentence for sentence in compare_runs(runs)["answer"] if "other way round" in sentence]
    assert len(said) == 1 and "for algorithm.name=fedprox" in said[0] and "the worst hospital 0.500 against" in said[0]


def test_the_page_holds_every_number_and_needs_no_network(run, tmp_path: Path):
    runs = [run(f"a{seed}", dice_of(0.8, gain=0.001 * seed), seed) for seed in range(3)]
    runs += [run(f"b{seed}", dice_of(0.8, gain=0.03, noise=0.01), seed, **FEDPROX) for seed in range(3)]
    comparison = compare_runs(runs, left_out=[{"run": "x<y", "why": "its disk was full"}])
    numbers = write_comparison(comparison, tmp_path / "out" / "table.html")
    page = (tmp_path / "out" / "table.html").read_text()
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(comparison))
    assert "algorithm.name=fedprox" in page and "x&lt;y: its disk was full" in page
    for method in comparison["methods"]:
        assert f"{method['value']:.3f}" in page
    assert ">a0<" in page and str(tmp_path) not in page  # a run by what tells it from the others
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert compare_runs(runs)["tests"] == comparison["tests"]  # the same draws every time
    write_comparison(comparison, tmp_path / "out" / "table.html")
    with pytest.raises(BadInput, match="ends in .html"):
        write_comparison(comparison, tmp_path / "job.yaml")
