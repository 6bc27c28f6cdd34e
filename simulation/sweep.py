"""A sweep: one job with every combination of a grid's values and every seed, each an ordinary run in a folder.

The folder holds `jobs/` (a job file for each cell), `runs/` (a run directory each), `logs/` (what each run said) and
`sweep.json`: what was asked for, and for each cell where it stands and every failure that it ever had. A cell runs in a
process of its own, which gives its memory back and ends with the sweep; killed anywhere, the sweep goes on from there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from server.checkpoint import write_atomically
from server.events import read_events
from server.report.comparison_labels import shown
from shared_models import yaml_file
from shared_models.comparisons import read_comparisons
from shared_models.errors import BadInput, SitesLeftOut
from shared_models.job_file import load_job
from shared_models.page import duration, fixed, plural
from shared_models.supervision import end_with, only_one
from simulation.sweep_grid import cells, job_of, parse_grid, varied

SCHEMA = "consilium-sweep/1"
WAITING, RUNNING, COMPLETE, FAILED, INVALID = "waiting", "running", "complete", "failed", "invalid"
PATIENCE = 60.0  # seconds that an interrupted run may take to end
REASONS = 3  # of its hospitals, that the record of a failed run holds; its log has all

Row = dict[str, Any]


@dataclass(frozen=True)
class SweepRequest:
    """What the command line asks for; sweep.json keeps it."""

    job: str
    grid: list[str]
    seeds: int
    compare: str
    data_dir: str | None
    workers: int | None
    device: str


@dataclass(frozen=True)
class Sweep:
    """A sweep on disk, held by this process alone.

    Attributes:
        record: the content of sweep.json.
        lock: the descriptor that holds the folder; the cells' processes inherit it.
    """

    folder: Path
    record: Row
    lock: int

    @property
    def rows(self) -> list[Row]:
        """One entry for each cell, in the order that they run."""
        found: list[Row] = self.record["cells"]
        return found

    def run_dir(self, row: Row) -> Path:
        """Where the run of a cell is."""
        return self.folder / "runs" / str(row["name"])

    def job_path(self, row: Row) -> Path:
        """The job file of a cell."""
        return self.folder / "jobs" / f"{row['name']}.yaml"

    def save(self) -> None:
        """Writes sweep.json, whole or not at all. Raises RunStopped when it cannot be written."""
        write_atomically(self.folder / "sweep.json", json.dumps(self.record, indent=1).encode())

    def unfinished(self) -> list[Row]:
        """`run` and `why` of each cell that is not complete, as a comparison lists what it lacks."""
        return [
            {
                "run": str(self.run_dir(row)),
                "why": row["failures"][-1]["sentence"] if row["failures"] else "it was not run",
            }
            for row in self.rows
            if row["status"] != COMPLETE
        ]

    def varied(self) -> list[str]:
        """The keys of a job that the cells differ in."""
        return varied([row["settings"] for row in self.rows])

    def exit_code(self) -> int:
        """0 where every cell is complete and left nobody out, else 4."""
        return max(SitesLeftOut.exit_code if row["status"] != COMPLETE else row["exit_code"] for row in self.rows)


def begin(request: SweepRequest, folder: Path) -> Sweep:
    """Makes the folder of a sweep, or opens it again where the same one has begun.

    Raises:
        BadInput: the job or the grid is not what it should be, or the folder holds something else.
    """
    job = load_job(Path(request.job))
    read_comparisons(request.compare)
    grid = parse_grid(request.grid)
    if request.seeds == 1 and all(len(values) == 1 for values in grid.values()):
        raise BadInput("a sweep of one run: give --grid KEY=VALUE,VALUE, or --seeds, or use `consilium simulate`")
    asked = {**asdict(request), "job_hash": job.fingerprint()}
    if (folder / "sweep.json").exists():
        sweep = reopen(folder)
        names = {"job_hash": "the content of the job file", "data_dir": "data-dir"}
        other = [
            names.get(key, key) for key in asked if key != "job" and sweep.record["request"].get(key) != asked[key]
        ]
        if other:
            os.close(sweep.lock)
            raise BadInput(
                f"{folder} holds another sweep, which differs in {', '.join(other)}; give another --out, or go on with "
                f"that one: consilium sweep --resume {folder}"
            )
        return sweep
    if folder.exists() and {path.name for path in folder.iterdir()} - {"lock", "jobs"}:
        raise BadInput(f"{folder} exists already and holds no sweep; give another --out")
    base = yaml_file.read_values(
        yaml_file.read_text(Path(request.job), "job"),
        request.job,
        kind="job",
        example="`consilium job init` writes one",
    )
    found = cells(grid, job.seed, request.seeds)
    jobs = [job_of(base, Path(request.job).parent, cell) for cell in found]
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(cell), "status": WAITING, "seconds": 0.0, "exit_code": None, "failures": []} for cell in found]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    sweep = Sweep(folder, {"schema": SCHEMA, "created": created, "request": asked, "cells": rows}, _hold(folder))
    for row, values in zip(rows, jobs, strict=True):
        write_atomically(sweep.job_path(row), yaml_file.dump(values).encode())
    # Last: a folder with a sweep.json is a whole one.
    sweep.save()
    return sweep


def reopen(folder: Path) -> Sweep:
    """Opens a sweep again; what is complete stays.

    Raises:
        BadInput: it is none, its record cannot be read, or another process works on it.
    """
    path = folder / "sweep.json"
    if not path.is_file():
        raise BadInput(f"{folder} is not a sweep that can go on: it has no sweep.json")
    lock = _hold(folder)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA or not record["cells"]:
            raise ValueError(f"schema {record['schema']}, expected {SCHEMA}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); bring it back from a copy, or begin another sweep") from None
    return Sweep(folder, record, lock)


def check_cells(sweep: Sweep, check: Callable[[Path], object]) -> list[Row]:
    """Looks at every job before anything runs; returns the cells that cannot run, each with its sentence on record.

    Args:
        check: raises BadInput for a job file that cannot run.

    Raises:
        BadInput: no cell can run; a sweep that has not begun is removed, so that the command can be given again.
    """
    for row in sweep.rows:
        if row["status"] == COMPLETE and _ended(sweep.run_dir(row)):
            continue
        try:
            load_job(sweep.job_path(row))
            check(sweep.job_path(row))
            row["status"] = WAITING
        except BadInput as error:
            row["status"] = INVALID
            # Which file and line it is would only hide that cells are refused for the same reason.
            where = re.compile(rf"{re.escape(str(sweep.job_path(row)))}(:\d+)?: ")
            lines = [where.sub("", line, count=1) for line in str(error).splitlines()]
            _fail(row, "; ".join(lines), BadInput.exit_code)
    invalid = [row for row in sweep.rows if row["status"] == INVALID]
    if len(invalid) == len(sweep.rows):
        sentences = dict.fromkeys(row["failures"][-1]["sentence"] for row in invalid)
        if not (sweep.folder / "runs").exists():
            _remove(sweep)
        raise BadInput("\n".join(["no cell of this sweep can run", *sentences]))
    sweep.save()
    return invalid


def run_cells(sweep: Sweep, consilium: Sequence[str], say: Callable[[str], None]) -> None:
    """Runs every cell that is not complete, one after the other; each ends with a line.

    Args:
        consilium: the command that `simulate` is given to.

    Raises:
        RunStopped: the record cannot be written, as on a full disk.
        KeyboardInterrupt: after the run at hand has ended; what was done is kept.
    """
    todo = [row for row in sweep.rows if row["status"] == WAITING]
    seconds: list[float] = []
    for done, row in enumerate(todo, 1):
        began = time.monotonic()
        try:
            _run_cell(sweep, row, consilium)
        finally:
            sweep.save()
        seconds.append(time.monotonic() - began)
        left = (len(todo) - done) * sum(seconds) / done
        ahead = f"; about {duration(left)} left" if left else ""
        say(f"{_place(sweep, row)}: {_outcome(row)}, {duration(seconds[-1])}{ahead}")


def title(row: Row) -> str:
    """A cell in words: its values and its seed."""
    return ", ".join([*(f"{key}={shown(value)}" for key, value in row["settings"].items()), f"seed {row['seed']}"])


def _run_cell(sweep: Sweep, row: Row, consilium: Sequence[str]) -> None:
    run = sweep.run_dir(row)
    if not _ended(run):
        row["status"] = RUNNING
        sweep.save()
        log = sweep.folder / "logs" / f"{row['name']}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as words:
            before, began = words.tell(), time.monotonic()
            try:
                code = _wait([*consilium, *_arguments(sweep, row)], words, sweep.lock)
            except KeyboardInterrupt:
                row["status"] = WAITING
                raise
            finally:
                row["seconds"] = round(row["seconds"] + time.monotonic() - began, 1)
        if not _ended(run):
            row["status"] = FAILED
            _fail(row, _reason(sweep, row, _last_words(log, before, code)), code)
            return
    # A run that had ended before its sweep could write that down is complete, too.
    row["status"] = COMPLETE
    row |= _result(run)


def _remove(sweep: Sweep) -> None:
    """Takes back what `begin` has made, and nothing that somebody else keeps in the same folder."""
    for path in (*map(sweep.job_path, sweep.rows), sweep.folder / "sweep.json", sweep.folder / "lock"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        (sweep.folder / "jobs").rmdir()
        sweep.folder.rmdir()


def _arguments(sweep: Sweep, row: Row) -> list[str]:
    """Of `consilium`: the run goes on where it can, and begins where it has not."""
    run, asked = sweep.run_dir(row), sweep.record["request"]
    if (run / "run.json").is_file():
        return ["simulate", "--resume", str(run)]
    shutil.rmtree(run, ignore_errors=True)  # what a run has left that was killed before its folder was whole
    options = {"out": str(run), "compare": asked["compare"], "device": asked["device"]}
    options |= {key.replace("_", "-"): asked[key] for key in ("data_dir", "workers") if asked[key] is not None}
    pairs = [(f"--{key}", str(value)) for key, value in options.items()]
    return ["simulate", str(sweep.job_path(row)), *(word for pair in pairs for word in pair)]


def _wait(command: Sequence[str], words: BinaryIO, lock: int) -> int:
    """Runs a command to its end; an interruption is handed on to it, once, and waited for."""
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=words,
        pass_fds=(lock,),
        start_new_session=True,  # a Ctrl-C at the terminal is the sweep's to hand on
        preexec_fn=lambda: end_with(parent),
    )
    try:
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _ended(run: Path) -> bool:
    """Whether a run is complete: its last event says so, and its report is written."""
    events = run / "events.jsonl"
    if not events.is_file() or not (run / "report.json").is_file():
        return False
    try:
        *_, last = [{}, *read_events(events)]
    except BadInput:  # going on with the run says what is wrong with it
        return False
    return last.get("event") == "run_finished" and last["status"] == "complete"


def _result(run: Path) -> Row:
    """The number that a cell is shown with, from its run's report."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    metric = report["headline_metric"]
    info = report["metrics"].get(metric, {})
    row = report["models"].get("federated", {}).get("all", {}).get(metric) or {}
    numbers = {key: row.get(key) for key in ("value", "low", "high")}
    return {
        "exit_code": report["run"]["exit_code"],
        "metric": info.get("label"),
        "digits": info.get("digits"),
        **numbers,
    }


