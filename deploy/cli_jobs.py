"""What a hospital decides about the jobs that were asked of it: `consilium site jobs | show | approve | ...`."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.passphrase import ask_passphrase
from shared_models.errors import BadInput

if TYPE_CHECKING:
    from client.approvals import Approval, State
    from client.config import SiteConfig
    from client.policy import Policy
    from shared_models.job import Job

Config = Annotated[Path, typer.Option("--config", metavar="FILE", help="The hospital's site.yaml.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name, or the first digits of its hash.")]
By = Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; default the user of this command.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="The reason; it stays at this hospital.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Holds the passphrase of the site's key; so can CONSILIUM_PASSPHRASE."),
]

SITE = Path("site/site.yaml")
DIGITS = 12  # of a hash, shown


def jobs(config: Config = SITE) -> None:
    """List the jobs that were asked of this hospital, the newest last.

    Those that the policy allows, with what was decided; what it refused is in
    the ledger, with the rule (`consilium site ledger show`).

    consilium site jobs
    consilium site jobs --config /etc/consilium/site.yaml

    Exit codes
      0  listed
      2  bad input: site.yaml, or a damaged file of a job
    """
    from rich.table import Table

    from client.approvals import list_jobs

    known = list_jobs(_folder(_load(config)))
    if not known:
        typer.echo(
            "No job was asked of this site yet that its policy allows; `consilium site ledger show` has the others."
        )
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "hash", "state", "by", "first seen (UTC)", "train patients"):
        table.add_column(heading, no_wrap="UTC" in heading, overflow="fold")
    for job in known:
        patients = str(job.patients.get("train", 0))
        table.add_row(
            _plain(job.name), job.job_hash[:DIGITS], job.state, job.by, job.first_seen[:16].replace("T", " "), patients
        )
    _print(table)
    waiting = [job for job in known if job.state == "waiting"]
    if waiting:
        typer.echo(f"Waiting for you: {len(waiting)}. Next: consilium site show {waiting[-1].job_hash[:DIGITS]}")


def show(job: JobName, config: Config = SITE) -> None:
    """Show what a job would do here, and what would leave.

    Which model and task, how many rounds and steps, on how many patients; what
    the policy says to it; and what differs from the last approved job of the
    same name.

    consilium site show lungs
    consilium site show 3f9a12c4

    Exit codes
      0  shown
      2  bad input: no such job, or more than one of this name
    """
    from rich.table import Table

    from client.approvals import find, job_of, last_approved

    site = _load(config)
    approval = find(_folder(site), job)
    loaded = job_of(approval)
    table = Table.grid(padding=(0, 2))
    for name, text in _summary(approval, loaded, site.policy):
        table.add_row(name, _plain(text))
    _print(table)
    _show_difference(approval, last_approved(_folder(site), approval))
    if approval.state == "waiting":
        digits = approval.job_hash[:DIGITS]
        typer.echo(f"\nNext: consilium site approve {digits}, or consilium site refuse {digits} --why TEXT")


def approve(
    job: JobName, config: Config = SITE, by: By = None, why: Why = "", passphrase_file: PassphraseFile = None
) -> None:
    """Let a job run here, within the policy.

    It holds for this job only: any change of it waits again. The decision is
    written into the ledger, signed with the site's key.

    consilium site approve 3f9a12c4
    consilium site approve lungs --by "A. Head, radiology"

    Exit codes
      0  approved; the next question about this job is answered
      2  bad input: no such job, more than one of this name, or the key
      3  the ledger cannot be written; nothing was decided
    """
    done = _decide(config, job, "approved", by, why, passphrase_file)
    typer.echo(f"Approved {_plain(done.name)} ({done.job_hash[:DIGITS]}). The policy still holds for it.")


def refuse(
    job: JobName, why: Why, config: Config = SITE, by: By = None, passphrase_file: PassphraseFile = None
) -> None:
    """Refuse a waiting job. The coordinator learns that it was refused, not why.

    consilium site refuse 3f9a12c4 --why "not covered by our ethics vote"

    Exit codes
      0  refused
      2  bad input: no such job, more than one of this name, or it is not waiting
      3  the ledger cannot be written; nothing was decided
    """
    done = _decide(config, job, "refused", by, why, passphrase_file)
    typer.echo(f"Refused {_plain(done.name)} ({done.job_hash[:DIGITS]}).")


def withdraw(
    job: JobName, why: Why, config: Config = SITE, by: By = None, passphrase_file: PassphraseFile = None
) -> None:
    """Take an approval back. The site answers no further question about the job.

    What has left in earlier rounds is part of the model and cannot be taken back.

    consilium site withdraw lungs --why "the study has ended"

    Exit codes
      0  withdrawn
      2  bad input: no such job, more than one of this name, or it is not approved
      3  the ledger cannot be written; nothing was decided
    """
    done = _decide(config, job, "withdrawn", by, why, passphrase_file)
    typer.echo(f"Withdrew the approval of {_plain(done.name)} ({done.job_hash[:DIGITS]}).")


def _decide(config: Path, job: str, state: State, by: str | None, why: str, passphrase_file: Path | None) -> Approval:
    """Decide and write it into the ledger; both or neither."""
    from client.approvals import decide, find
    from client.ledger import Ledger
    from shared_models.keys import load_private

    site = _load(config)
    find(_folder(site), job)  # before a passphrase is asked for
    ledger = Ledger(
        site.work / "ledger.jsonl", load_private(site.key, ask_passphrase(site.key, passphrase_file)), site.site
    )

    def record(done: Approval) -> None:
        ledger.append(done.state, job_hash=done.job_hash, job=done.name, by=done.by, why=done.why)

    return decide(
        _folder(site), job, state, by=_user() if by is None else by, why=why, now=datetime.now(UTC), record=record
    )


def _load(config: Path) -> SiteConfig:
    from client.config import load_site_config

    return load_site_config(config)


def _folder(site: SiteConfig) -> Path:
    return site.work / "jobs"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise BadInput("this user has no name here; say who decides with --by") from None


def _summary(approval: Approval, job: Job, policy: Policy) -> list[tuple[str, str]]:
    """What a job would do at this hospital, as rows of a name and a text."""
    from client.approvals import what_leaves
    from client.policy import judge_job, steps_per_round
    from shared_models.weights import travelling
    from shared_models.zoo import build

    tensors = travelling(build(job), job.federation.share)
    megabytes = sum(array.nbytes for array in tensors.values()) / 1e6
    steps = steps_per_round(job, approval.cases.get("train", 0))
    counts = [f"{count} {split}" for split, count in approval.patients.items()]
    decision = f"{approval.state} by {approval.by}, {approval.decided}" if approval.by else approval.state
    refused = judge_job(policy, job, patients=approval.patients, cases=approval.cases)
    rows = [
        ("job", f"{job.name}, hash {approval.job_hash[:DIGITS]}"),
        ("asked by", f"federation {approval.federation}, run {approval.run}, first on {approval.first_seen}"),
        ("decision", f"{decision}{f': {approval.why}' if approval.why else ''}"),
        ("task", ": ".join(filter(None, [job.task.kind, ", ".join(job.task.classes)]))),
        ("model", f"{job.model.name}, {json.dumps(job.model.arguments)}"),
        ("work", f"{job.federation.rounds} rounds of {steps} steps, batches of {job.training.batch_size}"),
        ("patients", ", ".join(counts)),
        *_rows("leaves", what_leaves(job, policy, tensors=len(tensors), megabytes=megabytes)),
        *_rows("policy", [str(refusal) for refusal in refused] or ["allows it"]),
    ]
    return rows


def _rows(name: str, texts: list[str]) -> list[tuple[str, str]]:
    return [("" if number else name, text) for number, text in enumerate(texts)]


def _show_difference(approval: Approval, last: Approval | None) -> None:
    from rich.table import Table

    from client.approvals import difference

    if last is None:
        typer.echo("\nNo other job of this name is approved.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("differs in", f"approved ({last.job_hash[:DIGITS]})", "this job"):
        table.add_column(heading)
    for path, old, new in difference(approval.job, last.job):
        table.add_row(_plain(path), _shown(old), _shown(new))
    typer.echo("")
    _print(table)


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value)


def _plain(text: str) -> str:
    """A text of the coordinator without what a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _print(table: Any) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False, emoji=False).print(table)


COMMANDS: dict[str, Callable[..., None]] = {
    "jobs": jobs,
    "show": show,
    "approve": approve,
    "refuse": refuse,
    "withdraw": withdraw,
}
"""By the name under `consilium site`."""
