"""A real hospital decides: whose order it is, whether it allows it, what leaves of it, and what is written down."""

import resource
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import count

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from safetensors.numpy import load_file

from client.app import ANSWERS
from client.approvals import decide
from shared_models.faults import ORDERS, read_fault
from shared_models.flower_runtime import Bundle
from shared_models.job import Job
from shared_models.keys import new_signing_key
from shared_models.orders import sign_order
from shared_models.weights import from_record
from tests.client.asking import FLOWER_RUN, Coordinator, Here, hash_of
from tests.client.door import ASKED, JOB, WEIGHTS, serialised

NAME = "/data/patients/Jane Doe 1956.nii"
TRAIN, JUDGE = ASKED["train"][1], ASKED["evaluate"][1]
OTHER_JOB = Job.model_validate({**JOB.model_dump(), "seed": 3})


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    return Coordinator(tmp_path_factory.mktemp("federation"))


@pytest.fixture
def make(tmp_path, coordinator):
    numbers = count()

    def hospital(**policy):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return Here(folder, coordinator, **policy)

    return hospital


@pytest.fixture
def here(make):
    return make()


def refused(content, code):
    """Nothing but a fault with this code; returns the sentence that the coordinator makes of it."""
    assert set(content) == {"fault", "prepared"} and dict(content["prepared"]) == {"site": "here"}
    assert content["fault"]["code"] == code
    return read_fault(dict(content["fault"]))


# --- a good order ---


@pytest.mark.parametrize("question", ASKED)
def test_a_good_order_is_answered_and_written_down(here, question):
    kind, fields = ASKED[question]
    content = here.ask(kind)
    assert "fault" not in content
    [line] = here.lines()
    assert (line["kind"], line["question"], line["run"]) == ("answer", kind, "squares-20260101-000000")
    assert (line["job_hash"], line["version"], line["flower_run"]) == (JOB.fingerprint(), "0.1.0", str(FLOWER_RUN))
    assert {key: line[key] for key in ("round", "model", "split", "variant") if key in fields}.items() <= fields.items()
    left = {
        (record, name): hash_of(array)
        for record, arrays in content.array_records.items()
        for name, array in from_record(arrays).items()
    }
    assert {(tensor["record"], tensor["name"]): tensor["sha256"] for tensor in line["tensors"]} == left
    assert line["patients"] == {"evaluate": 4}.get(question, 6)


def test_the_hospital_gets_a_report_of_its_own_after_the_last_evaluation(here):
    here.ask("train")
    here.ask("evaluate")
    folder = here.config.work / "runs" / "squares-20260101-000000"
    page = (folder / "report.html").read_text()
    assert "here trained in 1 of 2 rounds" in page and "squares-20260101-000000" in page
    assert "could not be made" not in here.log()


def test_a_report_that_cannot_be_drawn_keeps_no_answer_back(here):
    (here.config.work / "runs").write_text("a file where the folder should be")
    assert "sums" in here.ask("evaluate")
    assert "the hospital's own report could not be made" in here.log()


# --- whose order is it? ---


def replaced(coordinator, old, new):
    """An order whose text was changed after it was signed."""
    text, signature = sign_order(coordinator.order("train"), coordinator.key)
    assert old in text
    return text.replace(old, new), signature


