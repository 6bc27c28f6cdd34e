"""The job file as strict models: one job runs in one process, on Ray and on real hospitals.

Unknown keys are refused everywhere; `shared_models.job_file` turns a refusal into a sentence with file and line.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared_models.job_federation import Federation
from shared_models.job_simulation import Simulation
from shared_models.job_tasks import Task
from shared_models.section import Section

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Data(Section):
    """What a case is and how it is prepared: the same at every site."""

    images: list[str] = Field(["image"], min_length=1, description="Manifest columns; their channels are stacked.")
    label: str = Field(
        "label", description="Manifest column: a mask file, a class name or index, or the target of a translation."
    )
    patient: str = Field("patient", description="Manifest column: the unit of every split and interval.")
    annotated: str | None = Field(
        None,
        description="Segmentation: manifest column with the classes that a case annotates, separated by ';', nothing "
        "for all; null says that every case annotates all.",
    )
    missing_channels: Literal["quarantine", "zeros"] = Field(
        "quarantine",
        description="What becomes of a case with an empty cell for one of several images: set aside, or zeros after "
        "normalisation.",
    )
    spatial_dims: Literal[2, 3]
    channels: int = Field(1, ge=1, description="Channels of all image columns together.")
    spacing: list[float] | None = Field(None, description="Resample to this spacing in mm; null keeps the file's.")
    crop: list[int] = Field(description="Size of a training patch in voxels; smaller images are padded.")
    normalisation: Literal["zscore", "percentile", "minmax", "none", "window", "landmarks"] = Field(
        "zscore",
        description="Per image and channel; percentile maps the 0.5th to 99.5th percentile to 0..1, window the two "
        "intensities of data.window, landmarks an image's own percentiles to data.landmarks.",
    )
    window: list[Annotated[list[float], Field(min_length=2, max_length=2)]] | None = Field(
        None, description="For window: the intensities of each channel that become 0 and 1, such as [[-160, 240]]."
    )
    landmarks: list[Annotated[list[float], Field(min_length=11, max_length=11)]] | None = Field(
        None,
        description="For landmarks: what the percentiles 1, 10, 20, ..., 90, 99 of each channel become (Nyul et al. "
        "2000); federation.statistics with `harmonise` finds them.",
    )
    max_quarantined: int | None = Field(
        None, ge=0, description="A site with more bad cases than this does not take part; null tolerates any number."
    )

    @model_validator(mode="after")
    def _one_entry_per_axis(self) -> Data:
        for key in ("spacing", "crop"):
            value = getattr(self, key)
            if value is not None and (len(value) != self.spatial_dims or min(value) <= 0):
                raise ValueError(f"{key} needs {self.spatial_dims} positive numbers, one per axis; found {value}")
        return self

    @model_validator(mode="after")
    def _one_entry_per_channel(self) -> Data:
        for key in ("window", "landmarks"):
            rows: list[list[float]] | None = getattr(self, key)
            if (rows is not None) != (self.normalisation == key):
                raise ValueError(f"normalisation {key} and data.{key} need each other; leave both out, or neither")
            if rows is not None and len(rows) != self.channels:
                raise ValueError(f"{key} needs a row for each of the {self.channels} channels; found {len(rows)}")
            if any(row != sorted(row) or row[0] == row[-1] for row in rows or []):
                raise ValueError(f"{key} needs rising numbers in every row; found {rows}")
        return self


Normalisation = Literal["batch", "instance", "group", "none"]


class Model(Section):
    """A network of the zoo and its arguments, passed through intact."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    normalisation: Normalisation | None = Field(
        None, description="Of every layer that is not a transformer's; null is the network's own default."
    )
    pretrained: str | None = Field(
        None, description="File with initial weights: .safetensors, or a torch checkpoint (read without code)."
    )


