"""What a coordinator is doing, in sentences: what a run waits for, on whom, since when, and what happens next."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any

from server.events import Event, read_events
from server.federation import Paths
from server.participation import quorum
from server.registry import Registry
from server.runs import Run, all_runs
from shared_models.job import Job
from shared_models.page import listed, natural

STALE_SECONDS = 15.0
"""A daemon that has not written its status for so long is not running."""

QUESTIONS = {
    "query.prepare": "to say whether their data are fit for the job",
    "query.statistics": "to count their training images for the preprocessing plan",
    "train.alone": "to train the local baseline",
    "evaluate": "to judge a model",
}


@dataclass(frozen=True)
class Daemon:
    """What the daemon last said of itself; empty when it is not running."""

    facts: dict[str, Any]

    @property
    def running(self) -> bool:
        """Whether a daemon runs from this home."""
        return bool(self.facts)


def read_daemon(paths: Paths) -> Daemon:
    """The daemon's own status, if it is alive."""
    try:
        facts = json.loads((paths.home / "daemon.json").read_text())
        alive = isinstance(facts, dict) and time.time() - float(facts["at"]) < STALE_SECONDS
    except (OSError, ValueError, KeyError, TypeError):
        return Daemon({})
    return Daemon(facts if alive else {})


def describe(paths: Paths) -> list[str]:
    """The state of the coordinator, one sentence a line: the daemon, the sites, the run under way, the queue."""
    daemon = read_daemon(paths)
    suspended = {entry.name for entry in Registry(paths.registry).entries() if entry.state == "suspended"}
    lines = _daemon(daemon, suspended)
    runs = all_runs(paths.runs)
    under_way = [run for run in runs if run.state().phase == "running"]
    queued = [run.name for run in runs if run.state().phase == "queued"]
    lines += [why_stuck(run, daemon, suspended) for run in under_way]
    if queued:
        behind = f" behind {under_way[0].name}" if under_way else ""
        lines.append(f"Queued{behind}: {', '.join(queued)}.")
    over = [run for run in runs if run.state().phase in ("complete", "stopped")]
    if not under_way and not queued:
        last = max(over, key=lambda run: run.state().since, default=None)
        lines.append(f"No run is under way; the last was {_over(last)}" if last else "There was no run yet.")
    return lines


def why_stuck(run: Run, daemon: Daemon, suspended: Collection[str] = ()) -> str:
    """What the run is waiting for, on whom, since when, and what happens next.

    Args:
        suspended: sites that the coordinator keeps out.
    """
    if not daemon.running:
        return f"{run.name} waits for the coordinator itself, which is not running: `consilium coordinator start`."
    if not daemon.facts.get("superlink", {}).get("ready"):
        return f"{run.name} waits for the SuperLink, which is being started again; the run goes on when it answers."
    if not daemon.facts.get("run_pid"):
        return f"{run.name} waits for its own process, which is being started; it goes on from its last checkpoint."
    events = list(read_events(run.path / "events.jsonl")) if (run.path / "events.jsonl").exists() else []
    job, waiting = run.job(), _waiting(run)
    if waiting:
        hint = _kept_out({entry["site"] for entry in waiting}, suspended)
        return f"{run.name} waits for {_on_whom(waiting)}. {_next(job, waiting, events)}{hint}"
    # One event whenever others are away than before.
    while_waiting = list(takewhile(lambda event: event["event"] == "waiting_for_sites", reversed(events)))
    if while_waiting:
        last, first = while_waiting[0], while_waiting[-1]
        away = listed(last["away"])
        since = _clock(datetime.fromisoformat(first["time"]).timestamp())
        return (
            f"{run.name} waits since {since} for {away} to connect: {last['connected']} sites are there and "
            f"{last['needed']} are needed; it stops, and can be resumed, if they stay away for "
            f"{run.settings()['wait_seconds']:g} s.{_kept_out(last['away'], suspended)}"
        )
    held_up = [event for event in events if event["event"] == "site_waiting"]
    rounds = [event for event in events if event["event"] == "round_started"]
    if not rounds:
        sites = daemon.facts.get("sites", {})
        heard = {event["site"] for event in events if event["event"] in ("site_ready", "site_refused")}
        missing = sorted(set(run.settings()["sites"] or sites) - heard - set(suspended), key=natural)
        reasons = {event["site"]: event["reason"] for event in held_up}
        silent = {site: "no answer yet" if sites.get(site) == "online" else "not connected" for site in missing}
        whom = [f"{site} ({reasons.get(site, silent[site])})" for site in missing]
        return (
            f"{run.name} waits for {listed(whom) or 'its sites'}; the rounds begin when all are ready, or after "
            f"{run.settings()['wait_seconds']:g} s with those that are."
        )
    return f"{run.name} is at work at the coordinator itself, behind round {rounds[-1]['round']}."


def _kept_out(waited_for: Collection[str], suspended: Collection[str]) -> str:
    return "".join(
        f" {site} is suspended: `consilium coordinator readmit {site}` lets it back in."
        for site in sorted(set(waited_for) & set(suspended), key=natural)
    )


def _daemon(daemon: Daemon, suspended: Collection[str]) -> list[str]:
    if not daemon.running:
        return ["The coordinator is not running: `consilium coordinator start` starts it."]
    facts = daemon.facts
    lines = [f"The coordinator runs since {_clock(facts['since'])} and listens at {facts['listens_at']}."]
    sites = facts.get("sites", {})
    there = {name for name, status in sites.items() if status == "online" and name not in suspended}
    missing = sorted(sites.keys() - there, key=natural)
    away = [f"{name} (suspended)" if name in suspended else name for name in missing]
    lines.append(
        f"{len(there)} of {len(sites)} {'site is' if len(sites) == 1 else 'sites are'} connected"
        f"{f'; not {listed(away)}' if away else ''}."
        if sites
        else "There is no site yet: `consilium coordinator admit` takes a hospital's request."
    )
    if facts.get("problem"):
        lines.append(f"Problem: {facts['problem']}.")
    return [*lines, *facts.get("warnings", [])]


def _waiting(run: Run) -> list[dict[str, Any]]:
    try:
        found = json.loads(run.waiting_file.read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)]


def _on_whom(waiting: list[dict[str, Any]]) -> str:
    sites = listed(sorted({entry["site"] for entry in waiting}, key=natural))
    first = min(waiting, key=lambda entry: entry["since"])
    what = f"to train in round {first['round']}" if first["question"] == "train" else QUESTIONS[first["question"]]
    seconds = time.time() - first["since"]
    return f"{sites} {what}, since {_clock(first['since'])} ({seconds:.0f} s)"


def _next(job: Job, waiting: list[dict[str, Any]], events: list[Event]) -> str:
    until = [entry["until"] for entry in waiting if entry["until"]]
    if waiting[0]["question"] == "train":
        started = next(event for event in reversed(events) if event["event"] == "round_started")
        needed = quorum(job, len(started["sites"]))
        enough = f"with at least {needed} of {len(started['sites'])} updates"
        if until:
            return f"At {_clock(max(until))} the round ends {enough}, or is tried again."
        return f"The round ends {enough} when each has answered, or lost its connection for a minute."
    if until:
        return f"At {_clock(max(until))} it goes on without their answers."
    return "It goes on when each has answered, or lost its connection for a minute."


def _over(run: Run) -> str:
    state = run.state()
    why = f" ({state.reason})" if state.reason else ""
    return f"{run.name}, {state.phase} since {_clock(state.since)}{why}."


def _clock(when: float) -> str:
    then, now = datetime.fromtimestamp(when), datetime.now()
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M:%S}"