NOW = time.time
BAD = {
    "no signature": ("unsigned", lambda c: {"signature": None}),
    "no order": ("unsigned", lambda c: {"order": None, "signature": None}),
    "a number for an order": ("unsigned", lambda c: {"order": 5}),
    "the text altered": ("altered", lambda c: {"by": replaced(c, '"round":1', '"round":2'), "round": 2}),
    "the field altered": ("altered", lambda c: {"round": 2}),
    "a field of another type": ("altered", lambda c: {"round": 1.0}),
    "a field more": ("altered", lambda c: {"epochs": 5}),
    "another job": ("wrong_job", lambda c: {"by": c.order("train"), "job": OTHER_JOB}),
    "expired": ("expired", lambda c: {"by": c.order("train", issued=NOW() - 90, expires=NOW() - 30)}),
    "from the future": ("expired", lambda c: {"by": c.order("train", issued=NOW() + 3e3, expires=NOW() + 9e3)}),
    "another run's": ("replayed", lambda c: {"by": c.order("train", flower_run=FLOWER_RUN + 1)}),
    "another site's": ("wrong_site", lambda c: {"by": c.order("train", site="south")}),
    "another federation's": ("wrong_site", lambda c: {"by": c.order("train", federation="other")}),
    "another question's": ("altered", lambda c: {"by": c.order("train", question="train.alone")}),
    "another version's": ("wrong_version", lambda c: {"by": c.order("train", version="0.0.9")}),
    "a stranger's": ("untrusted", lambda c: {"by": sign_order(c.order("train"), new_signing_key())}),
    "a way out of the folder": ("malformed", lambda c: {"by": c.forged(c.order("train", run="../../x"))}),
    "an absolute path": ("malformed", lambda c: {"by": c.forged(c.order("train", run="/tmp/x"))}),
    "a run without a name": ("malformed", lambda c: {"by": c.forged(c.order("train", run=""))}),
    "a bomb": ("malformed", lambda c: {"by": ("[" * 60_000, "AAAA")}),
    "a large one": ("malformed", lambda c: {"by": (" " * 70_000, "AAAA")}),
}


@pytest.mark.parametrize("case", BAD)
def test_a_message_that_is_not_what_the_coordinator_ordered_is_refused_and_written_down(here, case):
    code, made = BAD[case]
    sentence = refused(here.ask("train", **made(here.coordinator)), "order")
    assert ORDERS[code] in sentence
    [line] = here.lines()
    assert (line["kind"], line["code"], line["sent"]) == ("refused", "order", sentence)
    assert sorted(path.name for path in here.config.work.iterdir() if path.is_dir()) == ["logs"]
    assert "weights" in here.ask("train"), "a good one is answered all the same"


def test_a_message_without_an_instruction_is_refused(here):
    message = here.message("train")
    message.content = RecordDict({"weights": message.content["weights"]})
    assert ORDERS["unsigned"] in refused(here.hospital.answer(message, "train", ANSWERS["train"]), "order")


def test_an_order_holds_once_even_when_the_worker_was_started_again(here):
    order = here.coordinator.order("train")
    assert "weights" in here.ask("train", order)
    assert ORDERS["replayed"] in refused(here.ask("train", order), "order")
    here.start()
    assert ORDERS["replayed"] in refused(here.ask("train", order), "order")
    assert "weights" in here.ask("train")


def test_a_record_of_used_orders_that_was_damaged_lets_nothing_pass(here):
    here.ask("train")
    (here.config.work / "orders.json").write_text("{")
    with pytest.raises(Exception, match=r"orders\.json cannot be read"):
        here.start()


# --- does the hospital allow it? ---


@pytest.mark.parametrize(
    ("kind", "policy", "rule", "says"),
    [
        ("train", {"coordinators": []}, "policy.coordinators", "allowed none"),
        ("train", {"tasks": ["segmentation"]}, "policy.tasks", "asked classification, allowed segmentation"),
        ("train", {"models": []}, "policy.models", "asked cnn, allowed none"),
        ("train", {"algorithms": ["other"]}, "policy.algorithms", "asked fedavg, allowed other"),
        ("train", {"max_rounds": 1}, "policy.max_rounds", "asked 2, allowed 1; passes with federation.rounds of at"),
        ("train", {"max_local_steps": 0}, "policy.max_local_steps", "allowed 0"),
        ("train", {"metrics": ["auroc"]}, "policy.metrics", "allowed auroc"),
        ("train", {"min_patients": 7}, "policy.min_patients", "asked 6 train patients, allowed at least 7"),
        ("evaluate", {"min_patients": 5}, "policy.min_patients", "asked 4 test patients, allowed at least 5"),
        ("train", {"protections": {"clip": 1.0}}, "policy.protections.clip", "asked none, allowed at most 1"),
        ("train", {"max_hours_per_day": 0}, "policy.max_hours_per_day", "allowed 0 h a day"),
        ("train.alone", {"local_baseline": False}, "policy.local_baseline", "allowed no"),
    ],
)
def test_what_the_policy_does_not_name_is_refused_with_the_rule_and_what_would_pass(make, kind, policy, rule, says):
    here = make(**policy)
    sentence = refused(here.ask(kind), "policy")
    assert f"{rule}: asked " in sentence and says in sentence and "passes with" in sentence
    [line] = here.lines()
    assert (line["kind"], line["code"], line["sent"]) == ("refused", "policy", sentence)


