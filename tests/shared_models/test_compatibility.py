"""What does not go together is refused when the job is read, and docs/algorithms.md says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shared_models import zoo
from shared_models.algorithms import ALGORITHMS
from shared_models.job import Job
from shared_models.job_federation import Federation, Share
from shared_models.job_file import check_meaning
from shared_models.weights import schema
from shared_models.zoo.normalisation import normalise

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"

TASKS: dict[str, dict[str, Any]] = {
    "unet": {"kind": "segmentation", "classes": ["background", "lesion"]},
    "cnn": {"kind": "classification", "classes": ["a", "b"]},
    "pix2pix": {"kind": "translation", "how": {"mode": "paired"}},
    "autoencoder": {"kind": "anomaly", "classes": ["normal", "ill"]},
}


def job(model: str = "unet", normalisation: str | None = None, training: Any = None, **federation: Any) -> Job:
    """A job that is right but for what a test asks of it."""
    task = TASKS.get(model) or TASKS["cnn" if "classification" in zoo.MODELS[model].tasks else "unet"]
    return Job.model_validate(
        {
            "name": "pairs",
            "task": task,
            "data": {"spatial_dims": 2, "crop": [64, 64]},
            "model": {"name": model, "normalisation": normalisation},
            "training": {"local_steps": 4, "optimizer": {"name": "sgd"}} | (training or {}),
            "federation": {"rounds": 2} | federation,
            "simulation": {
                "dataset": {"name": "phantom"},
                "partition": {"name": "iid"},
                "hospitals": 8,
            },
        }
    )


def refusals(asked: Job) -> dict[str, str]:
    return {".".join(map(str, refusal.path)): refusal.sentence for refusal in check_meaning(asked)}


# --- the table of the page ---


def table() -> list[dict[str, str]]:
    (text,) = re.findall(r"<!-- combinations:begin -->\n(.*?)<!-- combinations:end -->", PAGE.read_text(), re.DOTALL)
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    return [dict(zip(head, row, strict=True)) for row in body]


def combination(name: str, column: str) -> Job:
    """A job that is that combination."""
    algorithm: dict[str, Any] = {"name": name}
    # silobn needs running statistics; instance norm is what the others have by default.
    norm = "batch" if name == "silobn" else None
    match column:
        case "robust aggregation":
            return job(normalisation=norm, algorithm=algorithm, aggregation={"name": "median"})
        case "server optimiser":
            return job(normalisation=norm, algorithm=algorithm | {"server_optimizer": {"name": "adam"}})
        case "weighting: equal":
            return job(normalisation=norm, algorithm=algorithm, weighting="equal")
        case "sites_per_round":
            return job(normalisation=norm, algorithm=algorithm, sites_per_round=4)
        case "layers at home":
            share = {"heads": "nothing"} | ({} if name == "silobn" else {"normalisation": "nothing"})
            return job(normalisation=norm, algorithm=algorithm, share=share)
        case "GANs":
            return job("pix2pix", normalisation=norm, algorithm=algorithm)
        case "autoencoders":
            return job("autoencoder", normalisation=norm, algorithm=algorithm)
    raise AssertionError(f"the table has a column '{column}' that no test knows")


CELLS = [(row["algorithm"], column, said) for row in table() for column, said in row.items() if column != "algorithm"]


def test_the_table_and_the_page_have_every_algorithm():
    names = list(ALGORITHMS)
    assert [row["algorithm"] for row in table()] == names == list(ALGORITHMS)
    assert [name for name in names if f"- **`{name}`** (" not in PAGE.read_text()] == []


@pytest.mark.parametrize(("name", "column", "said"), CELLS)
def test_a_combination_is_refused_where_the_table_says_no(name: str, column: str, said: str):
    assert len(refusals(combination(name, column))) == {"yes": 0, "no": 1}[said]


# --- sentences: the reason, and what to use instead ---

SENTENCES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"algorithm": {"name": "scaffold"}, "aggregation": {"name": "median"}},
        "federation.aggregation.name",
        "scaffold needs the mean: the sites' control variates add up only with the mean; expected mean, or the "
        "algorithm fedavg or fedprox",
    ),
    (
        {"algorithm": {"name": "feddyn", "server_optimizer": {"name": "adam"}}},
        "federation.algorithm.server_optimizer.name",
        "feddyn takes none: its server half corrects the mean by its own state; expected none, or the algorithm "
        "fedavg or scaffold",
    ),
    (
        {"algorithm": {"name": "qfedavg"}, "weighting": "equal"},
        "federation.weighting",
        "qfedavg takes no weights: it weighs the sites by their loss; leave this out",
    ),
    (
        {"algorithm": {"name": "ring"}, "sites_per_round": 4},
        "federation.sites_per_round",
        "a ring passes through all sites in every round: leave this out, or use cyclic",
    ),
    (
        {"model": "pix2pix", "algorithm": {"name": "ditto"}},
        "federation.algorithm.name",
        "ditto is for one network with one loss, and a GAN has two: expected one of fedavg, fedprox, fedbn, silobn, "
        "cyclic, ring",
    ),
    (
        {"model": "autoencoder", "algorithm": {"name": "moon"}},
        "federation.algorithm.name",
        "moon compares the features before a head, for segmentation and classification: expected fedprox",
    ),
    (
        {"model": "autoencoder", "algorithm": {"name": "fedper"}},
        "federation.algorithm.name",
        "'autoencoder' has no head that could stay at the sites: use fedbn or ditto",
    ),
    (
        {"model": "pix2pix", "share": {"heads": "nothing"}},
        "federation.share.heads",
        "'pix2pix' has no head that could stay at the sites: use fedbn or ditto",
    ),
    (
        {"model": "cnn", "algorithm": {"name": "fedbn"}},
        "federation.algorithm.name",
        "'cnn' has no normalisation that could stay at the sites: set model.normalisation, or use fedavg",
    ),
    (
        {"model": "unet", "share": {"normalisation": "no_statistics"}},
        "federation.share.normalisation",
        "'unet' has no running statistics that could stay at the sites: set model.normalisation to batch, or use fedbn",
    ),
    (
        {"aggregation": {"name": "krum", "faulty": 3}},
        "federation.aggregation.name",
        "krum with faulty 3 and keep 1 needs 9 updates in every round, and there are 8 hospitals "
        "(simulation.hospitals): lower faulty or keep, or use median",
    ),
    (
        {"aggregation": {"name": "krum", "keep": 7}, "sites_per_round": 7},
        "federation.sites_per_round",
        "krum with faulty 1 and keep 7 needs 8 updates in every round, and this is 7: leave it out, or lower faulty or "
        "keep, or use median",
    ),
    (
        {"aggregation": {"name": "median"}, "quorum": 2},
        "federation.quorum",
        "median needs 3 updates in every round, and this is 2: leave it out, or use clipped_mean",
    ),
    (
        {"normalisation": "batch", "training": {"batch_size": 1}},
        "training.batch_size",
        "batch normalisation has nothing to normalise over in a batch of one: set model.normalisation to instance or "
        "group, or take at least 2",
    ),
    (
        {"algorithm": {"name": "fedrep"}, "training": {"local_steps": 1}},
        "training.local_steps",
        "fedrep trains the head and then the body, and needs a step for each: expected at least 2",
    ),
]


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "geometric_median"])
@pytest.mark.parametrize("key", ["data.annotated", "simulation.partly_labelled"])
def test_partial_labels_need_an_aggregation_that_lets_few_hospitals_through(name: str, key: str):
    section, field = key.split(".")
    said = {"annotated": "drawn", "partly_labelled": "rotate"}[field]

    def partly(aggregation: str) -> dict[str, str]:
        content = job(aggregation={"name": aggregation}).model_dump(mode="json")
        content["task"]["classes"] = ["background", "liver", "spleen"]
        content[section] |= {field: said}
        return refusals(Job.model_validate(content))

    assert partly(name) == {
        "federation.aggregation.name": f"{name} sides with most hospitals, and an organ that most do not annotate "
        f"({key}) may never be learnt: expected mean or clipped_mean"
    }
    assert partly("clipped_mean") == {} == partly("mean")


@pytest.mark.parametrize(("asked", "path", "sentence"), SENTENCES)
def test_a_refusal_says_why_and_what_to_use_instead(asked: dict[str, Any], path: str, sentence: str):
    assert refusals(job(**asked)) == {path: sentence}


@pytest.mark.parametrize(
    "asked",
    [
        {"aggregation": {"name": "krum", "faulty": 2}, "quorum": 7},
        {"aggregation": {"name": "clipped_mean"}, "quorum": 1},
        {"aggregation": {"name": "mean"}, "algorithm": {"name": "cyclic"}, "sites_per_round": 1},
        {"model": "cnn", "normalisation": "group", "algorithm": {"name": "fedbn"}},
        {"model": "vit", "normalisation": "none", "algorithm": {"name": "fedbn"}},  # layer norms stay at home
        {"training": {"batch_size": 1}},
        {"algorithm": {"name": "scaffold"}, "training": {"optimizer": {"name": "adam"}}},
    ],
)
def test_what_goes_together_is_not_refused(asked: dict[str, Any]):
    assert refusals(job(**asked)) == {}


def test_early_stopping_needs_validations():
    late = job(patience=3).model_dump() | {"evaluation": {"every": 0}}
    assert list(refusals(Job.model_validate(late))) == ["federation.patience"]


# --- what the checks believe of the networks, against the networks ---

RULES = {"fedbn": Share(normalisation="nothing"), "silobn": Share(normalisation="no_statistics")}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("normalisation", ["batch", "instance", "none"])
@pytest.mark.parametrize(
    "model", ["cnn", "unet", "resnet18", "vit", "swin_unet", "transunet", "pix2pix", "autoencoder"]
)
def test_what_is_said_to_stay_at_home_is_what_the_network_has(model: str, normalisation: str, rule: str):
    asked = job(model, normalisation, algorithm={"name": rule})
    entry = zoo.MODELS[model]()
    network = normalise(entry.build(zoo.shape_of(asked)), asked.model.normalisation or "none", 2)
    has_own = any(tensor.is_own for tensor in schema(network, RULES[rule]))
    assert (refusals(asked) == {}) == has_own


@pytest.mark.parametrize("model", [name for name, entry in zoo.MODELS.items() if not entry.heads])
def test_networks_without_a_head_are_gans_and_autoencoders(model: str):
    assert zoo.MODELS[model].family in ("GAN", "autoencoder")


def test_qfedavg_needs_plain_sgd():
    found = refusals(job(training={"optimizer": {"name": "adamw"}}, algorithm={"name": "qfedavg"}))
    assert "expected sgd" in found["training.optimizer.name"]


def test_an_algorithm_that_is_a_rule_about_what_travels_is_never_without_it():
    filled_in = job(normalisation="batch", algorithm={"name": "fedbn"})
    assert filled_in.federation.share.normalisation == "nothing"
    with pytest.raises(ValueError, match="fedbn is share.normalisation: nothing"):
        job(algorithm={"name": "fedbn"}, share={"normalisation": "all"})
    with pytest.raises(ValueError, match="fedbn is share.normalisation: nothing"):
        Federation(rounds=2, algorithm=ALGORITHMS["fedbn"]())


def test_an_algorithm_without_a_name_is_fedavg():
    asked = job(algorithm={"server_optimizer": {"name": "adam"}}).federation.algorithm
    assert (asked.name, asked.server_optimizer.name) == ("fedavg", "adam")
