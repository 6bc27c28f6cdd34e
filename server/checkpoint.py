"""Atomic, resumable run state: killed at any moment, a run finds its last whole round.

A checkpoint is a safetensors file (global model and optimiser moments) and a JSON file with their fingerprints; the
JSON is renamed into place last, so a checkpoint is there whole or not at all. The last two are kept, and the best
of each.
There is no random state to keep: every draw derives from the job seed, the site's name and the round.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as to_safetensors

from server.optimizers import Moments
from shared_models.errors import BadInput, RunStopped
from shared_models.files import whole_file
from shared_models.weights import Weights, fingerprint

ALGORITHM = "algorithm"  # beside the names of moments
FORMAT = 3
"""Of a checkpoint; another one is refused, not guessed at."""


@dataclass
class RunState:
    """What the next round needs from the ones before it."""

    weights: Weights
    moments: Moments = field(default_factory=dict)
    round: int = 0
    fingerprint: str = ""
    best_round: int | None = None
    best_value: float | None = None
    """At all hospitals of `best_by_hospital` together; None where one of them was away from the best round."""
    without_better: int = 0
    """Validations since the best one."""
    algorithm: Weights = field(default_factory=dict)
    """The server's tensors of the algorithm, see `Algorithm.initial_state`."""
    algorithm_since: int = 0
    """The round behind which the algorithm began anew, as a site had lost its part of it; 0 where none has."""
    members: dict[str, int] = field(default_factory=dict)
    """What every site counts that the federation has met, whether it is there now or not: its cases, or 1."""
    last_used: dict[str, int] = field(default_factory=dict)
    """By site, the last round that its update is in: what the site had behind that round is what it goes on from."""
    best_used: dict[str, int] = field(default_factory=dict)
    """`last_used` as it was behind the best round: what stays at the sites is taken from there when it is judged."""
    best_by_hospital: dict[str, float | None] = field(default_factory=dict)
    """What `best_value` is of at each hospital: in the best round, or in the last best one that it was there for."""
    told_of_absence: bool = False
    """Whether the run has said that rounds are compared without hospitals that were away from one of them."""


