"""A site's own files: key, kit, work directory, policy, manifest, ledger; and its port on loopback."""

from __future__ import annotations

import csv
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx

from client.config import OTHERS_WRITE, SiteConfig, inside
from client.data.readers import file_of
from client.doctor.row import Row, count, fault, printable, warning
from client.ledger import verify_ledger
from client.policy import Policy
from shared_models.enrolment import Kit
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_tasks import AnomalyTask, ClassificationTask, SegmentationTask, SynthesisTask
from shared_models.keys import is_encrypted, key_fingerprint, load_private, load_public, public_line

LOOKING_SECONDS = 5.0
"""How long the files that a manifest names are looked for."""

# What a reference of a manifest ends in; without a job nobody says which columns hold references.
_IMAGES = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg", ".npz")


def configuration(path: Path, config: SiteConfig) -> Iterator[Row]:
    """Whether only the owner can change what is configured, the policy above all."""
    if path.stat().st_mode & OTHERS_WRITE:
        sentence = f"others may write to {path}, and so widen the policy; run: chmod go-w {path}"
        yield fault("site.yaml", "others may write to it", sentence)
    else:
        yield Row("site.yaml", f"site {config.site}, device {config.device}")


def work(config: SiteConfig) -> Iterator[Row]:
    """Whether the work directory is for this user to write to, and for nobody else to read: it holds images."""
    mode = stat.S_IMODE(config.work.stat().st_mode)
    found = f"mode {mode:04o}"
    if not os.access(config.work, os.R_OK | os.W_OK | os.X_OK):
        sentence = f"this user cannot write to {config.work}; run as its owner, or give it to this user with chown"
        yield fault("work", "not writable", sentence)
    elif mode & 0o077:
        how = fault if mode & stat.S_IRWXO else warning
        sentence = (
            f"others can look into {config.work} ({found}), where prepared images of patients are kept; "
            f"run: chmod 700 {config.work}"
        )
        yield how("work", found, sentence)
    else:
        yield Row("work", found)


def key(config: SiteConfig, passphrase: bytes | None, complaint: str) -> Iterator[Row]:
    """Whether the site's key opens, is of the kind that Flower takes, and is the one of the public key beside it.

    Args:
        complaint: why a passphrase could not be had; "" if none was asked for or one is there.
    """
    if is_encrypted(config.key) and not passphrase:
        if complaint:
            yield fault("key", "encrypted, not opened", complaint)
            return
        sentence = (
            f"the key {config.key} is encrypted and no passphrase was given, so it was not opened; "
            "give one with --passphrase-file or CONSILIUM_PASSPHRASE"
        )
        yield warning("key", "encrypted, not opened", sentence)
        return
    line = public_line(load_private(config.key, passphrase))
    if not line.startswith("ecdsa-"):
        sentence = f"{config.key} is no key of a site; expected ECDSA on P-384, as `consilium site init` makes"
        yield fault("key", line.split()[0], sentence)
    elif _public(config) != line:
        sentence = (
            f"{config.key.with_suffix('.pub')} is not the public half of {config.key}; bring both back from one copy, "
            "the one whose fingerprint the coordinator admitted"
        )
        yield fault("key", "two halves of different keys", sentence)
    else:
        yield Row("key", key_fingerprint(line))


def kit(config: SiteConfig, opened: Kit) -> Iterator[Row]:
    """Whether the kit is this site's."""
    if opened.site == config.site:
        yield Row("kit", f"federation {opened.federation} at {opened.address}")
        return
    sentence = f"{config.kit} is the kit of site {opened.site}, and this is {config.site}; ask for your own kit"
    yield fault("kit", f"of site {opened.site}", sentence)


def policy(config: SiteConfig, opened: Kit) -> Iterator[Row]:
    """Whether any job of the kit's coordinator could run here at all."""
    rules = config.policy
    wrong = [*_refuses_all(rules, key_fingerprint(opened.signing_key))]
    doubts = [*_contradictions(rules)]
    found = f"up to {count(rules.max_rounds, 'round')}, {rules.max_hours_per_day:g} h a day, approve: {rules.approve}"
    for sentence in wrong:
        yield fault("policy", "refuses every job", sentence)
    for sentence in doubts:
        yield warning("policy", "refuses some jobs", sentence)
    if not wrong and not doubts:
        yield Row("policy", found)


