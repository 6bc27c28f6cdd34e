"""`consilium site doctor`: everything that a site needs, looked at before it is needed.

Each check gives rows; one that hangs costs its time and no more, and none ends the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from client.config import SiteConfig, load_site_config
from client.doctor import files, machine, network
from client.doctor.row import Late, Level, Row, fault, warning, within
from shared_models.enrolment import read_kit
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_file import read_job

__all__ = ["Level", "Row", "examine"]

ALL_SECONDS = 28.0
"""For everything but the images of a job and a person who types a passphrase."""

CHECK_SECONDS = 6.0
TORCH_SECONDS = 12.0  # from a cold disk
NETWORK_SECONDS = 20.0

T = TypeVar("T")


def examine(
    path: Path,
    passphrase_of: Callable[[Path], bytes | None],
    job_path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row]:
    """Look at a site and at its coordinator; nothing but an empty work directory is made, and no error ends it.

    Args:
        path: site.yaml.
        passphrase_of: asks for the passphrase of a key; None where there is none to be had. It may raise BadInput.
        job_path: a job for which every image is read as well, which may take long.
        progress: called with (done, total) after every case of the job.
    """
    end = time.monotonic() + ALL_SECONDS
    yield from _look("python", machine.software)
    yield from _look("memory", machine.memory)
    config, rows = _get("site.yaml", lambda: load_site_config(path))
    yield from rows
    if config is None:
        return
    asked = time.monotonic()
    passphrase, complaint = _passphrase(config, passphrase_of)
    end += time.monotonic() - asked
    job, rows = _get("job", lambda: read_job(job_path) if job_path else None)
    yield from rows
    for check, call, seconds in _checks(path, config, passphrase, complaint, job):
        yield from _look(check, call, max(1.0, min(seconds, end - time.monotonic())))
    if job:
        from client.doctor import cases  # it imports torch, and the daemon of a site imports this package

        yield from _look("cases", partial(cases.cases, config, job, progress), None)


def _passphrase(config: SiteConfig, passphrase_of: Callable[[Path], bytes | None]) -> tuple[bytes | None, str]:
    """The passphrase, or why there is none."""
    try:
        return passphrase_of(config.key), ""
    except BadInput as error:
        return None, str(error)


def _checks(
    path: Path, config: SiteConfig, passphrase: bytes | None, complaint: str, job: Job | None
) -> Iterator[tuple[str, Callable[[], Iterable[Row]], float]]:
    """Every check of a site with its limit in seconds: first what is here, then the coordinator of the kit."""
    yield "site.yaml", partial(files.configuration, path, config), CHECK_SECONDS
    yield "device", partial(machine.device, config), TORCH_SECONDS
    yield "disk", partial(machine.disk, config), CHECK_SECONDS
    yield "work", partial(files.work, config), CHECK_SECONDS
    yield "key", partial(files.key, config, passphrase, complaint), CHECK_SECONDS
    yield "ledger", partial(files.ledger, config), CHECK_SECONDS
    yield "manifest", partial(files.manifest, config, job), CHECK_SECONDS
    yield "health port", partial(files.health_port, config), CHECK_SECONDS
    kit, rows = _get("kit", lambda: read_kit(config.kit))
    if kit is None:
        sentence = "without a kit, neither the policy nor the coordinator was looked at; mend the kit, and look again"
        yield "kit", lambda: [*rows, warning("coordinator", "not looked for", sentence)], CHECK_SECONDS
        return
    yield "kit", partial(files.kit, config, kit), CHECK_SECONDS
    yield "policy", partial(files.policy, config, kit), CHECK_SECONDS
    yield "coordinator", partial(network.coordinator, kit), NETWORK_SECONDS


def _get(check: str, call: Callable[[], T | None]) -> tuple[T | None, list[Row]]:
    """What a call returns; or None and the rows that say why not."""
    try:
        return within(CHECK_SECONDS, call), []
    except Exception as error:
        return None, _failed(check, error)


def _look(check: str, call: Callable[[], Iterable[Row]], seconds: float | None = CHECK_SECONDS) -> list[Row]:
    """The rows of one check, as many as it gave within so many seconds; None lets it take its time."""
    rows: list[Row] = []

    def collect() -> None:
        for row in call():
            rows.append(row)

    try:
        if seconds is None:
            collect()
        else:
            within(seconds, collect)
    except Exception as error:
        return [*rows, *_failed(check, error)]
    return rows


def _failed(check: str, error: Exception) -> list[Row]:
    """A row for each line of what went wrong. The text of an error that is not ours may name a patient: it stays."""
    if isinstance(error, BadInput):
        return [fault(check, "not right", line) for line in str(error).splitlines()]
    if isinstance(error, Late):
        remedy = "a disk, a driver or a network hangs: see to that, and look again"
        return [fault(check, "no answer", f"the check of {check} did not end in its time; {remedy}")]
    found = f"{type(error).__name__}{f' ({error.strerror})' if isinstance(error, OSError) and error.strerror else ''}"
    return [fault(check, "not looked at", f"the check of {check} ended with {found}; look again, and report this")]
