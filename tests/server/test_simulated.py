"""What was made to differ is said in words."""

from server.report.simulated import simulated
from shared_models.job import Job


def job(**simulation):
    return Job.model_validate(
        {
            "name": "made",
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [8, 8]},
            "model": {"name": "cnn"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
            "simulation": {
                "dataset": {"name": "medmnist", "flag": "x"},
                "partition": {"name": "iid"},
                "hospitals": 3,
                **simulation,
            },
        }
    )


def test_hospitals_that_were_left_alone_are_not_mentioned():
    assert simulated(job()) == []


def test_every_difference_is_named_with_its_hospitals():
    made = job(
        scanners={"set": "strong"},
        annotators={"hospital-1": {"mislabelled": 0.1}},
        missing_classes={"hospital-2": ["a"]},
        participation={"hospital-3": {"joins": 2}},
        faulty={"hospital-2": {"kind": "sign_flip"}},
    )
    text = " ".join(simulated(made))
    assert (
        "(the set strong)" in text
        and "validation: hospital-1 (10 % mislabelled)." in text
        and "patients: hospital-2." in text
    )
    assert "speed): hospital-3." in text and "on purpose: hospital-2 (sign_flip)." in text
