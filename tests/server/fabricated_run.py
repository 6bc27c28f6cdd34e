"""Run directories as the simulation leaves them, with numbers of the test's choice and without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from shared_models.job import Job

SITES = ["north-clinic", "riverside", "university"]


def job(task: str = "segmentation", rounds: int = 8) -> Job:
    tasks: dict[str, Any] = {
        "segmentation": {"kind": "segmentation", "classes": ["background", "anterior", "posterior"]},
        "classification": {"kind": "classification", "classes": ["normal", "pneumonia"]},
    }
    return Job.model_validate(
        {
            "name": "hippocampus",
            "seed": 7,
            "task": tasks[task],
            "data": {"spatial_dims": 3, "crop": [32, 48, 32]},
            "model": {"name": "unet"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": rounds},
        }
    )


def entry(value: float | None, spread: float = 0.02, n: int | None = 24) -> dict[str, Any]:
    if value is None:
        return {"value": None, "low": None, "high": None, "n": 0, "why": "no case has this class"}
    row = {"value": value, "low": value - spread, "high": value + spread}
    return row if n is None else row | {"n": n}


def evaluations(gains: dict[str, float], against_pooled: float = -0.004) -> dict[str, Any]:
    """Three hospitals whose federated Dice exceeds the local one by `gains`, each known to within 0.02."""
    base = dict(zip(gains, (0.871, 0.842, 0.889), strict=True))
    models: dict[str, Any] = {
        "federated": {site: {"dice": entry(base[site]), "hd95": entry(1.9, 0.3)} for site in gains},
        "pooled": {site: {"dice": entry(base[site] + 0.004), "hd95": entry(1.8, 0.3)} for site in gains},
    }
    for home in gains:
        models[f"local:{home}"] = {
            site: {"dice": entry(base[site] - gains[site] - (home != site) * 0.06), "hd95": entry(2.6, 0.5)}
            for site in gains
        }
    for by_hospital in models.values():
        mean = float(np.mean([by_hospital[site]["dice"]["value"] for site in gains]))
        by_hospital["all"] = {"dice": entry(mean, 0.01, 72), "hd95": entry(2.0, 0.2, 72)}
    mean_gain = float(np.mean(list(gains.values())))
    differences = {
        "federated-local": {
            **{site: {"dice": entry(gain, 0.02, None), "hd95": entry(-0.7, 0.3, None)} for site, gain in gains.items()},
            "all": {"dice": entry(mean_gain, 0.02, None), "hd95": entry(-0.7, 0.2, None)},
        },
        "federated-pooled": {
            **{site: {"dice": entry(against_pooled, 0.01, None), "hd95": entry(0.1, 0.3, None)} for site in gains},
            "all": {"dice": entry(against_pooled, 0.01, None), "hd95": entry(0.1, 0.2, None)},
        },
    }
    return {
        "schema": 1,
        "split": "test",
        "bootstrap": 500,
        "metrics": {
            "dice": {"label": "Dice", "larger_is_better": True, "unit": "", "headline": True},
            "hd95": {"label": "HD95", "larger_is_better": False, "unit": "mm", "headline": True},
        },
        "models": models,
        "differences": differences,
        "curves": {},
    }


def classification_evaluations() -> dict[str, Any]:
    found = json.loads(json.dumps(evaluations(dict.fromkeys(SITES, 0.03))).replace('"dice"', '"auroc"'))
    found["metrics"]["auroc"]["label"] = "AUROC"
    fpr = np.linspace(0, 1, 60)
    bins = np.linspace(0.05, 0.95, 10)
    for model, power in (("federated", 0.12), ("pooled", 0.1), ("local:riverside", 0.3)):
        found["curves"][model] = {
            "all": {
                "roc": {"pneumonia": {"fpr": fpr.tolist(), "tpr": (fpr**power).tolist()}},
                "reliability": {
                    "confidence": bins.tolist(),
                    "observed": (bins**1.2).tolist(),
                    "n": [90, 40, 30, 20, 10, 10, 20, 30, 60, 150],
                },
            }
        }
    return found


def site_ready(site: str, number: int) -> dict[str, Any]:
    bad = {"hippocampus_017": "image has shape 35×51×35, its mask 35×51×34; they must be equal"} if number == 1 else {}
    return {
        "event": "site_ready",
        "site": site,
        "cases": {"train": 61 + number, "validation": 8, "test": 24},
        "patients": {"train": 61 + number, "validation": 8, "test": 12 if number == 2 else 24},
        "classes": {},
        "quarantined": bad,
        "duplicates": 0,
        "warnings": ["Every training case is of one class."] if number < 2 else [],
        "seconds": 1.5,
    }


def round_events(number: int, sites: list[str], reply: dict[str, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """One finished round; `reply` overrides what a site's reply says, such as its status."""
    events: list[dict[str, Any]] = [{"event": "round_started", "round": number, "attempt": 0, "sites": sites}]
    for index, site in enumerate(sites):
        events.append(
            {
                "event": "site_replied",
                "round": number,
                "attempt": 0,
                "site": site,
                "status": "used",
                "reason": None,
                "cases": 61 + index,
                "skipped": 0,
                "steps": 8,
                "loss": 1.3 * 0.75**number + 0.05 * index + 0.2,
                "seconds": 4.0,
                "bytes_down": 1_300_000,
                "bytes_up": 1_301_000,
                **(reply or {}).get(site, {}),
            }
        )
    dice = 0.88 - 0.5 * 0.6**number
    by_site = {site: {"dice": dice + 0.02 * (index - 1), "auroc": dice} for index, site in enumerate(sites)}
    events += [
        {
            "event": "round_finished",
            "round": number,
            "fingerprint": f"{number:064x}",
            "loss": 1.3 * 0.75**number + 0.25,
            "update_norm": 3.2 / number,
            "sites_used": [],
            "seconds": 9.4,
        },
        {
            "event": "validated",
            "round": number,
            "metrics": {"dice": dice, "auroc": dice},
            "by_site": by_site,
            "best": number != 8,
        },
    ]
    return events