def _last_words(log: Path, before: int, code: int) -> str:
    """What a failed run said last: the sentences of its error, or how it ended."""
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = [line.removeprefix("consilium: ") for line in lines if line.startswith("consilium: ")]
    if code < 0:
        said.append(f"its process was ended by signal {-code}" + (", perhaps for want of memory" if code == -9 else ""))
    return "; ".join(said) or f"it ended with exit code {code} and said nothing; see {log}"


def _reason(sweep: Sweep, row: Row, said: str) -> str:
    """Why a run failed: of one that its hospitals gave no updates to, what they said; else what itself said."""
    run = sweep.run_dir(row)
    try:
        events = [*read_events(run / "events.jsonl")]
    except (OSError, BadInput):
        events = []
    end = events.pop() if events else {}
    if end.get("event") == "run_finished" and end.get("reason") and end["reason"] in said:  # and not of an earlier try
        said = end["reason"]
        begun = max((place for place, event in enumerate(events) if event["event"] == "round_started"), default=0)
        retried = next((event for event in events[begun:] if event["event"] == "round_retried"), None)
        if retried:
            lost = [event for event in events[begun:] if event["event"] == "site_replied" and event["reason"]]
            found = dict.fromkeys(event["reason"] for event in reversed(lost))
            more = [plural(len(found) - REASONS, "more reason")] if len(found) > REASONS else []
            reasons = [*found][:REASONS] + more
            said = "; ".join([f"round {retried['round']} stayed below its quorum: {retried['reason']}", *reasons])
    return said.replace(f"consilium simulate --resume {run}", f"consilium sweep --resume {sweep.folder}")


def _fail(row: Row, sentence: str, code: int) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    row["failures"].append({"time": now, "exit_code": code, "sentence": sentence})


def _place(sweep: Sweep, row: Row) -> str:
    return f"{sweep.rows.index(row) + 1} of {len(sweep.rows)}  {title(row)}"


def _outcome(row: Row) -> str:
    if row["status"] != COMPLETE:
        return f"failed: {row['failures'][-1]['sentence']}"
    left_out = " (a hospital was left out)" if row["exit_code"] else ""
    return (f"{row['metric']} {fixed(row['value'], row['digits'])}" if row["metric"] else "no test result") + left_out


def _hold(folder: Path) -> int:
    try:
        return only_one(folder / "lock")
    except BadInput:
        raise BadInput(f"{folder}: another process works on this sweep; wait for it, or stop it first") from None