@pytest.mark.parametrize(
    ("kind", "fields", "rule"),
    [
        ("train", TRAIN | {"round": 3}, "order.round"),
        ("train", TRAIN | {"round": 0}, "order.round"),
        ("train", TRAIN | {"best_used": 9}, "order.best_used"),
        ("train", TRAIN | {"last_used": 9}, "order.last_used"),
        ("train", TRAIN | {"algorithm_since": 9}, "order.algorithm_since"),
        ("train", {}, "order.fields"),
        ("train.alone", {"steps": 10**9}, "order.steps"),
        ("evaluate", JUDGE | {"replicates": 10**6}, "order.replicates"),
        ("evaluate", JUDGE | {"split": "everything"}, "order.split"),
        ("evaluate", JUDGE | {"model": "../../x"}, "order.model"),
        ("evaluate", JUDGE | {"model": "/etc/x"}, "order.model"),
        ("evaluate", JUDGE | {"variant": "ensemble"}, "order.variant"),
    ],
)
def test_a_signed_order_cannot_ask_for_more_than_its_job(here, kind, fields, rule):
    order = here.coordinator.order(kind, fields=fields)
    assert f"{rule}: asked" in refused(here.ask(kind, order), "policy")
    assert not list(here.config.work.rglob("x*"))


def test_a_hospital_is_closed_outside_its_opening_hours(make):
    now = datetime.now()
    hours = "-".join(f"{now + timedelta(hours=after):%H:%M}" for after in (2, 3))
    assert hours in refused(make(opening_hours=hours).ask("train"), "closed")
    hours = "-".join(f"{now + timedelta(hours=after):%H:%M}" for after in (-1, 2))
    assert "weights" in make(opening_hours=hours).ask("train")


def test_hours_that_are_used_up_are_used_up_after_a_restart_as_well(make):
    here = make(max_hours_per_day=1e-9)
    assert "weights" in here.ask("train")
    assert "policy.max_hours_per_day" in refused(here.ask("train"), "policy")
    here.start()
    assert "policy.max_hours_per_day" in refused(here.ask("train"), "policy")


def test_hours_that_were_tampered_with_let_nothing_pass(here):
    (here.config.work / "hours.json").write_text('{"2026-01-01": []}')
    assert "log says why" in refused(here.ask("train"), "input")
    assert "hours.json cannot be read" in here.log()


def test_a_job_waits_for_a_person_who_approves_refuses_or_withdraws(make):
    here = make(approve="ask")

    def person(state, why=""):
        arguments = {"by": "dr-a", "why": why, "now": datetime.now(UTC), "record": lambda approval: None}
        decide(here.config.work / "jobs", "squares", state, **arguments)

    refused(here.ask("query.prepare"), "waiting")
    refused(here.ask("train"), "waiting")
    person("refused", "not this year")
    assert "this year" not in refused(here.ask("train"), "refused_by_hospital")
    person("approved")
    assert "prepared" in here.ask("query.prepare") and "weights" in here.ask("train")
    person("withdrawn", "a patient has objected")
    assert "patient" not in refused(here.ask("train"), "withdrawn")
    assert [line["kind"] for line in here.lines()] == ["fault", "fault", "fault", "answer", "answer", "fault"]


def test_another_version_of_an_approved_job_waits_again(make):
    here = make(approve="ask")
    refused(here.ask("train"), "waiting")
    now = datetime.now(UTC)
    decide(here.config.work / "jobs", "squares", "approved", by="dr-a", why="", now=now, record=lambda approval: None)
    assert "weights" in here.ask("train")
    refused(here.ask("train", job=OTHER_JOB), "waiting")


def test_a_manifest_that_leads_out_of_the_data_root_is_told_here_and_not_there(here, tmp_path):
    np.savez(tmp_path / "outside.npz", images=np.zeros((12, 16, 16), np.uint8))
    manifest = here.config.manifest
    manifest.write_text(manifest.read_text().replace("data.npz::images[1]", f"{tmp_path}/outside.npz::images[1]"))
    sentence = read_fault(dict(here.ask("query.prepare")["fault"]))
    assert "outside" not in sentence and "line 3" not in sentence
    assert "outside.npz, which is outside" in here.log() and "manifest.csv, line 3" in here.log()


