"""The ledger as a table (CSV), for an auditor with a spreadsheet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from client.ledger import read_ledger
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.keys import canonical_json

COLUMNS = [
    *("n", "time", "kind", "site", "federation", "run", "flower_run", "question", "round", "job", "job_hash"),
    *("version", "manifest", "patients", "cases", "seconds"),
    *("item", "record", "name", "dtype", "shape", "bytes", "sha256", "value", "more", "hash"),
]
_OF_A_TENSOR = ("record", "name", "dtype", "shape", "bytes", "sha256")


def export_csv(path: Path, out: Path) -> int:
    """Write a ledger as a table: a row for each tensor and number that left, and one for any other entry.

    What has no column of its own stands as JSON in ``more``. Returns the number of rows.

    Raises:
        BadInput: the ledger cannot be read, or ``out`` cannot be written.
    """
    rows = 0
    try:
        with whole_file(out) as binary:
            file = TextIOWrapper(binary, encoding="utf-8", newline="")
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for entry in read_ledger(path):
                for row in _rows(entry):
                    table.writerow({column: _cell(value) for column, value in row.items()})
                    rows += 1
            file.flush()
            file.detach()
    except OSError as error:
        raise BadInput(f"{out} cannot be written: {error.strerror}") from None
    return rows


def _rows(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one entry."""
    facts = {key: value for key, value in entry.items() if key not in ("previous", "signature")}
    tensors, numbers = facts.pop("tensors", []), facts.pop("numbers", {})
    whole = isinstance(tensors, list) and all(isinstance(tensor, dict) for tensor in tensors)
    if not whole or not isinstance(numbers, dict):
        raise BadInput(f"entry {entry['n']} has tensors or numbers of another form; see `consilium site ledger verify`")
    own = {"item", "value", "more", *_OF_A_TENSOR}
    common = {key: facts.pop(key) for key in COLUMNS if key in facts and key not in own}
    if facts:
        common["more"] = facts
    for tensor in tensors:
        yield {**common, "item": "tensor", **{key: tensor[key] for key in _OF_A_TENSOR if key in tensor}}
    for name, value in numbers.items():
        yield {**common, "item": "number", "name": name, "value": value}
    if not tensors and not numbers:
        yield common


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets the mark that keeps it text."""
    if isinstance(value, list | dict):
        return canonical_json(value)
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
