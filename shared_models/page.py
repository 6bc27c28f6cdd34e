"""What the pages of the coordinator and of a hospital share: the look, and how numbers are written."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2


def environment(folder: Path) -> jinja2.Environment:
    """Jinja over the templates of `folder` and this package's page.css; every value is escaped.

    Filters: fixed, size, duration, count, when, plural.
    """
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(fixed=fixed, size=size, duration=duration, count=count, when=when, plural=plural)
    return made


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as an address, so that a page needs nothing beside itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def digits(info: Mapping[str, Any], values: Sequence[float]) -> int:
    """Decimals that a metric's values deserve: none for counts such as missed organs, 3 for shares, else 2.

    Args:
        info: of the metric, as `Task.metric_info` gives it.
    """
    if not info["headline"] and not info["larger_is_better"] and all(float(value).is_integer() for value in values):
        return 0
    return 3 if max(map(abs, values), default=0.0) <= 1.5 else 2


def fixed(number: float | None, decimals: int, signed: bool = False) -> str:
    """A number as text: fixed decimals, a true minus sign, an en dash where there is none."""
    if number is None:
        return "\u2013"
    text = f"{number:{'+' if signed else ''}.{decimals}f}"
    if float(text) == 0:
        text = f"{0:.{decimals}f}"
    return text.replace("-", "\u2212")


def interval_text(row: Mapping[str, Any], decimals: int, signed: bool = False) -> str:
    """`95 % interval 0.812 to 0.871`, or what is missing; `row` has "low" and "high"."""
    if row.get("low") is None or row.get("high") is None:
        return "no interval"
    return f"95 % interval {fixed(row['low'], decimals, signed)} to {fixed(row['high'], decimals, signed)}"


def natural(name: str) -> tuple[list[str | int], str]:
    """The place of a name in a list for a person, as a key of `sorted`: hospital-2 before hospital-10."""
    parts = re.split("([0-9]+)", name)  # text and digits in turn, text first
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def listed(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def size(number: float | None) -> str:
    """Bytes as `12.4 MB` (decimal units)."""
    if number is None:
        return "\u2013"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= scale:
            return f"{number / scale:.1f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds as `12.3 s`, `4 min 05 s` or `2 h 04 min`."""
    if seconds is None:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(number: float | None) -> str:
    """A count with thin spaces between thousands."""
    return "\u2013" if number is None else f"{number:,.0f}".replace(",", "\u202f")


def when(stamp: str | None) -> str:
    """An ISO-8601 time as `2026-01-31 14:05 UTC`."""
    return "at an unknown time" if not stamp else f"{stamp[:10]} {stamp[11:16]} UTC"


def plural(number: int, noun: str) -> str:
    """`1 round`, `3 rounds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
