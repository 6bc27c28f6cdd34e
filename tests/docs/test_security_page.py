"""The security page claims nothing whose test is not there."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "security.md"


def test_every_test_that_the_security_page_names_is_there() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE.read_text())
    missing = [f"{file}::{test}" for file, test in named if not _is_in(file, f"def {test}(")]
    assert len(named) > 40 and not missing


def _is_in(file: str, text: str) -> bool:
    return any(text in path.read_text() for path in (ROOT / "tests").rglob(file))


def test_every_threat_names_its_tests() -> None:
    text = PAGE.read_text()
    tables = text[text.index("## Threats to a hospital") : text.index("## What is not defended")]
    rows = [row for row in re.findall(r"(?m)^\| (.*) \|$", tables) if not row.startswith(("threat |", "---"))]
    assert len(rows) > 20
    assert [row for row in rows if "::test_" not in row] == []
