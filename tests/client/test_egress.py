"""The door: what a question may answer passes bit for bit, and nothing else passes in any disguise."""

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from client.allowed import NUMBERS
from client.data.dataset import CaseCache, SiteData
from client.egress import Withheld, release
from client.policy import Policy
from shared_models.faults import QUARANTINE
from shared_models.job import Job
from shared_models.weights import from_record, to_record
from tests.client.door import (
    FIRST,
    JOB,
    SECRETS,
    SHAPES,
    WEIGHTS,
    allowed,
    fresh,
    header_of,
    npy,
    property_test,
    raw,
    serialised,
    withheld,
)

# What may leave


@pytest.mark.parametrize("question", ["train", "alone", "evaluate"])
def test_an_honest_reply_passes_bit_for_bit(replies, question):
    released = release(fresh(replies, question), allowed(question))
    assert serialised(released.content) == replies[question]


def test_what_left_is_listed_for_the_ledger(replies):
    weights = from_record(fresh(replies, "train")["weights"])
    released = release(fresh(replies, "train"), allowed("train"))
    assert [(tensor.record, tensor.name) for tensor in released.tensors] == [("weights", name) for name in SHAPES]
    for tensor in released.tensors:
        values = weights[tensor.name].tobytes()
        assert (tensor.dtype, tensor.shape, tensor.bytes) == ("float32", SHAPES[tensor.name], len(values))
        assert tensor.sha256 == hashlib.sha256(values).hexdigest()
    assert released.numbers == dict(fresh(replies, "train")["numbers"])
    assert release(fresh(replies, "evaluate"), allowed("evaluate")).numbers == {"cases": 4.0, "patients": 4.0}
    assert [point["round"] for point in release(fresh(replies, "alone"), allowed("alone")).numbers["curve"]] == [1, 2]


def test_a_class_that_nobody_annotates_may_be_missing_from_the_counts_of_a_job_that_asks(replies):
    content = fresh(replies, "prepare")
    summary = json.loads(content["prepared"]["summary"])
    del summary["classes"]["train"]["large"]
    content["prepared"]["summary"] = json.dumps(summary)
    withheld(content, "prepare")
    task = {"kind": "segmentation", "classes": ["small", "large"]}
    data = {"data": {"spatial_dims": 2, "crop": [16, 16], "annotated": "drawn"}}
    partly = Job.model_validate(JOB.model_dump(mode="json") | {"task": task} | data)
    released = release(content, replace(allowed("prepare"), job=partly)).numbers
    assert set(released["classes"]["train"]) == {"small"} and set(released["classes"]["test"]) == {"small", "large"}
    assert any("annotates large" in warning for warning in released["warnings"])
    summary["classes"]["train"]["Jane Doe"] = 1
    content["prepared"]["summary"] = json.dumps(summary)
    with pytest.raises(Withheld):
        release(content, replace(allowed("prepare"), job=partly))


def test_prepared_counts_pass_and_cases_become_numbers(replies):
    honest = json.loads(fresh(replies, "prepare")["prepared"]["summary"])
    assert any("images[0]" in reason for reason in honest["quarantined"].values())
    released = release(fresh(replies, "prepare"), allowed("prepare"))
    record = released.content["prepared"]
    assert (record["site"], record["version"]) == ("here", version("consilium"))
    summary = json.loads(record["summary"])
    assert summary == {**honest, "quarantined": {"case-1": QUARANTINE["other"]}} == released.numbers
    assert b"Jane" not in serialised(released.content) and b"images" not in serialised(released.content)


def test_a_quarantined_case_leaves_as_its_category(small_site, replies):
    folder = Path(small_site["folder"])
    report = SiteData(Path(small_site["manifest"]), JOB, "here", CaseCache(folder / "cache", 2**20)).report
    released = release(fresh(replies, "prepare"), allowed("prepare", categories=report.categories))
    assert released.numbers["quarantined"] == {"case-1": QUARANTINE["constant"]}


def test_a_warning_is_made_anew_from_the_counts(replies):
    content = fresh(replies, "prepare")
    summary = json.loads(content["prepared"]["summary"])
    summary |= {"duplicates": 2, "warnings": ["Jane Doe appears twice."]}
    content["prepared"]["summary"] = json.dumps(summary)
    assert release(content, allowed("prepare")).numbers["warnings"] == ["2 image(s) appear in more than one split."]


