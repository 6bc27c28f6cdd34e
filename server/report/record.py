"""What a run directory holds, read without trusting that the run came to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.events import Event, read_events
from shared_models.errors import BadInput
from shared_models.job import Job


@dataclass(frozen=True)
class RunRecord:
    """The files of a run directory that the report is made from."""

    folder: Path
    run: dict[str, Any]
    job: Job
    job_text: str
    events: list[Event]
    split: dict[str, Any] | None
    evaluations: dict[str, Any] | None
    plan: dict[str, Any] | None = None

    def all(self, kind: str) -> list[Event]:
        """The events of one kind, in the order they happened."""
        return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> Event | None:
        """The last event of one kind, or None."""
        return next((event for event in reversed(self.events) if event["event"] == kind), None)


def read_record(folder: Path) -> RunRecord:
    """Read a run directory, of a run that is complete, stopped, killed or still going on.

    Raises:
        BadInput: the folder is no run directory, or one of its JSON or YAML files cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise BadInput(f"{folder}: no run.json in it, so this is not a run directory; name one that a run wrote")
    job_text = _read_text(folder / "job.yaml")
    try:
        job = Job.model_validate(yaml.safe_load(job_text))
    except (yaml.YAMLError, ValidationError) as error:
        raise BadInput(f"{folder / 'job.yaml'}: not the resolved job of a run: {error}") from error
    events = folder / "events.jsonl"
    return RunRecord(
        folder=folder,
        run=_read_json(folder / "run.json"),
        job=job,
        job_text=job_text,
        events=list(read_events(events)) if events.exists() else [],
        split=_read_json_if_there(folder / "split.json"),
        evaluations=_read_json_if_there(folder / "evaluations.json"),
        plan=_read_json_if_there(folder / "plan.json"),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); the run directory is incomplete") from error


def _read_json_if_there(path: Path) -> dict[str, Any] | None:
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: not JSON (line {error.lineno}: {error.msg})") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
