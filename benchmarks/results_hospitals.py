"""Hospitals that differ: which algorithm answers which difference. The second half of docs/results.md."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from benchmarks.results_rows import failure, rounded
from shared_models.job_file import load_job

Row = Mapping[str, Any]

SEEDS = (1, 2, 3)
BASELINES = "local,pooled,ensemble"
REFERENCE = "FedAvg"
"""The row whose runs bring the baselines, and that all others are compared with."""

HARMONISED = "FedAvg, harmonised"
ADAM = "FedAdam"
SERVER_RATES = (0.01, 0.003, 0.03)
"""Of FedAdam, which has a second learning rate: a study shows the one that is best on its validation patients, and the
first where it has none."""

METHODS: dict[str, dict[str, Any]] = {
    REFERENCE: {"algorithm": {"name": "fedavg"}},
    "FedProx": {"algorithm": {"name": "fedprox", "mu": 0.01}},
    "SCAFFOLD": {"algorithm": {"name": "scaffold"}},
    "FedDyn": {"algorithm": {"name": "feddyn", "alpha": 0.1}},
    "FedBN": {"algorithm": {"name": "fedbn"}},
    "Ditto": {"algorithm": {"name": "ditto", "pull": 0.1}},
    **{
        f"{ADAM}, {rate:g}": {
            "algorithm": {"name": "fedavg", "server_optimizer": {"name": "adam", "learning_rate": rate}}
        }
        for rate in SERVER_RATES
    },
    HARMONISED: {"statistics": {"decide": ["normalisation"], "harmonise": True}},
}
"""Keys of `federation` that make each row; harmonising is for scanners that differ."""
ALGORITHMS = (*(method for method in METHODS if not method.startswith(ADAM) and method != HARMONISED), ADAM, HARMONISED)
OWN_MODELS = ("FedBN", "Ditto")
"""With these, hospitals have a model each: pooled over hospitals, it would be rewarded for knowing where it is."""

SHOWN = ("Local", "Ensemble", "Pooled", *ALGORITHMS)

STUDIES: dict[str, tuple[str, str]] = {
    "hospitals-groups": ("Scanners that differ by nature", "hippocampus, three intensity scales"),
    "hospitals-scanners": ("Scanners made to differ", "hippocampus, `scanners: {set: strong}`"),
    "hospitals-skew-0.1": ("Very unlike shares of a class", "PneumoniaMNIST, Dirichlet(0.1)"),
    "hospitals-skew-0.5": ("Unlike shares of a class", "PneumoniaMNIST, Dirichlet(0.5)"),
    "hospitals-vessels": ("Few patients", "retinal vessels, four to five children a hospital"),
}
"""Study -> title, and what the hospitals are."""

SKEWED = ("hospitals-skew-0.1", "hospitals-skew-0.5")
"""Many hospitals have patients of one class only: balanced accuracy says something of all patients together only."""


def metrics_of(study: str) -> tuple[str, str]:
    """What is shown of single hospitals, and of all patients together."""
    return ("accuracy", "balanced_accuracy") if study in SKEWED else ("dice", "dice")


def rows() -> list[tuple[str, str, int]]:
    """Every run: study, method and seed; the reference first, as everything is compared with it."""
    return [
        (study, method, seed)
        for study in STUDIES
        for method in METHODS
        for seed in SEEDS
        if method != HARMONISED or study in ("hospitals-groups", "hospitals-scanners")
    ]


def job_of(folder: Path, study: str, method: str, seed: int) -> dict[str, Any]:
    """The job of a run: that of the study with the method's algorithm and the seed, which also deals the patients."""
    job: dict[str, Any] = yaml.safe_load((folder / f"{study}.yaml").read_text())
    return job | {"seed": seed, "federation": {**job["federation"], **METHODS[method]}}


def folder_of(method: str, seed: int) -> str:
    """The name of a run's folder."""
    return f"{method.replace(', ', '-')}-{seed}"


def compared(method: str) -> str:
    """What is trained or judged beside the federated model."""
    return {REFERENCE: BASELINES, "Ditto": "personalised"}.get(method, "none")