@property_test
@given(
    values=npst.arrays(np.float32, SHAPES[FIRST], elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
)
def test_every_finite_float_passes_bit_for_bit(replies, values):
    content = fresh(replies, "train")
    content["weights"][FIRST] = to_record({FIRST: values})[FIRST]
    expected = serialised(content)
    assert serialised(release(content, allowed("train")).content) == expected


def test_minus_zero_and_the_smallest_float_are_kept(replies):
    content = fresh(replies, "train")
    values = np.resize(np.array([-0.0, 1e-45, np.finfo(np.float32).max], np.float32), SHAPES[FIRST])
    content["weights"][FIRST] = to_record({FIRST: values})[FIRST]
    kept = from_record(release(content, allowed("train")).content["weights"])[FIRST]
    assert kept.tobytes() == values.tobytes()


# Tensors


@property_test
@given(image=npst.arrays(st.sampled_from([np.uint8, np.int16, np.float32, np.float64]), npst.array_shapes()))
def test_an_image_as_one_more_tensor(replies, image):
    content = fresh(replies, "train")
    content["weights"]["image"] = to_record({"image": image})["image"]
    assert "1 tensors that are not declared" in withheld(content, "train")


@property_test
@given(shape=npst.array_shapes(max_dims=5).filter(lambda shape: shape != SHAPES[FIRST]))
def test_a_tensor_of_another_shape(replies, shape):
    content = fresh(replies, "train")
    content["weights"][FIRST] = to_record({FIRST: np.ones(shape, np.float32)})[FIRST]
    assert FIRST in withheld(content, "train")


def test_a_tensor_that_is_missing(replies):
    content = fresh(replies, "train")
    del content["weights"][FIRST]
    assert "lacks 1" in withheld(content, "train")


@property_test
@given(dtype=st.sampled_from(["<f8", ">f4", "<i4", "<u4", "<f2", "|S4", "<U1", "<c8", "|V4"]))
def test_values_of_another_type(replies, dtype):
    content = fresh(replies, "train")
    array = np.zeros(SHAPES[FIRST], dtype)
    content["weights"][FIRST] = raw(npy(header_of(array), array.tobytes()), shape=SHAPES[FIRST])
    assert FIRST in withheld(content, "train")


@property_test
@given(secret=SECRETS)
def test_a_name_in_a_structured_type(replies, secret):
    content = fresh(replies, "train")
    array = np.zeros(SHAPES[FIRST], [(secret, "<f4")])
    content["weights"][FIRST] = raw(npy(header_of(array), array.tobytes()), shape=SHAPES[FIRST])
    withheld(content, "train", secret)


@property_test
@given(secret=SECRETS)
@pytest.mark.parametrize("place", ["dtype", "stype", "header", "shape"])
def test_what_is_written_beside_the_values_does_not_go_on(replies, place, secret):
    content = fresh(replies, "train")
    values = WEIGHTS[FIRST]
    beside = {
        "dtype": {"dtype": secret},
        "stype": {"stype": secret},
        "shape": {"shape": tuple(secret.encode())},
        "header": {},
    }[place]
    comment = f" # {secret}".encode() if place == "header" else b""
    content["weights"][FIRST] = raw(npy(header_of(values, comment), values.tobytes()), **beside)
    released = release(content, allowed("train")).content
    assert secret.encode() not in serialised(released)
    assert from_record(released["weights"])[FIRST].tobytes() == values.tobytes()
    assert (released["weights"][FIRST].dtype, released["weights"][FIRST].stype) == ("float32", "numpy.ndarray")
    assert released["weights"][FIRST].shape == values.shape


@property_test
@given(secret=SECRETS, many=st.sampled_from([1, 4, 1000]))
def test_bytes_behind_the_values(replies, secret, many):
    content = fresh(replies, "train")
    entry = content["weights"][FIRST]
    content["weights"][FIRST] = raw(entry.data + secret.encode() * many, shape=entry.shape)
    withheld(content, "train", secret)


@property_test
@given(payload=st.integers(1, 2**22 - 1), where=st.integers(0, 35))
def test_a_message_in_the_bits_of_a_nan(replies, payload, where):
    bits = WEIGHTS[FIRST].view(np.uint32).flatten()
    bits[where] = 0x7F800000 | payload
    content = fresh(replies, "train")
    content["weights"][FIRST] = to_record({FIRST: bits.view(np.float32).reshape(SHAPES[FIRST])})[FIRST]
    assert "NaN or infinite" in withheld(content, "train")


@property_test
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_array(replies, data):
    content = fresh(replies, "train")
    content["weights"][FIRST] = raw(data, shape=SHAPES[FIRST])
    withheld(content, "train")


def test_a_header_that_is_deeply_nested(replies):
    content = fresh(replies, "train")
    content["weights"][FIRST] = raw(npy(b"(" * 3000 + b")" * 3000, b""), shape=SHAPES[FIRST])
    withheld(content, "train")


@property_test
@given(secret=SECRETS, question=st.sampled_from(["train", "alone", "evaluate"]))
def test_a_name_in_the_name_of_a_tensor(replies, question, secret):
    content = fresh(replies, question)
    record = content["sums" if question == "evaluate" else "weights"]
    record[secret] = record.pop(next(iter(record)))
    withheld(content, question, secret)


# Metric sums


@property_test
@given(secret=SECRETS)
def test_a_message_in_the_digits_of_a_sum(replies, secret):
    content = fresh(replies, "evaluate")
    sums = from_record(content["sums"])
    text = secret.encode()[:8].ljust(8, b" ")
    values = sums["squared_error"].copy()
    values.view(np.uint8)[:6] = np.frombuffer(text, np.uint8)[:6]  # the mantissa: a finite number
    content["sums"]["squared_error"] = to_record({"squared_error": values})["squared_error"]
    assert "no sum over cases" in withheld(content, "evaluate", secret[:6])


def test_more_replicates_than_were_asked_for(replies):
    with pytest.raises(Withheld, match="expected the shape"):
        release(fresh(replies, "evaluate"), allowed("evaluate", replicates=2))


def test_a_sum_out_of_range(replies):
    content = fresh(replies, "evaluate")
    content["sums"]["squared_error"] = to_record({"s": np.full(4, 1e300)})["s"]
    withheld(content, "evaluate")


@pytest.mark.parametrize("question", ["train", "alone", "evaluate"])
def test_an_answer_that_rests_on_too_few_patients(replies, question):
    few = {"train": 9, "validation": 9, "test": 9} | {
        {"train": "train", "alone": "validation"}.get(question, "test"): 4
    }
    limits = {"policy": Policy(min_patients=5), "patients": few}
    with pytest.raises(Withheld, match="rests on 4 patients, where the policy asks for 5"):
        release(fresh(replies, question), allowed(question, **limits))
    enough = {"policy": Policy(min_patients=4), "patients": few}
    assert release(fresh(replies, question), allowed(question, **enough)).tensors


def test_the_patients_in_the_sums_themselves_are_counted(replies):
    """Whatever the caller believes, the sums rest on four."""
    limits = {"policy": Policy(min_patients=5), "patients": {"test": 50}}
    with pytest.raises(Withheld, match="rests on 4 patients"):
        release(fresh(replies, "evaluate"), allowed("evaluate", **limits))


# Numbers


@property_test
@given(secret=SECRETS, question=st.sampled_from(["train", "alone"]))
def test_a_text_as_a_number(replies, question, secret):
    content = fresh(replies, question)
    content["numbers"] = ConfigRecord({**content["numbers"], "seconds": secret})
    withheld(content, question, secret)


@property_test
@given(
    values=st.one_of(st.lists(st.integers(0, 255), max_size=2000), st.lists(st.floats(0, 1), max_size=2000)),
    name=st.sampled_from(["loss", "cases", "pixels"]),
)
def test_a_list_of_numbers(replies, name, values):
    content = fresh(replies, "train")
    content["numbers"][name] = values
    withheld(content, "train")


@property_test
@given(name=st.sampled_from(sorted(NUMBERS["train"])), sign=st.sampled_from([1, -1]))
@pytest.mark.parametrize("value", [10**300, 2**64, float("nan"), float("inf"), 1e300])
def test_a_number_out_of_range(replies, name, sign, value):
    content = fresh(replies, "train")
    content["numbers"][name] = sign * value
    withheld(content, "train")


def test_a_fraction_where_a_count_is_declared(replies):
    content = fresh(replies, "train")
    content["numbers"]["cases"] = 5.5
    withheld(content, "train")


@property_test
@given(secret=SECRETS, question=st.sampled_from(["train", "alone"]))
def test_a_name_in_the_name_of_a_number(replies, question, secret):
    content = fresh(replies, question)
    content["numbers"][secret] = 1
    withheld(content, question, secret)
