"""The job's `federation` section: the algorithm, what travels, how updates become one, and the rounds."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from shared_models.algorithms import ALGORITHMS, AnyAlgorithm, FedAvg, ServerOptimizer
from shared_models.section import Section


class MeanAggregation(Section):
    """The weighted mean, one update in memory at a time."""

    name: Literal["mean"]
    fewest: ClassVar[int] = 1
    """Updates that a round needs, so that the rule is what it says and not a plain mean."""


class MedianAggregation(Section):
    """The median of every coordinate (Yin et al. 2018)."""

    name: Literal["median"]
    fewest: ClassVar[int] = 3


class TrimmedMeanAggregation(Section):
    """The mean of every coordinate without its largest and smallest values (Yin et al. 2018)."""

    name: Literal["trimmed_mean"]
    trim: float = Field(0.2, gt=0, lt=0.5, description="Share of the updates left out at either end, rounded up.")
    fewest: ClassVar[int] = 3


class KrumAggregation(Section):
    """The updates that lie closest to their neighbours (Blanchard et al. 2017)."""

    name: Literal["krum"]
    faulty: int = Field(1, ge=1, description="Sites that may do harm; a round needs more than twice as many, plus 2.")
    keep: int = Field(1, ge=1, description="Updates that are averaged: 1 is Krum, more is Multi-Krum.")

    @property
    def fewest(self) -> int:
        """Updates that a round needs: n >= 2f + 3 (proposition 1), and none of f among those that are kept."""
        return max(2 * self.faulty + 3, self.keep + self.faulty)


class GeometricMedianAggregation(Section):
    """The point with the least sum of distances to all updates (Pillutla et al. 2022)."""

    name: Literal["geometric_median"]
    fewest: ClassVar[int] = 3


class ClippedMeanAggregation(Section):
    """The mean of updates cut to a length (Sun et al. 2019)."""

    name: Literal["clipped_mean"]
    norm: float | None = Field(None, gt=0, description="Longest update (L2); null is the round's median length.")
    fewest: ClassVar[int] = 1


Aggregation = Annotated[
    MeanAggregation
    | MedianAggregation
    | TrimmedMeanAggregation
    | KrumAggregation
    | GeometricMedianAggregation
    | ClippedMeanAggregation,
    Field(discriminator="name"),
]


class Share(Section):
    """Which tensors of a model travel; the others stay at each site and are its own."""

    normalisation: Literal["all", "no_statistics", "nothing"] = Field(
        "all",
        description="Of normalisation layers: all; all but running statistics (as silobn); nothing (as fedbn).",
    )
    heads: Literal["all", "nothing"] = Field("all", description="Of the layers behind the body (as fedper).")
    networks: Literal["all", "generators"] = Field("all", description="Of a GAN: discriminators may stay at home.")


Planned = Literal["spacing", "crop", "normalisation"]


class Statistics(Section):
    """Federated statistics before the first round, and the plan that is made of them (`server.plan`)."""

    decide: list[Planned] = Field(
        ["spacing", "crop", "normalisation"],
        min_length=1,
        description="Keys of `data` that the plan fills in; the crop then has at most as many voxels as data.crop.",
    )
    harmonise: bool = Field(False, description="Normalise by landmarks that are the mean of all hospitals' images.")
    min_patients: int = Field(
        5, ge=1, description="Patients behind every count that a site tells; its policy may ask for more."
    )

    @model_validator(mode="after")
    def _harmonising_is_normalising(self) -> Statistics:
        if len(set(self.decide)) < len(self.decide):
            raise ValueError(f"decide names a key twice: {', '.join(self.decide)}")
        if self.harmonise and "normalisation" not in self.decide:
            raise ValueError("harmonise decides data.normalisation: add normalisation to decide")
        return self


SERVER_OPTIMIZERS = {"fedadam": "adam", "fedyogi": "yogi", "fedadagrad": "adagrad", "fedavgm": "momentum"}
"""Fedavg with a server optimiser, as papers call it: the optimiser."""


class Federation(Section):
    """The rounds."""

    rounds: int = Field(ge=1)
    algorithm: Annotated[AnyAlgorithm, Field(discriminator="name")] = FedAvg()
    aggregation: Aggregation = MeanAggregation(name="mean")
    weighting: Literal["cases", "equal"] = Field("cases", description="How much a site counts: by its cases, or alike.")
    share: Share = Share()
    sites_per_round: int | None = Field(None, ge=1, description="Sites drawn at random each round; null takes all.")
    quorum: int | None = Field(
        None, ge=1, description="Updates a round needs; null asks for more than half of the sites drawn."
    )
    deadline_seconds: float | None = Field(None, gt=0, description="A reply later than this is left out of its round.")
    retries: int = Field(2, ge=0, description="How often a round below quorum is tried again before the run stops.")
    patience: int | None = Field(
        None, ge=1, description="Stop early after so many validations in a row without a better one; null never does."
    )
    statistics: Statistics | None = Field(
        None, description="Ask all sites for statistics first, and agree on one preprocessing plan; null does not."
    )

    @model_validator(mode="before")
    @classmethod
    def _named_like_its_server_optimizer(cls, value: Any) -> Any:
        """Papers call these algorithms; here they are two keys, so that scaffold may have a server optimiser too."""
        algorithm = value.get("algorithm") if isinstance(value, dict) else None
        name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
        if (optimizer := SERVER_OPTIMIZERS.get(str(name).lower())) is not None:
            spec = f"{{name: {optimizer}, learning_rate: {ServerOptimizer(name=optimizer).learning_rate:g}}}"
            two_keys = f"{{name: fedavg, server_optimizer: {spec}}}"
            raise ValueError(f"{name} is fedavg with a server optimiser: write algorithm: {two_keys}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _what_stays_at_home(cls, value: Any) -> Any:
        """Fills in `share` from the algorithm, so that one place says what travels; without a name it is fedavg."""
        if not isinstance(value, dict) or not isinstance(algorithm := value.get("algorithm"), dict):
            return value
        if "name" not in algorithm:
            value = value | {"algorithm": {"name": "fedavg"} | algorithm}
        known, share = ALGORITHMS.get(str(algorithm.get("name"))), value.get("share", {})
        wanted = dict(known.stays_at_home) if known else {}
        if not wanted or not isinstance(share, dict):
            return value
        for key, word in wanted.items():
            if share.get(key, word) != word:
                raise ValueError(f"{algorithm['name']} is share.{key}: {word}; leave out share.{key}, or say that")
        return value | {"share": share | wanted}

    @model_validator(mode="after")
    def _share_is_the_algorithms(self) -> Federation:
        """Of a job that was not read but made in Python, where nothing fills `share` in."""
        for key, word in self.algorithm.stays_at_home.items():
            if getattr(self.share, key) != word:
                raise ValueError(f"{self.algorithm.name} is share.{key}: {word}; say that")
        return self

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Federation:
        if self.quorum and self.sites_per_round and self.quorum > self.sites_per_round:
            raise ValueError(f"quorum {self.quorum} can never be met with sites_per_round {self.sites_per_round}")
        return self
