"""The contract with flwr: fails when a new one changes what a deployment needs of it and it does not make public."""

import inspect
import io
import zipfile

import pytest
from flwr.app import Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import push_message

from shared_models import flower_messages, flower_runtime
from shared_models.flower_runtime import (
    ACQUIRE,
    COORDINATOR_TASK,
    SITE_TASK,
    Control,
    Runtime,
    TaskQueue,
    code_free_bundle,
    coordinator_task,
)
from shared_models.keys import new_site_key, public_line
from tests.server.superlink import running

SECRET = b"a-secret-of-the-tests-that-is-long-enough"


# --- names, types and paths ---


def test_the_kinds_of_task_and_the_way_to_claim_one_have_their_names():
    assert (SITE_TASK, COORDINATOR_TASK) == ("flwr-clientapp", "flwr-serverapp")
    assert f'rpc_method="{ACQUIRE}"' in inspect.getsource(RuntimeHttpClient.AcquireTask)
    assert (SubStatus.COMPLETED, SubStatus.FAILED) == ("completed", "failed")


@pytest.mark.parametrize(
    ("called", "names"),
    [
        (RuntimeHttpClient.from_server_address, "server_address insecure root_certificates interceptors retry_invoker"),
        (ControlHttpClient.from_server_address, "server_address insecure root_certificates interceptors"),
        (SuperExecAuthHttpInterceptor, "master_secret protected_methods"),
        (RuntimeTokenHttpInterceptor, "token"),
        (HttpGrid, "runtime_api_address insecure root_certificates token"),
        (HeartbeatSender, "heartbeat_fn"),
        (push_message, "client message context"),
        (flower_messages.inflate_object_from_contents, "object_id object_contents"),
        (make_message, "metadata content error"),
        (
            Metadata,
            "run_id message_id src_node_id dst_node_id reply_to_message_id group_id created_at ttl message_type",
        ),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_what_is_called_takes_what_it_is_given(called, names):
    assert set(names.split()) <= set(inspect.signature(called).parameters)


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (flower_runtime.AcquireTaskRequest, "supported_task_types"),
        (flower_runtime.PullTaskInputResponse, "task_id run context fab"),
        (flower_runtime.PushTaskOutputRequest, "sub_status details"),
        (flower_runtime.StartRunRequest, "fab"),
        (flower_runtime.StopRunRequest, "run_id"),
        (flower_runtime.RegisterNodeRequest, "public_key name"),
        (flower_runtime.UnregisterNodeRequest, "node_id"),
        (flower_messages.PullAppMessagesRequest, "message_ids"),
        (flower_messages.ConfirmMessageReceivedRequest, "node run_id message_object_id"),
        (ListNodesRequest, ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_messages_of_the_protocol_have_their_fields(message, names):
    assert set(names.split()) <= set(message.DESCRIPTOR.fields_by_name)


def test_codes_of_errors_stand_for_what_we_say_of_them():
    codes = [value for name, value in vars(ErrorCode).items() if name.isupper()]
    assert sorted(codes) == list(range(9)), "server/admission.py has a sentence for each"
    assert ErrorCode.REPLY_MESSAGE_UNAVAILABLE == 4 and ErrorCode.NODE_UNAVAILABLE == 5


def test_the_bundle_holds_names_and_no_code():
    bundle = zipfile.ZipFile(io.BytesIO(code_free_bundle()))
    assert sorted(bundle.namelist()) == [".info/CONTENT", "pyproject.toml"]
    text = bundle.read("pyproject.toml").decode()
    assert 'serverapp = "server.app:app"' in text and 'clientapp = "client.app:app"' in text
    assert "dependencies = []" in text


# --- a real SuperLink ---


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    with running(tmp_path_factory.mktemp("superlink") / "home") as federation:
        yield federation


def certificates(superlink):
    return (superlink.home / "ca.crt").read_bytes()


def queue(superlink, secret):
    return TaskQueue(Runtime(f"127.0.0.1:{superlink.port}", secret, certificates(superlink)), COORDINATOR_TASK)


def test_a_run_is_started_claimed_by_who_knows_the_secret_and_stopped(superlink):
    control = Control(f"127.0.0.1:{superlink.port}", certificates(superlink))
    run = control.start_run()
    for wrong in (b"", b"x" * len(SECRET), SECRET[:-1]):
        assert queue(superlink, wrong).claim() is None
    claim = queue(superlink, SECRET).claim()
    assert claim is not None and claim.run_id == run and claim.token
    assert queue(superlink, SECRET).claim() is None, "a task is claimed once"
    runtime = Runtime(f"127.0.0.1:{superlink.port}", b"", certificates(superlink))
    with coordinator_task(runtime, claim.token) as grid:
        assert grid.run.run_id == run == TaskIdentity.run_id
        assert list(grid.get_nodes()) == []
        assert grid._retry_invoker is not None and grid.node.node_id
    control.stop_run(run)
    control.close()


def test_keys_are_registered_listed_as_our_own_lines_and_removed(superlink):
    control, line = Control(f"127.0.0.1:{superlink.port}", certificates(superlink)), public_line(new_site_key())
    control.register(line, "north")
    node, status = control.nodes()[line]
    assert status == "registered"
    control.unregister(node)
    assert line not in control.nodes()
    control.close()
