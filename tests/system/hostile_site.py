"""A site of the federation that means harm: it speaks as a SuperNode with an admitted key, and answers as it is told.

`python -m tests.system.hostile_site KIT KEY` answers the question whether it is ready as an honest site does, the
training of round n with the nth of ATTACKS or the last, and every evaluation with sums that are none.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from shared_models.enrolment import read_kit
from shared_models.flower_messages import PACKED, unpacked
from shared_models.keys import load_private
from shared_models.weights import from_record, to_record

Objects = dict[str, bytes]
NUMBERS = {"weight": 8, "cases": 8, "skipped": 0, "steps": 1, "loss": 0.5, "seconds": 1.0, "went_on_from": 0}
SUMMARY = {
    "cases": {"train": 8, "validation": 4, "test": 4},
    "patients": {"train": 8, "validation": 4, "test": 4},
    "classes": {},
    "quarantined": {},
    "duplicates": 0,
    "warnings": [],
}


def npy(header: str, values: bytes = b"") -> Array:
    """An array whose file says of itself what the header says."""
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode() + values
    return Array("float32", (1,), "numpy.ndarray", data)


def _update(weights: dict[str, Any], **numbers: Any) -> RecordDict:
    return RecordDict({"weights": to_record(weights), "numbers": MetricRecord({**NUMBERS, **numbers})})


def _with_first(weights: dict[str, Any], change: Callable[[Any], Any]) -> RecordDict:
    first = next(name for name, array in weights.items() if np.ndim(array) > 1)
    return _update({**weights, first: change(np.array(weights[first]))})


def _nan(array: Any) -> Any:
    array.flat[0] = np.nan
    return array


def _with_array(weights: dict[str, Any], array: Array) -> RecordDict:
    content = _update(weights)
    content.array_records["weights"][next(iter(weights))] = array
    return content


def _repeated(body: dict[str, Any]) -> dict[str, Any]:
    """An array that unfolds to 10 GB: its one chunk, four million times."""
    return {**body, "arraychunk_ids": [0] * 4_000_000}


ATTACKS: dict[str, Callable[[dict[str, Any]], RecordDict | Error]] = {
    "NaN": lambda weights: _with_first(weights, _nan),
    "wrong shape": lambda weights: _with_first(weights, np.ravel),
    "1e30": lambda weights: _with_first(weights, lambda array: array + np.float32(1e30)),
    "far away": lambda weights: _with_first(weights, lambda array: array + np.float32(1e4)),
    "an extra tensor": lambda weights: _update({**weights, "image": np.zeros((16, 16), np.float32)}),
    "a missing tensor": lambda weights: _update(dict(list(weights.items())[1:])),
    "another dtype": lambda weights: _with_first(weights, lambda array: array.astype(np.float64)),
    "10 GB by its header": lambda weights: _with_array(
        weights, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (50000, 50000)}", bytes(64))
    ),
    "10 GB by repetition": _update,
    "a header that breaks the reader": lambda weights: _with_array(weights, npy("{'descr': (")),
    "deep nesting": _update,
    "a protobuf bomb": _update,
    "a negative weight": lambda weights: _update(weights, weight=-3),
    "a weight without bound": lambda weights: _update(weights, weight=2**40),
    "no records": lambda weights: RecordDict(),
    "an error with a text": lambda weights: Error(2, "FileNotFoundError: /data/Jane Doe 1956.nii"),
    "a packed file that is none": lambda weights: _update({PACKED: np.arange(200, dtype=np.uint8)}),
    "a name with control characters": lambda weights: _update({**weights, "\x1b[2J\nall is well": np.zeros(1, "<f4")}),
}
MUTATIONS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "10 GB by repetition": ("Array", lambda body: json.dumps(_repeated(json.loads(body))).encode()),
    "deep nesting": ("ArrayRecord", lambda body: b"[" * 200_000),
    "a protobuf bomb": ("MetricRecord", lambda body: b"\x0b" * 500_000),
}
"""Attacks on the objects that a message travels as: which kind of them is changed, and how."""


def mutated(contents: Objects, kind: str, change: Callable[[bytes], bytes]) -> Objects:
    """The objects of a message, the first of a kind changed, and with it the ids of all that stand above it."""
    old = next(name for name, content in contents.items() if content.startswith(kind.encode() + b" "))
    head, body = contents[old].split(b"\x00", 1)
    body = change(body)
    content = b" ".join([*head.split(b" ")[:2], str(len(body)).encode()]) + b"\x00" + body
    return replaced(contents, old, content)


def replaced(contents: Objects, old: str, content: bytes) -> Objects:
    """The objects with one replaced; an object is named after its bytes, so all above it are replaced as well."""
    new = get_object_id(content)
    contents = {(new if name == old else name): (content if name == old else c) for name, c in contents.items()}
    for name, above in list(contents.items()):
        if name != new and old.encode() in above:
            contents = replaced(contents, name, above.replace(old.encode(), new.encode()))
    return contents


def tree_of(contents: Objects, name: str = "") -> ObjectTree:
    """The message, which is the last of its objects, with all others below it as their heads say."""
    name = name or list(contents)[-1]
    children = contents[name].split(b"\x00", 1)[0].split(b" ")[1].decode()
    below = [tree_of(contents, child) for child in children.split(",") if child in contents]
    return ObjectTree(object_id=name, children=below)


def answer(question: Message) -> tuple[str, RecordDict | Error]:
    """What is answered, and what to call it."""
    kind, instruction = question.metadata.message_type, question.content.config_records["instruction"]
    if kind == "query.prepare":
        summary = json.dumps(SUMMARY)
        # It says that it is another, too.
        return kind, RecordDict({"prepared": ConfigRecord({"site": "hospital-1", "summary": summary})})
    if kind == "train":
        name = list(ATTACKS)[min(int(str(instruction["round"])), len(ATTACKS)) - 1]
        return name, ATTACKS[name](from_record(question.content.array_records["weights"]))
    return kind, RecordDict({"sums": ArrayRecord({"cases": npy("{'descr': (")})})


def main(kit_path: str, key_path: str) -> None:
    """Answers until it is killed; says on standard output what it did."""
    kit, key = read_kit(Path(kit_path)), load_private(Path(key_path), None)
    connection = http_request_response(
        kit.address,
        False,
        kit.ca_certificate.encode(),
        (key, key.public_key()),  # type: ignore[arg-type]
    )
    with connection as (node, receive, send, _, _, pull, push, confirm):
        print(json.dumps({"node": node}), flush=True)
        TaskIdentity.task_id, TaskIdentity.node_id = 1, node
        while True:
            found = receive()
            if found is None:
                time.sleep(0.1)
                continue
            message, tree = found
            run = TaskIdentity.run_id = message.metadata.run_id
            names = [tree.object_id, *(child.object_id for child in _all(tree))]
            contents = pull_objects(names, partial(pull, run))
            confirm(run, tree.object_id)
            question = inflate_object_from_contents(tree.object_id, contents)
            assert isinstance(question, Message)
            question.metadata.__dict__["_message_id"] = tree.object_id
            question.content = unpacked(question.content)
            attack, content = answer(question)
            reply = Message(content, reply_to=question)
            objects = {name: thing.deflate() for name, thing in get_all_nested_objects(reply).items()}
            announced = get_object_tree(reply)
            if attack in MUTATIONS:
                objects = mutated(objects, *MUTATIONS[attack])
                announced = tree_of(objects)
            reply.metadata.__dict__["_message_id"] = announced.object_id
            wanted, session = send(reply, announced, 0.1)
            for name in wanted:
                push(run, session, name, objects[name])
            print(json.dumps({"attack": attack, "objects": len(wanted)}), flush=True)


def _all(tree: ObjectTree) -> list[ObjectTree]:
    return [part for child in tree.children for part in (child, *_all(child))]


if __name__ == "__main__":
    main(*sys.argv[1:])
