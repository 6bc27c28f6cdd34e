"""A GAN over TLS whose discriminators and normalisation stay at the hospitals: the same model, nothing else left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.local_network import LocalNetwork, consilium
from server.checkpoint import load_weights
from shared_models.job_file import load_job
from shared_models.weights import fingerprint
from tests.conftest import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

SITES = 2


@pytest.fixture(scope="module")
def job_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's example as a job that takes noise out of its images."""
    values = yaml.safe_load((ROOT / "examples" / "network-phantom.yaml").read_text())
    values |= {
        "name": "denoise",
        "task": {"kind": "translation", "how": {"mode": "paired", "noise": 0.1}},
        "data": {
            "spatial_dims": 2,
            "images": ["image"],
            "label": "image",
            "crop": [64, 64],
            "normalisation": "minmax",
        },
        "model": {
            "name": "pix2pix",
            "arguments": {"channels": [4, 8, 16], "discriminator_channels": 4, "discriminator_layers": 2},
        },
    }
    values["training"] = {"local_steps": 2, "batch_size": 4, "optimizer": {"name": "adam", "beta": 0.5}}
    share = {"networks": "generators", "normalisation": "nothing"}
    values["federation"] = {"rounds": 2, "quorum": SITES, "share": share}
    values["simulation"]["hospitals"] = SITES
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def network(job_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNetwork]:
    """A coordinator and two hospitals that have run the job."""
    with LocalNetwork(tmp_path_factory.mktemp("network"), load_job(job_path), None) as started:
        started.start()
        done = started.run("run", job_path)
        assert done.returncode == 0, done.stdout + done.stderr
        yield started


def test_the_network_gives_the_model_of_the_simulation_bit_for_bit(
    network: LocalNetwork, job_path: Path, tmp_path: Path
) -> None:
    consilium("simulate", job_path, "--compare", "none", "--workers", SITES, "--out", tmp_path / "run")
    ours, theirs = (
        load_weights(folder / "models" / "federated-last.safetensors") for folder in (run_of(network), tmp_path / "run")
    )
    assert fingerprint(ours) == fingerprint(theirs)
    evaluations = json.loads((run_of(network) / "evaluations.json").read_text())
    assert evaluations["models"]["federated"]["all"]["psnr"]["value"] > 0


def test_what_stays_is_at_each_hospital_and_in_no_line_of_its_ledger(network: LocalNetwork) -> None:
    left = {tensor["name"] for name in network.sites for tensor in tensors_in_ledger(network, name)}
    assert left and all(name.startswith("generator.") for name in left)
    own = [load_weights(next(network.work(name).glob("own/*/round-000002.safetensors"))) for name in network.sites]
    assert any(name.startswith("model/discriminator.") for name in own[0])
    assert not left & {name.removeprefix("model/") for name in own[0]}
    assert fingerprint(own[0]) != fingerprint(own[1])


def test_each_hospital_sees_its_own_images_before_and_after(network: LocalNetwork) -> None:
    for name in network.sites:
        own = next(network.work(name).glob("runs/*/report.html")).read_text()
        assert "data:image/png" in own and "PSNR" in own
    assert not list(network.home.rglob("*.png"))


def run_of(network: LocalNetwork) -> Path:
    return next((network.home / "runs").iterdir())


def tensors_in_ledger(network: LocalNetwork, name: str) -> list[dict[str, object]]:
    """Those of the answers to train messages."""
    entries = [json.loads(line) for line in (network.work(name) / "ledger.jsonl").read_text().splitlines()]
    return [tensor for entry in entries if entry.get("question") == "train" for tensor in entry.get("tensors", [])]
