"""Every case of a manifest opened, as a run of one job would, and that job held against the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from client.config import SiteConfig
from client.data.manifest import read_manifest
from client.data.preflight import PreflightReport, preflight, refuse_unusable
from client.doctor.row import Row, count, fault, warning
from client.policy import judge_job
from shared_models.errors import BadInput
from shared_models.faults import QUARANTINE, Fault
from shared_models.job import Job


def cases(config: SiteConfig, job: Job, progress: Callable[[int, int], None] | None) -> Iterator[Row]:
    """How many cases are fit for the job, and whether the policy would let it run on them.

    Reasons are counted by kind; their own sentences name patients, and `consilium site check` shows them.
    """
    see = f"see which with: consilium site check {config.manifest} --job JOB.yaml"
    try:
        found = read_manifest(config.manifest, job, config.site, root=config.data_root)
    except BadInput as error:
        # Of the header, which names columns; any other sentence may name a patient.
        header = f"{config.manifest}, line 1: " in str(error)
        sentence = str(error) if header else f"{config.manifest} does not fit the job; {see}"
        yield fault("cases", "not read", sentence)
        return
    report = preflight(found, config.manifest.parent, job, site=config.site, progress=progress)
    yield _counted(report, job, see)
    amounts = {kind: {split: report.splits[split][kind] for split in report.splits} for kind in ("patients", "cases")}
    refusals = judge_job(config.policy, job, patients=amounts["patients"], cases=amounts["cases"])
    for refusal in refusals:
        yield fault("job", f"refused by {refusal.rule}", f"this site would refuse the job: {refusal}")
    if not refusals:
        yield Row("job", f"{job.name}: the policy allows it")


def _counted(report: PreflightReport, job: Job, see: str) -> Row:
    splits = ", ".join(f"{count(numbers['patients'], 'patient')} {name}" for name, numbers in report.splits.items())
    bad = len(report.quarantined)
    summary = f"{report.checked - bad} of {report.checked} usable: {splits}"
    if not bad:
        return Row("cases", summary)
    kinds = Counter(report.categories.values())
    why = "; ".join(f"{number} where {QUARANTINE[kind]}" for kind, number in kinds.most_common())
    try:
        refuse_unusable(report, job)
    except Fault:
        return fault("cases", summary, f"too few cases are usable for this job ({why}); {see}")
    return warning("cases", summary, f"{count(bad, 'case')} would be left out ({why}); {see}")