def _refuses_all(rules: Policy, fingerprint: str) -> Iterator[str]:
    if fingerprint not in rules.coordinators:
        yield (
            f"policy.coordinators does not list {fingerprint}, the key that the kit's coordinator signs by; "
            "compare it by telephone, and add it"
        )
    amounts = ("max_rounds", "max_local_steps", "max_hours_per_day")
    if zero := [name for name in ("tasks", "models", "algorithms", "metrics", *amounts) if not getattr(rules, name)]:
        yield f"policy: {', '.join(zero)} allow nothing, so every job is refused; say in site.yaml what is allowed"
    asked = rules.protections
    values = {"clip": asked.clip, "noise": asked.noise, "secure_aggregation": asked.secure_aggregation}
    if required := [name for name, value in values.items() if value]:
        yield (
            f"policy.protections requires {', '.join(required)}, which no job can offer yet, so every job is refused; "
            "take that out of site.yaml, or wait for a version that can"
        )


def _contradictions(rules: Policy) -> Iterator[str]:
    """Names that mean nothing here, and tasks whose metrics may not leave."""
    from shared_models.algorithms import ALGORITHMS
    from shared_models.tasks import TASKS
    from shared_models.zoo import MODELS

    for rule, allowed, known in (
        ("tasks", rules.tasks, TASKS),
        ("models", rules.models, MODELS),
        ("algorithms", rules.algorithms, ALGORITHMS),
    ):
        if unknown := [name for name in allowed if name not in known]:
            expected = f"expected of {', '.join(known)}"
            yield f"policy.{rule} lists {', '.join(unknown)}, which this version does not know; {expected}"
    two = ["no", "yes"]
    sections = {  # of translation, which metrics a job has depends on its mode
        "segmentation": SegmentationTask(kind="segmentation", classes=two),
        "classification": ClassificationTask(kind="classification", classes=two),
        "synthesis": SynthesisTask(kind="synthesis", classes=two),
        "anomaly": AnomalyTask(kind="anomaly", classes=two),
    }
    for name in rules.tasks:
        if name in sections and rules.metrics:
            measured = dict.fromkeys(metric.split("/")[0] for metric in TASKS[name](sections[name]).metric_info())
            if missing := [metric for metric in measured if metric not in rules.metrics]:
                yield (
                    f"policy.metrics lacks {', '.join(missing)}, without which every {name} job is refused; "
                    f"list them, or take {name} out of policy.tasks"
                )


