"""The job's `simulation` section: which public data set, who gets which patient, and how the hospitals differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, model_validator

from shared_models.job_participation import Fault, Participation
from shared_models.job_scanners import Annotator, Scanners
from shared_models.section import Section


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


def _one_sentence(value: Any, read: Callable[[Any], Any]) -> Any:
    """Instead of one sentence for each of the two ways to write it."""
    try:
        return read(value)
    except ValidationError:
        example = "{hospital-1: [liver], hospital-2: [spleen]}"
        raise ValueError(f"expected rotate, or lists of classes by hospital, such as {example}") from None


PartlyLabelled = Annotated[Literal["rotate"] | dict[str, list[str]], WrapValidator(_one_sentence)]


class Simulation(Section):
    """Which public data set, and who gets which patient."""

    dataset: Dataset
    partition: Partition
    hospitals: int | None = Field(None, ge=1, description="Not for a natural partition, where the column says it.")
    scanners: Scanners | None = Field(None, description="How hospitals' images differ, in training and in judging.")
    annotators: dict[str, Annotator] = Field(
        default_factory=dict, description="By hospital: whose masks or classes differ, in training and validation."
    )
    partly_labelled: PartlyLabelled = Field(
        default_factory=dict,
        description="By hospital: the organs that its training and validation masks have; `rotate` deals them in turn.",
    )
    missing_channels: dict[str, list[str]] = Field(
        default_factory=dict, description="By hospital: the columns of data.images that it does not take."
    )
    missing_classes: dict[str, list[str]] = Field(
        default_factory=dict, description="By hospital: classes without a training or validation patient there."
    )
    participation: dict[str, Participation] = Field(
        default_factory=dict, description="By hospital: when it joins and leaves, how reliable and how fast it is."
    )
    bandwidth_mbit: float | None = Field(
        None, gt=0, description="Of each hospital, either way, for the simulated clock; null assumes 100 Mbit/s."
    )
    faulty: dict[str, Fault] = Field(default_factory=dict, description="By hospital: what it does wrong or on purpose.")

    @model_validator(mode="after")
    def _number_of_hospitals(self) -> Simulation:
        natural = self.partition.name == "natural"
        if natural and self.hospitals is not None:
            raise ValueError("a natural partition takes its hospitals from the column: leave out `hospitals`")
        if not natural and self.hospitals is None:
            raise ValueError(f"the partition {self.partition.name} needs `hospitals`, their number")
        return self

    @property
    def names(self) -> list[str] | None:
        """The hospitals' names; None of a natural partition, whose column has them."""
        return None if self.hospitals is None else [f"hospital-{n}" for n in range(1, self.hospitals + 1)]

    def unknown_hospitals(self, known: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Where a key goes by hospital, and says one that is not among `known`: its path, and a sentence.

        Every mapping of this section goes by hospital, and so does `scanners.by_hospital`.
        """
        named: dict[tuple[str, ...], dict[str, Any]] = {(key,): value for key, value in self if isinstance(value, dict)}
        if self.scanners is not None and self.scanners.by_hospital is not None:
            named["scanners", "by_hospital"] = self.scanners.by_hospital
        for path, by_hospital in named.items():
            for name in by_hospital:
                if name not in known:
                    yield ("simulation", *path), f"there is no hospital '{name}'; the hospitals are {', '.join(known)}"