class Optimizer(Section):
    """The optimiser of the local steps at a site."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1, description="Only for sgd.")
    beta: float = Field(0.9, ge=0, lt=1, description="beta_1 of adam and adamw; 0.5 is usual for GANs.")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = Field("constant", description="Over the rounds, not within one.")


Augmentation = Literal["flip", "rotate", "affine", "scale_intensity", "shift_intensity", "noise", "blur", "gamma"]


class Training(Section):
    """What a site does in one round."""

    optimizer: Optimizer = Optimizer()
    batch_size: int = Field(8, ge=1)
    local_epochs: int | None = Field(None, ge=1, description="Passes over the site's data in a round.")
    local_steps: int | None = Field(None, ge=1, description="Optimiser steps in a round, instead of local_epochs.")
    augmentation: list[Augmentation] = Field(default_factory=list)
    mixed_precision: bool = Field(False, description="bfloat16 or float16 on a GPU, bfloat16 on a CPU in 2D.")
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that a batch is computed in: less memory, the same step (class weights average by part).",
    )
    gradient_checkpointing: bool = Field(False, description="Compute activations again instead of keeping them.")
    channels_last: bool = Field(False, description="Memory layout of images; faster or slower by network and device.")
    compile: bool = Field(False, description="torch.compile: minutes before the first step, faster ones then.")

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Training:
        if (self.local_epochs is None) == (self.local_steps is None):
            raise ValueError("set exactly one of local_epochs and local_steps")
        return self

    def steps(self, cases: int) -> int:
        """Optimiser steps at a site that trains on so many cases, in one go through them."""
        return self.local_steps or math.ceil(cases / self.batch_size) * (self.local_epochs or 1)


class Evaluation(Section):
    """How a model is judged. Shares apply to patients of manifests (or data sets) that have no split of their own."""

    validation_share: Fraction = 0.1
    test_share: Fraction = 0.2
    every: int = Field(1, ge=0, description="Validate the global model every so many rounds; 0 only after the last.")
    select: str | None = Field(None, description="Validation metric that picks the best round; null: dice or auroc.")
    bootstrap: int = Field(500, ge=0, description="Patient-level bootstrap replicates behind every 95 % interval.")
    subgroups: dict[str, Annotated[list[str] | list[float], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="Manifest column: its categories (texts), or edges of bands (rising numbers; [0, 40, 65] is two "
        "bands, each without its upper edge). Test patients are judged group by group too.",
    )
    subgroup_patients: int = Field(5, ge=1, description="A group of fewer patients at a site is not told.")

    @model_validator(mode="after")
    def _groups_are_apart(self) -> Evaluation:
        for column, groups in self.subgroups.items():
            if isinstance(groups[0], str):
                if len({*groups, "other"}) <= len(groups):
                    text = f"subgroups.{column}: every category once, and not 'other', which is what fits none"
                    raise ValueError(f"{text}; found {groups}")
            elif len(groups) < 2 or not all(low < high for low, high in itertools.pairwise(groups)):
                raise ValueError(f"subgroups.{column} needs at least two rising edges, or texts; found {groups}")
        return self


class Job(Section):
    """The whole job file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(0, ge=0, lt=2**31)
    task: Task
    data: Data
    model: Model
    training: Training
    federation: Federation
    evaluation: Evaluation = Evaluation()
    simulation: Simulation | None = None

    def canonical_json(self) -> str:
        """The resolved job, every default written out, in one canonical form: what is hashed and what travels."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def fingerprint(self) -> str:
        """SHA-256 of the canonical form, as hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def learning_rate(self, round_number: int) -> float:
        """Of the local optimiser in a round, counted from 1."""
        spec = self.training.optimizer
        if spec.schedule == "constant":
            return spec.learning_rate
        return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (round_number - 1) / self.federation.rounds))

    @property
    def mask_column(self) -> str | None:
        """The manifest column with masks of a task that only judges with them."""
        if self.task.kind == "translation" and self.task.how.mode == "unpaired":
            return self.task.how.mask
        return None

    def file_columns(self) -> list[str]:
        """The manifest columns that name files; all others hold words and numbers."""
        label = [self.data.label] if self.task.label != "class" else []
        mask = [self.mask_column] if self.mask_column else []
        return list(dict.fromkeys([*self.data.images, *label, *mask]))

    def selection_metric(self) -> str:
        """The validation metric that picks the best round; larger is better."""
        return self.evaluation.select or self.task.selection
