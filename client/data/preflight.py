"""Looking at every case before training: what is unfit is set aside with its reason, the rest is described."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.data.cache import CaseCache
from client.data.manifest import SPLITS, Case
from client.data.preprocess import Decoded, case_keys, decode, finish, preparation, references, sample_tensors
from client.data.readers import FileStamp, Unfit, file_of, stamp
from client.data.shelf import ShelfFiller
from shared_models.errors import BadInput
from shared_models.faults import Fault
from shared_models.files import whole_file
from shared_models.job import Job

if TYPE_CHECKING:
    from rich.console import Console

_LOG = logging.getLogger(__name__)

REPORT_NAME = "preflight.json"
_SCHEMA = 1
_ROWS_PRINTED = 20


@dataclass
class PreflightReport:
    """What preflight found at one site. It stays at the site.

    Counts and ranges are over the usable cases; ranges are (lowest, highest) as the files have it, before resampling
    and normalisation.
    """

    site: str
    checked: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    """Why, by case id."""
    categories: dict[str, str] = field(default_factory=dict)
    """The key of QUARANTINE by case id: what may leave the site of the reason above."""
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    """split: {"cases": n, "patients": n}."""
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    """split: {class: cases of the class}; for segmentation the cases in which the class appears. {} without classes.

    With data.annotated, a class that no case of the split annotates is not there: nobody knows where it is.
    """
    spacing: list[list[float]] = field(default_factory=list)
    """mm per axis, [lowest, highest]; 1.0 for files that know no spacing."""
    shape: list[list[int]] = field(default_factory=list)
    intensity: list[float] = field(default_factory=list)
    """[smallest, largest] value of any image."""
    image_mean: list[float] = field(default_factory=list)
    """[lowest, highest] mean of an image: far apart when scanners differ in scale."""
    empty_masks: list[str] = field(default_factory=list)
    """Cases without any foreground: usable, but worth knowing."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of cases in different splits whose images are the same pixel by pixel."""
    warnings: list[str] = field(default_factory=list)
    checked_for: str = ""
    """Hash of the cases and of the job's preparation, which this report holds for."""
    shelves: list[list[str]] = field(default_factory=list)
    """Cases so small that the cache keeps them together, see `ShelfFiller`."""
    files: dict[str, FileStamp | None] = field(default_factory=dict)
    """Every file, as it was then; None for a missing one."""

    def to_json(self) -> str:
        """One JSON object with a `schema` number."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> PreflightReport:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not such a report, or of another schema.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("schema", None) != _SCHEMA:
            raise ValueError(f"no preflight report of schema {_SCHEMA}")
        try:
            values["files"] = {name: FileStamp(**old) if old else None for name, old in values["files"].items()}
            values["duplicates"] = [(first, second) for first, second in values["duplicates"]]
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no preflight report of schema {_SCHEMA}") from error

    def changed_file(self, case: Case, folder: Path, job: Job) -> Path | None:
        """The first file of a case that is no longer as it was checked."""
        return next((file for file in _files(case, folder, job) if not _unchanged(file, self.files[str(file)])), None)


def preflight(
    cases: Sequence[Case],
    folder: Path,
    job: Job,
    *,
    site: str = "",
    cache: CaseCache | None = None,
    report_folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Check every case of a site, and fill the cache on the way, so that no file is decoded twice.

    Args:
        folder: the manifest's folder, where relative references start.
        report_folder: where ``preflight.json`` is kept; it is read again instead of checking when cases, job and the
            size and time of every file are still the same.
        progress: called with (done, total) after every case.

    A report never refuses a site: `refuse_unusable` does.
    """
    checked_for = _hash_of(cases, job)
    known = _read_report(report_folder, checked_for) if report_folder else None
    if known:
        known.site = site
        return known
    report = PreflightReport(site, checked=len(cases), checked_for=checked_for)
    findings, filler = _Findings(), ShelfFiller(cache)
    usable = []
    for done, case in enumerate(cases, start=1):
        for file in _files(case, folder, job):
            if str(file) not in report.files:
                report.files[str(file)] = stamp(file)
        try:
            decoded = decode(case, folder, job)
            sample = finish(decoded, case, job)
        except BadInput as error:
            report.quarantined[case.id] = str(error)
            report.categories[case.id] = error.category if isinstance(error, Unfit) else "other"
        else:
            usable.append(case)
            findings.add(case, decoded, job)
            key = case_keys([case], folder, job, report.files)[case.id]
            filler.add(case.id, key, sample_tensors(sample))
        if progress:
            progress(done, len(cases))
    filler.close()
    report.shelves = filler.shelves
    _describe(report, usable, findings, job)
    if report_folder:
        _write(report_folder / REPORT_NAME, report.to_json())
    return report


