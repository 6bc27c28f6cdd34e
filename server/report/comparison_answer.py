"""What a comparison says in words: a verdict on every method, and the sentences at the top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from server.report import comparison_tests as tests
from shared_models.page import fixed, interval_text, listed, plural

Row = dict[str, Any]

SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR, UNTESTED = "better", "worse", "no clear difference", "not tested"


def verdict(row: Row, larger_is_better: bool) -> str:
    """What test and mean difference say alike: the ranks of Wilcoxon's test may favour what the mean does not."""
    if row["p_holm"] is None:
        return UNTESTED
    low, high = row["low"] * row["sign"], row["high"] * row["sign"]
    if row["p_holm"] >= SIGNIFICANT or min(low, high) <= 0:
        return UNCLEAR
    return BETTER if (row["sign"] > 0) == larger_is_better else WORSE


def answer(comparison: Row) -> list[str]:
    """The sentences at the top."""
    pick: Callable[..., Row] = max if comparison["larger_is_better"] else min
    there = [method for method in comparison["methods"] if method["value"] is not None]
    if not there:
        return [f"{comparison['label']} has no value in any of these runs."]
    best = pick(there, key=lambda method: method["value"])
    digits = comparison["digits"]
    facts = [interval_text(best, digits), *([f"n = {best['n']} cases"] if best["n"] is not None else [])]
    facts += [f"mean of {len(best['seeds'])} seeds"] if len(best["seeds"]) > 1 else []
    value = f"{comparison['label']} {fixed(best['value'], digits)} ({', '.join(facts)})"
    if len(comparison["methods"]) == 1:
        alone = f"{value}; there is one method only, and nothing to test it against."
        return [alone, *_about_means(comparison), *_missing(comparison)]
    sentences = [f"{best['label']} has the best {value}."]
    reference = comparison["methods"][0]["label"]
    for word, text in (
        (BETTER, "Better than {} on the same patients: {}."),
        (WORSE, "Worse than {} on the same patients: {}."),
        (UNCLEAR, "No clear difference from {} on the same patients: {}."),
        (UNTESTED, "Not tested against {} on the same patients: {}."),
    ):
        names = [test["method"] for test in comparison["tests"] if test["verdict"] == word]
        if names:
            sentences.append(text.format(reference, _methods(names)))
    about = (_about_means, _about_ranks, _about_hospitals, _about_seeds, _missing)
    return sentences + [sentence for say in about for sentence in say(comparison)]


def _methods(labels: list[str]) -> str:
    """A label may hold commas of its own."""
    return "; ".join(labels) if any("," in label for label in labels) else listed(labels)


def _about_means(comparison: Row) -> list[str]:
    """What the value over all is where models differ by hospital."""
    if not comparison["mean_over_hospitals"]:
        return []
    return [
        f"Here {comparison['label']} over all is the mean over the hospitals: where each has a model of its own, as "
        "with layers that stay at home, all patients together would reward a model for knowing its hospital."
    ]


def _about_ranks(comparison: Row) -> list[str]:
    """Where the test over patients is sure of one side, and the mean is on the other."""
    names = [
        test["method"]
        for test in comparison["tests"]
        if (row := test["patients"])["p_holm"] is not None
        and row["p_holm"] < SIGNIFICANT
        and row["sign"] * row["difference"] < 0
    ]
    if not names:
        return []
    return [
        f"For {_methods(names)}, the mean and most patients disagree, by the ranks of their differences: many small "
        "ones go one way, a few large ones the other."
    ]


def _about_hospitals(comparison: Row) -> list[str]:
    """Where the hospitals, all counted alike, or the worst of them contradict the verdict over all patients."""
    reference, *others = comparison["methods"]
    sentences = []
    for method, test in zip(others, comparison["tests"], strict=True):
        sign = {BETTER: 1, WORSE: -1}.get(test["verdict"], 0) * (1 if comparison["larger_is_better"] else -1)
        pairs = {
            "the mean of the hospitals": (method["mean_of_hospitals"], reference["mean_of_hospitals"]),
            "the worst hospital": tuple((row["worst"] or {}).get("value") for row in (method, reference)),
        }
        shown = {what: [fixed(value, comparison["digits"]) for value in pair] for what, pair in pairs.items()}
        against = [
            f"{what} {' against '.join(shown[what])}"
            for what, (ours, theirs) in pairs.items()
            if None not in (ours, theirs) and sign * (ours - theirs) < 0 and len(set(shown[what])) == 2
        ]
        if against:
            sentences.append(
                f"Hospital by hospital it is the other way round for {method['label']}: {listed(against)}."
            )
    return sentences


def _about_seeds(comparison: Row) -> list[str]:
    """Whether a difference over patients may have been chance in training."""
    sentences = []
    lucky = [
        test["method"]
        for test in comparison["tests"]
        if test["verdict"] in (BETTER, WORSE) and (test["seeds"]["p_holm"] or 0.0) >= SIGNIFICANT
    ]
    if lucky:
        sentences.append(f"Over the seeds that is not certain for {_methods(lucky)}: it may be chance in training.")
    few = [test["method"] for test in comparison["tests"] if test["seeds"]["p"] is None]
    if few:
        who = "" if len(few) == len(comparison["tests"]) else f" for {_methods(few)}"
        sentences.append(f"Chance in training was not tested{who}: that needs {tests.FEWEST_SEEDS} seeds in common.")
    return sentences


def _missing(comparison: Row) -> list[str]:
    count = len(comparison["left_out"])
    return [f"{plural(count, 'run')} left out; the reasons are listed below."] if count else []
