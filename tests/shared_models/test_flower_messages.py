"""Messages that are not what they say they are: none is unfolded, and none ends the process that takes it."""

import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from shared_models.flower_messages import LARGEST_WORDS, ROOM, GivenUp, Incoming, Unreadable, fetch


class Objects:
    """The objects of a message, as a SuperLink or a SuperNode hands them out."""

    def __init__(self, contents, uploaded=True):
        self.contents, self.uploaded, self.confirmed = contents, uploaded, []

    def PullObject(self, request):  # noqa: N802
        content = self.contents.get(request.object_id, b"")
        there = self.uploaded and bool(content)
        return PullObjectResponse(
            object_found=request.object_id in self.contents, object_available=there, object_content=content
        )

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()


def packed(data=b"\x01" * 1000):
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    record = ArrayRecord({"a": Array("float32", (250,), "numpy.ndarray", data)})
    message = Message(RecordDict({"weights": record, "words": ConfigRecord({"x": "y"})}), 1, "train")
    tree = get_object_tree(message)
    return tree, {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}


def replaced(contents, kind, change):
    """The objects with one of a kind changed, and the ids of all that stand above it."""
    [old] = [name for name, content in contents.items() if content.startswith(kind.encode() + b" ")]
    changed = change(contents.pop(old))
    new = get_object_id(changed)
    contents[new] = changed
    above = [content for content in contents.values() if old.encode() in content]
    for content in above:
        kind = content.split(b" ")[0].decode()
        contents = replaced(contents, kind, lambda content: content.replace(old.encode(), new.encode()))
    return contents


def tree_of(contents):
    """As a site announces its message: the root is the last object that was made."""
    *parts, root = contents
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in parts])


def take(tree, contents, largest):
    client = Objects(contents)
    try:
        return fetch(Incoming(client, Node(node_id=1), 1, tree, largest), give_up=lambda: False)
    finally:
        assert client.confirmed == [tree.object_id], "the SuperLink may forget it, whatever it was"


def body(change):
    """Changes the body of an object and keeps its head true."""

    def changed(content):
        head, old = content.split(b"\x00", 1)
        new = change(old)
        return b" ".join([*head.split(b" ")[:2], str(len(new)).encode()]) + b"\x00" + new

    return changed


@pytest.mark.parametrize("largest", [None, 10_000])
def test_an_honest_message_is_taken_whole(largest):
    message = take(*packed(), largest)
    assert bytes(message.content["weights"]["a"].data) == b"\x01" * 1000
    assert message.metadata.message_id and message.content["words"]["x"] == "y"


@pytest.mark.parametrize("largest", [None, ROOM])
def test_a_chunk_that_stands_in_an_array_two_million_times_is_not_unfolded(largest):
    _, contents = packed()

    def claim(old):
        return json.dumps({**json.loads(old), "arraychunk_ids": [0] * 2_000_000}).encode()

    contents = replaced(contents, "Array", body(claim))  # 2 GB of 1000 bytes
    with pytest.raises(Unreadable, match="it is too large"):
        take(tree_of(contents), contents, largest)


def test_more_bytes_than_there_is_a_reason_for_are_not_taken():
    tree, contents = packed(b"\x01" * 20_000)
    with pytest.raises(Unreadable, match="it is too large"):
        take(tree, contents, 10_000)


def test_words_without_end_are_not_read():
    _, contents = packed()
    contents = replaced(contents, "ConfigRecord", body(lambda old: old + bytes(LARGEST_WORDS)))
    with pytest.raises(Unreadable, match="it is too large"):
        take(tree_of(contents), contents, 10**9)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Array", body(lambda old: b"[" * 100_000)),
        ("Array", body(lambda old: b'{"arraychunk_ids": [7]}')),
        ("Array", body(lambda old: old.replace(b'"shape"', b'"form"'))),
        ("Array", lambda content: content.replace(b"Array ", b"Pickle ")),
        ("ArrayRecord", body(lambda old: b'{"a": "nobody"}')),
        ("ArrayRecord", lambda content: b"\xff" + content),
        ("RecordDict", body(lambda old: b"not JSON")),
        ("ConfigRecord", body(lambda old: b"\x0b" * 5000)),  # groups in groups
        ("Message", body(lambda old: b"\xff" * 50)),
        ("Message", lambda content: content.replace(b"Message ", b"RecordDict ")),
    ],
)
def test_bytes_that_are_no_message_are_said_to_be_none(kind, change):
    _, contents = packed()
    contents = replaced(contents, kind, change)
    with pytest.raises(Unreadable):
        take(tree_of(contents), contents, 10**6)


def test_an_object_that_the_tree_does_not_name_is_missed():
    tree, contents = packed()
    with pytest.raises(Unreadable):
        take(ObjectTree(object_id=tree.object_id), contents, 10**6)


def test_a_message_is_taken_when_the_last_of_it_has_come_and_nothing_is_waited_for():
    tree, contents = packed()
    late = next(name for name, content in contents.items() if content.startswith(b"ArrayChunk "))
    client = Objects({**contents, late: b""})
    incoming = Incoming(client, Node(node_id=1), 1, tree, 10_000)
    assert incoming.take() is None and client.confirmed == []
    client.contents[late] = contents[late]
    message = incoming.take()
    assert bytes(message.content["weights"]["a"].data) == b"\x01" * 1000
    assert client.confirmed == [tree.object_id]


def test_a_message_of_which_the_rest_will_not_come_is_given_up():
    tree, contents = packed()
    client = Objects(contents, uploaded=False)
    with pytest.raises(GivenUp):
        fetch(Incoming(client, Node(node_id=1), 1, tree, 10_000), give_up=lambda: True)
    assert client.confirmed == [tree.object_id]


def test_an_error_in_place_of_a_reply_is_taken():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    question = Message(RecordDict(), 1, "train")
    question.metadata.__dict__["_message_id"] = "q"
    message = Message(Error(2, "x"), reply_to=question)
    contents = {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}
    assert take(get_object_tree(message), contents, 1000).error.code == 2
