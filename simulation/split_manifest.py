"""The split manifest: who has which patient, in which split; saved, published and replayed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shared_models.errors import BadInput
from simulation.datasets.files import new_file
from simulation.datasets.source import SPLITS, SourceCase

SCHEMA = 1
HOSPITAL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class SplitManifest:
    """A division of a data set; it holds no path and no pixel, and its hash covers all of it.

    Attributes:
        dataset: `name`, `arguments`, `cases` and `patients` (counts), `sources` (SHA-256 by file name, of data sets
            in one file) and `cases_sha256` (of every case's name, patient, class and official split).
        partition: the partition section of the job that made it.
        seed: the seed of the job that made it.
        hospitals: name -> patient -> "train", "validation" or "test".
        unassigned: patients whom the natural column said nothing of, and chance gave a hospital.
        left_out: hospital -> patients who would be there, but for simulation.missing_classes; they are in no hospital.
    """

    dataset: dict[str, Any]
    partition: dict[str, Any]
    seed: int
    hospitals: dict[str, dict[str, str]]
    unassigned: list[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of everything above, without a `left_out` that is empty (older files)."""
        content = {key: value for key, value in asdict(self).items() if value or key != "left_out"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        text = json.dumps(asdict(self) | {"hash": self.hash}, indent=1, ensure_ascii=False)
        with new_file(path) as file:
            file.write(f"{text}\n".encode())

    @classmethod
    def load(cls, path: Path) -> SplitManifest:
        """Read what `save` wrote.

        Raises:
            BadInput: not a split manifest, changed since it was saved, or a patient is in two hospitals.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise BadInput(f"{path} is no split manifest of schema {SCHEMA}, as `consilium simulate` writes them")
            said = content.pop("hash", None)
            split = cls(**content)
            patients = [patient for hospital in split.hospitals.values() for patient in hospital.items()]
            nowhere = {patient for left_out in split.left_out.values() for patient in left_out}
        except OSError as error:
            raise BadInput(f"{path}: cannot read this split manifest ({error.strerror or error})") from None
        except (ValueError, TypeError, AttributeError) as error:
            remedy = "`consilium partition` writes one, and every run as split.json"
            raise BadInput(f"{path} cannot be read as a split manifest: {error}; {remedy}") from None
        if split.hash != said:
            raise BadInput(
                f"{path} was changed after it was saved: its content has the hash {split.hash}, but it says {said}; "
                "use an unchanged copy, or leave --split out to divide the data set anew"
            )
        home: dict[str, str] = {}
        for name, members in split.hospitals.items():
            for patient in members:
                if home.setdefault(patient, name) != name:
                    raise BadInput(f"{path} has patient {patient!r} in two hospitals, {home[patient]} and {name}")
        if both := sorted(nowhere & home.keys()):
            raise BadInput(f"{path} has patient {both[0]!r} both in {home[both[0]]} and left out")
        unsafe = [name for name in split.hospitals if not HOSPITAL_NAME.fullmatch(name)]
        if unsafe:
            raise BadInput(f"{path} has a hospital named {unsafe[0]!r}, which cannot be the name of a folder")
        unknown = sorted({where for _, where in patients} - set(SPLITS))
        if unknown:
            raise BadInput(f"{path} has a split {unknown[0]!r}; expected {', '.join(SPLITS)}")
        return split

    def check_against(self, cases: Sequence[SourceCase]) -> None:
        """Refuse to divide cases that it was not made for.

        Raises:
            BadInput: patients of one are unknown to the other, or the cases differ in class or official split.
        """
        divided = {patient for part in (self.hospitals, self.left_out) for own in part.values() for patient in own}
        there = {case.patient for case in cases}
        for missing, who in ((divided - there, "of the split manifest are not in the data set"),
                             (there - divided, "of the data set are not in the split manifest")):  # fmt: skip
            if missing:
                raise BadInput(
                    f"{len(missing)} patients {who}, first {min(missing)!r}; use the data set that the split manifest "
                    f"was made from: {self.dataset.get('name')} with {self.dataset.get('cases')} cases"
                )
        if self.dataset.get("cases_sha256") != digest(cases):
            raise BadInput(
                "the split manifest was made from another copy of the data set: the patients have the same names, but "
                "cases, classes or official splits differ; use the copy it was made from"
            )


def digest(cases: Sequence[SourceCase]) -> str:
    """SHA-256 of every case's name, patient, class and official split: the same wherever the files lie."""
    rows = sorted((case.id, case.patient, case.label_key, case.split) for case in cases)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
