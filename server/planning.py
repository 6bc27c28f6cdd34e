"""Before the rounds of a job with `federation.statistics`: every site is asked for its tables, and a plan is made.

The plan (`plan.json`) and the job that is run from then on (`planned-job.yaml`) stay in the run's folder: a run that is
resumed asks nobody again. Messages, hashes, approvals and caches of the rounds are those of the planned job, so that a
hospital approves what is really run.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.admission import Rejected, SiteFault, fault_of
from server.checkpoint import write_atomically
from server.events import EventLog
from server.introduction import Introduction
from server.participation import ask, instruction
from server.plan import decide, described, planned, pooled
from shared_models.errors import BadInput, RunStopped
from shared_models.job import Job
from shared_models.job_file import check_meaning, dump_job, read_job
from shared_models.page import natural
from shared_models.statistics import Tables, problem, table_shapes
from shared_models.weights import from_record, mismatch

PLAN, PLANNED_JOB = "plan.json", "planned-job.yaml"
SCHEMA = "consilium-plan/1"


def planned_before(run_dir: Path, job: Job) -> Job | None:
    """The planned job of a run that has made its plan already; None if it has still to be made.

    Raises:
        BadInput: the files are damaged, or were changed after the plan was made.
    """
    if not (run_dir / PLANNED_JOB).is_file():
        return None
    found, plan = read_job(run_dir / PLANNED_JOB), read_plan(run_dir) or {}
    if (plan.get("job_hash"), plan.get("planned_job_hash")) != (job.fingerprint(), found.fingerprint()):
        raise BadInput(f"{run_dir}: {PLAN} or {PLANNED_JOB} was changed after the plan was made; undo that")
    return found


def read_plan(run_dir: Path) -> dict[str, Any] | None:
    """What plan.json says; None where there is no plan.

    Raises:
        BadInput: it cannot be read.
    """
    path = run_dir / PLAN
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); bring it back from a copy, or start a new run") from None


def make_plan(
    run_dir: Path,
    job: Job,
    grid: Grid,
    events: EventLog,
    wait_seconds: float | None = None,
) -> Job:
    """Asks the sites, writes the plan, and returns the planned job.

    A site that tells nothing has no part in the plan, which says so; it may still have one in the rounds.

    Args:
        wait_seconds: as `server.app.make_server_app`.

    Raises:
        RunStopped: no site told anything.
        BadInput: the planned job is none that can run.
    """
    introduction = Introduction(grid, job, events, wait_seconds)
    introduction.begin()
    content = RecordDict({"instruction": instruction(job)})
    told: dict[str, Tables] = {}
    left_out = dict(introduction.refused)
    requests = {name: (site.node, content) for name, site in introduction.ready.items()}
    for reply in ask(grid, requests, "query.statistics"):
        try:
            if reply.message is None:
                raise SiteFault(reply.why)
            told[reply.site] = _admitted(reply.message, job)
        except (Rejected, SiteFault) as error:
            left_out[reply.site] = str(error)
    if not told:
        reasons = "; ".join(f"{site}: {left_out[site]}" for site in sorted(left_out, key=natural))
        raise RunStopped(f"no site told its statistics, so there is no plan: {reasons}; or leave the statistics out")
    return _written(run_dir, job, told, left_out)


def _written(run_dir: Path, job: Job, told: dict[str, Tables], left_out: dict[str, str]) -> Job:
    decisions = decide(job, told)
    result = planned(job, decisions)
    if found := check_meaning(result):
        raise BadInput(f"the planned job cannot run: {found[0].sentence}")
    plan = {
        "schema": SCHEMA,
        "job_hash": job.fingerprint(),
        "planned_job_hash": result.fingerprint(),
        "decisions": [asdict(decision) for decision in decisions],
        "all": described(pooled(told)),
        "sites": {site: described(told[site]) for site in sorted(told, key=natural)},
        "left_out": {site: left_out[site] for site in sorted(left_out, key=natural)},
    }
    write_atomically(run_dir / PLAN, json.dumps(plan, indent=1).encode())
    # Last: where there is a planned job, the plan is whole.
    write_atomically(run_dir / PLANNED_JOB, dump_job(result).encode())
    return result


def _admitted(reply: Message, job: Job) -> Tables:
    """The tables in a reply, checked.

    Raises:
        SiteFault: the site says that there are none.
        Rejected: they are not what a site can have counted.
    """
    if fault := fault_of(reply):
        raise SiteFault(fault)
    record, expected = reply.content.get("statistics"), table_shapes(job)
    if not isinstance(record, ArrayRecord):
        raise Rejected("the reply has no record 'statistics'")
    try:
        tables = from_record(record)
    except BadInput as error:
        raise Rejected(str(error)) from None
    if wrong := mismatch(expected, {name: table.shape for name, table in tables.items()}):
        raise Rejected(wrong)
    if not all(table.dtype == np.float64 and np.isfinite(table).all() for table in tables.values()):
        raise Rejected("its tables are not finite float64 numbers")
    assert job.federation.statistics is not None, "only a job that asks for statistics gets here"
    if wrong := problem(tables, job, job.federation.statistics.min_patients):
        raise Rejected(wrong)
    return tables
