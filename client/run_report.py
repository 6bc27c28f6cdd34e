"""The hospital's own report of a run, from its ledger and what the federated model did on its test patients."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from client.config import SiteConfig
from client.ledger import read_ledger
from client.report import ReportFacts, draw_own_cases, judge_own, write_report
from client.site import Site, bootstrap_seed
from client.warm import data_of, network_of
from shared_models.enrolment import Kit
from shared_models.job import Job
from shared_models.tasks import CaseRecord

REFUSALS = ("refused", "withheld", "fault")


def write_run_report(config: SiteConfig, kit: Kit, site: Site, run: str, job: Job) -> Path:
    """Writes `work/runs/<run>/report.html` and its pictures; the warm network must hold the federated model.

    Raises:
        BadInput, OSError: it cannot be made.
    """
    folder = config.work / "runs" / run
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = data_of(site, job)
    found = json.loads((site.folder / "evaluations" / "federated.json").read_text())
    records = [CaseRecord.from_json(record) for record in found]
    lines = [line for line in read_ledger(config.work / "ledger.jsonl") if line.get("run") == run]
    facts = ReportFacts(
        site=config.site,
        federation=kit.federation,
        run=run,
        job=job,
        version=version("consilium"),
        cohort=data.report,
        answers=[line for line in lines if line["kind"] == "answer"],
        refusals=[line for line in lines if line["kind"] in REFUSALS],
        evaluations={"test": judge_own(job, records, bootstrap_seed(site, job, "test"))},
        pictures=draw_own_cases(job, network_of(job, site.device), data, records, folder),
    )
    return write_report(folder, facts)