def collect(runs: Path) -> dict[str, Any]:
    """Study -> row of the table -> seed -> values; of a run that failed its last words."""
    found: dict[str, Any] = {}
    for study, method, seed in rows():
        out = runs / study / folder_of(method, seed)
        if (out / "evaluations.json").exists():
            evaluations = json.loads((out / "evaluations.json").read_text())
            for name, values in _values(evaluations, method, *metrics_of(study)).items():
                found.setdefault(study, {}).setdefault(name, {})[str(seed)] = values
        elif row := failure(out):
            found.setdefault(study, {}).setdefault(method, {})[str(seed)] = row
    for study, of in found.items():
        tried = {rate: row for rate in SERVER_RATES if (row := of.pop(f"{ADAM}, {rate:g}", None))}
        if tried:
            chosen = max(tried, key=lambda rate: _validated(runs, study, f"{ADAM}, {rate:g}"))
            of[ADAM] = {seed: {**values, "server_rate": chosen} for seed, values in tried[chosen].items()}
    return found


def _validated(runs: Path, study: str, method: str) -> float:
    """The mean over seeds of the best round's value on validation patients; -inf where a run has none."""
    values = []
    for seed in SEEDS:
        run = runs / study / folder_of(method, seed)
        metric = load_job(run / "job.yaml").selection_metric()
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        best = [event["metrics"][metric] for event in events if event["event"] == "validated" and event["best"]]
        values.append(best[-1] if best else -math.inf)
    return statistics.fmean(values)


def _values(evaluations: Row, method: str, at_hospitals: str, over_all: str) -> dict[str, Any]:
    """The rows of the table that one run brings: by hospital, and over all patients with its interval and n."""
    models = evaluations["models"]
    sites = [site for site in models["federated"] if site != "all"]
    shown = {method: models["personalised" if method == "Ditto" else "federated"]}
    if method == REFERENCE:
        shown |= {"Pooled": models["pooled"], "Ensemble": models["ensemble"]}
        shown["Local"] = {site: models[f"local:{site}"][site] for site in sites}
    found = {}
    for name, of in shown.items():
        one_model = "all" in of and method not in OWN_MODELS
        everybody = {key: of["all"][over_all][key] for key in ("value", "low", "high", "n")} if one_model else None
        by_hospital = {site: of[site][at_hospitals]["value"] for site in sites if site in of}
        found[name] = rounded({"hospitals": by_hospital, "all": everybody})
    return found


