"""Does the server's memory grow with the number of sites? Peak memory of the aggregating process for 2, 8 and 32 sites.

    python benchmarks/server_memory.py

Real sites in two worker processes train a 20 M-parameter network for two rounds. Each line is a fresh process; the
memory is the peak resident set of the process that aggregates, in which the shared pages of one reply are counted too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from workload import SIDE, WORKLOADS

CODE = """
import resource, sys
from pathlib import Path
from simulation.run import simulate
from simulation.run_folder import SimulationRequest
simulate(SimulationRequest(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), workers=2, compare=()))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_data(folder: Path, sites: int) -> None:
    """Writes data.npz: 10 images for each of so many hospitals."""
    count = 10 * sites
    rng = np.random.default_rng(0)
    hospital = np.array([f"site-{i % sites:02d}" for i in range(count)])
    images = rng.integers(0, 255, (count, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(count) // sites % 2
    np.savez(folder / "data.npz", images=images, labels=labels, patient=np.arange(count).astype(str), hospital=hospital)


def main() -> None:
    """Runs the three sizes and prints a line each."""
    first = None
    print(f"{'sites':>6}{'peak of the aggregating process':>34}{'to 2 sites':>12}")
    for sites in (2, 8, 32):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder, sites)
            job = folder / "job.yaml"
            job.write_text(yaml.safe_dump(replace(WORKLOADS["large"], batch=10, rounds=2).job()))
            found = subprocess.run(
                [sys.executable, "-c", CODE, str(job), name, f"{name}/run"],
                env={**os.environ, "CONSILIUM_CACHE": f"{name}/cache"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            used = [
                json.loads(line)["site"]
                for line in (folder / "run" / "events.jsonl").read_text().splitlines()
                if '"used"' in line
            ]
            assert len(used) == 2 * sites, "not every site took part in both rounds"
        peak = int(found.stdout.split("peak ")[-1])
        first = first or peak
        print(f"{sites:>6}{peak / 1e9:>31.2f} GB{peak / first:>12.2f}")


if __name__ == "__main__":
    main()
