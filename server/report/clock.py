"""The simulated clock: how long a simulated run would take in the world, where every hospital has its own machine."""

from __future__ import annotations

from typing import Any

from server.report.record import RunRecord
from shared_models.job import Job
from shared_models.page import duration, listed, plural

Row = dict[str, Any]

ASSUMED_MBIT = 100.0
"""Of a hospital's line, either way, where the job states no bandwidth."""


def seconds_at(job: Job, site: str, compute: float, bytes_down: int, bytes_up: int) -> float:
    """Seconds from a hospital's being asked to its answer's being there: download, training, upload.

    Args:
        compute: seconds of training as measured in the simulation; `slowdown` of the hospital comes on top.
    """
    habits = job.simulation.participation.get(site) if job.simulation else None
    travel = (bytes_down + bytes_up) * 8 / (bandwidth(job) * 1e6)
    return travel + compute * (habits.slowdown if habits else 1.0)


def bandwidth(job: Job) -> float:
    """Mbit/s of every hospital's line, either way."""
    return (job.simulation.bandwidth_mbit if job.simulation else None) or ASSUMED_MBIT


def clock(record: RunRecord, entries: list[Row]) -> Row | None:
    """`clock` of report.json, of a simulation with at least one round; docs/report.md has its fields.

    Args:
        entries: the participation, see `server.report.participation`.
    """
    job = record.job
    if job.simulation is None or record.run.get("engine") == "deployment" or not entries:
        return None  # real hospitals have real clocks
    in_turn = job.federation.algorithm.relays
    attempts: dict[tuple[int, int], dict[str, float]] = {}
    for entry in entries:
        waited = attempts.setdefault((entry["round"], entry["attempt"]), {})
        if entry["status"] == "late":
            waited[entry["site"]] = job.federation.deadline_seconds or 0.0
        elif entry["status"] in ("used", "discarded", "rejected"):
            waited[entry["site"]] = seconds_at(
                job, entry["site"], entry["seconds"] or 0.0, entry["bytes_received"], entry["bytes_sent"]
            )
    rounds: dict[int, Row] = {}
    for (number, _), waited in attempts.items():
        row = rounds.setdefault(number, {"round": number, "seconds": 0.0, "slowest": None})
        if waited:
            row["seconds"] += sum(waited.values()) if in_turn else max(waited.values())
            row["slowest"] = max(waited, key=waited.__getitem__)
    found: Row = {
        "seconds": sum(row["seconds"] for row in rounds.values()),
        "rounds": list(rounds.values()),
        "in_turn": in_turn,
        "bandwidth_mbit": bandwidth(job),
        "bandwidth_assumed": job.simulation.bandwidth_mbit is None,
        "slowdowns": {site: habits.slowdown for site, habits in job.simulation.participation.items()},
    }
    return {**found, "text": _sentences(found)}


def _sentences(found: Row) -> str:
    """What the page says: the time, on whom a round waits, and what was assumed."""
    how = "one hospital after the other" if found["in_turn"] else "all hospitals at once, each on a machine of its own"
    text = f"In the world, the rounds would take about {duration(found['seconds'])}, {how}."
    slowest = [row["slowest"] for row in found["rounds"] if row["slowest"]]
    if slowest and not found["in_turn"]:
        most = max(dict.fromkeys(slowest), key=slowest.count)
        text += f" {most} is waited for in {slowest.count(most)} of {plural(len(found['rounds']), 'round')}."
    factors = [f"{site} times {factor:g}" for site, factor in found["slowdowns"].items() if factor != 1]
    assumed = "assumed, as the job states none" if found["bandwidth_assumed"] else "as the job states"
    text += (
        f" This takes the seconds of training measured here{f' ({listed(factors)})' if factors else ''}, and "
        f"{found['bandwidth_mbit']:g} Mbit/s to and from each hospital ({assumed}); a late hospital costs the deadline."
        " Starting up, preflight and validation are not counted."
    )
    return text
