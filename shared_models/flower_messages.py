"""How a message of Flower is taken in: whole, of a size that there is a reason for, or not at all.

A message travels as objects: the words, and the arrays in chunks. Flower's own code reads what came as it says that it
is, so that one chunk named a million times becomes terabytes, and whatever cannot be read ends the process.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError as ObjectPullError,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as to_safetensors

from shared_models.faults import UNREADABLE
from shared_models.weights import from_record, to_record

LARGEST_WORDS = 16 * 2**20
"""Bytes of everything in a message but its arrays; read as protobuf it may take thirty times the memory."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks for a part that has not arrived."""
PACKED = "packed.safetensors"
ROOM = 64 * 2**20
"""Bytes that a message may have beside what there is a reason for."""


class Unreadable(Exception):
    """What was sent is no message, or is larger than it may be."""


class GivenUp(Unreadable):
    """Nobody sends the rest of the message any more."""


def announced_reply(grid: HttpGrid, message_id: str, largest: int) -> Incoming | None:
    """The reply to a message once its site has announced it, to be taken in as it arrives; None until then.

    Flower's own `pull_messages` believes what a reply says of its size, lets every error of reading it out, and waits
    for hours for a site that announced a reply and does not send it; any of these would let one site end the run.

    Args:
        largest: bytes that the reply may have.
    """
    client, run_id = grid._runtime_client, grid.run.run_id
    for tree in client.PullMessages(PullAppMessagesRequest(message_ids=[message_id])).message_object_trees:
        return Incoming(client, grid.node, run_id, tree, largest)
    return None


def unreadable_reply(grid: HttpGrid, message_id: str) -> Message:
    """In place of a reply that is none."""
    return _error_reply(grid, message_id, Error(ErrorCode.UNKNOWN, UNREADABLE))


def incomplete_reply(grid: HttpGrid, message_id: str) -> Message:
    """In place of a reply that was announced and did not come."""
    return _error_reply(grid, message_id, Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "it did not arrive whole"))


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


class Incoming:
    """A message that is taken in as its parts arrive.

    Args:
        tree: of its objects; the root is the message.
        largest: bytes that it may have; None for a few times what was really sent.
    """

    def __init__(
        self, client: RuntimeHttpClient, node: Node, run_id: int, tree: ObjectTree, largest: int | None = None
    ) -> None:
        self._client, self._node, self._run_id, self._root, self._largest = (
            client,
            node,
            run_id,
            tree.object_id,
            largest,
        )
        self._pull = make_pull_object_fn_protobuf(client.PullObject, node, run_id)
        self._missing = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        self._contents: dict[str, bytes] = {}
        self._pulled = 0

    def take(self) -> Message | None:
        """The message, once all of it is there; nothing is waited for. Afterwards its objects are forgotten.

        Raises:
            Unreadable: it is larger than it may be, or no message.
            ObjectPullError: the rest of it will never be there.
        """
        try:
            self._pull_what_is_there()
        except BaseException:
            self.drop()
            raise
        if self._missing:
            return None
        self.drop()
        try:
            _check_size(self._contents, self._largest if self._largest is not None else 4 * self._pulled + ROOM)
            message = inflate_object_from_contents(self._root, self._contents)
        except Unreadable:
            raise
        except Exception as error:  # whatever somebody's bytes make of Flower's readers
            raise Unreadable(f"it cannot be read ({type(error).__name__})") from None
        if not isinstance(message, Message):
            raise Unreadable("it is no message")
        message.metadata.__dict__["_message_id"] = self._root
        if message.has_content():
            message.content = unpacked(message.content)
        return message

    def drop(self) -> None:
        """Lets the other side forget it."""
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=self._run_id, message_object_id=self._root)
        )

    def _pull_what_is_there(self) -> None:
        while self._missing:
            try:
                content = self._pull(self._missing[-1])
            except ObjectUnavailableError:
                return
            self._pulled += len(content)
            if self._largest is not None and self._pulled > self._largest:
                raise Unreadable("it is too large")
            self._contents[self._missing.pop()] = content


def fetch(incoming: Incoming, give_up: Callable[[], bool]) -> Message:
    """The whole of a message, waited for.

    Args:
        give_up: asked whenever a part has not arrived yet.

    Raises:
        GivenUp: `give_up` said so.
        Unreadable: it is no message.
        ObjectPullError: the rest of it will never be there.
    """
    pause = SHORTEST_WAIT
    while (message := incoming.take()) is None:
        if give_up():
            incoming.drop()
            raise GivenUp("the rest of it will not come")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_WAIT)
    return message


def packed(content: RecordDict) -> RecordDict:
    """The same content with every record of arrays as one array, the bytes of a safetensors file.

    Flower sends two objects for each array, each with a request of its own that is signed and written to a database: a
    small network of fifty tensors takes seconds, however few bytes it has.
    """
    return RecordDict({name: _pack(record) if _is_arrays(record) else record for name, record in content.items()})


def unpacked(content: RecordDict) -> RecordDict:
    """The content that `packed` was given; a record that was not packed is left as it is.

    Raises:
        Unreadable: the bytes are not those of a safetensors file.
    """
    return RecordDict({name: _unpack(record) if _is_packed(record) else record for name, record in content.items()})


def _is_arrays(record: object) -> bool:
    return isinstance(record, ArrayRecord)


def _is_packed(record: object) -> bool:
    return isinstance(record, ArrayRecord) and list(record) == [PACKED]


def _pack(record: Any) -> ArrayRecord:
    return to_record({PACKED: np.frombuffer(to_safetensors(from_record(record)), np.uint8)})


def _unpack(record: Any) -> ArrayRecord:
    try:
        return to_record(parse_safetensors(from_record(record)[PACKED].tobytes()))
    except Exception as error:
        raise Unreadable(f"its arrays cannot be read ({type(error).__name__})") from None


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