def fabricate(
    folder: Path,
    the_job: Job | None = None,
    found: dict[str, Any] | None = None,
    replies: dict[int, dict[str, dict[str, Any]]] | None = None,
    extra: list[dict[str, Any]] | None = None,
    sites: list[str] = SITES,
) -> Path:
    """A complete run of three hospitals, as the run-directory layout says; `extra` events come before the end."""
    the_job = the_job or job()
    rounds = the_job.federation.rounds
    folder.mkdir(parents=True)
    identity = {
        "schema": 1,
        "name": the_job.name,
        "created": "2026-01-31T14:05:09+00:00",
        "consilium": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "seed": the_job.seed,
        "job_hash": the_job.fingerprint(),
        "split_hash": "ab" * 32,
        "engine": "inprocess",
        "workers": 2,
        "threads": 1,
        "device": "cpu",
        "command": "consilium simulate hippocampus.yaml",
    }
    (folder / "run.json").write_text(json.dumps(identity))
    (folder / "job.yaml").write_text(yaml.safe_dump(the_job.model_dump(mode="json"), sort_keys=False))
    (folder / "split.json").write_text(json.dumps({"hospitals": {site: {} for site in sites}}))
    events: list[dict[str, Any]] = [
        {"event": "run_started", "sites": sites, "rounds": rounds, "parameters": 324_512, "bytes_model": 1_298_048}
    ]
    events += [site_ready(site, index) for index, site in enumerate(sites)]
    for number in range(1, rounds + 1):
        events += round_events(number, sites, (replies or {}).get(number))
    if found:
        for model in ["pooled", *(f"local:{site}" for site in sites)]:
            curve = [{"round": r, "metrics": {"dice": 0.87 - 0.4 * 0.6**r, "auroc": 0.9}} for r in range(1, rounds + 1)]
            events.append(
                {
                    "event": "baseline_finished",
                    "model": model,
                    "steps": 8 * rounds * (len(sites) if model == "pooled" else 1),
                    "seconds": 21.0,
                    "best_round": rounds,
                    "curve": curve,
                }
            )
        events.append({"event": "judged", "models": list(found["models"]), "seconds": 31.2})
        (folder / "evaluations.json").write_text(json.dumps(found))
    events += extra or []
    events.append(
        {
            "event": "run_finished",
            "status": "complete",
            "reason": None,
            "fingerprint": "cd" * 32,
            "best_round": 7,
            "seconds": 251.7,
            "bytes_sent": 52_000_000,
            "bytes_received": 31_400_000,
            "exit_code": 0,
        }
    )
    write_events(folder, events)
    return folder


def write_events(folder: Path, events: list[dict[str, Any]]) -> None:
    lines = [json.dumps({"time": "2026-01-31T14:05:10+00:00", **event}) for event in events]
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")


def read_events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def everywhere_helped(folder: Path, **more: Any) -> Path:
    """A run whose federated model is better by 0.04 Dice at each of its three hospitals."""
    return fabricate(folder, found=evaluations(dict.fromkeys(SITES, 0.04)), **more)