def section(numbers: Mapping[str, Any], jobs: Mapping[str, Any]) -> str:
    """The part of the page, from what `collect` gave and the jobs by study."""
    parts = [_HEAD]
    for study, (title, about) in STUDIES.items():
        if study in numbers:
            parts += [
                f"## {title}",
                f"{about[0].upper()}{about[1:]}. {_budget(jobs[study])}",
                _table(numbers[study], study in SKEWED),
            ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


_HEAD = f"""# Hospitals that differ

Local, ensemble and pooled training and seven federated algorithms, at small stated budgets and {len(SEEDS)} seeds; a
seed also deals the patients anew. Every algorithm has its default parameters and the local optimiser, rate and steps of
its table, which were chosen for federated averaging on validation patients: another rate may suit another algorithm
better. FedAdam has a second rate, the server's: of {", ".join(f"{rate:g}" for rate in sorted(SERVER_RATES))} the one
that is best on the validation patients of all seeds, or {SERVER_RATES[0]:g} where a study has no validation patients.

*Mean of hospitals* is the mean over hospitals and seeds, ± the standard deviation over seeds; *worst hospital* the mean
over seeds of the worst. *All patients* is the first seed's value over the test patients of all hospitals, with its 95 %
bootstrap interval over patients. *Against FedAvg* is the mean of hospitals minus that of FedAvg, paired by seed, with
the 95 % t interval over {len(SEEDS)} seeds: bold where it does not hold 0. Ditto is judged by each hospital's own
model, and so is Local; with FedBN, hospitals have normalisation of their own: these have no value over all patients,
where to know the hospital is half the answer.

Where shares of a class are unlike, many hospitals have test patients of one class only: accuracy is high there for who
always says that class, and balanced accuracy means something over all patients only. So there hospitals are shown by
accuracy, and methods compared by balanced accuracy over all patients, the mean over seeds.

The two tables of unlike shares of a class were run twice: with batch norm and momentum .9, five of 42 runs diverged.
Network and rate were then changed, looking at validation patients of another seed; but the test values of the first
try had been seen.
"""


def _budget(job: Row) -> str:
    training, spec = job["training"], job["training"]["optimizer"]
    crop = " x ".join(map(str, job["data"]["crop"]))
    return (
        f"{job['federation']['rounds']} rounds of {training['local_steps']} steps, batches of {training['batch_size']} "
        f"at {crop}, {spec['name']}, learning rate {spec['learning_rate']:g}, momentum {spec.get('momentum', 0):g}."
    )


def _table(of: Mapping[str, Any], skewed: bool) -> str:
    head = "| Dice | mean of hospitals | worst hospital | all patients | against FedAvg |"
    if skewed:
        head = "| | accuracy, mean of hospitals | worst hospital | balanced accuracy, all patients | against FedAvg |"
    lines, gains, failures = [head, "|---|---|---|---|---|"], {}, []
    for name in (name for name in SHOWN if name in of):
        done = {seed: values for seed, values in of[name].items() if "failed" not in values}
        failures += [f"{name}, seed {s}, failed: {v['failed']}" for s, v in of[name].items() if "failed" in v]
        if not done:
            continue
        worst = statistics.fmean(min(values["hospitals"].values()) for values in done.values())
        first = next(iter(done.values()))
        everybody = _interval(first["all"]) if first["all"] else ""
        if everybody and skewed:
            everybody = f"{_over_seeds([values['all']['value'] for values in done.values()])}; seed 1: {everybody}"
        gains[name] = _gain(of, name, skewed)
        rate = f", server's rate {first['server_rate']:g}" if name == ADAM else ""
        mean = _over_seeds([_mean(values) for values in done.values()])
        lines.append(f"| {name}{rate} | {mean} | {worst:.3f} | {everybody} | {_shown(gains[name])} |")
    return "\n".join([*lines, "", _words(gains), *failures])


def _over_seeds(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _interval(row: Row) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}], n = {row['n']}"


def _mean(values: Row) -> float:
    return statistics.fmean(values["hospitals"].values())


def _score(values: Row, skewed: bool) -> float | None:
    """What methods are compared by; None where hospitals have a model each, of which it says nothing."""
    if not skewed:
        return _mean(values)
    score: float | None = values["all"] and values["all"]["value"]
    return score


def _gain(of: Mapping[str, Any], name: str, skewed: bool) -> tuple[float, float] | None:
    """Mean and half of the 95 % interval of the difference from the reference; None for the reference itself."""
    ours, theirs = (
        {seed: score for seed, v in of.get(row, {}).items() if "failed" not in v and (score := _score(v, skewed))}
        for row in (name, REFERENCE)
    )
    gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if name == REFERENCE or len(gaps) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return statistics.fmean(gaps), half


def _shown(gain: tuple[float, float] | None) -> str:
    if gain is None:
        return ""
    text = f"{gain[0]:+.3f} [{gain[0] - gain[1]:+.3f}, {gain[0] + gain[1]:+.3f}]"
    return f"**{text}**" if abs(gain[0]) > gain[1] else text


def _words(gains: Mapping[str, tuple[float, float] | None]) -> str:
    """Who gains and who loses against FedAvg, beyond what three seeds may differ by chance."""
    known = {name: gain for name, gain in gains.items() if gain and name in ALGORITHMS}
    better = [name for name, (mean, half) in known.items() if mean > half]
    worse = [name for name, (mean, half) in known.items() if -mean > half]
    unclear = [name for name in known if name not in better and name not in worse]
    said = [f"Better than FedAvg: {', '.join(better)}." if better else "No algorithm is clearly better than FedAvg."]
    said += [f"Worse: {', '.join(worse)}."] if worse else []
    said += [f"No clear difference: {', '.join(unclear)}."] if unclear else []
    return " ".join(said)
