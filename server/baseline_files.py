"""The models that the federated one is compared with, on disk: trained once, and found again by a resumed run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.checkpoint import load_weights, save_weights, write_atomically
from server.events import EventLog
from shared_models.job import Job
from shared_models.weights import Weights, fingerprint


def model_path(run_dir: Path, name: str) -> Path:
    """Of a baseline's weights; where they are, it is finished, and a note in JSON lies beside it."""
    return run_dir / "models" / f"{name.replace(':', '-')}.safetensors"


def read_note(run_dir: Path, name: str) -> dict[str, Any]:
    """How a finished baseline was trained: `model`, `steps`, `seconds`, `best_round` and the validation `curve`."""
    content: dict[str, Any] = json.loads(model_path(run_dir, name).with_suffix(".json").read_text())
    return content


def keep_baseline(run_dir: Path, job: Job, weights: Weights, note: dict[str, Any], events: EventLog) -> None:
    """Writes a baseline that was just trained, the weights last."""
    path = model_path(run_dir, note["model"])
    write_atomically(path.with_suffix(".json"), json.dumps(note).encode())
    notes = {"job_hash": job.fingerprint(), "round": note["best_round"], "fingerprint": fingerprint(weights)}
    save_weights(path, weights, **notes)
    events.emit("baseline_finished", **note)


def is_finished(run_dir: Path, name: str, events: EventLog) -> bool:
    """Whether a baseline was finished before the run was resumed; then the event is put on record again."""
    if not model_path(run_dir, name).exists():
        return False
    events.emit("baseline_finished", **read_note(run_dir, name))
    return True


def saved(run_dir: Path, name: str) -> Weights | None:
    """The weights of a finished baseline."""
    path = model_path(run_dir, name)
    return load_weights(path) if path.exists() else None
