"""The content of `report.json`, from which the page is drawn too: docs/report.md says what every field means."""

from __future__ import annotations

import math
from typing import Any

from server.judgement import differs_by_hospital
from server.report.alternatives import alternatives
from server.report.answer import comparisons, kept_count, levels, uncertain, verdicts, worst_hospital
from server.report.clock import clock
from server.report.doubts import doubts
from server.report.models import LOCAL, by_hospital
from server.report.outliers import stood_out
from server.report.participation import participation, refusals, sites
from server.report.record import RunRecord
from server.report.simulated import simulated
from shared_models.page import digits, listed, natural

SCHEMA = "consilium-report/1"


def summarise(record: RunRecord) -> dict[str, Any]:
    """Everything the report says, as JSON types; a number that is not finite becomes null."""
    evaluations = record.evaluations or {}
    models = {model: _in_order(found) for model, found in evaluations.get("models", {}).items()}
    metrics = _metrics(evaluations)
    entries = participation(record)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        **_ending(record),
        "run": _identity(record),
        "task": record.job.task.kind,
        "split": evaluations.get("split", "test"),
        "bootstrap": evaluations.get("bootstrap"),
        "headline_metric": _headline(record, metrics),
        "metrics": metrics,
        "models": models,
        "differs_by_hospital": [model for model in models if differs_by_hospital(record.job, model)],
        "differences": {name: _in_order(found) for name, found in evaluations.get("differences", {}).items()},
        "spread": evaluations.get("spread", {}),
        "choices": _in_order(evaluations.get("choices", {})),
        "subgroups": evaluations.get("subgroups", []),
        "curves": evaluations.get("curves", {}),
        "rounds": _rounds(record, entries),
        "baselines": _baselines(record),
        "sites": _sites(record, entries),
        "copies": record.run.get("copies", []),
        "participation": entries,
        "plan": record.plan,
        "simulated": simulated(record.job),
        "quarantine": _quarantine(record),
        "cost": _cost(record, entries),
        "clock": clock(record, entries),
        "stood_out": stood_out(record, entries),
    }
    report = finite(report)
    headline = report["headline_metric"]
    report["verdicts"] = verdicts(report)
    named = [*report["models"], *([LOCAL] if by_hospital(report, LOCAL) else [])]
    report["worst_hospital"] = {model: worst_hospital(report, model, headline) for model in named}
    report["kept_by"] = kept_count(report)
    report["answer"] = comparisons(report) + levels(report)
    report["doubts"] = doubts(report)
    report["warnings"] = _warnings(record, report)
    return report


def finite(value: Any) -> Any:
    """The same JSON value with null for every NaN and infinity, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _in_order(by_hospital: dict[str, Any]) -> dict[str, Any]:
    """The hospitals in the order of a person's list, `all` last."""
    return {name: by_hospital[name] for name in sorted(by_hospital, key=lambda name: (name == "all", natural(name)))}


def _ending(record: RunRecord) -> dict[str, Any]:
    end = record.last("run_finished")
    if end is None or end is not record.events[-1]:
        return {"status": "unfinished", "reason": "the run has no end on record: it is still going on, or was killed"}
    return {"status": end["status"], "reason": end.get("reason")}


def _identity(record: RunRecord) -> dict[str, Any]:
    start, end = record.last("run_started") or {}, record.last("run_finished") or {}
    finished = record.all("round_finished")
    best_round = next((e["round"] for e in reversed(record.all("validated")) if e.get("best")), None)
    keys = ("consilium", "versions", "seed", "job_hash", "split_hash", "engine", "workers", "threads", "device")
    return {
        "name": record.run.get("name", record.job.name),
        "created": record.run.get("created"),
        **{key: record.run.get(key) for key in keys},
        "command": record.run.get("command"),
        "model": record.job.model.name,
        "algorithm": record.job.federation.algorithm.name,
        "aggregation": record.job.federation.aggregation.name,
        "share": record.job.federation.share.model_dump(mode="json"),
        "alternatives": alternatives(record.job),
        "parameters": start.get("parameters"),
        "bytes_model": start.get("bytes_model"),
        "pretrained": _of_event(record, "pretrained"),
        "sites": sites(record),
        "rounds_planned": record.job.federation.rounds,
        "rounds_finished": len({event["round"] for event in finished}),
        "selection_metric": record.job.selection_metric(),
        "best_round": best_round,
        "stopped_early": _of_event(record, "stopped_early"),
        "fingerprint": finished[-1]["fingerprint"] if finished else None,
        "best_fingerprint": next((e["fingerprint"] for e in finished if e["round"] == best_round), None),
        "resumed": sum(1 for event in record.all("run_started") if event.get("resumed_from") is not None),
        "exit_code": end.get("exit_code"),
    }


def _of_event(record: RunRecord, kind: str) -> dict[str, Any] | None:
    """What the last event of a kind says; None where there is none."""
    event = record.last(kind)
    return {key: value for key, value in event.items() if key not in ("event", "time")} if event else None


