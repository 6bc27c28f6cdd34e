"""What a deployment needs of Flower and flwr does not make public: claiming tasks, their messages, the Control API.

A SuperLink and a SuperNode hand out tasks at their Runtime API, to whoever proves knowledge of the SuperExec secret.
Flower answers each with a new process that unpacks and imports the coordinator's app bundle. Here a process that
already runs takes the task and answers with the app that is installed; a bundle is measured, and dropped unopened.

Together with `flower_messages.py` and `simulation/engine.py` the only place that imports what is not public in flwr.
`tests/shared_models/test_flower_runtime.py` fails when a new flwr changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import context_from_proto, fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid as HttpGrid
from flwr.supernode.runtime.run_clientapp import push_message

from shared_models.flower_messages import GivenUp, Incoming, Unreadable, fetch, packed

SITE_TASK, COORDINATOR_TASK = TaskType.CLIENT_APP.value, TaskType.SERVER_APP.value
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

# A site's SuperNode is on this machine: one that is away for longer has been restarted, and has forgotten the task.
LOCAL_RETRY_SECONDS = 20.0

RunNotRunning = RunNotRunningException
"""Raised by every call about a run that Flower has ended."""


@dataclass(frozen=True)
class Runtime:
    """Where tasks are handed out: a SuperNode or SuperLink on this machine.

    Attributes:
        address: HOST:PORT.
        secret: the SuperExec secret, made new at every start and kept in memory.
        certificates: PEM of the authority behind the server's certificate; None for plain HTTP on loopback.
    """

    address: str
    secret: bytes
    certificates: bytes | None = None


@dataclass(frozen=True)
class Claim:
    """A task that was claimed: what proves it, and the Flower run that it belongs to."""

    token: str
    run_id: int


@dataclass(frozen=True)
class Bundle:
    """The code that a coordinator sent along: how much it was. Nobody opens it."""

    sha256: str
    size: int


class TaskQueue:
    """Claims tasks of one kind."""

    def __init__(self, runtime: Runtime, kind: str) -> None:
        self._kind = kind
        self._client = RuntimeHttpClient.from_server_address(
            server_address=runtime.address,
            insecure=runtime.certificates is None,
            root_certificates=runtime.certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=runtime.secret, protected_methods={ACQUIRE}),
            ],
        )

    def claim(self) -> Claim | None:
        """The next task, or None when there is none, or nobody to ask for now."""
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[self._kind]))
        except httpx.HTTPError:
            return None
        return Claim(answer.token, answer.task.run_id) if answer.HasField("task") and answer.token else None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


class SiteTask:
    """One message to a site, and the way to answer it."""

    def __init__(self, client: RuntimeHttpClient, message: Message, context: Context, bundle: Bundle) -> None:
        self.message, self.context, self.bundle = message, context, bundle
        self._client = client

    def answer(self, reply: Message) -> None:
        """Hands the reply to the SuperNode. Raises RunNotRunning when nobody wants it any more."""
        try:
            reply.content = packed(reply.content)
            push_message(self._client, reply, self.context)
        except ObjectPushError:  # the SuperNode has dropped the reply while it was taking it
            raise RunNotRunning from None
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))


@contextmanager
def site_task(runtime: Runtime, token: str, is_stale: Callable[[], bool]) -> Iterator[SiteTask]:
    """The task behind a token at a site; while the block runs, the SuperNode knows that it is being worked on.

    A SuperNode or coordinator that no longer wants the task raises SIGINT in this process.

    A SuperNode waits for the reply to the message that it took last, whichever reply comes. So a task without an answer
    is left to expire with its heartbeat, within a minute: only then there is a reply, that it crashed. A stale task
    must not: its reply would be taken for that of the next message, and the SuperNode be one reply behind for good.

    Args:
        is_stale: asked while parts of the message have not arrived: has the SuperNode given it up, and taken another?

    Raises:
        Unreadable: its message cannot be taken.
    """
    client = RuntimeHttpClient.from_server_address(
        server_address=runtime.address,
        insecure=runtime.certificates is None,
        root_certificates=runtime.certificates,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
            RuntimeTokenHttpInterceptor(token),
        ],
        retry_invoker=RetryInvoker(
            wait_gen_factory=lambda: exponential(max_delay=4),
            recoverable_exceptions=httpx.TransportError,
            max_tries=None,
            max_time=LOCAL_RETRY_SECONDS,
        ),
    )
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    try:
        heartbeat.start()
        given = client.PullTaskInput(PullTaskInputRequest())
        _identify(given)
        context, fab = context_from_proto(given.context), given.fab.content
        trees = client.PullMessages(PullAppMessagesRequest()).message_object_trees
        if not trees:
            raise Unreadable("the task has no message")
        try:
            message = fetch(Incoming(client, Node(node_id=context.node_id), context.run_id, trees[0]), is_stale)
        except GivenUp:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="stale"))
            raise
        except ObjectPullError:
            raise Unreadable("the message of the task did not arrive whole") from None
        yield SiteTask(client, message, context, Bundle(hashlib.sha256(fab).hexdigest(), len(fab)))
    finally:
        if heartbeat.is_running:
            heartbeat.stop()
        client.close()


@contextmanager
def coordinator_task(runtime: Runtime, token: str) -> Iterator[HttpGrid]:
    """The grid of the run behind a token at the coordinator, and the run is Flower's as long as the block runs.

    While the SuperLink is away, calls wait for it. A run that Flower has ended meanwhile raises SIGINT in this process,
    or RunNotRunning.
    """
    grid = HttpGrid(
        runtime.address,
        insecure=runtime.certificates is None,
        root_certificates=runtime.certificates,
        token=token,
    )
    client = grid._runtime_client
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    status, details = SubStatus.FAILED, "stopped"
    try:
        heartbeat.start()
        given = client.PullTaskInput(PullTaskInputRequest())
        _identify(given)
        grid.set_run(run_from_proto(given.run))
        yield grid
        status, details = SubStatus.COMPLETED, ""
    finally:
        grid._retry_invoker.max_tries = 1
        try:
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))
        except (httpx.HTTPError, RunNotRunningException):
            details = "the SuperLink finds out by the missing heartbeat"
        if heartbeat.is_running:
            heartbeat.stop()
        grid.close()


def _identify(given: PullTaskInputResponse) -> None:
    """Tells Flower, which keeps it for the whole process, which task is being worked on."""
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id


class Control:
    """The SuperLink's Control API: who may connect, and which runs there are. It is on loopback only."""

    def __init__(self, address: str, certificates: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=certificates,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def nodes(self) -> dict[str, tuple[int, str]]:
        """Public key line -> Flower node id and status (registered, online, offline) of every registered node."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        lines = ((public_line(node.public_key), node) for node in found if node.status != "unregistered")
        return {line: (node.node_id, node.status) for line, node in lines if line}

    def register(self, key_line: str, name: str) -> None:
        """Lets the holder of a key connect."""
        key = load_ssh_public_key(key_line.encode())
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._client.RegisterNode(RegisterNodeRequest(public_key=pem, name=name))

    def unregister(self, node_id: int) -> None:
        """Lets a node connect no more."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self) -> int:
        """Starts a Flower run with a bundle that holds no code; returns its id."""
        content = code_free_bundle()
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        return int(self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab))).run_id)

    def stop_run(self, run_id: int) -> None:
        """Ends a Flower run, should it still be running; nothing is kept of its messages."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError:
            # It has ended by itself. Asked about such a run, Flower drops what is left of its messages.
            with suppress(httpx.HTTPStatusError):
                self._client.ListRuns(ListRunsRequest(run_id=run_id))

    def stop_all_runs(self) -> None:
        """Ends whatever Flower runs a coordinator that crashed has left behind."""
        for run_id, run in self._client.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != Status.FINISHED:
                self.stop_run(run_id)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def code_free_bundle() -> bytes:
    """The app bundle that Flower asks for, with nothing in it but names: both sides run what they have installed."""
    return build_fab_from_files(
        {
            "pyproject.toml": b"""[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "consilium-run"
version = "1.0.0"
description = "names the installed apps and carries no code"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "consilium"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
"""
        }
    )[0]


def public_line(encoded: bytes) -> str | None:
    """A node's public key as an OpenSSH line; None when it is none on an elliptic curve."""
    try:
        key = load_pem_public_key(encoded)
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, EllipticCurvePublicKey):
        return None
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