def refuse_unusable(report: PreflightReport, job: Job) -> None:
    """Stop a site that has more bad cases than the job tolerates, or nothing to train on.

    Raises:
        Fault: with the number of bad cases, the first reason, and what of it may leave the site.
    """
    bad, limit = len(report.quarantined), job.data.max_quarantined
    first = next((f" The first, {case}: {reason}" for case, reason in report.quarantined.items()), "")
    site = f"Site {report.site}" if report.site else "The site"
    if report.splits["train"]["cases"] == 0:
        text = f"{site} has no usable training case: {bad} of {report.checked} cases are unfit.{first}"
        code, cases = _main_reason(report)
        raise Fault(text, code, cases=cases, checked=report.checked)
    if limit is not None and bad > limit:
        text = (
            f"{site} has {bad} unfit of {report.checked} cases, where data.max_quarantined of the job "
            f"tolerates {limit}.{first}"
        )
        raise Fault(text, "unreadable_cases", cases=bad, checked=report.checked, tolerated=limit)


def _main_reason(report: PreflightReport) -> tuple[str, int]:
    """The fault of a site without a usable case, and its cases: a mismatch with the job if that is what most have."""
    mismatches = {"channels": "channels", "label_values": "labels", "shape": "shape"}
    for category, cases in Counter(report.categories.values()).most_common(1):
        if category in mismatches:
            return mismatches[category], cases
    return "too_few_cases", len(report.quarantined)


def print_report(report: PreflightReport, console: Console) -> None:
    """Print counts, ranges, duplicates and quarantined cases as tables that read well without colour, too."""
    from rich.table import Table

    usable = report.checked - len(report.quarantined)
    console.print(f"{report.site or 'Site'}: {usable} of {report.checked} cases are usable.")
    names = list(dict.fromkeys(name for by_class in report.classes.values() for name in by_class))
    counts = Table("split", "cases", "patients", *names, title="Usable cases")
    for split, numbers in report.splits.items():
        by_class = [report.classes[split].get(name, "?") for name in names]
        counts.add_row(split, *map(str, [*numbers.values(), *by_class]))
    console.print(counts)
    if usable:
        ranges = Table("", "lowest", "highest", title="Ranges, as the files have them")
        ranges.add_row("spacing, mm", *(_by_axis(end) for end in report.spacing))
        ranges.add_row("shape", *(_by_axis(end) for end in report.shape))
        for name, ends in (("intensity", report.intensity), ("mean of an image", report.image_mean)):
            ranges.add_row(name, *(f"{value:g}" for value in ends))
        console.print(ranges)
    _print_cases(console, "Quarantined: not used", "reason", list(report.quarantined.items()))
    _print_cases(console, "Same pixels in different splits", "and", report.duplicates)
    if report.empty_masks:
        console.print(f"Without foreground, but used: {_listed(report.empty_masks)}", highlight=False)
    for warning in report.warnings:
        console.print(f"Warning: {warning}", highlight=False)


