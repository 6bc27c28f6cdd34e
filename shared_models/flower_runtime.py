"""What a deployment needs of Flower and flwr does not make public: claiming tasks, their messages, the Control API.

A SuperLink and a SuperNode hand out tasks at their Runtime API, to whoever proves knowledge of the SuperExec secret.
Flower answers each with a new process that unpacks and imports the coordinator's app bundle. Here a process that
already runs takes the task and answers with the app that is installed; a bundle is measured, and dropped unopened.

Together with `simulation/engine.py` the only place that imports what is not public in flwr.
`tests/shared_models/test_flower_runtime.py` fails when a new flwr changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
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
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
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
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message

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
        self._answered = False

    def answer(self, reply: Message) -> None:
        """Hands the reply to the SuperNode."""
        push_message(self._client, reply, self.context)
        self._finish(SubStatus.COMPLETED, "")

    def abandon(self) -> None:
        """Tells the SuperNode, if it can still be told, that there will be no reply."""
        if not self._answered:
            self._finish(SubStatus.FAILED, "abandoned")

    def _finish(self, status: str, details: str) -> None:
        self._answered = True
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))


@contextmanager
def site_task(runtime: Runtime, token: str) -> Iterator[SiteTask]:
    """The task behind a token at a site; while the block runs, the SuperNode knows that it is being worked on.

    A SuperNode or coordinator that no longer wants the task raises SIGINT in this process.
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
        message, context, _, fab = pull_task_input(client)
        yield SiteTask(client, message, context, Bundle(hashlib.sha256(fab.content).hexdigest(), len(fab.content)))
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
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
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
        """Ends a Flower run, should it still be running."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError:
            return  # it has ended by itself

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
