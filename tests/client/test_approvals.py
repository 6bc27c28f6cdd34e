"""What a hospital has decided about jobs: it lasts, it is for one job only, and a person decides."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.approvals import Approval, decide, difference, find, job_of, last_approved, list_jobs, note_job, what_leaves
from client.policy import Policy
from shared_models.errors import BadInput
from shared_models.job import Job

ASK, AUTOMATIC = Policy(), Policy(approve="automatic")
NOW = datetime(2030, 5, 4, 12, 0, tzinfo=UTC)


def make_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "name": "vessels",
        "task": {"kind": "segmentation", "classes": ["background", "vessel"]},
        "data": {"spatial_dims": 2, "crop": [32, 32]},
        "model": {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}},
        "training": {"local_steps": 20},
        "federation": {"rounds": 10},
    }
    return Job.model_validate(values | changes)


def note(folder: Path, job: Job, policy: Policy = ASK, **changes: Any) -> Approval:
    values: dict[str, Any] = {"run": "first", "federation": "liver", "now": NOW}
    return note_job(folder, job, policy=policy, patients={"train": 30}, cases={"train": 60}, **(values | changes))


def say(folder: Path, which: str, state: Any, **changes: Any) -> Approval:
    values: dict[str, Any] = {"by": "A. Head", "why": "reasons", "now": NOW, "record": lambda approval: None}
    return decide(folder, which, state, **(values | changes))


def test_a_new_job_waits_and_stays_as_it_was_decided(tmp_path: Path):
    job = make_job()
    assert note(tmp_path, job).state == "waiting"
    assert say(tmp_path, "vessels", "approved").state == "approved"
    again = note(tmp_path, job, run="second")
    assert (again.state, again.by, again.run) == ("approved", "A. Head", "second")
    assert job_of(again) == job
    [path] = tmp_path.glob("*.json")
    assert path.name == f"{job.fingerprint()}.json"


def test_any_change_of_an_approved_job_waits_again(tmp_path: Path):
    note(tmp_path, make_job())
    say(tmp_path, "vessels", "approved")
    assert note(tmp_path, make_job(federation={"rounds": 11})).state == "waiting"
    assert note(tmp_path, make_job(seed=1)).state == "waiting"


def test_an_approval_is_for_one_federation(tmp_path: Path):
    note(tmp_path, make_job())
    say(tmp_path, "vessels", "approved")
    assert note(tmp_path, make_job(), federation="lung").state == "waiting"


def test_a_policy_may_approve_at_once_but_what_a_person_said_stands(tmp_path: Path):
    first = note(tmp_path, make_job(), AUTOMATIC)
    assert (first.state, first.by) == ("approved", "policy")
    say(tmp_path, "vessels", "withdrawn")
    assert note(tmp_path, make_job(), AUTOMATIC).state == "withdrawn"


def test_an_approval_by_the_policy_ends_when_the_policy_asks(tmp_path: Path):
    note(tmp_path, make_job(), AUTOMATIC)
    assert note(tmp_path, make_job(), ASK).state == "waiting"
    note(tmp_path, make_job(seed=1), AUTOMATIC)
    say(tmp_path, make_job(seed=1).fingerprint(), "approved")
    assert note(tmp_path, make_job(seed=1), ASK).state == "approved"


def test_decisions_that_make_no_sense_are_refused(tmp_path: Path):
    note(tmp_path, make_job())
    with pytest.raises(BadInput, match="is waiting, and cannot be withdrawn"):
        say(tmp_path, "vessels", "withdrawn")
    say(tmp_path, "vessels", "approved")
    with pytest.raises(BadInput, match="withdraw it instead"):
        say(tmp_path, "vessels", "refused")
    with pytest.raises(BadInput, match="is approved already"):
        say(tmp_path, "vessels", "approved")
    say(tmp_path, "vessels", "withdrawn")
    assert say(tmp_path, "vessels", "approved", why="").state == "approved"


@pytest.mark.parametrize(
    "wrong", [{"by": ""}, {"by": "policy"}, {"why": " "}, {"why": "two\nlines"}, {"by": "\x1b[2J"}, {"why": "x" * 501}]
)
def test_a_decision_needs_a_person_and_a_reason_of_one_line(tmp_path: Path, wrong: dict[str, str]):
    note(tmp_path, make_job())
    with pytest.raises(BadInput):
        say(tmp_path, "vessels", "refused", **wrong)
    assert find(tmp_path, "vessels").state == "waiting"


def test_a_decision_that_cannot_be_recorded_does_not_take_effect(tmp_path: Path):
    def full(approval: Approval) -> None:
        raise OSError(28, "No space left on device")

    note(tmp_path, make_job())
    with pytest.raises(OSError):
        say(tmp_path, "vessels", "approved", record=full)
    assert find(tmp_path, "vessels").state == "waiting"
    seen: list[Approval] = []
    say(tmp_path, "vessels", "approved", record=seen.append)
    assert [(approval.state, approval.by) for approval in seen] == [("approved", "A. Head")]


def test_a_job_is_found_by_name_or_hash_and_never_by_guess(tmp_path: Path):
    one, two = note(tmp_path, make_job()), note(tmp_path, make_job(seed=1))
    assert find(tmp_path, one.job_hash[:12]) == one
    assert find(tmp_path, two.job_hash) == two
    with pytest.raises(BadInput, match=f"2 jobs are called 'vessels'.*{one.job_hash[:12]}"):
        find(tmp_path, "vessels")
    for which in ("lungs", one.job_hash[:3], "", "*", "../" + one.job_hash[:12]):
        with pytest.raises(BadInput, match="there is no job"):
            find(tmp_path, which)
    # A job whose name is another's hash takes neither's place.
    note(tmp_path, make_job(name=one.job_hash[:12]))
    with pytest.raises(BadInput, match="2 jobs are called"):
        find(tmp_path, one.job_hash[:12])


def test_the_newest_job_stands_last(tmp_path: Path):
    for seed in (3, 1, 2):
        note(tmp_path, make_job(seed=seed), now=NOW + timedelta(minutes=seed))
    assert [approval.job["seed"] for approval in list_jobs(tmp_path)] == [1, 2, 3]
    assert list_jobs(tmp_path / "none") == []


def test_what_differs_from_the_last_approved_version_is_named_by_key(tmp_path: Path):
    for minute, seed in enumerate((1, 2, 3)):
        note(tmp_path, make_job(seed=seed))
        if seed < 3:
            say(tmp_path, make_job(seed=seed).fingerprint(), "approved", now=NOW + timedelta(minutes=minute))
    new = note(
        tmp_path,
        make_job(
            seed=2,
            training={"local_epochs": 1},
            model={"name": "unet", "arguments": {"channels": [4, 16], "strides": [2], "num_res_units": True}},
        ),
    )
    last = last_approved(tmp_path, new)
    assert last is not None
    assert last.job["seed"] == 2
    assert dict((path, (old, here)) for path, old, here in difference(new.job, last.job)) == {
        "model.arguments.channels": ([4, 8], [4, 16]),
        "model.arguments.num_res_units": (None, True),
        "training.local_epochs": (None, 1),
        "training.local_steps": (20, None),
    }
    assert difference(last.job, last.job) == []
    assert difference({"a": 1}, {"a": True}) == [("a", True, 1)]


def test_only_an_approved_job_of_the_same_name_and_federation_is_compared_with(tmp_path: Path):
    note(tmp_path, make_job(seed=1), federation="lung")
    note(tmp_path, make_job(seed=2, name="others"))
    note(tmp_path, make_job(seed=3))
    for seed in (1, 3):
        say(tmp_path, make_job(seed=seed).fingerprint(), "approved")
    say(tmp_path, "others", "approved")
    say(tmp_path, make_job(seed=3).fingerprint(), "withdrawn")
    assert last_approved(tmp_path, note(tmp_path, make_job())) is None


def damage_state(text: str) -> str:
    return text.replace('"waiting"', '"allowed"')


def damage_job(text: str) -> str:
    return text.replace('"rounds": 10', '"rounds": 1000')


@pytest.mark.parametrize(
    "damage", [damage_state, damage_job, lambda text: text[:-20], lambda text: "", lambda text: text + " " * 2**20]
)
def test_a_damaged_file_is_named_and_approves_nothing(tmp_path: Path, damage: Any):
    note(tmp_path, make_job())
    [path] = tmp_path.glob("*.json")
    path.write_text(damage(path.read_text()))
    for call in (list_jobs, lambda folder: find(folder, "vessels"), lambda folder: note(folder, make_job())):
        with pytest.raises(BadInput, match=f"{path} was damaged or edited"):
            call(tmp_path)


def test_a_file_under_the_name_of_another_job_approves_nothing(tmp_path: Path):
    note(tmp_path, make_job())
    [path] = tmp_path.glob("*.json")
    say(tmp_path, "vessels", "approved")
    other = make_job(federation={"rounds": 1000})
    path.rename(tmp_path / f"{other.fingerprint()}.json")
    with pytest.raises(BadInput, match="which its name does not say"):
        note(tmp_path, other)


def test_a_job_too_large_to_be_noted_spoils_nothing(tmp_path: Path):
    note(tmp_path, make_job())
    with pytest.raises(BadInput, match="larger than any job"):
        note(tmp_path, make_job(model={"name": "unet", "arguments": {"channels": ["x" * 1000] * 2000}}))
    with pytest.raises(BadInput, match="cannot be written down: run"):
        note(tmp_path, make_job(seed=1), run="../run")
    assert [approval.name for approval in list_jobs(tmp_path)] == ["vessels"]


def test_a_daemon_that_notes_a_job_never_undoes_what_a_person_decides_meanwhile(tmp_path: Path):
    """A real second process notes the same job over and over while decisions are taken."""
    job = make_job()
    note(tmp_path, job)
    program = (
        "import sys, pathlib, datetime, json\n"
        "from client.approvals import note_job; from client.policy import Policy; from shared_models.job import Job\n"
        "job = Job.model_validate(json.loads(sys.argv[2]))\n"
        "for n in range(300):\n"
        "    note_job(pathlib.Path(sys.argv[1]), job, run=f'run-{n}', federation='liver', policy=Policy(),\n"
        "        patients={'train': n}, cases={}, now=datetime.datetime.now(datetime.UTC))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(job.model_dump(mode="json"))]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root) as daemon:
        decided = 0
        while daemon.poll() is None or decided < 2:
            for state in ("approved", "withdrawn"):
                say(tmp_path, "vessels", state)
                assert find(tmp_path, "vessels").state == state
                decided += 1
    assert daemon.returncode == 0
    assert find(tmp_path, "vessels").state == "withdrawn"


def test_what_would_leave_is_said_in_words():
    lines = what_leaves(make_job(), ASK, tensors=12, megabytes=3.456)
    text = "\n".join(lines)
    assert "in each of 10 rounds: the model as trained here, 12 tensors, 3.46 MB" in text
    assert "dice, surface_dice, hd95, missed, false, calibration_error, brier" in text
    assert "500 random redraws" in text
    assert "alone" not in text and "beside" not in text and "groups" not in text
    federation = {"rounds": 10, "algorithm": {"name": "scaffold"}}
    more = make_job(federation=federation, evaluation={"subgroups": {"sex": ["F", "M"]}})
    text = "\n".join(what_leaves(more, ASK, tensors=12, megabytes=3.456))
    assert "needs beside it, " in text and "tensors such as control/" in text
    assert "by sex of the manifest, none of fewer than 10 patients" in text
    assert (
        "this site's patients alone" in what_leaves(make_job(), Policy(local_baseline=True), tensors=1, megabytes=1)[-1]
    )
