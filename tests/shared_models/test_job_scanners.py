"""Scanners and annotators in a job file: what does not fit is refused with its line, and with what would."""

from __future__ import annotations

import pytest

from shared_models.errors import BadInput
from shared_models.job_file import dump_job, parse_job

JOB = """\
name: shifted
task: {kind: TASK}
data: {spatial_dims: DIMS, channels: CHANNELS, crop: CROP}
model: MODEL
training: {local_steps: 1}
federation: {rounds: 1}
simulation:
  dataset: {name: folder, table: table.csv}
  partition: {name: iid}
  hospitals: 3
"""
CNN, UNET = "{name: cnn}", "{name: unet}"


def text(more: str, *, task: str = "classification, classes: [a, b]", dims: int = 2, channels: int = 1) -> str:
    network = UNET if "segmentation" in task else CNN
    crop = str([32] * dims)
    job = JOB.replace("TASK", task).replace("DIMS", str(dims)).replace("CHANNELS", str(channels))
    return job.replace("CROP", crop).replace("MODEL", network) + more


SEGMENTATION = "segmentation, classes: [background, organ]"


def refusal(job: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse_job(job, "job.yaml")
    return str(caught.value)


def test_chains_and_sets_are_read_and_written_back() -> None:
    more = """\
  scanners:
    by_hospital:
      hospital-1: [{kind: bias_field, strength: 0.5}, {kind: rician_noise}]
      hospital-3: [{kind: colour}, {kind: illumination}]
  annotators:
    hospital-2: {mislabelled: 0.1}
"""
    job = parse_job(text(more, channels=3), "job.yaml")
    assert job.simulation is not None and job.simulation.scanners is not None
    chains = job.simulation.scanners.by_hospital
    assert chains is not None and chains["hospital-1"][0].words == "bias field 0.5"
    assert parse_job(dump_job(job), "again.yaml") == job
    for name in ("mild", "strong", "one-bad-site"):
        parse_job(text(f"  scanners: {{set: {name}}}\n"), "job.yaml")


@pytest.mark.parametrize(
    ("more", "shape", "sentence"),
    [
        (
            "  scanners: {by_hospital: {hospital-1: [{kind: blur}, {kind: slice_thickness}]}}\n",
            {},
            "simulation.scanners.by_hospital.hospital-1[1]: slice_thickness needs 3D images, "
            "but the job has 2D images of 1 channel",
        ),
        (
            "  scanners: {by_hospital: {hospital-1: [{kind: colour}]}}\n",
            {},
            "colour needs 2D colour images, but the job has 2D images of 1 channel",
        ),
        (
            "  scanners: {by_hospital: {hospital-1: [{kind: illumination}]}}\n",
            {"dims": 3},
            "illumination needs 2D images, but the job has 3D images of 1 channel",
        ),
        (
            "  scanners: {by_hospital: {hospital-4: [{kind: blur}]}}\n",
            {},
            "simulation.scanners.by_hospital: there is no hospital 'hospital-4'; "
            "the hospitals are hospital-1, hospital-2, hospital-3",
        ),
        (
            "  annotators: {hopsital-1: {mislabelled: 0.1}}\n",
            {},
            "simulation.annotators: there is no hospital 'hopsital-1'; the hospitals are hospital-1, hospital-2",
        ),
        (
            "  annotators: {hospital-1: {masks: larger}}\n",
            {},
            "simulation.annotators.hospital-1.masks: a classification task has no masks to learn from",
        ),
        (
            "  annotators: {hospital-1: {mislabelled: 0.2}}\n",
            {"task": SEGMENTATION},
            "only the cases of a classification into several classes can be mislabelled; use masks instead",
        ),
        ("  annotators: {hospital-1: {voxels: 2}}\n", {"task": SEGMENTATION}, "give masks (for segmentation)"),
        ("  scanners: {}\n", {}, "set exactly one of set and by_hospital"),
        ("  scanners: {set: mild, by_hospital: {}}\n", {}, "set exactly one of set and by_hospital"),
        ("  scanners: {set: medium}\n", {}, "expected one of mild, strong, one-bad-site or null"),
        ("  scanners: {by_hospital: {hospital-1: [{kind: blurr}]}}\n", {}, "'blur'"),
        ("  scanners: {by_hospital: {hospital-1: [{kind: blur, sigm: 2}]}}\n", {}, "did you mean 'sigma'?"),
        ("  scanners: {by_hospital: {hospital-1: [blur]}}\n", {}, "found 'blur'; write {kind: blur}"),
        (
            "  scanners: {by_hospital: {hospital-1: [{kind: blur, level: 2}]}}\n",
            {},
            "hospital-1[0].level: unknown key here; it is a key of rician_noise and gaussian_noise; "
            "known in simulation.scanners.by_hospital.hospital-1[0]: kind, sigma",
        ),
        ("  scanners: {by_hospital: {hospital-1: [{kind: gamma, gamma: 0}]}}\n", {}, "> 0"),
    ],
)
def test_what_does_not_fit_is_refused(more: str, shape: dict, sentence: str) -> None:
    found = refusal(text(more, **shape))
    assert found.startswith("job.yaml:") and sentence in found, found
