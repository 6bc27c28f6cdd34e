"""The two places where virtual hospitals run: warm processes on this machine, or Flower's simulation runtime on Ray.

Both run the same ServerApp and ClientApp. The in-process engine is a Flower `Grid`: messages go to worker processes
that are forked once, after the slow imports, and stay warm. Their arrays lie in anonymous shared memory whose file
descriptor crosses a socket, so that a model is neither pickled nor copied through a pipe.

This file touches what is not public in flwr: `Run.create_empty`, `TaskIdentity`, the record serialisers and the
internal attributes of a message's metadata. `tests/simulation/test_engine.py` fails when a new flwr changes them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from shared_models.errors import BadInput
from shared_models.faults import WORKER_DIED

NodeConfig = dict[str, str]
SERVER_NODE = 1
PARENT_CHECK_SECONDS = 1.0


def run_in_processes(server: ServerApp, nodes: Sequence[NodeConfig], workers: int, threads: int) -> None:
    """Runs the ServerApp here and the sites in `workers` warm processes; one worker is this very process.

    Args:
        nodes: one Flower node config a site.
        threads: torch threads of each worker. A result depends on it, but not on the number of workers.
    """
    with contextlib.closing(LocalGrid(nodes, workers, threads)) as grid:
        server(grid, Context(run_id=1, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))


def run_on_ray(server: ServerApp, nodes: Sequence[NodeConfig], workers: int, threads: int) -> None:
    """Runs both apps on Flower's simulation runtime, which may span machines.

    Raises:
        BadInput: the extra `ray` is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its coming default; else it prints a warning
    try:
        import ray  # noqa: F401
    except ImportError:
        raise BadInput("--engine ray needs the extra `ray`: pip install 'consilium[ray]'") from None
    import logging

    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    gpus = torch.cuda.device_count() if any(node["device"].startswith("cuda") for node in nodes) else 0
    run_simulation(
        server_app=server,
        client_app=cast(ClientApp, _SiteOnRay(list(nodes), threads)),
        num_supernodes=len(nodes),
        backend_config={
            "client_resources": {"num_cpus": threads, "num_gpus": gpus / workers},
            # Else Flower's notices from every actor fill the terminal.
            "init_args": {"num_cpus": workers * threads, "log_to_driver": False},
        },
    )


@dataclass
class _SiteOnRay:
    """The ClientApp as Ray's actors call it: a partition number becomes a site."""

    nodes: list[NodeConfig]
    threads: int

    def __call__(self, message: Message, context: Context) -> Message:
        torch.set_num_threads(self.threads)
        node = self.nodes[int(cast(int, context.node_config["partition-id"]))]
        # Ray shows each actor only the GPUs that are its own, counted from 0.
        device = "cuda" if node["device"].startswith("cuda") else node["device"]
        context.node_config.update({**node, "device": device})
        return client_app(message, context)


class LocalGrid(Grid):
    """Flower's Grid over this process (one worker) or over forked workers."""

    def __init__(self, nodes: Sequence[NodeConfig], workers: int, threads: int) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
        self._run = Run.create_empty(run_id=1)
        self._nodes = {100 + index: node for index, node in enumerate(nodes)}
        self._queue: deque[Message] = deque()
        self._replies: dict[str, Message] = {}
        self._last: tuple[RecordDict, int] | None = None
        _keep_freed_memory()
        # Before the fork: a child of a process whose OpenMP threads are running would wait for them for ever.
        torch.set_num_threads(1 if workers > 1 else threads)
        self._workers = [_Worker(threads, index) for index in range(workers)] if workers > 1 else []

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = ids[-1]
            self._queue.append(message)
        self._dispatch()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message_id in message_ids:
            if not self._workers:
                self._answer_here(message_id)
            if message_id in self._replies:
                found.append(self._replies.pop(message_id))
        self._dispatch()
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting, began = list(self.push_messages(messages)), time.monotonic()
        while waiting and (timeout is None or time.monotonic() - began < timeout):
            for message_id in list(waiting):
                for reply in self.pull_messages([message_id]):
                    waiting.remove(message_id)
                    yield reply
            self.wait_for_reply(0.1)

    def wait_for_reply(self, seconds: float) -> None:
        """Returns when a worker has answered or the time is over: no reply waits for a poll."""
        busy = {worker.socket: worker for worker in self._workers if worker.task is not None}
        if not busy:
            return
        for ready in select.select(list(busy), [], [], seconds)[0]:
            self._collect(busy[ready])
        self._dispatch()

    def _answer_here(self, message_id: str) -> None:
        self._drop_expired()
        message = next((m for m in self._queue if m.metadata.message_id == message_id), None)
        if message is None:
            return
        self._queue.remove(message)
        context = _context(self._nodes[message.metadata.dst_node_id])
        self._replies[message_id] = client_app(message, context)

    def _drop_expired(self) -> None:
        """Forgets messages, and replies, whose time to live is over: whoever asked has gone on."""
        self._queue = deque(message for message in self._queue if not _expired(message))
        self._replies = {name: reply for name, reply in self._replies.items() if not _expired(reply)}

    def _dispatch(self) -> None:
        self._drop_expired()
        # A worker gets no new work while replies pile up: so their memory is bounded, however many sites there are.
        for worker in self._workers:
            if worker.task is None and self._queue and len(self._replies) < len(self._workers):
                message = self._queue.popleft()
                worker.give(message, self._nodes[message.metadata.dst_node_id], self._parcel(message.content))

    def _parcel(self, content: RecordDict) -> int:
        """The descriptor of a content in shared memory; one that goes to several sites in turn is laid there once."""
        if self._last is None or self._last[0] is not content:
            self._forget_last()
            self._last = (content, pack(content))
        return self._last[1]

    def _forget_last(self) -> None:
        if self._last is not None:
            os.close(self._last[1])
            self._last = None

    def _collect(self, worker: _Worker) -> None:
        message = worker.task
        assert message is not None
        content = worker.take()
        if content is None:
            reason = WORKER_DIED
            reply = Message(Error(code=1, reason=reason), reply_to=message)
            self._workers[self._workers.index(worker)] = worker.replacement()
        else:
            reply = Message(content, reply_to=message)
        self._replies[message.metadata.message_id] = reply

    def close(self) -> None:
        """Ends the workers."""
        self._forget_last()
        for worker in self._workers:
            worker.end()


