"""What networks learn from real data over hospitals, and which algorithm answers which difference: docs/results.md.

    python benchmarks/results.py                     every row, as far as it is not done; then the page
    python benchmarks/results.py --only vessels      the rows of one study
    python benchmarks/results.py --page              the page again, from docs/results.json

A row is `consilium simulate` with a job of benchmarks/results/. Rows that are done are kept, one that was cut off goes
on, and one that failed is in the table with its sentence. On two cores everything takes some two hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results_attack as attack  # noqa: E402
from benchmarks import results_hospitals as hospitals  # noqa: E402
from benchmarks import results_tuning as tuning  # noqa: E402
from benchmarks.results_data import write_tables  # noqa: E402
from benchmarks.results_page import page  # noqa: E402
from benchmarks.results_rows import failure, rounded  # noqa: E402

JOBS = ROOT / "benchmarks" / "results"
PAGE, NUMBERS, PICTURES = ROOT / "docs" / "results.md", ROOT / "docs" / "results.json", ROOT / "docs" / "images"


@dataclass(frozen=True)
class Study:
    """One table of the page: a job, and the networks that it is run with."""

    compare: str
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)


_LEVELS = {"channels": [8, 16, 32, 64, 128], "strides": [2, 2, 2, 2]}
_CLASSIFIERS = {
    "classic CNN": {"name": "cnn"},
    "ResNet-18": {"name": "resnet18"},
    "DenseNet-121": {"name": "densenet121"},
    "ViT": {"name": "vit"},
}
STUDIES = {
    "hippocampus": Study(
        "pooled",
        {
            "3D U-Net": {"name": "unet", "arguments": _LEVELS},
            "V-Net": {"name": "vnet"},
            "Attention U-Net": {"name": "attention_unet", "arguments": _LEVELS},
            "UNet++": {
                "name": "unet_plus_plus",
                "arguments": {"features": [8, 8, 16, 32, 64, 8], "deep_supervision": True},
            },
            "DynUNet": {
                "name": "dynunet",
                "arguments": {"filters": [8, 16, 32, 64, 128], "deep_supervision": True},
            },
            "UNETR": {"name": "unetr"},
            "Swin UNETR": {"name": "swin_unetr"},
        },
    ),
    "vessels": Study(
        "pooled", {"U-Net": {"name": "unet"}, "TransUNet": {"name": "transunet"}, "Swin-UNet": {"name": "swin_unet"}}
    ),
    "pneumonia": Study("pooled", _CLASSIFIERS),
    "pneumonia-skewed": Study("pooled", _CLASSIFIERS),
    "denoise": Study("pooled", {"Pix2Pix": {"name": "pix2pix", "normalisation": "group"}}),
    "look": Study("none", {"CycleGAN": {"name": "cyclegan", "arguments": {"channels": 8, "blocks": 4}}}),
    "synthesis": Study("none", {"DCGAN": {"name": "dcgan"}}),
}


def run_network(study: str, network: str, runs: Path, data: Path) -> None:
    """Runs a row of the first half of the page."""
    job = yaml.safe_load((JOBS / f"{study}.yaml").read_text()) | {"model": STUDIES[study].networks[network]}
    run_job(job, runs / study / network.replace(" ", "-"), STUDIES[study].compare, data)


def run_method(study: str, method: str, seed: int, runs: Path, data: Path) -> None:
    """Runs a row of the second half."""
    job = hospitals.job_of(JOBS, study, method, seed)
    run_job(job, runs / study / hospitals.folder_of(method, seed), hospitals.compared(method), data)


def run_attack(row: str, runs: Path, data: Path) -> None:
    """Runs a row of the part on one attacker."""
    run_job(attack.job_of(JOBS, row), runs / attack.STUDY / attack.folder_of(row), "none", data)


def run_tuning(row: str, runs: Path, data: Path) -> None:
    """Runs a row of the part on default settings."""
    run_job(tuning.job_of(row), runs / tuning.STUDY / tuning.folder_of(row), tuning.compared(row), data)


def run_job(job: dict[str, Any], out: Path, compare: str, data: Path) -> None:
    """Runs a job, or goes on with it; what it says is in a log beside the run."""
    if (out / "evaluations.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("consilium")), "simulate"]
    if (out / "job.yaml").exists():
        command += ["--resume", str(out)]
    else:
        shutil.rmtree(out, ignore_errors=True)
        path = out.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(job))
        command += [str(path), "--data-dir", str(data), "--compare", compare, "--workers", "2", "--out", str(out)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    out.with_suffix(".log").write_text(done.stdout + done.stderr)
    seconds = time.monotonic() - began
    print(f"{out.parent.name}, {out.name}: exit code {done.returncode}, {seconds:.0f} s", flush=True)
    if done.returncode not in (0, 4):
        print(done.stderr.strip(), flush=True)


def collect(runs: Path) -> dict[str, Any]:
    """The numbers of every row that was run, by study and network; of one that failed its last words."""
    found: dict[str, Any] = {}
    for study, of in STUDIES.items():
        for network in of.networks:
            out = runs / study / network.replace(" ", "-")
            if (out / "evaluations.json").exists():
                found.setdefault(study, {})[network] = _numbers(out)
                _keep_picture(study, out)
            elif row := failure(out):
                found.setdefault(study, {})[network] = row
    return found


def _numbers(out: Path) -> dict[str, Any]:
    evaluations = json.loads((out / "evaluations.json").read_text())
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    started = next(event for event in events if event["event"] == "run_started")
    last_round = max(event["round"] for event in events if event["event"] == "round_finished")
    return {
        "parameters": started["parameters"],
        "megabytes": round(started["bytes_model"] / 1e6, 2),
        "rounds": last_round,
        "seconds": round(sum(event["seconds"] for event in events if event["event"] == "round_finished")),
        "metrics": evaluations["metrics"],
        "models": rounded(evaluations["models"]),
        "differences": {name: rounded(by_site.get("all", {})) for name, by_site in evaluations["differences"].items()},
        "patients": {
            event["site"]: {split: event["patients"][split] for split in ("train", "test")}
            for event in events
            if event["event"] == "site_ready" and "patients" in event
        },
    }


def _keep_picture(study: str, out: Path) -> None:
    """The GANs' pictures are part of the page."""
    picture = out / "pictures" / "cases.png"
    if study in ("denoise", "look", "synthesis") and picture.exists():
        shutil.copyfile(picture, PICTURES / f"results-{study}.png")


