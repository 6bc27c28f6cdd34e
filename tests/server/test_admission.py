"""What a site may send, and what is left out with a reason."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server.admission import LARGEST_STATISTIC, Rejected, SiteFault, admit, check_move, fault_of
from shared_models.faults import WORKER_DIED, fields, sentence
from shared_models.weights import to_record

SHAPES = {"a": (2, 2), "b": ()}
GOOD = {"a": np.ones((2, 2), np.float32), "b": np.array(3.0, np.float32)}
NUMBERS = {"weight": 10, "cases": 10, "skipped": 1, "steps": 5, "loss": 0.5, "seconds": 1.0, "went_on_from": 0}


@pytest.fixture(autouse=True)
def _inside_a_task(monkeypatch):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def question():
    return Message(RecordDict(), 5, "train")


def reply(tensors=GOOD, **numbers):
    content = RecordDict({"weights": to_record(tensors), "numbers": MetricRecord({**NUMBERS, **numbers})})
    return Message(content, reply_to=question())


def test_a_good_update_is_admitted():
    update = admit(reply(), SHAPES)
    assert (update.weight, update.cases, update.skipped, update.steps, update.loss) == (10, 10, 1, 5, 0.5)
    np.testing.assert_array_equal(update.tensors["a"], GOOD["a"])


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": GOOD["a"]}, "1 of 2 tensors missing, such as 'b'"),
        ({**GOOD, "c": GOOD["b"]}, "1 unexpected tensors, such as 'c'"),
        ({**GOOD, "a": np.ones((4,), np.float32)}, r"'a' has shape \(4,\), expected \(2, 2\)"),
        ({**GOOD, "b": np.ones((1,), np.float32)}, r"'b' has shape \(1,\), expected \(\)"),
        ({**GOOD, "a": np.ones((2, 2), np.float64)}, "'a' has dtype float64, expected float32"),
        ({**GOOD, "a": np.ones((2, 2), np.int64)}, "'a' has dtype int64, expected float32"),
        ({**GOOD, "a": np.array([[1, np.nan], [1, 1]], np.float32)}, "'a' has values that are NaN or infinite"),
        ({**GOOD, "b": np.array(np.inf, np.float32)}, "'b' has values that are NaN or infinite"),
    ],
)
def test_tensors_that_are_not_fit_to_be_summed(tensors, reason):
    with pytest.raises(Rejected, match=reason):
        admit(reply(tensors), SHAPES)


def test_large_finite_values_are_not_taken_for_infinity():
    largest = np.full((2, 2), np.finfo(np.float32).max)
    assert admit(reply({**GOOD, "a": largest}), SHAPES).tensors["a"][0, 0] == np.finfo(np.float32).max


MODEL = {"w": np.full(300_000, 0.01, np.float32), "b": np.zeros(3, np.float32), "mean": np.zeros(3, np.float32)}


def moved(**changes):
    check_move({**MODEL, **changes}, MODEL, {"w", "b"})


def test_an_update_that_trained_is_near_enough_however_far_its_statistics_went():
    moved()
    moved(w=-MODEL["w"], b=np.full(3, 30, np.float32))
    moved(mean=np.full(3, 65535.0**2, np.float32))  # images of 16 bits that nobody normalised


@pytest.mark.parametrize(
    "changes",
    [
        {"b": np.array([0, 1e30, 0], np.float32)},
        {"b": np.array([0, 0, np.finfo(np.float32).max], np.float32)},
        {"w": np.full(300_000, 1, np.float32)},
        {"w": MODEL["w"] * 20},
        {"w": np.concatenate([MODEL["w"][:-1], np.float32([-60])])},  # in the last block
    ],
)
def test_an_update_that_no_training_made_is_rejected(changes):
    with pytest.raises(Rejected, match=r"diverged.*moves the model by \d\.\de\+\d\d, where 5\.5e.*learning_rate"):
        moved(**changes)


def test_a_model_shorter_than_one_may_move_by_ten():
    small = {"b": np.zeros(2, np.float32)}
    check_move({"b": np.array([9.9, 0], np.float32)}, small, {"b"})
    with pytest.raises(Rejected, match="where 1.0e"):
        check_move({"b": np.array([10.1, 0], np.float32)}, small, {"b"})


def test_a_running_statistic_beyond_any_image_is_rejected():
    with pytest.raises(Rejected, match=r"'mean' has values up to 1\.0e\+30, expected at most 1e\+12"):
        moved(mean=np.array([0, -1e30, 0], np.float32))
    moved(mean=np.array([0, LARGEST_STATISTIC, 0], np.float32))


def test_a_variance_below_zero_is_rejected():
    """The mean with it would make every hospital's outputs NaN."""
    variance = {"norm.running_var": np.array([1, -0.1], np.float32)}
    with pytest.raises(Rejected, match=r"'norm\.running_var' is a variance and has values below 0"):
        check_move({**MODEL, **variance}, MODEL, {"w", "b"})
    check_move({**MODEL, "norm.running_var": np.zeros(2, np.float32)}, MODEL, {"w", "b"})


