"""The warm worker: claims the tasks of the local SuperNode and answers them with the ClientApp that is installed here.

Flower starts a new process for every message and imports the code that the coordinator sent. This process starts once,
keeps torch, the decoded data and the GPU warm, and never opens that code.
"""

from __future__ import annotations

import base64
import json
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import httpx
import torch
from flwr.app import Message

from client.app import make_client_app
from client.config import load_site_config
from client.daemon import Orders
from client.hospital import Hospital
from shared_models.enrolment import read_kit
from shared_models.errors import ConsiliumError
from shared_models.files import whole_file
from shared_models.flower_messages import Unreadable
from shared_models.flower_runtime import SITE_TASK, Claim, RunNotRunning, Runtime, SiteTask, TaskQueue, site_task
from shared_models.keys import load_private
from shared_models.supervision import rotating_log

POLL_SECONDS = 0.25
IDLE_POLL_SECONDS = 1.0
AWAKE_SECONDS = 60.0
"""For so long after a task the next one is looked for at the quick pace."""


class _Stopping(BaseException):
    """The daemon ends: the step under way is abandoned."""


class _Abandoned(BaseException):
    """Nobody waits for the task under way any more."""


class Worker:
    """One warm worker."""

    def __init__(self, orders: Orders) -> None:
        """Reads the configuration and the key.

        Raises:
            BadInput: one of them is not what it should be.
        """
        config = load_site_config(Path(orders.config))
        if config.threads:
            torch.set_num_threads(config.threads)
        key = load_private(config.key, orders.passphrase.encode() if orders.passphrase else None)
        log = rotating_log(config.work / "logs" / "worker.log")
        self._hospital = Hospital(config, read_kit(config.kit), key, log)
        self._app = make_client_app(self._hospital)
        self._runtime = Runtime(orders.address, base64.b64decode(orders.secret))
        self._log, self._file = log, config.work / "worker.json"
        self._queue = TaskQueue(self._runtime, SITE_TASK)
        self._next: Claim | None = None
        self._answering = self._stop = False

    def run(self) -> None:
        """Answers tasks until SIGTERM."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_abandon)
        self._say("waits for messages")
        awake_until = 0.0
        try:
            while not self._stop:
                claim, self._next = self._next or self._queue.claim(), None
                if claim is None:
                    time.sleep(POLL_SECONDS if time.monotonic() < awake_until else IDLE_POLL_SECONDS)
                    continue
                self._work_on(claim.token, claim.run_id)
                self._say("waits for messages")
                awake_until = time.monotonic() + AWAKE_SECONDS
        finally:
            self._queue.close()

    def _is_stale(self) -> bool:
        """Whether there is another task: a SuperNode takes one message after the other, so the one before is stale."""
        self._next = self._next or self._queue.claim()
        return self._next is not None

    def _work_on(self, token: str, flower_run: int) -> None:
        try:
            with site_task(self._runtime, token, self._is_stale) as task:
                self._say(f"answers '{task.message.metadata.message_type}'")
                self._hospital.note_bundle(flower_run, task.bundle)
                self._answer(task)
        except _Abandoned:
            self._log.info("the task was abandoned: nobody waits for its answer any more")
        except (httpx.HTTPError, RunNotRunning, RuntimeError) as error:
            self._log.info("the SuperNode did not take the answer: %s", type(error).__name__)
        except (ConsiliumError, Unreadable) as error:
            self._log.info("not answered: %s", error)

    def _answer(self, task: SiteTask) -> None:
        try:
            self._answering = True
            reply = self._app(task.message, task.context)
        except _Stopping:
            reply = Message(self._hospital.refuse("stopping"), reply_to=task.message)
        except Exception as error:  # such as a question that the app does not know
            self._log.info("a message was not understood: %s", error)
            reply = Message(self._hospital.refuse("message"), reply_to=task.message)
        finally:
            self._answering = False
        task.answer(reply)

    def _say(self, doing: str) -> None:
        """What it does now, for `consilium site status`; on a full disk it stays what it was."""
        with suppress(OSError), whole_file(self._file) as file:
            file.write(json.dumps({"doing": doing, "since": time.time()}).encode())

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        if self._answering:
            self._answering = False
            raise _Stopping

    def _on_abandon(self, number: int, frame: FrameType | None) -> None:
        if self._answering:
            self._answering = False
            raise _Abandoned


def main() -> int:
    """Works until it is told to end; returns the exit code."""
    orders = Orders(**json.load(sys.stdin))
    try:
        Worker(orders).run()
    except ConsiliumError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