def _print_cases(console: Console, title: str, second: str, rows: Sequence[tuple[str, str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    table = Table("case", second, title=f"{title} ({len(rows)})")
    for row in rows[:_ROWS_PRINTED]:
        table.add_row(*map(escape, row))
    console.print(table)
    if len(rows) > _ROWS_PRINTED:
        console.print(f"... and {len(rows) - _ROWS_PRINTED} more.")


def _by_axis(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _ROWS_PRINTED
    return ", ".join(names[:_ROWS_PRINTED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass
class _Findings:
    """What is collected while the cases pass by, one entry per usable case."""

    classes: list[set[int]] = field(default_factory=list)
    annotated: list[set[int]] = field(default_factory=list)
    pixels: list[bytes] = field(default_factory=list)
    spacing: list[tuple[float, ...]] = field(default_factory=list)
    shape: list[tuple[int, ...]] = field(default_factory=list)
    intensity: list[tuple[float, float, float]] = field(default_factory=list)
    """(smallest, mean, largest)"""

    def add(self, case: Case, decoded: Decoded, job: Job) -> None:
        image, label = decoded.image, decoded.label
        if job.task.label == "mask":
            self.classes.append(set(np.unique(label).tolist()))
        elif job.task.label == "class":
            self.classes.append(set(np.flatnonzero(label).tolist()) if label.ndim else {int(label)})
        else:
            self.classes.append(set())
        known = range(len(job.task.classes)) if decoded.annotated is None else np.flatnonzero(decoded.annotated)
        self.annotated.append(set(map(int, known)))
        self.pixels.append(hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).data).digest())
        self.spacing.append(decoded.spacing)
        self.shape.append(image.shape[1:])
        if not all(case.images):  # zeros in place of what the hospital lacks are no intensities
            image = image[[channel.any() for channel in image]]
        self.intensity.append((float(image.min()), float(image.mean(dtype=np.float64)), float(image.max())))


def _describe(report: PreflightReport, usable: Sequence[Case], findings: _Findings, job: Job) -> None:
    names = job.task.classes
    for split in SPLITS:
        members = [(case, found) for case, found in zip(usable, findings.classes, strict=True) if case.split == split]
        counts = Counter(index for _, found in members for index in found)
        report.splits[split] = {"cases": len(members), "patients": len({case.patient for case, _ in members})}
        annotated = [known for case, known in zip(usable, findings.annotated, strict=True) if case.split == split]
        somewhere = set().union(*annotated) if annotated else set(range(len(names)))
        report.classes[split] = {name: counts[index] for index, name in enumerate(names) if index in somewhere}
    if usable:
        low, mean, high = zip(*findings.intensity, strict=True)
        report.spacing = _range(findings.spacing)
        report.shape = _range(findings.shape)
        report.intensity = [min(low), max(high)]
        report.image_mean = [min(mean), max(mean)]
    report.duplicates = _duplicates(usable, findings.pixels)
    if job.task.label == "mask":
        report.empty_masks = [case.id for case, found in zip(usable, findings.classes, strict=True) if not found - {0}]
    report.warnings = warnings_of(report.splits, report.classes, len(report.duplicates), job)


def _range(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    axes = list(zip(*rows, strict=True))
    return [[min(axis) for axis in axes], [max(axis) for axis in axes]]


def _duplicates(usable: Sequence[Case], pixels: Sequence[bytes]) -> list[tuple[str, str]]:
    """The first case of each picture with every case of the same picture in another split."""
    groups: dict[bytes, list[Case]] = defaultdict(list)
    for case, digest in zip(usable, pixels, strict=True):
        groups[digest].append(case)
    pairs = []
    for group in groups.values():
        first = min(group, key=lambda case: SPLITS.index(case.split))
        pairs += [(first.id, case.id) for case in group if case.split != first.split]
    return pairs


def warnings_of(
    splits: Mapping[str, Mapping[str, int]], classes: Mapping[str, Mapping[str, int]], duplicates: int, job: Job
) -> list[str]:
    """What a reader of a report must know, in sentences made from its counts and the job's class names alone."""
    warnings = []
    in_training = [name for name, count in classes["train"].items() if count]
    if job.task.label == "mask":
        in_training = [name for name in in_training if name != job.task.classes[0]]
        if not in_training and splits["train"]["cases"]:
            warnings.append("No training case has any foreground.")
        if unknown := [name for name in job.task.classes if name not in classes["train"]]:
            warnings.append(f"No training case annotates {', '.join(unknown)}: it is learnt from other hospitals only.")
    elif len(in_training) == 1 and len(job.task.classes) > 1:
        warnings.append(f"Every training case is of one class: {in_training[0]}.")
    if duplicates:
        warnings.append(f"{duplicates} image(s) appear in more than one split.")
    return warnings


def _hash_of(cases: Sequence[Case], job: Job) -> str:
    data = job.data
    parts = [preparation(job), data.label, job.file_columns(), data.annotated, data.missing_channels]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for case in cases:
        row = [case.id, case.patient, case.split, case.label, *references(case, job)]
        row += [case.columns.get(data.annotated, "")] if data.annotated else []
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _files(case: Case, folder: Path, job: Job) -> list[Path]:
    return [file_of(reference, folder) for reference in references(case, job) if reference]


def _read_report(report_folder: Path, checked_for: str) -> PreflightReport | None:
    """The report kept there, if it still holds."""
    try:
        report = PreflightReport.from_json((report_folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if report.checked_for != checked_for:
        return None
    return report if all(_unchanged(Path(name), old) for name, old in report.files.items()) else None


def _unchanged(file: Path, old: FileStamp | None) -> bool:
    try:
        now = file.stat()
    except OSError:
        return old is None
    return old is not None and (now.st_size, now.st_mtime_ns) == (old.size, old.mtime_ns)


def _write(path: Path, text: str) -> None:
    """Keep the report; a disk that is full costs its file, not the site's part in the run: cases are checked again."""
    try:
        with whole_file(path) as file:
            file.write(text.encode())
    except OSError as error:
        _LOG.info("%s cannot be written (%s): cases are checked again when they are needed.", path, error.strerror)