def manifest(config: SiteConfig, job: Job | None) -> Iterator[Row]:
    """Whether the manifest can be read, and names files that are there and inside data_root; no image is opened.

    Cells may name patients: a sentence gives their line and column.
    """
    if not config.data_root.is_dir():
        sentence = f"data_root {config.data_root} is no folder; mount it, or correct data_root in site.yaml"
        yield fault("manifest", "no data_root", sentence)
        return
    lines = _rows(config.manifest)
    if len(lines) < 2:
        sentence = f"{config.manifest} has no case; expected a header line and one row a case"
        yield fault("manifest", "empty", sentence)
        return
    (_, header), rows = lines[0], lines[1:]
    found, column = count(len(rows), "row"), job.data.patient if job else "patient"
    if column in header:
        at = header.index(column)
        found += f", {count(len({row[at] for _, row in rows if len(row) > at}), 'patient')}"
    else:
        sentence = (
            f"{config.manifest} has no column {column!r} in its header, by which patients are told apart; "
            "expected one, unless a job names another (data.patient), and commas between columns"
        )
        yield (fault if job else warning)("manifest", f"{found}, no column {column!r}", sentence)
    yield from _references(config, rows, found)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every row, the header among them."""
    if not path.is_file():  # a pipe would wait for ever
        raise BadInput(f"there is no manifest at {path}; expected a CSV file, see `manifest` in site.yaml")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except OSError as error:
        raise BadInput(f"the manifest {path} cannot be read ({error.strerror}); let this user read it") from None
    except UnicodeDecodeError:
        raise BadInput(f"the manifest {path} is not UTF-8 text; save it as CSV in UTF-8") from None
    except csv.Error:
        sentence = "is not well-formed CSV; look for a quote that is not closed, or a very long cell"
        raise BadInput(f"{path}, line {reader.line_num}: this {sentence}") from None


def _references(config: SiteConfig, rows: list[tuple[int, list[str]]], found: str) -> Iterator[Row]:
    """Whether every file that looks like an image's lies inside data_root, and is there."""
    end, folder = time.monotonic() + LOOKING_SECONDS, config.manifest.parent
    seen: set[Path] = set()
    outside, missing = [], []
    for line, cells in rows:
        if time.monotonic() > end:
            found += f", looked at up to line {line}"
            break
        for column, cell in enumerate(cells, start=1):
            file = file_of(cell, folder)
            if file in seen or not file.name.lower().endswith(_IMAGES):
                continue
            seen.add(file)
            place = f"line {line}, column {column}"
            try:
                inside(config.data_root, file)
            except BadInput:
                outside.append(place)
            else:
                if not os.path.isfile(file):
                    missing.append(place)
    if outside:
        sentence = (
            f"{config.manifest}: {count(len(outside), 'file')} outside data_root {config.data_root}, links followed, "
            f"the first in {outside[0]}; no such file is opened: move it, or correct the manifest or data_root"
        )
        yield fault("manifest", f"{found}, {len(outside)} outside data_root", sentence)
    if missing:
        how = fault if len(missing) == len(seen) else warning
        sentence = (
            f"{config.manifest}: {len(missing)} of {count(len(seen), 'file')} are not there or may not be read, "
            f"the first in {missing[0]}; mount the disk that they are on, or correct the manifest"
        )
        yield how("manifest", f"{found}, {count(len(missing), 'file')} missing", sentence)
    if not seen:
        sentence = (
            f"{config.manifest} names no file of a known kind ({', '.join(_IMAGES)}), so no case could be used; "
            "expected a column of paths, absolute or relative to the manifest's folder"
        )
        yield fault("manifest", f"{found}, no image", sentence)
    elif not outside and not missing:
        yield Row("manifest", found)


def ledger(config: SiteConfig) -> Iterator[Row]:
    """Whether the ledger is as this site wrote it."""
    path = config.work / "ledger.jsonl"
    if not path.exists() and not path.with_name(f"{path.name}.head").exists():
        yield Row("ledger", "none yet")
        return
    checked = verify_ledger(path, _public(config))
    found = count(checked.entries, "entry", "entries")
    if checked.faults:
        sentence = (
            f"{path} is not as this site wrote it: {printable(checked.faults[0], 200)}; keep it for an audit, "
            "and see them all with: consilium site ledger verify"
        )
        yield fault("ledger", f"{found}, {count(len(checked.faults), 'fault')}", sentence)
    else:
        yield Row("ledger", f"{found}, whole{', the last line torn' if checked.torn else ''}")


def _public(config: SiteConfig) -> str:
    """The public key beside the private one.

    Raises:
        BadInput: there is none.
    """
    path = config.key.with_suffix(".pub")
    try:
        with path.open("rb") as file:
            line = file.read(4096).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise BadInput(
            f"there is no public key at {path} to read; bring it back, `consilium site init` made it"
        ) from None
    load_public(line)
    return line


def health_port(config: SiteConfig) -> Iterator[Row]:
    """Whether the port on loopback is free, or this site's own daemon answers there."""
    port = config.health_port
    with suppress(httpx.HTTPError, ValueError, TypeError, KeyError):
        answer = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=2)
        health = json.loads(answer.content)
        if health["site"] == config.site:
            if health["healthy"]:
                yield Row("health port", f"{port}, where this site's daemon is well")
            else:
                sentence = "the daemon of this site runs and is not well; see: consilium site status"
                yield warning("health port", f"{port}, where the daemon is not well", sentence)
            return
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        sentence = (
            f"health_port {port} cannot be listened on ({reason}), and who has it is not this site's daemon; "
            "free it, or set another health_port in site.yaml"
        )
        yield fault("health port", f"{port} is taken", sentence)
    else:
        yield Row("health port", f"{port} is free; the daemon does not run")
