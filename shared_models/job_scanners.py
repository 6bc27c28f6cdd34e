"""The job's `simulation.scanners` and `simulation.annotators`: how hospitals see, and how they draw and name."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from shared_models.section import Section

Needs = Literal["any image", "3D images", "2D images", "2D colour images"]


class Effect(Section):
    """One link of a virtual scanner's chain."""

    needs: ClassVar[Needs] = "any image"
    kind: str

    @property
    def words(self) -> str:
        """The effect as a picture's caption has it."""
        raise NotImplementedError


class BiasField(Effect):
    """A smooth multiplicative field, the same for all patients of the scanner, as of a receive coil."""

    kind: Literal["bias_field"]
    strength: float = Field(0.4, gt=0, le=2, description="Largest coefficient of the polynomial of its logarithm.")

    @property
    def words(self) -> str:
        return f"bias field {self.strength:.2g}"


class RicianNoise(Effect):
    """Noise of a magnitude image, as MRI has it."""

    kind: Literal["rician_noise"]
    level: float = Field(0.2, gt=0, le=5, description="Its deviation, in deviations of the image.")

    @property
    def words(self) -> str:
        return f"Rician noise {self.level:.2g}"


class GaussianNoise(Effect):
    """Additive noise."""

    kind: Literal["gaussian_noise"]
    level: float = Field(0.2, gt=0, le=5, description="Its deviation, in deviations of the image.")

    @property
    def words(self) -> str:
        return f"noise {self.level:.2g}"


class Blur(Effect):
    """A Gaussian point spread."""

    kind: Literal["blur"]
    sigma: float = Field(1.0, gt=0, le=20, description="Its deviation in voxels.")

    @property
    def words(self) -> str:
        return f"blur {self.sigma:.2g} voxels"


class Resolution(Effect):
    """Larger voxels along every axis. A NIfTI gets them; a picture or npz row keeps its size in pixels."""

    kind: Literal["resolution"]
    factor: float = Field(2.0, gt=1, le=10, description="Size of a voxel, in voxels of the file.")

    @property
    def words(self) -> str:
        return f"voxels \N{MULTIPLICATION SIGN} {self.factor:.2g}"


class SliceThickness(Effect):
    """Thicker slices, along the axis that has the largest voxels already, or else the last."""

    needs: ClassVar[Needs] = "3D images"

    kind: Literal["slice_thickness"]
    factor: float = Field(3.0, gt=1, le=10, description="Thickness of a slice, in slices of the file.")

    @property
    def words(self) -> str:
        return f"slice thickness \N{MULTIPLICATION SIGN} {self.factor:.2g}"


class Gamma(Effect):
    """Contrast by a power of the intensity, scaled to 0..1 within an image."""

    kind: Literal["gamma"]
    gamma: float = Field(2.0, gt=0, le=10, description="Below 1 brightens, above 1 darkens the middle.")

    @property
    def words(self) -> str:
        return f"gamma {self.gamma:.2g}"


class Histogram(Effect):
    """A rising, crooked line from intensity to intensity, the same for all patients of the scanner."""

    kind: Literal["histogram"]
    control_points: int = Field(5, ge=3, le=50, description="Corners of the line; fewer bend it more.")

    @property
    def words(self) -> str:
        return "histogram shift"


class Motion(Effect):
    """The patient moves during the acquisition: parts of k-space are of a turned and shifted image."""

    kind: Literal["motion"]
    degrees: float = Field(5.0, ge=0, le=45, description="Largest rotation.")
    voxels: float = Field(2.0, ge=0, le=50, description="Largest shift.")
    movements: int = Field(3, ge=1, le=20)

    @property
    def words(self) -> str:
        return f"motion {self.degrees:.2g}\N{DEGREE SIGN}"


class FieldOfView(Effect):
    """The middle of the image only. A NIfTI is cropped; a picture or npz row is enlarged to its former size."""

    kind: Literal["field_of_view"]
    share: float = Field(0.8, ge=0.2, lt=1, description="What is left of every axis.")

    @property
    def words(self) -> str:
        return f"field of view {100 * self.share:.0f} %"


class Colour(Effect):
    """Colour channels mixed with each other, the same for all patients of the camera; grey stays grey."""

    needs: ClassVar[Needs] = "2D colour images"

    kind: Literal["colour"]
    strength: float = Field(0.4, gt=0, le=1, description="How much of a channel is a random mean of all three.")

    @property
    def words(self) -> str:
        return f"colours mixed {self.strength:.2g}"


class Illumination(Effect):
    """Light that falls off from a centre, which is the same for all patients of the camera."""

    needs: ClassVar[Needs] = "2D images"

    kind: Literal["illumination"]
    strength: float = Field(0.5, gt=0, le=1, description="Share of the light that the farthest corner lacks.")

    @property
    def words(self) -> str:
        return f"light falls by {100 * self.strength:.0f} %"


class Inverted(Effect):
    """Black for white."""

    kind: Literal["inverted"]

    @property
    def words(self) -> str:
        return "inverted"


AnyEffect = Annotated[
    BiasField
    | RicianNoise
    | GaussianNoise
    | Blur
    | Resolution
    | SliceThickness
    | Gamma
    | Histogram
    | Motion
    | FieldOfView
    | Colour
    | Illumination
    | Inverted,
    Field(discriminator="kind"),
]


class Scanners(Section):
    """Every hospital's images as a scanner of its own would have them: a ready set, or chains by hospital."""

    set: Literal["mild", "strong", "one-bad-site"] | None = Field(
        None, description="A chain for every hospital, drawn from the seed; one-bad-site spoils a single hospital."
    )
    by_hospital: dict[str, list[AnyEffect]] | None = Field(
        None, description="Effects in their order; a hospital that is not named keeps its images."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Scanners:
        if (self.set is None) == (self.by_hospital is None):
            raise ValueError("set exactly one of set and by_hospital")
        return self


class Annotator(Section):
    """How a hospital's annotator differs from the data set's, on its training and validation patients."""

    masks: Literal["larger", "smaller", "smoother", "noisier"] | None = None
    voxels: float = Field(1.0, gt=0, le=20, description="By how much masks differ at their edge.")
    mislabelled: float = Field(0.0, ge=0, le=1, description="Share of the cases that get another class.")

    @model_validator(mode="after")
    def _differs(self) -> Annotator:
        if self.masks is None and not self.mislabelled:
            raise ValueError("give masks (for segmentation) or mislabelled (for classification)")
        return self


def misfit(effect: Effect, spatial_dims: int, channels: int) -> str | None:
    """Why an effect cannot be had from images of so many channels, or None when it can."""
    there = f"{spatial_dims}D images"
    colour = ["2D colour images"] if spatial_dims == 2 and channels == 3 else []
    if effect.needs in ("any image", there, *colour):
        return None
    plural = "" if channels == 1 else "s"
    return f"{effect.kind} needs {effect.needs}, but the job has {there} of {channels} channel{plural}"