@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_tensors_of_one_value_and_of_none_can_be_measured(shape):
    one = {"a": np.zeros(shape, np.float32)}
    check_move(one, one, {"a"})
    check_move(one, one, set())


HEADERS = [
    b"{'descr': (",
    b"(" * 3900,
    b"-" * 4000 + b"1",
    b"{[]: 1}",
    b"{1: 2, 'a': 3}",
    b"{'descr': ('<f4',), 'fortran_order': False, 'shape': (2, 2)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (50000, 50000)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 3000 + b",)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2)}",
    b"\xff" * 100,
]


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_header_made_to_break_the_reader_is_one_more_reason_to_reject(header):
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(16)
    content = reply().content
    content["weights"]["a"] = Array("float32", (2, 2), "numpy.ndarray", data)
    with pytest.raises(Rejected, match=r"^tensor 'a' cannot be read as a numpy array \(\w+\)$"):
        admit(Message(content, reply_to=question()), SHAPES)


def test_what_a_site_calls_its_tensors_cannot_fill_or_move_the_screen():
    with pytest.raises(Rejected) as caught:
        admit(reply({**GOOD, "\x1b[2J\nHospital B: all is well" + "x" * 10**6: GOOD["b"]}), SHAPES)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    with pytest.raises(Rejected) as caught:
        admit(reply(loss=[0.5] * 10**5), SHAPES)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"weight": 0}, "its weight is 0, expected at least 1"),
        ({"cases": 0}, "it was trained on 0 cases, expected at least 1"),
        ({"weight": -3}, "'weight' is -3, expected a count"),
        ({"weight": 2.5}, r"'weight' is 2\.5, expected a count"),
        ({"weight": 2**40}, "expected a count"),
        ({"loss": float("nan")}, "'loss' is nan, expected a finite number"),
    ],
)
def test_numbers_that_are_not_what_they_must_be(numbers, reason):
    with pytest.raises(Rejected, match=reason):
        admit(reply(**numbers), SHAPES)


def test_a_site_may_say_why_it_has_no_update():
    fault = Message(RecordDict({"fault": ConfigRecord({"sentence": "the policy forbids it"})}), reply_to=question())
    with pytest.raises(SiteFault, match="the policy forbids it"):
        admit(fault, SHAPES)
    with pytest.raises(SiteFault, match=WORKER_DIED):
        admit(Message(Error(1, WORKER_DIED), reply_to=question()), SHAPES)


def test_a_fault_code_of_a_hospital_becomes_our_own_sentence():
    fault = ConfigRecord({**fields("diverged", {"round": 3})})
    assert fault_of(Message(RecordDict({"fault": fault}), reply_to=question())) == sentence("diverged", round=3)


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"code": "diverged", "parameters": '{"round":"Jane Doe"}'}),
        ConfigRecord({"code": "Jane Doe", "parameters": "{}"}),
        ConfigRecord({**fields("disk", {}), "sentence": "Jane Doe"}),
        MetricRecord({"Jane Doe": 1}),
    ],
)
def test_a_fault_outside_the_vocabulary_is_a_fault_but_its_text_is_not_shown(record):
    said = fault_of(Message(RecordDict({"fault": record}), reply_to=question()))
    assert said and "Jane" not in said


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 7, 8, 99])
def test_the_reason_of_a_transport_error_is_not_shown(code):
    said = fault_of(Message(Error(code, "FileNotFoundError: /data/patients/Jane Doe 1956.nii"), reply_to=question()))
    assert said and "Jane" not in said and "/data" not in said


def test_a_sentence_of_a_simulation_cannot_move_the_cursor():
    fault = ConfigRecord({"sentence": "no room\x1b[2J\nHospital B: all is well"})
    assert fault_of(Message(RecordDict({"fault": fault}), reply_to=question())) == "no room [2J Hospital B: all is well"


def test_a_reply_without_the_records_is_rejected():
    with pytest.raises(Rejected, match="no records 'weights' and 'numbers'"):
        admit(Message(RecordDict({"weights": ArrayRecord()}), reply_to=question()), SHAPES)
