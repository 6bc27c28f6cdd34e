"""Does every network of the zoo learn federatedly? Two rounds over three virtual hospitals, on real data of its kind.

    python benchmarks/zoo.py [--data FOLDER] [--only NAME ...] [--jobs 2]

FOLDER holds the data sets chase_retina, hippocampus, nih_cxr and pneumoniamnist. Each row is a fresh process, with the
network's default arguments: what falls from the first round to the second must fall, the model must not be the initial
one, and a run that is cut after the first round and resumed must end with the same fingerprint. The rows go into the
table of docs/models.md. Exit code 1 when one failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from zoo_data import SETS, write_data

if TYPE_CHECKING:
    from simulation.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"
ROUNDS = 2
LONGEST = 1800  # seconds of a row
MEASURED = ("parameters", "MB", "s a round", "peak MB", "what falls", "round 1", "round 2", "resumed", "result")
HEADERS = ("network", "dims", "images", "crop", *MEASURED)

TASKS: dict[str, dict[str, Any]] = {
    "paired translation": {"kind": "translation", "how": {"mode": "paired", "noise": 0.5}},
    "unpaired translation": {"kind": "translation", "how": {"mode": "unpaired", "domains": ["a", "b"]}},
    "synthesis": {"kind": "synthesis", "classes": ["a", "b"], "images_per_class": 20, "classifier_steps": 5},
    "reconstruction": {"kind": "anomaly", "classes": ["a", "b"]},
    "classification": {"kind": "classification", "classes": ["a", "b"]},
}
# An adversarial loss need not fall while both networks learn; images that come nearer to real ones are what is judged.
FALLS = {
    "paired translation": "loss of the generator (L1 and adversarial)",
    "unpaired translation": "loss of the generators (cycle, identity and adversarial)",
    "synthesis": "distance of synthetic images to real ones",
}
LOSS = "training loss"


def ability_of(name: str) -> str:
    """What a network is tried at."""
    from shared_models.zoo import MODELS

    return min(MODELS[name].tasks)


def job_for(name: str, dims: int) -> dict[str, Any]:
    """The job of a row."""
    ability = ability_of(name)
    images = SETS[ability, dims]
    optimizer = {"name": "adam", "beta": 0.5} if ability in FALLS else {"name": "adamw"}
    return {
        "name": f"{name.replace('_', '-')}-{dims}d",
        "task": TASKS.get(ability) or {"kind": "segmentation", "classes": images.classes},
        "data": {
            "spatial_dims": dims,
            "crop": images.crop,
            "label": "image" if ability == "paired translation" else "label",
            "normalisation": "minmax" if ability in ("synthesis", "reconstruction") else "zscore",
        },
        "model": {"name": name},
        "training": {
            "optimizer": {**optimizer, "learning_rate": images.learning_rate},
            "batch_size": images.batch_size,
            "local_steps": images.steps,
        },
        "federation": {"rounds": ROUNDS},
        "evaluation": {"bootstrap": 0, "every": 1 if ability == "synthesis" else 0},
        "simulation": {
            "dataset": {"name": "folder", "table": images.table, "columns": images.columns},
            "partition": {"name": "iid"},
            "hospitals": 3,
        },
    }


def try_row(name: str, dims: int, data: Path, folder: Path) -> dict[str, Any]:
    """The measurements of a row, in this process.

    Raises:
        ConsiliumError: the job is not what it should be, or a run stopped.
    """
    from server.checkpoint import load_weights
    from server.events import read_events
    from shared_models.weights import fingerprint, travelling
    from shared_models.zoo import build
    from simulation.run_folder import SimulationRequest, create, reopen

    (folder / "job.yaml").write_text(yaml.safe_dump(job_for(name, dims)))
    whole, cut = folder / "whole", folder / "cut"
    run = create(SimulationRequest(folder / "job.yaml", data, whole, workers=1, compare=(), device="cpu"))
    network = build(run.job)
    initial = fingerprint(travelling(network))
    size = sum(array.nbytes for array in travelling(network).values())

    def cut_off(event: dict[str, Any]) -> None:
        # What a power cut in the second round would leave.
        if event["event"] == "round_started" and event["round"] == ROUNDS:
            shutil.copytree(whole, cut)

    federate(run, cut_off)
    federate(reopen(cut), lambda event: None)
    last, resumed = (fingerprint(load_weights(end / "models" / "federated-last.safetensors")) for end in (whole, cut))
    events = list(read_events(whole / "events.jsonl"))
    first_value, second_value = values_of(ability_of(name), events)
    problems = {
        "it does not fall": second_value >= first_value,
        "the model is still the initial one": last == initial,
        "the resumed run ends with another model": last != resumed,
    }
    found = "; ".join(said for said, wrong in problems.items() if wrong)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "MB": round(size / 1e6, 2),
        "s a round": round([event["seconds"] for event in events if event["event"] == "round_finished"][-1], 1),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
        "what falls": FALLS.get(ability_of(name), LOSS),
        "round 1": f"{first_value:.4g}",
        "round 2": f"{second_value:.4g}",
        "resumed": "same model" if last == resumed else "another model",
        "result": f"failed: {found}" if found else "ok",
    }


def federate(run: RunFolder, listener: Callable[[dict[str, Any]], None]) -> None:
    """Runs the rounds that are left, in this process, with nothing after them."""
    from server.app import make_server_app
    from server.events import EventLog
    from simulation import engine

    events = EventLog(run.path / "events.jsonl", (listener,))
    app = make_server_app(run.job, run.path, events, after=lambda grid, result: None)
    engine.run_in_processes(app, run.nodes(), workers=1, threads=1)
    events.close()


def values_of(ability: str, events: list[dict[str, Any]]) -> tuple[float, float]:
    """What falls, in both rounds."""
    if ability == "synthesis":
        first, second = (event["metrics"]["nearest_synthetic"] for event in events if event["event"] == "validated")
    else:
        first, second = (event["loss"] for event in events if event["event"] == "round_finished")
    return first, second


def row_in_a_process(name: str, dims: int, data: Path) -> dict[str, str]:
    """The whole row; peak memory is only known of a process that did nothing else."""
    images = SETS[ability_of(name), dims]
    row: dict[str, str] = dict.fromkeys(HEADERS, "") | {
        "network": name,
        "dims": f"{dims}D",
        "images": images.table.partition(".")[0],
        "crop": "x".join(map(str, images.crop)),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--row", name, str(dims), str(data), folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
        except subprocess.TimeoutExpired:
            return row | {"result": f"failed: not done in {LONGEST} s"}
    if done.returncode:
        # Without a word where it was killed, as when the machine has no memory left.
        said = done.stderr.strip() or f"the process ended with {done.returncode}"
        return row | {"result": f"failed: {said.splitlines()[-1]}"}
    return row | {key: str(value) for key, value in json.loads(done.stdout.splitlines()[-1]).items()}


def line(row: dict[str, str]) -> str:
    """A row as Markdown."""
    return f"| {' | '.join(cell.replace('|', '/') for cell in row.values())} |"


def write_table(rows: list[dict[str, str]], page: Path) -> None:
    """Puts rows into a page, between the markers: in the order of the registry, beside the rows of other networks."""
    from shared_models.zoo import MODELS

    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    table, _, after = rest.partition(END)
    lines = {tuple(old.strip("| ").split(" | ")[:2]): old for old in table.split("\n")[3:-1]}
    lines |= {(row["network"], row["dims"]): line(row) for row in rows}
    places = [(name, f"{dims}D") for name, kind in MODELS.items() for dims in sorted(kind.spatial_dims)]
    head = [f"| {' | '.join(HEADERS)} |", f"|{'---|' * len(HEADERS)}"]
    body = [lines[place] for place in places if place in lines]
    page.write_text("\n".join([before + BEGIN, *head, *body, END + after]), encoding="utf-8")


def main() -> None:
    """Parses the arguments and tries the networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="these networks; the rows of others stay as they are")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page with the table")
    parser.add_argument("--jobs", type=int, default=2, help="rows at once, each with one thread")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)  # how this script calls itself
    arguments = parser.parse_args()
    if arguments.row:
        name, dims, data, folder = arguments.row
        print(json.dumps(try_row(name, int(dims), Path(data), Path(folder))))
        return
    from shared_models.zoo import MODELS

    names = arguments.only or list(MODELS)
    for name in names:
        if name not in MODELS:
            sys.exit(f"there is no model '{name}'; the zoo has {', '.join(MODELS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_data(arguments.data, Path(folder))
        os.environ["CONSILIUM_CACHE"] = f"{folder}/cache"
        tries = [(name, dims, Path(folder)) for name in names for dims in sorted(MODELS[name].spatial_dims)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for row in pool.map(row_in_a_process, *zip(*tries, strict=True)):
                rows.append(row)
                print(line(row), flush=True)
                write_table([row], arguments.page)
    failed = [row for row in rows if row["result"] != "ok"]
    sys.exit(f"{len(failed)} of {len(rows)} rows failed" if failed else 0)


if __name__ == "__main__":
    main()
