"""How close is `consilium simulate` to a plain training loop, and to Flower's own simulation, in one run?

    python benchmarks/engine.py [--workload small|large] [--without flower] [--repeat N]

Each contender is a fresh process. Wall time counts from its start; a round is the median of the rounds after the first;
memory is the peak of the proportional set size (shared pages counted once) of the process and all its children.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
import yaml
from workload import FIRST_STEP, WORKLOADS, Workload, write_data

HERE = Path(__file__).parent
MEMORY_PERIOD = 0.5  # seconds; reading a process's pages costs milliseconds of the cores that are being measured
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass
class Measurement:
    """Seconds and bytes of one contender."""

    total: float
    first_step: float
    round: float
    memory: int


def measure(command: list[str], folder: Path, run_dir: Path | None) -> Measurement:
    """Runs a contender, reading what it tells on standard output, or a run's events where there is a run directory."""
    told: list[tuple[str, float]] = []
    began, wall = time.monotonic(), time.time()
    with (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **QUIET}, cwd=folder
        )
        peak = [0]
        watcher = threading.Thread(target=watch_memory, args=(process.pid, peak), daemon=True)
        watcher.start()
        assert process.stdout
        for line in process.stdout:
            if line.startswith('{"event"'):
                told.append((json.loads(line)["event"], time.monotonic() - began))
        status = process.wait()
    total = time.monotonic() - began
    if status not in (0, 4):
        sys.exit(f"{' '.join(command)} ended with {status}:\n{(folder / 'errors.txt').read_text()[-3000:]}")
    if run_dir:
        told = told_by_events(run_dir, wall)
    if (folder / FIRST_STEP).exists():
        told.append(("first_step", (folder / FIRST_STEP).stat().st_mtime - wall))
        (folder / FIRST_STEP).unlink()
    rounds = [at for event, at in told if event == "round"]
    first = next(at for event, at in told if event == "first_step")
    return Measurement(total, first, median(b - a for a, b in pairwise(rounds)), peak[0])


def told_by_events(run_dir: Path, wall: float) -> list[tuple[str, float]]:
    """The same from the event stream of Consilium; the first step comes right after the first round's start."""
    names = {"round_started": "first_step", "round_finished": "round"}
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [
        (names[event["event"]], datetime.fromisoformat(event["time"]).timestamp() - wall)
        for event in events
        if event["event"] in names
    ]


def watch_memory(pid: int, peak: list[int]) -> None:
    """Keeps the largest sum of proportional set sizes of a process and its children."""
    while True:
        try:
            root = psutil.Process(pid)
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            peak[0] = max(peak[0], total)
        except psutil.NoSuchProcess:
            return
        time.sleep(MEMORY_PERIOD)


def contenders(workload: Workload, folder: Path, without: list[str]) -> dict[str, tuple[list[str], Path | None]]:
    """Name -> command and, for Consilium, the run directory."""
    job, run_dir = folder / f"{workload.name}.yaml", folder / f"run-{workload.name}-{time.time_ns()}"
    job.write_text(yaml.safe_dump(workload.job()))
    python = [sys.executable]
    plain = [*python, str(HERE / "plain_loop.py"), workload.name, str(folder)]
    consilium = [str(Path(sys.executable).parent / "consilium"), "simulate", str(job), "--data-dir", str(folder)]
    everybody: dict[str, tuple[list[str], Path | None]] = {
        "plain loop, 2 processes of 1 thread": ([*plain, "2", "1"], None),
        "plain loop, 1 process of 2 threads": ([*plain, "1", "2"], None),
        "consilium simulate": ([*consilium, "--compare", "none", "--out", str(run_dir)], run_dir),
        "Flower on Ray, 2 actors": ([*python, str(HERE / "bare_flower.py"), workload.name, str(folder)], None),
    }
    return {name: how for name, how in everybody.items() if not any(word in name.lower() for word in without)}


def compare(workload: Workload, folder: Path, without: list[str], repeat: int) -> None:
    """Runs all contenders in turn, `repeat` times, and prints the best of each and the ratios."""
    best: dict[str, Measurement] = {}
    for _ in range(repeat):
        for name, (command, run_dir) in contenders(workload, folder, without).items():
            found = measure(command, folder, run_dir)
            best[name] = min(best.get(name, found), found, key=lambda m: m.round)
    plain = min(m.round for name, m in best.items() if name.startswith("plain"))
    print(f"\n{workload.name}: {workload.rounds} rounds, 8 sites, {workload.steps} steps of {workload.batch} images")
    print(f"{'':38}{'in all':>9}{'to 1st step':>13}{'a round':>10}{'memory':>10}{'round / plain':>15}")
    for name, m in best.items():
        print(
            f"{name:38}{m.total:>7.1f} s{m.first_step:>11.1f} s{m.round:>8.2f} s{m.memory / 1e9:>7.2f} GB"
            f"{m.round / plain:>15.2f}"
        )


def main() -> None:
    """Parses the arguments and runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, action="append")
    parser.add_argument("--without", action="append", default=[], help="a word in the names of contenders to leave out")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name))
        os.environ["CONSILIUM_CACHE"] = f"{name}/cache"
        for workload in arguments.workload or WORKLOADS:
            compare(WORKLOADS[workload], Path(name), arguments.without, arguments.repeat)


if __name__ == "__main__":
    main()