def _metrics(evaluations: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each metric with its label and direction, and the digits that its values deserve."""
    values: dict[str, list[float]] = {}
    for judged in evaluations.get("models", {}).values():
        for rows in judged.values():
            for name, row in rows.items():
                values.setdefault(name, []).append(row.get("value") or 0.0)
    declared = evaluations.get("metrics", {})
    metrics = {}
    for name in dict.fromkeys([*declared, *values]):
        info = {"label": name, "larger_is_better": True, "unit": "", "headline": True, **declared.get(name, {})}
        label = f"{info['label']} ({info['unit']})" if info["unit"] else info["label"]
        metrics[name] = {**info, "label": label, "digits": digits(info, values.get(name, []))}
    return metrics


def _headline(record: RunRecord, metrics: dict[str, Any]) -> str | None:
    wanted = record.job.selection_metric()
    return wanted if wanted in metrics else next(iter(metrics), None)


def _rounds(record: RunRecord, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    validated = {event["round"]: event for event in record.all("validated")}
    finished = {event["round"]: event for event in record.all("round_finished")}
    retries = [event["round"] for event in record.all("round_retried")]
    rows = []
    for number in sorted({*finished, *validated}):
        end, check = finished.get(number, {}), validated.get(number, {})
        mine = [entry for entry in entries if entry["round"] == number]
        rows.append(
            {
                "round": number,
                "loss": end.get("loss"),
                "loss_by_site": {entry["site"]: entry["loss"] for entry in mine if entry["status"] == "used"},
                "validation": check.get("metrics", {}),
                "validation_by_site": check.get("by_site", {}),
                "best": bool(check.get("best")),
                "update_norm": end.get("update_norm"),
                "sites_used": sum(entry["status"] == "used" for entry in mine),
                "retries": retries.count(number),
                "seconds": end.get("seconds"),
                "bytes_sent": sum(entry["bytes_sent"] for entry in mine),
                "bytes_received": sum(entry["bytes_received"] for entry in mine),
                "fingerprint": end.get("fingerprint"),
            }
        )
    return rows


def _baselines(record: RunRecord) -> dict[str, dict[str, Any]]:
    keys = ("steps", "seconds", "best_round", "curve")
    return {event["model"]: {key: event.get(key) for key in keys} for event in record.all("baseline_finished")}


def _sites(record: RunRecord, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ready = {event["site"]: event for event in record.all("site_ready")}
    refused = refusals(record)
    rows = {}
    for site in sites(record):
        event = ready.get(site, {})
        used = [entry for entry in entries if entry["site"] == site and entry["status"] == "used"]
        mine = [entry for entry in entries if entry["site"] == site]
        rows[site] = {
            "cases": event.get("cases", {}),
            "patients": event.get("patients", {}),
            "classes": event.get("classes", {}),
            "quarantined": len(event.get("quarantined", {})),
            "duplicates": event.get("duplicates", 0),
            "warnings": event.get("warnings", []),
            "refused": refused.get(site),
            "rounds_drawn": len({e["round"] for e in mine if e["status"] not in ("not_drawn", "refused")}),
            "rounds_used": len(used),
            "cases_used": sum(entry["cases"] for entry in used),
            "cases_skipped": sum(entry["skipped"] for entry in mine),
            "bytes_sent": sum(entry["bytes_sent"] for entry in mine),
            "bytes_received": sum(entry["bytes_received"] for entry in mine),
        }
    return rows


def _quarantine(record: RunRecord) -> list[dict[str, Any]]:
    ready = {event["site"]: event for event in record.all("site_ready")}
    return [
        {"site": site, "case": case, "reason": reason}
        for site in sites(record)
        for case, reason in ready.get(site, {}).get("quarantined", {}).items()
    ]


def _cost(record: RunRecord, entries: list[dict[str, Any]]) -> dict[str, Any]:
    end, judged = record.last("run_finished") or {}, record.last("judged") or {}
    baselines = {event["model"]: event.get("seconds") or 0.0 for event in record.all("baseline_finished")}
    return {
        "seconds": {
            "total": end.get("seconds"),
            "preflight": max((event.get("seconds") or 0.0 for event in record.all("site_ready")), default=None),
            "federated": sum(event.get("seconds") or 0.0 for event in record.all("round_finished")),
            "baselines": baselines,
            "evaluation": judged.get("seconds"),
        },
        "bytes": {
            "sent_by_sites": sum(entry["bytes_sent"] for entry in entries),
            "received_by_sites": sum(entry["bytes_received"] for entry in entries),
        },
    }


def _warnings(record: RunRecord, report: dict[str, Any]) -> list[str]:
    without = (record.plan or {}).get("left_out", {})
    texts = [f"{site} has no part in the preprocessing plan: {reason.rstrip('.')}." for site, reason in without.items()]
    bad = report["quarantine"]
    if bad:
        where = len({row["site"] for row in bad})
        cases, places = "case was" if len(bad) == 1 else "cases were", "hospital" if where == 1 else "hospitals"
        texts.append(f"{len(bad)} {cases} quarantined at {where} {places}; the reasons are listed below.")
    if report["models"]:
        texts += uncertain(report)
    by_text: dict[str, list[str]] = {}
    for site, row in report["sites"].items():
        for text in row["warnings"]:
            if row["duplicates"] and text.endswith("in more than one split."):
                continue  # a doubt says so already
            by_text.setdefault(text, []).append(site)
    texts += [f"{listed(places)}: {text}" for text, places in by_text.items()]
    texts += [f"{event['text'].rstrip('.')}." for event in record.all("warning")]
    return list(dict.fromkeys(texts))
