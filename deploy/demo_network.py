"""`make demo-network`: a coordinator and three hospitals as separate processes over TLS, five rounds, the reports.

Each has its own folder, keys and images; everything that is started is ended again. Afterwards the same job is run in
one process, to see that it gives the same global model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy.local_network import COMMAND, LocalNetwork, consilium
from shared_models.errors import ConsiliumError
from shared_models.job_file import load_job
from shared_models.supervision import QUIET

HIPPOCAMPUS = "hippocampus"


def main() -> int:
    """Runs the demonstration; returns the exit code."""
    began = time.monotonic()
    folder = Path("runs") / f"network-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    data = Path(os.environ.get("CONSILIUM_SHARED_DATA") or "../shared/data") / HIPPOCAMPUS
    job_path, data_dir = (
        (Path("examples/network.yaml"), data) if data.is_dir() else (Path("examples/network-phantom.yaml"), None)
    )
    job = load_job(job_path)
    print(f"{job.name}: made a federation of three hospitals in {folder}, as these commands do:")
    for line in (
        "consilium coordinator init --name demo --address 127.0.0.1:PORT",
        "consilium site init --name hospital-1                          # at each hospital",
        "consilium coordinator admit request.json",
        "consilium site join kit.json --manifest manifest.csv --trust SHA256:...",
    ):
        print(f"  {line}")
    with LocalNetwork(folder, job, data_dir) as network:
        print("Starting the coordinator and three daemons, each a process with its own folder and keys ...", flush=True)
        network.start()
        print(
            f"All are connected after {time.monotonic() - began:.0f} s. consilium coordinator run {job_path}",
            flush=True,
        )
        command = [COMMAND, "coordinator", "run", str(job_path), "--home", str(network.home)]
        code = subprocess.run(command, env={**os.environ, **QUIET}, check=False).returncode
        if code:
            return code
        for name in network.sites:
            verified = consilium("site", "ledger", "verify", "--config", network.site_yaml(name)).stdout
            entries = verified.split(" is whole: ")[1].split(",")[0]
            report = next(network.work(name).glob("runs/*/report.html"))
            print(f"{name}: its own report {os.path.relpath(report)}; ledger whole, {entries}")
    print("Everything that was started has ended. The same job in one process:", flush=True)
    simulated = folder / "simulated"
    data_option = ["--data-dir", data_dir] if data_dir else []
    consilium("simulate", job_path, *data_option, "--compare", "none", "--workers", 2, "--out", simulated)
    over_tls, in_process = _fingerprint(next((network.home / "runs").iterdir())), _fingerprint(simulated)
    same = over_tls == in_process
    print(f"  over the network {over_tls[:32]}...\n  in one process   {in_process[:32]}...")
    print(f"{'The same' if same else 'NOT the same'} global model. {time.monotonic() - began:.0f} s in all.")
    return 0 if same else 1


def _fingerprint(run: Path) -> str:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return str(report["run"]["fingerprint"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConsiliumError as error:
        sys.exit(f"demo-network: {error}")