# --- what leaves ---


class JaneDoe(RuntimeError):
    """An exception whose very name tells something."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(NAME), "error"),
        (JaneDoe(NAME), "error"),
        (KeyError(NAME), "error"),
        (OSError(28, "No space left on device", NAME), "disk"),
        (PermissionError(13, "Permission denied", NAME), "system"),
        (MemoryError(NAME), "memory"),
        (RecursionError(NAME), "error"),
    ],
)
def test_nothing_of_an_unforeseen_error_leaves_and_all_of_it_is_in_the_log(here, error, code):
    def answer(*_):
        raise error

    content = here.hospital.answer(here.message("train"), "train", answer)
    refused(content, code)
    assert b"Jane" not in serialised(content) and b"patients" not in serialised(content)
    assert "Jane Doe 1956" in here.log() and "Traceback" in here.log()
    assert NAME not in (here.config.work / "ledger.jsonl").read_text()


def test_an_answer_with_an_image_in_it_is_withheld_whole_and_written_down(here):
    def answer(site, job, content):
        good = ANSWERS["train"](site, job, content)
        good["weights"]["image"] = next(iter(good["weights"].values()))
        return good

    content = here.hospital.answer(here.message("train"), "train", answer)
    refused(content, "withheld")
    assert [line["kind"] for line in here.lines()] == ["withheld"]
    assert not any(isinstance(record, ArrayRecord) for record in content.values())


def test_a_bundle_is_noted_once_a_run_and_never_opened(here):
    for run in (1, 1, 2):
        here.hospital.note_bundle(run, Bundle("ab" * 32, 4711))
    lines = here.lines("bundle_ignored")
    assert [(line["flower_run"], line["sha256"], line["bytes"]) for line in lines] == [
        ("1", "ab" * 32, 4711),
        ("2", "ab" * 32, 4711),
    ]


def test_without_a_line_in_the_ledger_no_answer_leaves(here):
    here.ask("train")
    size = (here.config.work / "ledger.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))  # the next line of the ledger does not fit
    try:
        content = here.ask("train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "fault" in content and not content.array_records and not content.metric_records
    assert [line["kind"] for line in here.lines()] == ["answer"]
    assert "weights" in here.ask("train"), "and with room again it is answered"


def test_weights_that_are_not_the_models_are_a_fault(here):
    message = here.message("train")
    message.content["weights"] = ArrayRecord({"other": next(iter(message.content["weights"].values()))})
    refused(here.hospital.answer(message, "train", ANSWERS["train"]), "weights")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bytes_made_to_break_the_reader_are_a_fault(here):
    message, header = here.message("train"), b"{'descr': ("
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    message.content["weights"] = ArrayRecord({name: Array("f", (1,), "numpy.ndarray", data) for name in WEIGHTS})
    refused(here.hospital.answer(message, "train", ANSWERS["train"]), "weights")


def test_a_fine_tuned_model_stays_and_its_sums_leave(here):
    order = here.coordinator.order("evaluate", fields=JUDGE | {"model": "fine-tuned", "variant": "fine_tuned"})
    tuned = here.ask("evaluate", order)
    assert set(tuned) == {"sums"}
    [kept] = (here.config.work / "own" / order.run).glob("fine-tuned-*.safetensors")
    written = kept.stat().st_mtime_ns
    again = here.coordinator.order("evaluate", fields=order.fields)
    assert serialised(here.ask("evaluate", again)) == serialised(tuned) and kept.stat().st_mtime_ns == written
    assert [line["model"] for line in here.lines("answer")] == ["fine-tuned", "fine-tuned"]


def test_the_model_that_the_gate_chose_is_written_down_whole(here):
    order = here.coordinator.order("evaluate", fields=JUDGE | {"model": "kept"})
    here.ask("evaluate", order)
    kept = load_file(here.config.work / "own" / order.run / "kept.safetensors")
    assert {name: hash_of(array) for name, array in kept.items()} == {n: hash_of(a) for n, a in WEIGHTS.items()}


def test_a_variant_that_cannot_be_made_is_told_in_a_sentence(here):
    for variant, says in (("adapted", "no running statistics"), ("personalised", "no personal model")):
        order = here.coordinator.order("evaluate", fields=JUDGE | {"variant": variant})
        assert says in refused(here.ask("evaluate", order), "variant")
