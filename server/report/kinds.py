"""The kinds of test cases that a hospital has: organs, or the classes that are told apart."""

from __future__ import annotations

from typing import Any

from shared_models.page import plural

Row = dict[str, Any]

FEW_PATIENTS = 20
"""Fewer test patients, or cases of a kind, than this carry little weight, at a hospital or in all."""
ONE_CLASS = "one class only"


def kinds_of(report: Row, site: str) -> dict[str, int]:
    """The test cases of a hospital of every kind that a metric of its own rests on.

    Where cases have several findings, those without a finding are a kind.
    """
    by_class, cases = _classes(report, site), report["sites"][site]["cases"].get(report["split"], 0)
    named = {f"'{name}'": count for name, count in by_class.items()}
    if report["task"] == "segmentation":
        return dict(list(named.items())[1:])  # the first one is the background
    if report["task"] == "anomaly" and named:
        normal, *others = named
        return {normal: named[normal], f"not {normal}": sum(named[name] for name in others)}
    if report["task"] == "classification":
        several = sum(by_class.values()) != cases
        return named | ({f"without {name}": cases - count for name, count in named.items()} if several else {})
    return {}


def only_class(report: Row, site: str) -> str | None:
    """The class that all test cases of a hospital are of; None where there are several, or where that is not known."""
    if report["task"] != "classification" or site not in report["sites"]:
        return None
    by_class = _classes(report, site)
    alone = [name for name, count in by_class.items() if count]
    # Where cases may have several findings, one that all of them have is not the only one.
    everyone = len(alone) == 1 and by_class[alone[0]] == report["sites"][site]["cases"].get(report["split"])
    return alone[0] if everyone else None


def shortage(report: Row, site: str) -> str | None:
    """What a hospital lacks to tell classes apart: `one class only`, `1 'pneumonia' case`; None for nothing known."""
    if report["task"] != "classification" or site not in report["sites"]:
        return None
    if only_class(report, site):
        return ONE_CLASS
    few = {kind: cases for kind, cases in kinds_of(report, site).items() if 0 < cases < FEW_PATIENTS}
    if not few:
        return None
    rarest = min(few, key=lambda kind: few[kind])
    return plural(few[rarest], f"{rarest} case") if rarest.startswith("'") else f"{few[rarest]} {rarest}"


def _classes(report: Row, site: str) -> dict[str, int]:
    found: dict[str, int] = report["sites"][site]["classes"].get(report["split"], {})
    return found
