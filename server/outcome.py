"""How a run ends, simulated or not: its last event, its report, its exit code."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from server.events import EventLog, read_events
from server.report import write_report
from shared_models.errors import ConsiliumError, SitesLeftOut


def finish(run_dir: Path, events: EventLog, error: ConsiliumError | None, began: float) -> int:
    """Writes the last event and the report; returns the exit code.

    Args:
        error: what stopped the run, if anything did.
        began: when it began, or went on, by `time.monotonic`.
    """
    outcome: dict[str, Any] = {"status": "complete", "reason": None, "exit_code": 0}
    if error:
        outcome = {"status": "stopped", "reason": str(error), "exit_code": error.exit_code}
    elif _anybody_left_out(run_dir):
        outcome["exit_code"] = SitesLeftOut.exit_code
    events.emit("run_finished", **_totals(run_dir), **outcome, seconds=round(time.monotonic() - began, 3))
    events.close()
    write_report(run_dir)
    return int(outcome["exit_code"])


def _anybody_left_out(path: Path) -> bool:
    """Whether a site was refused, or its update missed a round that counted, or a result is missing."""
    return any(
        event["event"] == "site_refused"
        or event.get("left_out")
        or (event["event"] == "site_replied" and event["status"] != "used")
        for event in read_events(path / "events.jsonl")
    )


def _totals(path: Path) -> dict[str, Any]:
    """Fingerprint, best round and bytes over the whole run, resumed or not, from its event stream."""
    fingerprint, best_round, sent, received = None, None, 0, 0
    for event in read_events(path / "events.jsonl"):
        if event["event"] == "round_finished":
            fingerprint = event["fingerprint"]
        elif event["event"] == "validated" and event["best"]:
            best_round = event["round"]
        elif event["event"] == "site_replied":
            sent, received = sent + event["bytes_up"], received + event["bytes_down"]
    return {"fingerprint": fingerprint, "best_round": best_round, "bytes_sent": sent, "bytes_received": received}
