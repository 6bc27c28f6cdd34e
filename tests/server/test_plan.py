"""The plan: each decision follows from the sites' tables by its rule, and says so."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.admission import Rejected, SiteFault
from server.plan import decide, planned
from server.planning import _admitted, _written, planned_before
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_file import check_meaning
from shared_models.statistics import EXTENT, INTENSITY, MILLION, SPACING, table_shapes
from shared_models.weights import to_record


def job(decide=("spacing", "crop", "normalisation"), harmonise=False, **changes) -> Job:
    values = {
        "name": "organs",
        "task": {"kind": "segmentation", "classes": ["background", "organ"]},
        "data": {"spatial_dims": 3, "crop": [64, 64, 64]},
        "model": {"name": "unet", "arguments": {"channels": [4, 8, 16], "strides": [2, 2]}},
        "training": {"local_epochs": 1},
        "federation": {"rounds": 1, "statistics": {"decide": list(decide), "harmonise": harmonise}},
    }
    return Job.model_validate(values | changes)


def site(of=None, patients=10, spacing=(1, 1, 1), extent=(60, 60, 60), intensity=(5, 90, 120), known=True):
    """The tables of a site whose patients are all alike."""
    tables = {name: np.zeros(shape) for name, shape in table_shapes(of or job()).items()}
    tables["patients"][0] = patients
    tables["spacing_known"][0 if known else 1] = patients
    for axis in range(3):
        tables["spacing"][axis, SPACING.cells(spacing[axis])] = patients
        tables["extent"][axis, EXTENT.cells(extent[axis])] = patients
    for value, share in zip(intensity, (0.3, 0.5, 0.2), strict=True):
        tables["intensity"][:, INTENSITY.cells(value)] += share * patients * MILLION
        if value > 0:
            tables["foreground"][:, INTENSITY.cells(value)] += share * patients * MILLION
    tables["landmarks"][:] = np.linspace(0, 1, 11) ** 2 * patients * MILLION
    for name in ("landmarks", "intensity", "foreground"):
        tables[name] = np.floor(tables[name])
    tables["landmark_patients"][:] = patients
    tables["classes"][:] = patients
    return tables


def found(of, **sites):
    return {decision.key: decision for decision in decide(of, sites)}


def test_the_median_spacing_of_all_patients_not_of_all_sites():
    plan = found(job(), large=site(patients=30, spacing=(0.8, 0.8, 1.5)), small=site(patients=10, spacing=(2, 2, 2)))
    assert plan["spacing"].value == [0.8, 0.8, 1.5]
    assert plan["spacing"].why == "the median of 40 patients is 0.8 x 0.8 x 1.5 mm"


def test_thick_slices_are_resampled_to_the_thinner_of_them():
    thick = {"extent": (200, 200, 90), "patients": 40}
    plan = found(
        job(), a=site(spacing=(0.7, 0.7, 5), **thick), b=site(**{**thick, "patients": 10}, spacing=(0.7, 0.7, 2.5))
    )
    assert plan["spacing"].value == [0.7, 0.7, 2.5] and "axis 3 has thick slices" in plan["spacing"].why
    # Not where there are many of them, as in a whole body.
    tall = found(job(), a=site(spacing=(0.7, 0.7, 5), extent=(200, 200, 1800)))
    assert tall["spacing"].value == [0.7, 0.7, 5]


def test_grids_stay_where_files_do_not_say_their_voxel_size():
    plan = found(job(), a=site(), b=site(known=False))
    assert plan["spacing"].value is None and "10 of 20 patients do not say" in plan["spacing"].why
    few = site()
    few["spacing_known"][:] = 0  # two do not, which are too few to be told of
    plan = found(job(), a=few, b=site())
    assert plan["spacing"].value is None and "some of 20 patients do not say" in plan["spacing"].why


def test_the_crop_stays_where_sizes_in_mm_cannot_be_counted_in_voxels():
    fine = {"spacing": (0.5, 0.5, 0.5), "extent": (16, 16, 16)}  # 32 x 32 x 32 voxels
    plan = found(job(), a=site(**fine), b=site(known=False, extent=(32, 32, 32)))
    assert plan["crop"].value == [64, 64, 64] and "nobody knows them in voxels" in plan["crop"].why
    few = site(**fine)
    few["spacing_known"][:] = 0  # suppressed
    assert found(job(), a=few)["crop"].value == [64, 64, 64]


def test_the_crop_is_in_voxels_where_no_file_says_its_voxel_size_or_grids_are_kept():
    unknown = site(known=False, extent=(32, 32, 32))
    assert found(job(), a=unknown, b=unknown)["crop"].value == [32, 32, 32]
    kept = job(decide=["crop"])
    assert found(kept, a=site(extent=(32, 32, 32)), b=unknown)["crop"].value == [32, 32, 32]


def test_the_crop_is_the_median_image_in_sizes_that_the_network_takes():
    plan = found(job(), a=site(spacing=(2, 2, 2), extent=(70, 104, 70)))
    assert plan["crop"].value == [36, 52, 36]  # 35 x 52 x 35 voxels of 2 mm, and the network halves twice
    assert "the median image has 35 x 52 x 35 voxels at 2 x 2 x 2 mm" in plan["crop"].why


@pytest.mark.parametrize("budget", [[64, 64, 64], [32, 32, 32], [24, 24, 24]])
def test_a_crop_has_no_more_voxels_than_the_jobs_and_keeps_the_images_proportions(budget):
    of = job(data={"spatial_dims": 3, "crop": budget})
    crop = found(of, a=site(extent=(300, 300, 75)))["crop"].value
    assert np.prod(budget) / 2 < np.prod(crop) <= np.prod(budget)
    assert max(crop[0], crop[1]) >= 2.5 * crop[2] and abs(crop[0] - crop[1]) <= 4
    assert check_meaning(planned(of, decide(of, {"a": site(extent=(300, 300, 75))}))) == []


def test_a_network_of_large_steps_gets_multiples_of_them():
    of = job(model={"name": "unet", "arguments": {"channels": [4, 8, 8, 8, 8], "strides": [2, 2, 2, 2]}})
    assert found(of, a=site(extent=(40, 40, 40)))["crop"].value == [48, 48, 48]


def test_hounsfield_units_get_one_window_and_other_scales_none():
    scanner = {"intensity": (-990, 40, 300)}
    plan = found(job(), a=site(**scanner), b=site(**scanner))
    low, high = plan["window"].value[0]
    assert plan["normalisation"].value == "window"
    assert (low, high) == pytest.approx((40, 300), rel=0.04)  # of the organ, not of the air around it
    mixed = found(job(), a=site(**scanner), b=site())
    assert mixed["normalisation"].value == "zscore" and "window" not in mixed
    assert "median by site: a" in mixed["normalisation"].why


def test_the_standard_scale_has_mean_0_and_deviation_1_and_rises():
    [scale] = found(job(harmonise=True), a=site(), b=site())["landmarks"].value
    assert len(scale) == 11 and scale == sorted(scale)
    places = np.array([1, *range(10, 100, 10), 99]) / 100
    drawn = np.interp(np.linspace(0.01, 0.99, 100_001), places, scale)
    assert drawn.mean() == pytest.approx(0, abs=1e-3) and drawn.std() == pytest.approx(1, abs=0.03)


def test_only_what_shall_be_decided_is():
    of = job(
        decide=["crop"], data={"spatial_dims": 3, "crop": [64] * 3, "spacing": [2, 2, 2], "normalisation": "minmax"}
    )
    result = planned(of, decide(of, {"a": site(extent=(100, 100, 100))}))
    assert (result.data.spacing, result.data.crop, result.data.normalisation) == ([2, 2, 2], [52, 52, 52], "minmax")
    assert result.federation.statistics is None and result.fingerprint() != of.fingerprint()


# What came from a site

REFUSAL = {
    "rule": "policy.statistics",
    "asked": "statistics of training images",
    "allowed": "no",
    "remedy": "a wider policy",
}


def message(content):
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    return Message(content, 1, "query.statistics")


def reply(**changes):
    return message(RecordDict({"statistics": to_record(site() | changes)}))


def test_honest_tables_are_taken():
    taken = _admitted(reply(), job())
    assert all((taken[name] == table).all() for name, table in site().items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"patients": np.array([2.0])}, "'patients' is 2, expected at least 5"),
        ({"patients": np.array([1e12])}, "'patients' is 1e"),
        ({"intensity": np.full((1, len(INTENSITY.values)), np.nan)}, "not finite"),
        ({"intensity": np.full((1, len(INTENSITY.values)), 1e15)}, "more than all voxels"),
        ({"spacing": -site()["spacing"]}, "no whole numbers"),
        ({"spacing": 0 * site()["spacing"]}, "no spacing"),
        ({"extent": site()["extent"][:2]}, "extent"),
        ({"classes": site()["classes"].astype(np.float32)}, "float64"),
        ({"classes": site()["classes"] + 1}, "more patients than there are"),
        ({"classes": np.array([10.0, 1.0])}, "fewer than 5 patients"),
        ({"another": np.zeros(3)}, "another"),
    ],
)
def test_tables_that_no_site_can_have_counted_are_rejected(changes, why):
    with pytest.raises(Rejected, match=why):
        _admitted(reply(**changes), job())


def test_a_reply_without_tables_is_rejected_and_a_refusal_is_a_sites_own_word():
    with pytest.raises(Rejected, match="no record 'statistics'"):
        _admitted(message(RecordDict()), job())
    refusal = {"code": "policy", "parameters": json.dumps({"refusals": [REFUSAL]})}
    with pytest.raises(SiteFault, match="policy.statistics: asked statistics of training images, allowed no"):
        _admitted(message(RecordDict({"fault": ConfigRecord(refusal)})), job())


# On disk


def test_a_plan_that_was_changed_by_hand_is_refused(tmp_path):
    of = job()
    made = _written(tmp_path, of, {"a": site()}, {"b": "it was not connected"})
    assert planned_before(tmp_path, of) == made
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["left_out"] == {"b": "it was not connected"} and plan["planned_job_hash"] == made.fingerprint()
    text = (tmp_path / "planned-job.yaml").read_text()
    (tmp_path / "planned-job.yaml").write_text(text.replace("rounds: 1", "rounds: 100"))
    with pytest.raises(BadInput, match="was changed after the plan was made"):
        planned_before(tmp_path, of)


def test_a_plan_that_was_not_finished_is_made_anew(tmp_path):
    (tmp_path / "plan.json").write_text("{")  # killed before the planned job was there
    assert planned_before(tmp_path, job()) is None
