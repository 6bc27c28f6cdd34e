"""Which tensors travel, and that nothing is lost on the way."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from shared_models.errors import BadInput
from shared_models.job_federation import Share
from shared_models.weights import fingerprint, from_record, load, own, schema, to_record, travelling


class Tangle(nn.Module):
    """Every kind of tensor: trained, normalisation, running statistics, integer buffers, a tensor with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.again = self.first
        self.register_buffer("index", torch.arange(5))
        self.register_buffer("scale", torch.ones(()))


def test_kinds_are_decided_by_the_owner_of_a_tensor():
    kinds = {entry.name: entry.kind for entry in schema(Tangle())}
    assert kinds == {
        "first.weight": "shared",
        "first.bias": "shared",
        "norm.weight": "norm",
        "norm.bias": "norm",
        "norm.running_mean": "statistic",
        "norm.running_var": "statistic",
        "norm.num_batches_tracked": "constant",
        "again.weight": "alias",
        "again.bias": "alias",
        "index": "constant",
        "scale": "statistic",
    }


def test_integer_buffers_and_aliases_stay_at_home():
    assert set(travelling(Tangle())) == {
        "first.weight",
        "first.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "scale",
    }


def test_records_give_back_every_bit():
    network = Tangle()
    sent = travelling(network)
    received = from_record(to_record(sent))
    assert fingerprint(received) == fingerprint(sent)
    other = Tangle()
    load(other, received)
    assert fingerprint(travelling(other)) == fingerprint(sent)
    assert torch.equal(other.again.weight, network.first.weight)


def test_our_records_are_flowers_records():
    array = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    ours, flowers = to_record({"x": array})["x"], Array(array)
    assert (ours.data, ours.dtype, ours.shape, ours.stype) == (
        flowers.data,
        flowers.dtype,
        flowers.shape,
        flowers.stype,
    )
    scalar = to_record({"x": np.ones((), np.float32)})["x"]
    assert scalar.shape == () and from_record(ArrayRecord({"x": scalar}))["x"] == 1.0
    assert from_record(to_record({"none": np.zeros((0, 2), np.float32)}))["none"].shape == (0, 2)


def test_what_is_loaded_must_be_of_this_model():
    weights = travelling(Tangle())
    with pytest.raises(BadInput, match=r"1 of 7 tensors missing, such as 'scale'"):
        load(Tangle(), {name: array for name, array in weights.items() if name != "scale"})
    with pytest.raises(BadInput, match=r"1 unexpected tensors, such as 'extra'"):
        load(Tangle(), weights | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(BadInput, match=r"'scale' has shape \(2,\), expected \(\)"):
        load(Tangle(), weights | {"scale": np.zeros(2, np.float32)})


@pytest.mark.parametrize("data", [b"", b"rubbish", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False}"])
def test_bytes_that_are_no_array_are_refused(data):
    array = Array("float32", (1,), "numpy.ndarray", data)
    with pytest.raises(BadInput, match="tensor 'x' cannot be read as a numpy array"):
        from_record(ArrayRecord({"x": array}))


def test_pickled_objects_are_refused():
    objects = np.array([{"any": "thing"}], dtype=object)
    import io

    buffer = io.BytesIO()
    np.save(buffer, objects, allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        from_record(ArrayRecord({"x": Array("object", (1,), "numpy.ndarray", buffer.getvalue())}))


def test_fingerprint_tells_models_apart():
    weights = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items())))
    for changed in (
        weights | {"a": np.ones(3, np.float64)},
        weights | {"a": np.ones((3, 1), np.float32)},
        {"c": weights["a"], "b": weights["b"]},
        weights | {"b": np.array([0, 1e-45], np.float32)},
    ):
        assert fingerprint(changed) != fingerprint(weights)


def test_a_head_is_what_the_zoo_marks_and_travels_with_the_rest():
    network = Tangle()
    network.first.is_head = True
    kinds = {entry.name: entry.kind for entry in schema(network)}
    assert (kinds["first.weight"], kinds["norm.weight"], kinds["again.weight"]) == ("head", "norm", "alias")
    assert "first.weight" in travelling(network)


STATISTICS = {"norm.running_mean", "norm.running_var"}
LAYERS = {"norm.weight", "norm.bias", *STATISTICS}


@pytest.mark.parametrize(
    ("normalisation", "stays"), [("all", set()), ("no_statistics", STATISTICS), ("nothing", LAYERS)]
)
def test_what_of_normalisation_travels_is_the_jobs_choice(normalisation, stays):
    network, share = Tangle(), Share(normalisation=normalisation)
    assert set(own(network, share)) == stays
    assert set(travelling(network, share)) == set(travelling(network)) - stays


class Pair(nn.Module):
    discriminators = ("judge",)

    def __init__(self) -> None:
        super().__init__()
        self.judge, self.judgement, self.maker = nn.Linear(2, 1), nn.Linear(1, 1), nn.Linear(1, 2)


def test_discriminators_may_stay_at_home():
    network, share = Pair(), Share(networks="generators")
    assert set(own(network, share)) == {"judge.weight", "judge.bias"}
    assert set(travelling(network, share)) == {"judgement.weight", "judgement.bias", "maker.weight", "maker.bias"}


def test_both_halves_of_a_model_can_be_loaded_apart_and_together():
    share = Share(normalisation="nothing")
    source, target = Tangle(), Tangle()
    with torch.no_grad():
        source.norm.weight.fill_(3.0)
    load(target, travelling(source, share), share)
    assert torch.equal(target.first.weight, source.first.weight) and target.norm.weight[0] == 1.0
    load(target, own(source, share), share)
    assert fingerprint(travelling(target)) == fingerprint(travelling(source))
    load(target, travelling(Tangle()), share)
    assert target.norm.weight[0] == 1.0
    with pytest.raises(BadInput, match="tensors missing"):
        load(target, {"first.weight": travelling(source)["first.weight"]}, share)
