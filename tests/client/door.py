"""What the tests of the door share: honest replies of a real small site, and how a reply is seen to be stopped."""

import pytest
from flwr.app import Array
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from client.allowed import allowed_for
from client.egress import Withheld, fault_content, fault_of, release
from client.policy import Policy
from shared_models.job import Job
from shared_models.weights import travelling
from shared_models.zoo import build

JOB = Job.model_validate(
    {
        "name": "squares",
        "task": {"kind": "classification", "classes": ["small", "large"]},
        "data": {"spatial_dims": 2, "crop": [16, 16]},
        "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}},
        "training": {"local_epochs": 1},
        "federation": {"rounds": 2},
        "evaluation": {"bootstrap": 3},
    }
)
POLICY = Policy(min_patients=2)
PATIENTS = {"train": 5, "validation": 2, "test": 4}
WEIGHTS = travelling(build(JOB))
SHAPES = {name: array.shape for name, array in WEIGHTS.items()}
FIRST = next(iter(WEIGHTS))  # of shape (4, 1, 3, 3)
ASKED = {
    "prepare": ("query.prepare", {}),
    "train": ("train", {"round": 1, "best_used": 0, "last_used": 0, "algorithm_since": 0}),
    "alone": ("train.alone", {"steps": 0}),
    "evaluate": (
        "evaluate",
        {"split": "test", "replicates": 3, "model": "federated", "round": 1, "last_used": 0, "variant": ""},
    ),
}

# What must not leave begins with something that no honest reply holds.
SECRETS = st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=40).map("Jane Doe 1956 ".__add__)
property_test = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def serialised(content):
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


def fresh(replies, question):
    return recorddict_from_proto(ProtoRecordDict.FromString(replies[question]))


def allowed(question, **changes):
    arguments = {
        "site": "here",
        "policy": POLICY,
        "shapes": SHAPES,
        "patients": PATIENTS,
        "replicates": 3,
        "split": "test",
    }
    return allowed_for(JOB, question, **{**arguments, **changes})


def withheld(content, question, secret="Jane Doe"):
    """The reply is stopped, and neither what is recorded of it nor what is said of it holds the secret."""
    with pytest.raises(Withheld) as caught:
        release(content, allowed(question))
    said = release(fault_content("here", *_split(caught.value)[0], **_split(caught.value)[1]), allowed(question))
    assert secret not in str(caught.value) and "Jane" not in str(caught.value)
    assert secret.encode() not in serialised(said.content)
    return str(caught.value)


def _split(error):
    code, parameters = fault_of(error)
    return (code,), parameters


def npy(header: bytes, values: bytes) -> bytes:
    """A numpy file of version 2.0 with a header of one's own."""
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + values


def header_of(array, comment=b""):
    descr = f"{{'descr': {array.dtype.descr if array.dtype.names else array.dtype.str!r}, 'fortran_order': False, "
    return f"{descr}'shape': {array.shape}}}".encode() + comment + b"\n"


def raw(data, dtype="float32", shape=(), stype="numpy.ndarray"):
    return Array(dtype=dtype, shape=shape, stype=stype, data=data)
