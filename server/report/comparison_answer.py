"""What a comparison says in words: a verdict on every method, and the sentences at the top."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from server.report import comparison_tests as tests
from shared_models.page import fixed, interval_text, listed, plural

Row = dict[str, Any]

SIGNIFICANT = 0.05
BETTER, WORSE, UNCLEAR, UNTESTED = "better", "worse", "no clear difference", "not tested"
OTHER_PATIENTS, NO_SEED = "the test patients are not the same", "no seed in common"
"""Why there is no test over patients where values cannot stand side by side either."""
MOST_NAMED = 3


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
    if len(comparison["methods"]) == 1:
        alone = f"{comparison['label']} {_numbers(comparison, there[0])}; there is one method only, and nothing to test"
        return [f"{alone} it against.", *_about_means(comparison), *_missing(comparison)]
    others = [test["method"] for test in comparison["tests"] if test["patients"]["why"] in (OTHER_PATIENTS, NO_SEED)]
    seeds = set(comparison["methods"][0]["seeds"])
    alike = [method for method in there if method["label"] not in others and set(method["seeds"]) == seeds]
    sentences = [_best(comparison, alike, pick)]
    reference = comparison["methods"][0]["label"]
    for word, text in (
        (BETTER, "Better than {} on the same patients: {}."),
        (WORSE, "Worse than {} on the same patients: {}."),
        (UNCLEAR, "No clear difference from {} on the same patients: {}."),
    ):
        names = [test["method"] for test in comparison["tests"] if test["verdict"] == word]
        if names:
            sentences.append(text.format(reference, _methods(names)))
    about = (_untested, _about_means, _about_ranks, _about_hospitals, _about_seeds, _missing)
    return sentences + [sentence for say in about for sentence in say(comparison)]


def _best(comparison: Row, methods: list[Row], pick: Callable[..., Row]) -> str:
    """Which of the methods has the best value, where there are two on the same patients and their shown values differ.

    Args:
        methods: those with a value whose seeds and test patients are the reference's.
    """
    label, digits = comparison["label"], comparison["digits"]
    if len(methods) < 2:
        return f"No best {label} is named: there are no two methods with a value on the same test patients."
    best = fixed(pick(methods, key=lambda method: method["value"])["value"], digits)
    first = [method for method in methods if fixed(method["value"], digits) == best]
    among = "" if len(methods) == len(comparison["methods"]) else " of those on the same test patients"
    if len(first) == 1:
        return f"{first[0]['label']} has the best {label}{among}: {_numbers(comparison, first[0])}."
    if len({_numbers(comparison, method) for method in first}) == 1:
        said = f"{_methods([method['label'] for method in first])}, {_numbers(comparison, first[0])}"
    else:
        said = "; ".join(f"{method['label']}, {_numbers(comparison, method)}" for method in first)
    which = "The methods have an equal" if len(first) == len(methods) else "Equal, and the best, is the"
    return f"{which} {label}{among}: {said}."


def _numbers(comparison: Row, method: Row) -> str:
    """`0.812 (95 % interval 0.790 to 0.834, n = 624 cases, mean of 2 seeds)`."""
    digits = comparison["digits"]
    facts = [interval_text(method, digits), *([f"n = {method['n']} cases"] if method["n"] is not None else [])]
    facts += [f"mean of {len(method['seeds'])} seeds"] if len(method["seeds"]) > 1 else []
    return f"{fixed(method['value'], digits)} ({', '.join(facts)})"


def grave_doubts(methods: Sequence[Row]) -> list[Row]:
    """The grave doubts about the runs, one of each kind: `who` they are about, in a `text`, and which `runs` have any.

    What is alike of several runs is said once, and where its numbers are not, with those of the first one.
    """
    found: dict[str, list[tuple[str, Row, list[Row]]]] = {}
    for method in methods:
        for run in method["runs"]:
            for kind in dict.fromkeys(doubt["kind"] for doubt in run["doubts"]):
                here = [doubt for doubt in run["doubts"] if doubt["kind"] == kind]
                found.setdefault(kind, []).append((method["label"], run, here))
    rows: dict[str, Row] = {}
    for kind, entries in found.items():
        runs = [run for _, run, _ in entries]
        texts = [" ".join(doubt["text"] for doubt in here) for _, _, here in entries]
        text, alike = texts[0], len(set(texts)) == 1
        if not alike:
            text += f" A doubt of the same kind stands against {_who(methods, runs[1:])}."
        who = _who(methods, runs if alike else runs[:1])
        # What names other runs, too, stays a sentence of its own.
        row = rows.setdefault(who if alike else f"{who} {kind}", {"who": who, "kinds": [], "text": "", "runs": []})
        row["kinds"].append(kind)
        row["text"] = f"{row['text']} {text}".strip()
        row["runs"] = list(dict.fromkeys([*row["runs"], *(run["run"] for run in runs)]))
    return list(rows.values())


def _who(methods: Sequence[Row], runs: Sequence[Row]) -> str:
    """Some of the runs by the labels of their methods, and by their seeds where the method has others."""
    names = []
    for method in methods:
        seeds = [str(run["seed"]) for run in method["runs"] if run in runs]
        if seeds:
            more = f", seed{'s' * (len(seeds) > 1)} {listed(seeds)}" if len(seeds) < len(method["runs"]) else ""
            names.append(method["label"] + more)
    if len(names) > MOST_NAMED:
        return f"{len(runs)} of {sum(len(method['runs']) for method in methods)} runs"
    return "; ".join(names)


def do_not_rely(comparison: Row) -> str:
    """The heading of the doubts."""
    runs = sum(len(method["runs"]) for method in comparison["methods"])
    doubted = len({run for doubt in comparison["doubts"] for run in doubt["runs"]})
    if runs == 1:
        return "Do not rely on this run as it stands"
    return f"Do not rely on {doubted} of these {runs} runs as {'it stands' if doubted == 1 else 'they stand'}"


def _untested(comparison: Row) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for test in comparison["tests"]:
        if test["verdict"] == UNTESTED:
            by_reason.setdefault(test["patients"]["why"], []).append(test["method"])
    reference = comparison["methods"][0]["label"]
    return [f"Not tested against {reference} ({why}): {_methods(names)}." for why, names in by_reason.items()]


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
    """Where the hospitals, all counted alike, or the worst of them contradict the verdict over all patients.

    Of other seeds, or of other hospitals because some cannot be told, they contradict nothing.
    """
    reference, *others = comparison["methods"]
    sentences = []
    for method, test in zip(others, comparison["tests"], strict=True):
        if _over(method) != _over(reference):
            continue
        sign = {BETTER: 1, WORSE: -1}.get(test["verdict"], 0) * (1 if comparison["larger_is_better"] else -1)
        pairs: dict[str, tuple[Any, ...]] = {
            what: tuple((row[key] or {}).get("value") for row in (method, reference))
            for key, what in (("mean_of_hospitals", "the mean of the hospitals"), ("worst", "the worst hospital"))
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


def _over(method: Row) -> tuple[Any, ...]:
    """What a method's mean of the hospitals is taken over."""
    return set(method["seeds"]), *((method["mean_of_hospitals"] or {}).get(key) for key in ("hospitals", "most", "of"))


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
    few = [test["method"] for test in comparison["tests"] if len(test["seeds"]["seeds"]) < tests.FEWEST_SEEDS]
    if few:
        who = "" if len(few) == len(comparison["tests"]) else f" for {_methods(few)}"
        sentences.append(f"Chance in training was not tested{who}: that needs {tests.FEWEST_SEEDS} seeds in common.")
    return sentences


def _missing(comparison: Row) -> list[str]:
    count = len(comparison["left_out"])
    return [f"{plural(count, 'run')} left out; the reasons are listed below."] if count else []
