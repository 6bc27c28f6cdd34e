"""Who took part in which round, who did not and why: read off the event stream."""

from __future__ import annotations

from collections import Counter
from typing import Any

from server.events import Event
from server.report.record import RunRecord
from shared_models.page import natural

STATUSES = {
    "used": "used",
    "failed": "failed",
    "late": "late",
    "rejected": "rejected",
    "refused": "took no part",
    "no_reply": "no reply on record",
    "discarded": "discarded with its round",
    "not_drawn": "not drawn",
}
"""Every status an entry may have, with the words a reader sees."""


def participation(record: RunRecord) -> list[dict[str, Any]]:
    """One entry for every site in every attempt at every round, sorted by round, attempt and site."""
    replies = {(e["round"], e["attempt"], e["site"]): e for e in record.all("site_replied")}
    refused = refusals(record)
    ends = {e["round"] for e in record.all("round_finished")}
    starts = {(e["round"], e["attempt"]): e for e in record.all("round_started")}
    last_attempt = {number: attempt for number, attempt in sorted(starts)}
    entries = []
    for (number, attempt), start in sorted(starts.items()):
        finished = number in ends and attempt == last_attempt[number]
        for site in sites(record):
            reply = replies.get((number, attempt, site))
            status, reason = _status(site, start, reply, refused, finished)
            entries.append(
                {
                    "round": number,
                    "attempt": attempt + 1,
                    "last_attempt": attempt == last_attempt[number],
                    "site": site,
                    "status": status,
                    "reason": reason,
                    "cases": (reply or {}).get("cases") or 0,
                    "skipped": (reply or {}).get("skipped") or 0,
                    "steps": (reply or {}).get("steps") or 0,
                    "loss": (reply or {}).get("loss"),
                    "update_norm": (reply or {}).get("update_norm"),
                    "seconds": (reply or {}).get("seconds"),
                    "bytes_sent": (reply or {}).get("bytes_up") or 0,
                    "bytes_received": (reply or {}).get("bytes_down") or 0,
                }
            )
    return entries


def sites(record: RunRecord) -> list[str]:
    """Every hospital: those of the split, and whoever else was drawn or refused; in the order of a person's list.

    The pooled data of a simulation stand at a node that is ready too, but is nobody's hospital and never drawn.
    """
    names = list((record.split or {}).get("hospitals", {}))
    names += [name for event in record.all("round_started") for name in event["sites"]]
    names += [event["site"] for event in record.all("site_refused")]
    return sorted(set(names), key=natural)


def refusals(record: RunRecord) -> dict[str, Any]:
    """Why a site took no part: the sites that were refused and not ready later."""
    refused: dict[str, Any] = {}
    for event in record.events:
        if event["event"] == "site_refused":
            refused[event["site"]] = event.get("reason")
        elif event["event"] == "site_ready":
            refused.pop(event["site"], None)
    return refused


def left_out(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Site -> a sentence, of every site that was drawn but not used in at least one finished or last attempt."""
    sentences = {}
    final = [entry for entry in entries if entry["last_attempt"]]
    for site in dict.fromkeys(entry["site"] for entry in final):
        mine = [entry for entry in final if entry["site"] == site and entry["status"] != "not_drawn"]
        why = Counter(STATUSES[entry["status"]] for entry in mine if entry["status"] not in ("used", "refused"))
        if why:
            reasons = ", ".join(f"{words} {count}" for words, count in sorted(why.items()))
            rounds = "round" if len(mine) == 1 else "rounds"
            sentences[site] = f"{site} was left out of {why.total()} of {len(mine)} {rounds} ({reasons})."
    return sentences


def steps_by_site(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Site -> the optimiser steps behind the updates of it that were used."""
    steps = dict.fromkeys((entry["site"] for entry in entries), 0)
    for entry in entries:
        steps[entry["site"]] += entry["steps"] if entry["status"] == "used" else 0
    return steps


def last_reason(entries: list[dict[str, Any]], site: str) -> str | None:
    """Why a site was not used the last time that it was not, without a full stop; None where no reason is on record."""
    reasons = [e["reason"] for e in entries if e["site"] == site and e["reason"]]
    return str(reasons[-1]).rstrip(".") if reasons else None


def _status(
    site: str, start: Event, reply: Event | None, refused: dict[str, Any], finished: bool
) -> tuple[str, str | None]:
    if reply is not None:
        if reply["status"] == "used" and not finished:
            return "discarded", "its update was fit to use, but this attempt at the round did not reach its end"
        return str(reply["status"]), reply.get("reason")
    if site in refused:
        return "refused", refused[site]
    if site not in start.get("sites", []):
        return "not_drawn", None
    return "no_reply", "drawn, but no reply was on record when the attempt ended"
