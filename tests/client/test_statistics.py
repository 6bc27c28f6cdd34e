"""Statistics at a site: counted right, and never of too few patients."""

import nibabel
import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.allowed import allowed_for
from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.egress import Withheld, release
from client.policy import Policy
from client.statistics import _Counting, tables_of
from shared_models.faults import Fault, read_fault
from shared_models.job import Job
from shared_models.statistics import COUNTS, EXTENT, INTENSITY, MILLION, SPACING, table_shapes
from shared_models.weights import from_record, to_record
from tests.client.asking import Coordinator, Here
from tests.client.door import JOB, serialised

LEAST = 3
WANTED = {"statistics": {"min_patients": LEAST}}
SQUARES = Job.model_validate({**JOB.model_dump(), "federation": {"rounds": 2, **WANTED}})
VOLUMES = Job.model_validate(
    {
        "name": "volumes",
        "task": {"kind": "segmentation", "classes": ["background", "organ", "lesion"]},
        "data": {"spatial_dims": 3, "crop": [16, 16, 16]},
        "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
        "training": {"local_epochs": 1},
        "federation": {"rounds": 1, **WANTED},
    }
)
SPACINGS = [0.8, 0.9, 0.9, 1.0, 1.0, 1.0, 5.0]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> SiteData:
    """Seven patients; the slices of the last are 5 mm thick, only the first two have a lesion, one has two cases."""
    folder = tmp_path_factory.mktemp("volumes")
    rows = ["case,patient,image,label,split"]
    rng = np.random.default_rng(0)
    for number, spacing in enumerate([*SPACINGS, SPACINGS[-1]]):
        patient = min(number, 6)
        mask = np.zeros((10, 12, 8), np.uint8)
        mask[2:6, 2:6, 2:6] = 1
        if number < 2:
            mask[7, 7, 7] = 2
        image = rng.normal(100, 5, mask.shape).astype(np.float32) + 400 * (mask > 0)
        for name, values in (("image", image), ("mask", mask)):
            nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 1, spacing, 1])), folder / f"{name}{number}.nii.gz")
        rows.append(f"c{number},p{patient},image{number}.nii.gz,mask{number}.nii.gz,train")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return SiteData(folder / "manifest.csv", VOLUMES, "here", CaseCache(folder / "cache", 2**20))


def test_what_is_counted(volumes):
    tables = tables_of(volumes, VOLUMES, "here", LEAST)
    assert {name: table.shape for name, table in tables.items()} == table_shapes(VOLUMES)
    assert tables["patients"] == [7] and tables["spacing_known"].tolist() == [7, 0]
    assert [SPACING.quantile(row, 0.5) for row in tables["spacing"]] == [1, 1, 1]
    # In plane all are alike; across, the one of .8 mm is with those of .9, and the one of 5 mm with those of 1 mm.
    told = {SPACING.values[cell]: tables["spacing"][2][cell] for cell in np.flatnonzero(tables["spacing"][2])}
    assert told == {0.9: 3, 1.0: 4} and tables["spacing"][0].max() == 7 and tables["suppressed"][0] > 2
    assert [EXTENT.quantile(row, 0.5) for row in tables["extent"][:2]] == pytest.approx([10, 12], rel=0.02)
    assert INTENSITY.quantile(tables["intensity"][0], 0.5) == pytest.approx(100, rel=0.05)
    assert INTENSITY.quantile(tables["foreground"][0], 0.5) == pytest.approx(500, rel=0.05)
    assert tables["intensity"].sum() == pytest.approx(7 * MILLION, rel=1e-3)
    assert tables["classes"].tolist() == [7, 7, 0]  # the lesion is two patients', too few to be told


def test_what_is_left_of_all_patients_tells_of_no_few(volumes):
    counting = _Counting(VOLUMES, LEAST)
    for number in range(7):
        tables = {name: np.zeros(shape) for name, shape in table_shapes(VOLUMES).items() if name != "patients"}
        tables["spacing_known"][0 if number else 1] = 1
        tables["classes"][:] = [1, number > 0, number > 3]
        counting.add(number, tables)
    told = counting.told()
    # One does not know its spacing; one lacks the organ, four the lesion.
    assert told["spacing_known"].tolist() == [0, 0] and told["classes"].tolist() == [7, 7, 3]
    assert told["suppressed"][0] == 3


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 0, 0, 0, 1, 1, 1], [4, 3, 0]),
        ([0, 0, 0, 0, 0, 1, 1], [7, 0, 0]),
        ([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2], [0, 5, 0]),  # 4 would leave 2 of 11 for the last class
        ([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2], [0, 0, 0]),
    ],
)
def test_a_rare_class_is_not_what_the_others_leave_of_all_patients(labels, told):
    counting = _Counting(VOLUMES, LEAST)
    for number, label in enumerate(labels):
        tables = {name: np.zeros(shape) for name, shape in table_shapes(VOLUMES).items() if name != "patients"}
        tables["classes"][label] = 1
        counting.add(number, tables)
    assert counting.told()["classes"].tolist() == told


@pytest.mark.parametrize(("without", "as_all"), [(0, True), (1, True), (2, True), (3, False)])
def test_sums_of_shares_do_not_tell_of_a_few_who_have_none(without, as_all):
    """As of patients without a lesion, whose images have no voxel with a label."""
    counting = _Counting(VOLUMES, LEAST)
    for number in range(7):
        tables = {name: np.zeros(shape) for name, shape in table_shapes(VOLUMES).items() if name != "patients"}
        if number >= without:
            tables["intensity"][0, [400, 500]] = tables["foreground"][0, [600, 700]] = MILLION // 2
            tables["landmarks"][0] = np.linspace(0, 1, 11) * MILLION
            tables["landmark_patients"][0] = 1
        counting.add(number, tables)
    told = counting.told()
    having = 7 if as_all else 7 - without
    for name in ("intensity", "foreground"):
        assert told[name].sum() == pytest.approx(having * MILLION, abs=2)
    assert told["landmark_patients"].tolist() == [having]
    np.testing.assert_allclose(told["landmarks"][0] / having, np.linspace(0, 1, 11) * MILLION, atol=1)


