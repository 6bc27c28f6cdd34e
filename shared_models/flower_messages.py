"""How a message of Flower is taken in: whole, of a size that there is a reason for, or not at all.

A message travels as objects: the words, and the arrays in chunks. Flower's own code reads what came as it says that it
is, so that one chunk named a million times becomes terabytes, and whatever cannot be read ends the process.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import PULL_MAX_TIME, SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from shared_models.faults import UNREADABLE

LARGEST_WORDS = 16 * 2**20
"""Bytes of everything in a message but its arrays; read as protobuf it may take thirty times the memory."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks for a part that has not arrived."""
ROOM = 64 * 2**20
"""Bytes that a message may have beside what there is a reason for."""


class Unreadable(Exception):
    """What was sent is no message, or is larger than it may be."""


class GivenUp(Unreadable):
    """Nobody sends the rest of the message any more."""


def pull_reply(grid: HttpGrid, message_id: str, largest: int, seconds: float) -> Message | None:
    """The reply to a message, or None while there is none.

    Flower's own `pull_messages` believes what a reply says of its size, lets every error of reading it out, and waits
    for hours for a site that announced a reply and does not send it; any of these would let one site end the run.

    Args:
        largest: bytes that the reply may have.
        seconds: how long to wait for the rest of a reply that was announced.
    """
    client, run_id = grid._runtime_client, grid.run.run_id
    found = client.PullMessages(PullAppMessagesRequest(message_ids=[message_id]))
    for tree in found.message_object_trees:
        try:
            return fetch(client, grid.node, run_id, tree, largest, seconds)
        except ObjectPullError:
            return _error_reply(grid, message_id, Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "it did not arrive whole"))
        except Unreadable:
            return _error_reply(grid, message_id, Error(ErrorCode.UNKNOWN, UNREADABLE))
    return None


def reply_of_the_lost(grid: HttpGrid, message_id: str) -> Message:
    """What Flower replies for a node that is not connected any more."""
    return _error_reply(grid, message_id, Error(ErrorCode.NODE_UNAVAILABLE, "it was away meanwhile"))


def _error_reply(grid: HttpGrid, message_id: str, error: Error) -> Message:
    metadata = Metadata(
        run_id=grid.run.run_id,
        message_id="",
        src_node_id=grid.node.node_id,
        dst_node_id=grid.node.node_id,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata, error=error)


def fetch(
    client: RuntimeHttpClient,
    node: Node,
    run_id: int,
    tree: ObjectTree,
    largest: int | None = None,
    seconds: float = PULL_MAX_TIME,
    give_up: Callable[[], bool] = lambda: False,
) -> Message:
    """The message at the root of a tree of objects, which are then forgotten where they were.

    Args:
        largest: bytes that it may have; None for a few times what was really sent.
        seconds: how long to wait for the parts that have not arrived.
        give_up: asked whenever a part has not arrived yet.

    Raises:
        GivenUp: `give_up` said so.
        Unreadable: it is larger, or no message.
        ObjectPullError: it did not arrive whole.
    """
    pull, lock, pulled = make_pull_object_fn_protobuf(client.PullObject, node, run_id), threading.Lock(), 0

    def counted(object_id: str) -> bytes:
        nonlocal pulled
        try:
            content = pull(object_id)
        except ObjectUnavailableError:
            with lock:
                if give_up():
                    raise GivenUp("the rest of it will not come") from None
            raise
        with lock:
            pulled += len(content)
            if largest is not None and pulled > largest:
                raise Unreadable("it is too large")
        return content

    try:
        contents = pull_objects(
            [part.object_id for part in iterate_object_tree(tree)],
            counted,
            max_time=seconds,
            max_tries_per_object=None,
            initial_backoff=SHORTEST_WAIT,
            backoff_cap=LONGEST_WAIT,
        )
    finally:
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=tree.object_id)
        )
    try:
        _check_size(contents, largest if largest is not None else 4 * pulled + ROOM)
        message = inflate_object_from_contents(tree.object_id, contents)
    except Unreadable:
        raise
    except Exception as error:  # whatever somebody's bytes make of Flower's readers
        raise Unreadable(f"it cannot be read ({type(error).__name__})") from None
    if not isinstance(message, Message):
        raise Unreadable("it is no message")
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _check_size(contents: Mapping[str, bytes], largest: int) -> None:
    """An array is a list of chunks, in which one chunk can stand a million times. Raises Unreadable."""
    words = unfolded = 0
    for content in contents.values():
        kind, children, length = get_object_head_values_from_object_content(content)
        if kind == "ArrayChunk":
            continue
        words += len(content)
        if kind == "Array":
            chunks = json.loads(content[len(content) - length :])["arraychunk_ids"]
            unfolded += sum(len(contents[children[chunk]]) for chunk in chunks)
    if words > LARGEST_WORDS or unfolded > largest:
        raise Unreadable("it is too large")