class CheckpointStore:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path, job_hash: str) -> None:
        self.folder = folder
        self._job_hash = job_hash
        self._best_before: int | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, state: RunState, events_size: int) -> None:
        """Writes the state of a finished round, then drops what is no longer needed.

        Raises:
            RunStopped: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        tensors = {f"weights/{name}": array for name, array in state.weights.items()}
        for moment, arrays in state.moments.items():
            tensors |= {f"{moment}/{name}": array for name, array in arrays.items()}
        tensors |= {f"{ALGORITHM}/{name}": array for name, array in state.algorithm.items()}
        name = f"round-{state.round:05d}"
        note = {
            "format": FORMAT,
            "round": state.round,
            "best_round": state.best_round,
            "best_value": state.best_value,
            "without_better": state.without_better,
            "algorithm_since": state.algorithm_since,
            "members": state.members,
            "last_used": state.last_used,
            "best_used": state.best_used,
            "best_by_hospital": state.best_by_hospital,
            "told_of_absence": state.told_of_absence,
            "job_hash": self._job_hash,
            "events_size": events_size,
            "fingerprints": {
                "weights": state.fingerprint,
                **{moment: fingerprint(arrays) for moment, arrays in state.moments.items()},
                ALGORITHM: fingerprint(state.algorithm),
            },
        }
        write_atomically(self.folder / f"{name}.safetensors", to_safetensors(tensors))
        write_atomically(self.folder / f"{name}.json", json.dumps(note, indent=1).encode())
        # The best of the round before, too: should this checkpoint be damaged, that one is gone back to.
        wanted = {state.round, state.round - 1, state.best_round, self._best_before}
        keep = {f"round-{number:05d}" for number in wanted if number is not None}
        self._best_before = state.best_round
        # Also what a process that was killed in the middle of a write has left.
        for path in [*self.folder.glob("round-*"), *self.folder.glob(".round-*.tmp")]:
            if path.stem not in keep:
                path.unlink()

    def load(self, warn: Callable[[str], None]) -> tuple[RunState, int] | None:
        """The newest whole checkpoint and the size that the event log had then; None when no round was finished.

        A damaged checkpoint is said through `warn` and the one before it is taken: the round is run again.

        Raises:
            BadInput: checkpoints are there, but none can be read, or they are of another job.
        """
        notes = sorted(self.folder.glob("round-*.json"), reverse=True)
        for path in notes:
            try:
                return self._read(path)
            except (ValueError, KeyError, TypeError, AttributeError, OSError, safetensors.SafetensorError) as error:
                warn(f"checkpoint {path.with_suffix('.safetensors')} is damaged ({error}); going back one round")
        # The first round's tensors without a JSON file are those of a run that was killed between the two.
        lost = [path for path in self.folder.glob("round-*.safetensors") if path.stem != "round-00001"]
        if notes or lost:
            count = len(notes) or len(lost)
            raise BadInput(f"none of the {count} checkpoints in {self.folder} can be read; start a new run")
        return None

    def _read(self, note_path: Path) -> tuple[RunState, int]:
        note = json.loads(note_path.read_text())
        if note.get("format") != FORMAT:
            raise BadInput(
                f"{note_path} was written by another version of Consilium: end the run with that one, or start anew"
            )
        if note["job_hash"] != self._job_hash:
            raise BadInput(f"{note_path} is of another job than this run's job.yaml; restore the original job.yaml")
        moments = self._tensors(note["round"], note["fingerprints"])
        state = RunState(
            weights=moments.pop("weights"),
            algorithm=moments.pop(ALGORITHM),
            moments=moments,
            round=note["round"],
            fingerprint=note["fingerprints"]["weights"],
            best_round=note["best_round"],
            best_value=note["best_value"],
            without_better=note["without_better"],
            algorithm_since=note["algorithm_since"],
            members=note["members"],
            last_used=note["last_used"],
            best_used=note["best_used"],
            best_by_hospital=note["best_by_hospital"],
            told_of_absence=note["told_of_absence"],
        )
        self._best_before = state.best_round
        return state, int(note["events_size"])

    def _tensors(self, round_number: int, fingerprints: dict[str, str]) -> dict[str, Weights]:
        """The tensors of a checkpoint by group: `weights`, the algorithm's, the moments of the server optimiser."""
        content = (self.folder / f"round-{round_number:05d}.safetensors").read_bytes()
        groups: dict[str, Weights] = {group: {} for group in fingerprints}
        for key, array in parse_safetensors(content).items():
            group, _, name = key.partition("/")
            groups[group][name] = array
        for group, expected in fingerprints.items():
            found = fingerprint(groups[group])
            if found != expected:
                raise ValueError(f"its {group} have the fingerprint {found[:12]}…, expected {expected[:12]}…")
        return groups

    def weights_of(self, round_number: int) -> Weights:
        """The global model after a round that is still kept.

        Raises:
            BadInput: the checkpoint is gone or damaged.
        """
        path = self.folder / f"round-{round_number:05d}.json"
        try:
            return self._tensors(round_number, json.loads(path.read_text())["fingerprints"])["weights"]
        except (ValueError, KeyError, OSError, safetensors.SafetensorError) as error:
            raise BadInput(f"the model of round {round_number} cannot be read from {path}: {error}") from None


def save_weights(path: Path, weights: Weights, **notes: Any) -> None:
    """Writes a model as safetensors, with notes (job hash, round, fingerprint) in its header."""
    write_atomically(path, to_safetensors(weights, metadata={key: str(value) for key, value in notes.items()}))


def load_weights(path: Path) -> Weights:
    """Reads a model.

    Raises:
        BadInput: the file is missing or not safetensors.
    """
    try:
        return parse_safetensors(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{path} cannot be read as a model (safetensors): {error}") from None


def round_of(path: Path) -> int:
    """The round that a model written by `save_weights` is of."""
    with safetensors.safe_open(path, "numpy") as file:
        return int(file.metadata()["round"])


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        RunStopped: the disk is full or cannot be written; the file is as it was.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: OSError) -> RunStopped:
    """The sentence for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunStopped(
            f"the disk that holds {path.parent} is full; everything up to the last whole round is kept: "
            "free some space, then resume the run"
        )
    return RunStopped(f"{path} cannot be written ({error.strerror}); mend that, then resume the run")
