"""The job's section `task`: what is asked of the network, one model for each kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shared_models.section import Section

LabelKind = Literal["mask", "class", "image"]
"""What the label column of a manifest holds: the path of a mask, a class or findings, the path of another image."""


NO_STEPS: Mapping[str, int] = MappingProxyType({})


class SegmentationTask(Section):
    """Every voxel gets one class."""

    label: ClassVar[LabelKind] = "mask"
    steps_to_judge: ClassVar[Mapping[str, int]] = NO_STEPS
    """Training steps that a site takes each time it judges a model, by the key that says how many."""

    kind: Literal["segmentation"]
    classes: list[str] = Field(min_length=2, description="Names by label value; the first is the background.")
    surface_tolerance_mm: float = Field(
        1.0, gt=0, description="Tolerance of the normalised surface Dice, in mm (pixels without spacing)."
    )
    overlap: float = Field(
        0.25, ge=0, lt=1, description="Of the windows that cover an image larger than data.crop, along every axis."
    )
    test_flips: bool = Field(False, description="Average the prediction over all flips of the image: 2^axes passes.")

    @property
    def ability(self) -> str:
        """What a network must be able to do."""
        return self.kind

    @property
    def selection(self) -> str:
        """The validation metric that picks the best round, where the job names none."""
        return "dice"

    def outputs(self, channels: int) -> int:
        """Output channels of the network for images with so many channels."""
        return len(self.classes)


class ClassificationTask(Section):
    """Every case gets one class (single_label) or any number of findings (multi_label)."""

    label: ClassVar[LabelKind] = "class"
    steps_to_judge: ClassVar[Mapping[str, int]] = NO_STEPS

    kind: Literal["classification"]
    classes: list[str] = Field(min_length=1, description="Names by label value.")
    mode: Literal["single_label", "multi_label"] = "single_label"
    class_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="One per class: how much a case of it (multi_label: a positive finding) counts in the loss."
    )
    focal_gamma: float = Field(0.0, ge=0, description="Focal loss (Lin et al. 2017, eq. 4); 0 is cross entropy.")

    @model_validator(mode="after")
    def _two_classes_to_choose_from(self) -> ClassificationTask:
        if self.mode == "single_label" and len(self.classes) < 2:
            raise ValueError("a single_label task needs at least two classes")
        if self.class_weights is not None and len(self.class_weights) != len(self.classes):
            raise ValueError(f"class_weights needs {len(self.classes)} numbers, one per class")
        return self

    @property
    def ability(self) -> str:
        """What a network must be able to do."""
        return self.kind

    @property
    def selection(self) -> str:
        """The validation metric that picks the best round, where the job names none."""
        return "auroc"

    def outputs(self, channels: int) -> int:
        """Logits of the network."""
        return len(self.classes)


class PairedTranslation(Section):
    """Every image has its target: another contrast, a full dose, or itself without noise."""

    mode: Literal["paired"]
    noise: float | None = Field(
        None, gt=0, description="Deviation of the Gaussian noise that makes the source out of the image in data.label."
    )
    l1_weight: float = Field(100.0, ge=0, description="Of the L1 distance beside the adversarial loss.")


class UnpairedTranslation(Section):
    """Images of two domains, such as two scanners; data.label says which a case is of."""

    mode: Literal["unpaired"]
    domains: list[str] = Field(min_length=2, max_length=2, description="Translated is the first into the second.")
    cycle_weight: float = Field(10.0, gt=0)
    identity_weight: float = Field(5.0, ge=0)
    mask: str | None = Field(
        None, description="Manifest column with masks, to judge translated images by a segmenter of the second domain."
    )
    mask_classes: list[str] = Field(default_factory=list, description="Names by mask value, first the background.")
    segmenter_steps: int = Field(200, ge=1, description="Training steps of that segmenter at each site.")

    @model_validator(mode="after")
    def _a_mask_has_classes(self) -> UnpairedTranslation:
        if len(set(self.domains)) != 2:
            raise ValueError("domains needs two different names")
        if (self.mask is None) != (not self.mask_classes) or len(self.mask_classes) == 1:
            raise ValueError("mask and mask_classes (at least two) belong together")
        return self


class TranslationTask(Section):
    """Every image becomes another image of the same shape."""

    kind: Literal["translation"]
    how: Annotated[PairedTranslation | UnpairedTranslation, Field(discriminator="mode")]

    @property
    def label(self) -> LabelKind:
        """A target image, or the domain as a class."""
        return "image" if self.how.mode == "paired" else "class"

    @property
    def steps_to_judge(self) -> Mapping[str, int]:
        """Of the segmenter that translated images are judged by."""
        if isinstance(self.how, PairedTranslation) or self.how.mask is None:
            return NO_STEPS
        return {"task.how.segmenter_steps": self.how.segmenter_steps}

    @property
    def classes(self) -> list[str]:
        """The domains."""
        return self.how.domains if self.how.mode == "unpaired" else []

    @property
    def ability(self) -> str:
        """What a network must be able to do."""
        return f"{self.how.mode} translation"

    @property
    def selection(self) -> str:
        """The validation metric that picks the best round, where the job names none."""
        return "psnr" if self.how.mode == "paired" else "cycle_psnr"

    def outputs(self, channels: int) -> int:
        """Channels of the translated image."""
        return channels


class SynthesisTask(Section):
    """A generator makes images of each class; judged is what a classifier gains by them."""

    label: ClassVar[LabelKind] = "class"

    kind: Literal["synthesis"]
    classes: list[str] = Field(min_length=2, description="Names by label value.")
    images_per_class: int = Field(100, ge=1, description="Synthetic images of each class that a site adds to its own.")
    classifier_steps: int = Field(200, ge=1, description="Training steps of the classifiers that judge, at each site.")

    @property
    def steps_to_judge(self) -> Mapping[str, int]:
        """Of the two classifiers, with synthetic images and without."""
        return {"task.classifier_steps": 2 * self.classifier_steps}

    @property
    def ability(self) -> str:
        """What a network must be able to do."""
        return self.kind

    @property
    def selection(self) -> str:
        """The validation metric that picks the best round, where the job names none."""
        return "auroc_with_synthetic"

    def outputs(self, channels: int) -> int:
        """Channels of a synthetic image."""
        return channels


class AnomalyTask(Section):
    """Trained on cases of the first class only; a case is scored by how badly it is reconstructed."""

    label: ClassVar[LabelKind] = "class"
    steps_to_judge: ClassVar[Mapping[str, int]] = NO_STEPS

    kind: Literal["anomaly"]
    classes: list[str] = Field(min_length=2, description="The first is normal, the others are what is to be found.")
    divergence_weight: float = Field(
        1e-3, ge=0, description="Of the Kullback-Leibler term of a variational autoencoder, per voxel."
    )

    @property
    def ability(self) -> str:
        """What a network must be able to do."""
        return "reconstruction"

    @property
    def selection(self) -> str:
        """The validation metric that picks the best round, where the job names none."""
        return "auroc"

    def outputs(self, channels: int) -> int:
        """Channels of the reconstruction."""
        return channels


Task = Annotated[
    SegmentationTask | ClassificationTask | TranslationTask | SynthesisTask | AnomalyTask, Field(discriminator="kind")
]
