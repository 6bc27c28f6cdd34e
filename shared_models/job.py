"""The job file as strict models: one job runs in one process, on Ray and on real hospitals.

Unknown keys are refused everywhere; `shared_models.job_file` turns a refusal into a sentence with file and line.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

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
    spatial_dims: Literal[2, 3]
    channels: int = Field(1, ge=1, description="Channels of all image columns together.")
    spacing: list[float] | None = Field(None, description="Resample to this spacing in mm; null keeps the file's.")
    crop: list[int] = Field(description="Size of a training patch in voxels; smaller images are padded.")
    normalisation: Literal["zscore", "percentile", "minmax", "none"] = Field(
        "zscore", description="Per image and channel; percentile maps the 0.5th to 99.5th percentile to 0..1."
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


class ServerOptimizer(Section):
    """Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2; `none` takes the average as it is."""

    name: Literal["none", "momentum", "adam", "yogi", "adagrad"] = "none"
    learning_rate: float = Field(1.0, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="beta_1.")
    second_momentum: float = Field(0.99, ge=0, lt=1, description="beta_2 of adam and yogi.")
    adaptivity: float = Field(1e-3, gt=0, description="tau, added to the root of the second moment.")


class Algorithm(Section):
    """How local work becomes a global model."""

    name: Literal["fedavg"] = "fedavg"
    server_optimizer: ServerOptimizer = ServerOptimizer()


class Share(Section):
    """Which tensors of a model travel; the others stay at each site and are its own."""

    normalisation: Literal["all", "no_statistics", "nothing"] = Field(
        "all",
        description="Of normalisation layers: all; all but running statistics (SiloBN, Andreux et al. 2020); nothing "
        "(FedBN, Li et al. 2021).",
    )
    networks: Literal["all", "generators"] = Field("all", description="Of a GAN: discriminators may stay at home.")


class Federation(Section):
    """The rounds."""

    rounds: int = Field(ge=1)
    algorithm: Algorithm = Algorithm()
    share: Share = Share()
    sites_per_round: int | None = Field(None, ge=1, description="Sites drawn at random each round; null takes all.")
    quorum: int | None = Field(
        None, ge=1, description="Updates a round needs; null asks for more than half of the sites drawn."
    )
    deadline_seconds: float | None = Field(None, gt=0, description="A reply later than this is left out of its round.")
    retries: int = Field(2, ge=0, description="How often a round below quorum is tried again before the run stops.")

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> Federation:
        if self.quorum and self.sites_per_round and self.quorum > self.sites_per_round:
            raise ValueError(f"quorum {self.quorum} can never be met with sites_per_round {self.sites_per_round}")
        return self


class Evaluation(Section):
    """How a model is judged. Shares apply to patients of manifests (or data sets) that have no split of their own."""

    validation_share: Fraction = 0.1
    test_share: Fraction = 0.2
    every: int = Field(1, ge=0, description="Validate the global model every so many rounds; 0 only after the last.")
    select: str | None = Field(None, description="Validation metric that picks the best round; null: dice or auroc.")
    bootstrap: int = Field(500, ge=0, description="Patient-level bootstrap replicates behind every 95 % interval.")


class DecathlonDataset(Section):
    """Medical Segmentation Decathlon layout: dataset.json, imagesTr/, labelsTr/."""

    name: Literal["decathlon"]
    task: str = Field(description="The folder, such as Task04_Hippocampus.")
    columns: str | None = Field(None, description="A CSV in the folder with a `case` column: more columns per case.")
    unpaired: str | None = Field(
        None, description="A subfolder whose images/ and labels/ hold further cases, as they come from a source."
    )


class MedMNISTDataset(Section):
    """One npz of the MedMNIST collection, 2D or 3D, with its official split."""

    name: Literal["medmnist"]
    flag: str = Field(description="Such as pneumoniamnist.")
    size: Literal[28, 64, 128, 224] = 28


class FolderDataset(Section):
    """Any images with a table: a CSV with one row a case, paths relative to it; or one npz with an array per column."""

    name: Literal["folder"]
    table: str = Field(description="A .csv, or an .npz whose arrays are the columns (images, labels, patient ...).")
    url: str | None = Field(None, description="Where `table` (or an archive with it) can be fetched from.")
    sha256: str | None = None
    columns: dict[str, str] = Field(
        default_factory=dict, description="Manifest column: column in the table, where the names differ."
    )


class PhantomDataset(Section):
    """Brain slices made from the MNI152 template: offline, four scanners."""

    name: Literal["phantom"]
    patients_per_hospital: int = Field(24, ge=4)
    slices_per_patient: int = Field(2, ge=1)
    size: int = Field(96, ge=32)


Dataset = Annotated[DecathlonDataset | MedMNISTDataset | FolderDataset | PhantomDataset, Field(discriminator="name")]


class IidPartition(Section):
    """Patients at random, equally many everywhere."""

    name: Literal["iid"]


class DirichletPartition(Section):
    """Label skew: class shares per hospital drawn from Dirichlet(alpha) (Hsu et al. 2019)."""

    name: Literal["dirichlet"]
    alpha: float = Field(gt=0)
    min_patients: int = Field(10, ge=1)


class QuantityPartition(Section):
    """Quantity skew: hospital sizes drawn from Dirichlet(alpha), labels at random."""

    name: Literal["quantity"]
    alpha: float = Field(gt=0)
    min_patients: int = Field(10, ge=1)


class PathologicalPartition(Section):
    """Every hospital sees only so many classes (McMahan et al. 2017)."""

    name: Literal["pathological"]
    classes_per_hospital: int = Field(ge=1)


class NaturalPartition(Section):
    """A column of the data set, such as hospital or scanner, says who is where."""

    name: Literal["natural"]
    column: str


Partition = Annotated[
    IidPartition | DirichletPartition | QuantityPartition | PathologicalPartition | NaturalPartition,
    Field(discriminator="name"),
]


class Simulation(Section):
    """Which public data set, and who gets which patient."""

    dataset: Dataset
    partition: Partition
    hospitals: int | None = Field(None, ge=1, description="Not for a natural partition, where the column says it.")

    @model_validator(mode="after")
    def _number_of_hospitals(self) -> Simulation:
        natural = self.partition.name == "natural"
        if natural and self.hospitals is not None:
            raise ValueError("a natural partition takes its hospitals from the column: leave out `hospitals`")
        if not natural and self.hospitals is None:
            raise ValueError(f"a {self.partition.name} partition needs `hospitals`, their number")
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