def test_sizes_count_in_voxels_where_grids_are_kept(volumes):
    job = VOLUMES.model_copy(
        update={"federation": VOLUMES.federation.model_validate({"rounds": 1, "statistics": {"decide": ["crop"]}})}
    )
    tables = tables_of(volumes, job, "here", LEAST)
    assert EXTENT.quantile(tables["extent"][2], 0.99) == pytest.approx(8, rel=0.02)  # not 40 mm


def test_too_few_patients_tell_nothing(volumes):
    with pytest.raises(Fault, match="has 7 training patients, where statistics rest on at least 8") as refused:
        tables_of(volumes, VOLUMES, "here", 8)
    assert (refused.value.code, refused.value.parameters["needed"]) == ("too_few_patients", 8)


@given(st.lists(st.integers(0, 999), min_size=4, max_size=30), st.integers(1, 4))
def test_no_cell_of_a_histogram_is_of_too_few_and_nobody_is_lost(cells, least):
    counting = _Counting(VOLUMES, least)
    for number, cell in enumerate(cells):
        tables = {name: np.zeros(shape) for name, shape in table_shapes(VOLUMES).items() if name == "spacing"}
        tables["spacing"][:, cell] = 1
        counting.add(number, tables)
    told = counting.told()["spacing"]
    assert (told.sum(axis=1) == len(cells)).all() and not ((told > 0) & (told < least)).any()
    # A group stands where one of its own cells is.
    assert set(np.flatnonzero(told[0])) <= set(cells)


# The door


def reply(volumes, **changes) -> RecordDict:
    tables = tables_of(volumes, VOLUMES, "here", LEAST)
    return RecordDict({"statistics": to_record(tables | changes)})


def allowed(patients=7, **policy):
    rules = Policy.model_validate({"min_patients": 1, **policy})
    return allowed_for(VOLUMES, "statistics", site="here", policy=rules, patients={"train": patients})


def test_honest_statistics_pass_bit_for_bit(volumes):
    content = serialised(reply(volumes))
    released = release(reply(volumes), allowed())
    assert serialised(released.content) == content
    assert released.numbers["patients"] == 7
    assert {tensor.name for tensor in released.tensors} == set(table_shapes(VOLUMES))


def one_more(volumes, name, cell, value):
    table = tables_of(volumes, VOLUMES, "here", LEAST)[name]
    table[cell] = value
    return {name: table}


@pytest.mark.parametrize(
    ("name", "cell", "value", "why"),
    [
        ("classes", 2, 2, "cells that rest on fewer than 3 patients"),
        ("spacing", (2, 700), 1, "cells that rest on fewer than 3 patients"),
        ("intensity", (0, 9), 0.5, "no whole numbers"),
        ("intensity", (0, 9), -1, "no whole numbers"),
        ("intensity", (0, 9), 7.1 * MILLION, "more than all voxels"),
        ("landmarks", (0, 3), 8 * MILLION, "larger shares"),
        ("patients", 0, 8, "it says 8 training patients, where there are 7"),
        ("foreground", (0, 9), np.nan, "NaN or infinite"),
    ],
)
def test_statistics_that_tell_too_much_are_withheld(volumes, name, cell, value, why):
    with pytest.raises(Withheld, match=why):
        release(reply(volumes, **one_more(volumes, name, cell, value)), allowed())


def test_the_policys_least_number_holds_over_the_jobs(volumes):
    with pytest.raises(Withheld, match="fewer than 5 patients"):
        release(reply(volumes), allowed(min_patients=5))


def test_no_table_beside_the_declared_ones(volumes):
    with pytest.raises(Withheld, match="1 tensors that are not declared"):
        release(reply(volumes, thumbnails=np.zeros((8, 8))), allowed())


# A hospital


@pytest.fixture
def hospital(tmp_path):
    coordinator = Coordinator(tmp_path)

    def ask(job=SQUARES, **policy):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        here = Here(folder, coordinator, **policy)
        order = coordinator.order("query.prepare", job, question="query.statistics")
        return here, here.ask("query.statistics", order, job)

    return ask


def test_a_hospital_tells_its_statistics_and_writes_down_that_it_did(hospital):
    here, content = hospital(statistics=True)
    tables = from_record(content["statistics"])
    assert tables["patients"] == [6] and tables["classes"].tolist() == [3, 3]
    for name in COUNTS:
        assert not ((tables[name] > 0) & (tables[name] < LEAST)).any()
    line = here.lines("answer")[-1]
    assert (line["question"], line["patients"], line["numbers"]["patients"]) == ("query.statistics", 6, 6)
    assert {tensor["record"] for tensor in line["tensors"]} == {"statistics"}


@pytest.mark.parametrize(
    ("job", "policy", "rule"),
    [
        (SQUARES, {}, "policy.statistics: asked statistics of training images, allowed no"),
        (JOB, {"statistics": True}, "order.question: asked statistics, allowed none in this job"),
        (SQUARES, {"statistics": True, "min_patients": 7}, "policy.min_patients: asked 6 train patients"),
    ],
)
def test_a_hospital_that_says_no_says_why(hospital, job, policy, rule):
    _, content = hospital(job, **policy)
    assert set(content) == {"fault", "prepared"} and rule in read_fault(dict(content["fault"]))