class _Worker:
    """One warm process and the socket to it."""

    def __init__(self, threads: int, index: int) -> None:
        self.task: Message | None = None
        self._threads, self._index = threads, index
        self.socket, theirs = socket.socketpair()
        # Forked where that is safe, so that imported libraries are shared memory; macOS cannot fork with threads.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._process = context.Process(target=_work, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, message: Message, node: NodeConfig, content: int) -> None:
        """Sends a message whose content lies behind a descriptor."""
        self.task = message
        device = _spread(node["device"], self._index)
        envelope = {"type": message.metadata.message_type, "node": {**node, "device": device}}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found when it is read
            _send(self.socket, envelope, content)

    def take(self) -> RecordDict | None:
        """The answer, or None when the process has died."""
        self.task = None
        received = _receive(self.socket)
        if received is None:
            return None
        return unpack(received[1])

    def replacement(self) -> _Worker:
        """A new worker in the place of one that died."""
        self.end()
        return _Worker(self._threads, self._index)

    def end(self) -> None:
        """Ends the process."""
        self.socket.close()
        self._process.kill()
        self._process.join()


def _work(connection: socket.socket, threads: int) -> None:
    """A worker's life: take a message, let the ClientApp answer, send the answer, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
    while (received := _receive(connection)) is not None:
        envelope, descriptor = received
        message = Message(unpack(descriptor), SERVER_NODE, envelope["type"])
        reply = client_app(message, _context(envelope["node"]))
        del message
        answer = pack(reply.content)
        del reply
        try:
            _send(connection, {}, answer)
        finally:
            os.close(answer)


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, so that a killed run leaves nobody training."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _context(node: Mapping[str, str]) -> Context:
    return Context(run_id=1, node_id=SERVER_NODE, node_config=dict(node), state=RecordDict(), run_config={})


def _expired(message: Message) -> bool:
    return time.time() > message.metadata.created_at + message.metadata.ttl


def _spread(device: str, index: int) -> str:
    """The device of a worker: workers take the GPUs in turn."""
    return f"cuda:{index % torch.cuda.device_count()}" if device == "cuda" else device


def pack(content: RecordDict) -> int:
    """Lays a message's content into anonymous shared memory; returns its file descriptor.

    Layout: lengths of the two heads, a JSON list of the arrays, the other records as Flower's protobuf, the arrays.
    """
    listing: list[dict[str, Any]] = []
    buffers: list[bytes] = []
    others = RecordDict()
    for record_name, record in content.items():
        if not isinstance(record, ArrayRecord):
            others[record_name] = record
            continue
        listing.append({"record": record_name})
        for name, array in record.items():
            entry = {"name": name, "dtype": array.dtype, "shape": array.shape, "stype": array.stype}
            listing.append({**entry, "bytes": len(array.data)})
            buffers.append(array.data)
    head, rest = json.dumps(listing).encode(), recorddict_to_proto(others).SerializeToString()
    descriptor = _shared_memory()
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(struct.pack("!QQ", len(head), len(rest)) + head + rest)
        for buffer in buffers:
            file.write(buffer)
    return descriptor


def unpack(descriptor: int) -> RecordDict:
    """The content that `pack` laid down; its arrays are views of the shared memory. Closes the descriptor."""
    view = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))
    os.close(descriptor)
    head_size, rest_size = struct.unpack_from("!QQ", view)
    start = 16 + head_size
    content = recorddict_from_proto(ProtoRecordDict.FromString(bytes(view[start : start + rest_size])))
    position, record = start + rest_size, ArrayRecord()
    for entry in json.loads(bytes(view[16:start])):
        if "record" in entry:
            record = ArrayRecord()
            content[entry["record"]] = record
            continue
        array = Array(entry["dtype"], tuple(entry["shape"]), entry["stype"], b"")
        array.data = cast(bytes, view[position : position + entry["bytes"]])
        record[entry["name"]] = array
        position += entry["bytes"]
    return content


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next tensor of the same size instead of giving it back at once.

    Getting large blocks from the system anew in every step costs as much as a quarter of the step. Other platforms,
    and other C libraries, go on as they do.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_threshold, 2**30)
        glibc.mallopt(trim_threshold, 2**31 - 1)


def _shared_memory() -> int:
    """A nameless file in memory: it is gone when the last process that holds it is, however that process ends."""
    if sys.platform == "linux":
        return os.memfd_create("consilium")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _send(connection: socket.socket, envelope: Mapping[str, Any], descriptor: int) -> None:
    text = json.dumps(envelope).encode()
    socket.send_fds(connection, [struct.pack("!I", len(text))], [descriptor])
    connection.sendall(text)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], int] | None:
    """The next envelope and descriptor; None when the other side is gone."""
    try:
        size, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
        if not descriptors:
            return None
        text = b""
        (wanted,) = struct.unpack("!I", size)
        while len(text) < wanted:
            part = connection.recv(wanted - len(text))
            if not part:
                return None
            text += part
    except ConnectionResetError:
        return None
    return json.loads(text), descriptors[0]
