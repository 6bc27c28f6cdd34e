"""What a run may compare: names, what fits a job, and what is said of the rest."""

import pytest

from shared_models.comparisons import COMPARISONS, chosen, read_comparisons
from shared_models.errors import BadInput
from shared_models.job import Job


def job_of(task="classification", normalisation="batch", **federation):
    models = {"classification": "cnn", "segmentation": "unet"}
    return Job.model_validate(
        {
            "name": "compared",
            "task": {"kind": task, "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": models[task], "normalisation": normalisation},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1, **federation},
        }
    )


def test_names_are_read_and_an_unknown_one_is_refused_with_those_there_are():
    assert read_comparisons("local, pooled,local") == ("local", "pooled")
    assert read_comparisons("none") == () and read_comparisons("all") == ("all",)
    for text, found in (("lokal", "'lokal'"), ("local,none", "'none'"), ("", "nothing"), (",", "nothing")):
        with pytest.raises(BadInput) as caught:
            read_comparisons(text)
        assert all(name in str(caught.value) for name in COMPARISONS)
        assert str(caught.value).endswith(f"found {found}")


def test_all_is_all_that_fits_and_says_why_the_rest_does_not():
    compared, left_out = chosen(("all",), job_of(), hospitals=3)
    assert compared == [name for name in COMPARISONS if name != "personalised"]
    assert list(left_out) == ["personalised"] and "ditto" in left_out["personalised"]
    compared, left_out = chosen(("all",), job_of(), hospitals=None)
    assert compared == ["local", "fine_tuned", "temperature", "adapted"]
    assert all("real hospitals" in left_out[name] for name in ("pooled", "ensemble", "leave_one_out"))


@pytest.mark.parametrize(
    ("name", "job", "hospitals", "says"),
    [
        ("adapted", job_of(normalisation="instance"), 3, "set model.normalisation to batch"),
        ("temperature", job_of("segmentation"), 3, "the task is segmentation"),
        ("personalised", job_of(), 3, "federation.algorithm.name: ditto"),
        ("pooled", job_of(), None, "nobody has the data of all hospitals"),
        ("ensemble", job_of(), 1, "at least 2 hospitals"),
        ("leave_one_out", job_of(quorum=3), 3, "federation.quorum is 3"),
        ("leave_one_out", job_of(aggregation={"name": "krum"}), 5, "krum needs 5 updates in every round"),
        ("leave_one_out", job_of(algorithm={"name": "fedbn"}), 3, "silobn with adapted"),
        ("leave_one_out", job_of(algorithm={"name": "fedper"}), 3, "share.heads is nothing"),
        ("leave_one_out", job_of(algorithm={"name": "silobn"}), 3, "add adapted"),
    ],
)
def test_what_was_asked_for_by_name_and_does_not_fit_is_refused(name, job, hospitals, says):
    with pytest.raises(BadInput, match=f"--compare {name} does not fit this run: ") as caught:
        chosen((name,), job, hospitals=hospitals)
    assert says in str(caught.value)


def test_leave_one_out_that_would_stop_is_refused_by_name_and_left_out_of_all():
    why = "the federation without hospital-2 would stop: so few"
    with pytest.raises(BadInput, match=f"--compare leave_one_out does not fit this run: {why}"):
        chosen(("local", "leave_one_out"), job_of(), hospitals=3, without_one=why)
    compared, left_out = chosen(("all",), job_of(), hospitals=3, without_one=why)
    assert "leave_one_out" not in compared and left_out["leave_one_out"] == why
    assert chosen(("local",), job_of(), hospitals=3, without_one=why) == (["local"], {})


def test_what_belongs_together_comes_together():
    assert chosen(("ensemble",), job_of(), hospitals=2)[0] == ["local", "ensemble"]
    ditto = job_of(algorithm={"name": "ditto"})
    assert chosen(("local",), ditto, hospitals=2)[0] == ["local", "personalised"]
    silobn = job_of(algorithm={"name": "silobn"})
    assert chosen(("leave_one_out", "adapted"), silobn, hospitals=3)[0] == ["leave_one_out", "adapted"]