def main() -> int:
    """Runs what is not done and writes the page; 1 when a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        choices=[*STUDIES, *hospitals.STUDIES, tuning.STUDY, attack.STUDY],
        action="append",
        help="a study; may be given several times",
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the data sets' folder")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results", help="where the runs are kept")
    parser.add_argument("--page", action="store_true", help="write the page again and run nothing")
    arguments = parser.parse_args()
    if not arguments.page:
        tables = arguments.runs / "data"
        write_tables(arguments.data, tables)
        wanted = arguments.only or [*STUDIES, *hospitals.STUDIES, tuning.STUDY, attack.STUDY]
        todo = [
            partial(run_network, study, name)
            for study in wanted
            if study in STUDIES
            for name in STUDIES[study].networks
        ]
        todo += [partial(run_method, *row) for row in hospitals.rows() if row[0] in wanted]
        todo += [partial(run_tuning, row) for row in tuning.OPTIMIZERS if tuning.STUDY in wanted]
        todo += [partial(run_attack, row) for row in attack.AGGREGATIONS if attack.STUDY in wanted]
        with ThreadPoolExecutor(2) as two_at_once:  # pooled training is one worker's, and leaves the others idle
            list(two_at_once.map(lambda row: row(arguments.runs, tables), todo))
        found = collect(arguments.runs) | hospitals.collect(arguments.runs)
        found |= tuning.collect(arguments.runs) | attack.collect(arguments.runs)
        known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
        NUMBERS.write_text(json.dumps(known | found, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(whole_page(json.loads(NUMBERS.read_text())))
    print(f"wrote {PAGE}")
    return 1 if '"failed"' in NUMBERS.read_text() else 0


def whole_page(numbers: dict[str, Any]) -> str:
    """The page, from the stored numbers and the jobs."""
    jobs = {study: yaml.safe_load((JOBS / f"{study}.yaml").read_text()) for study in (*STUDIES, *hospitals.STUDIES)}
    return "\n".join(
        [page(numbers, jobs), hospitals.section(numbers, jobs), tuning.section(numbers), attack.section(numbers)]
    )


if __name__ == "__main__":
    sys.exit(main())
