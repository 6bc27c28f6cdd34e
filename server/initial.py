"""The network that a run starts from: made from the job's seed, or from a file with pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from server.checkpoint import load_weights, save_weights, write_atomically
from shared_models.job import Job
from shared_models.weights import load, travelling
from shared_models.zoo import build


def initial_network(job: Job, run_dir: Path) -> tuple[nn.Module, dict[str, Any] | None]:
    """The network, and how the file with pretrained weights fitted it; None where the job names no file.

    The file is read once, here and at no site; the weights are kept in the run's folder, so that a resumed run and the
    baselines begin with the same. What a site keeps for itself of a GAN, its discriminators, begins without them.

    Raises:
        BadInput: the file cannot be used.
        RunStopped: the run's folder cannot be written.
    """
    network = build(job)
    if job.model.pretrained is None:
        return network, None
    path = run_dir / "models" / "initial.safetensors"
    note = path.with_suffix(".json")
    if path.exists():
        load(network, load_weights(path))
        content: dict[str, Any] = json.loads(note.read_text())
        return network, content
    from shared_models.zoo.pretrained import load_pretrained

    content = load_pretrained(network, Path(job.model.pretrained)).to_json()
    # The weights last: where they are, the note is whole.
    write_atomically(note, json.dumps(content).encode())
    save_weights(path, travelling(network), job_hash=job.fingerprint(), round=0)
    return network, content
