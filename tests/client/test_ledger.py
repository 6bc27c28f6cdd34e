"""The ledger: every change is found and named, and neither a crash nor a full disk leaves it broken."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from client.ledger import NOTHING, Ledger, read_ledger, verify_ledger
from client.ledger_table import export_csv
from shared_models.errors import BadInput, RunStopped
from shared_models.keys import canonical_json, new_site_key, public_line, save_private

KEY = new_site_key()
PUBLIC = public_line(KEY)


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl", KEY, "aachen")


@pytest.fixture
def ten(ledger) -> Ledger:
    """A ledger of ten answers."""
    for number in range(1, 11):
        ledger.append("answer", round=number, patients=24)
    return ledger


def lines(ledger: Ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def faults(ledger: Ledger, new: list[bytes] | None = None) -> list[str]:
    if new is not None:
        ledger.path.write_bytes(b"".join(new))
    return verify_ledger(ledger.path, PUBLIC).faults


def files(ledger: Ledger) -> set[str]:
    return {path.name for path in ledger.path.parent.iterdir()}


def test_what_was_written_is_read_again_in_order_and_verifies(ledger) -> None:
    first = ledger.append("started", version="0.1.0")
    second = ledger.append("answer", round=1, numbers={"loss": 0.25}, shapes=(1, 2))
    entries = list(read_ledger(ledger.path))
    assert [(entry["n"], entry["kind"], entry["site"]) for entry in entries] == [
        (1, "started", "aachen"),
        (2, "answer", "aachen"),
    ]
    assert entries[1]["numbers"] == {"loss": 0.25} and entries[1]["shapes"] == [1, 2]
    assert [entry["previous"] for entry in entries] == [NOTHING, first]
    verification = verify_ledger(ledger.path, PUBLIC)
    assert (verification.entries, verification.faults, verification.torn) == (2, [], False)
    assert verification.head == second
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    assert files(ledger) == {"ledger.jsonl", "ledger.jsonl.head"}


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"patients":24', b'"patients":42'),
        lambda line: line.replace(b'"patients":24', b'"patients": 24'),
        lambda line: line.replace(b'"kind":"answer"', b'"kind":"refused"'),
        lambda line: line.replace(b'"n":', b'"n":1'),
        lambda line: b"\0" * (len(line) - 1) + b"\n",
        lambda line: b"[" * 100_000 + b"\n",
        lambda line: b"{}\n",
    ],
    ids=range(7),
)
@pytest.mark.parametrize("at", [5, 10, 1])
def test_a_changed_line_is_named_and_no_other(ten, change, at) -> None:
    all_lines = lines(ten)
    all_lines[at - 1] = change(all_lines[at - 1])
    (fault,) = faults(ten, all_lines)
    assert fault.startswith(f"line {at} was changed")


def test_a_line_written_anew_with_a_right_hash_lacks_the_signature(ten, tmp_path) -> None:
    stranger = Ledger(tmp_path / "other.jsonl", new_site_key(), "aachen")
    for number in range(1, 11):
        stranger.append("answer", round=number, patients=99)
    all_lines = lines(ten)
    all_lines[6] = lines(stranger)[6]
    (fault,) = faults(ten, all_lines)
    assert fault == "line 7 is not signed by this site's key: it was changed or inserted"
    assert len(faults(stranger)) == 11


def test_removed_lines_are_counted_wherever_they_were(ten) -> None:
    all_lines = lines(ten)
    assert faults(ten, all_lines[:4] + all_lines[5:]) == ["entry 5 was removed"]
    assert faults(ten, all_lines[2:4] + all_lines[8:]) == ["entries 1 to 2 were removed", "entries 5 to 8 were removed"]
    assert faults(ten, all_lines[:-1]) == ["entry 10 was removed from the end"]
    assert faults(ten, all_lines[:-3]) == ["entries 8 to 10 were removed from the end"]
    assert faults(ten, []) == ["entries 1 to 10 were removed from the end"]


def test_reordered_and_repeated_lines_are_named(ten) -> None:
    all_lines = lines(ten)
    swapped = [*all_lines[:4], all_lines[5], all_lines[4], *all_lines[6:]]
    assert faults(ten, swapped) == ["line 6 was moved: entry 5 stands after entry 6"]
    assert faults(ten, [*all_lines[:7], all_lines[2], *all_lines[7:]]) == ["line 8 was inserted: it repeats entry 3"]


def test_an_inserted_line_is_named_and_those_around_it_are_not(ten) -> None:
    all_lines = lines(ten)
    forged = json.loads(all_lines[4]) | {"patients": 1}
    for line in (canonical_json(forged).encode() + b"\n", b"garbage\n"):
        (fault,) = faults(ten, [*all_lines[:4], line, *all_lines[4:]])
        assert fault.startswith("line 5 was changed")


def test_a_line_of_another_ledger_of_the_same_site_is_found(ten, tmp_path) -> None:
    other = Ledger(tmp_path / "other.jsonl", KEY, "aachen")
    for _ in range(10):
        other.append("started")
    all_lines = lines(ten)
    all_lines[5] = lines(other)[5]
    assert "line 6 does not continue the line before it: it is from another ledger" in faults(ten, all_lines)


def test_a_removed_or_forged_head_is_a_fault(ten) -> None:
    head = ten.path.with_name("ledger.jsonl.head")
    genuine = head.read_bytes()
    for forged in (genuine.replace(b'"n":10', b'"n":9'), b"", b"[]", b"{}", b"\xff"):
        head.write_bytes(forged)
        assert faults(ten) == ["its head is damaged or not signed by this site's key"]
    head.unlink()
    assert faults(ten) == ["its head is missing, so nobody can tell whether the last entries are"]


def test_a_removed_ledger_is_a_fault_and_one_that_never_was_is_bad_input(ten) -> None:
    ten.path.unlink()
    assert faults(ten) == ["the ledger was removed; only its head is there"]
    with pytest.raises(BadInput, match="there is no ledger at .*other.jsonl"):
        verify_ledger(ten.path.with_name("other.jsonl"), PUBLIC)
    with pytest.raises(BadInput, match="there is no ledger at"):
        list(read_ledger(ten.path))


@pytest.mark.parametrize(
    "harm",
    [
        lambda all_lines: all_lines[:-1],
        lambda all_lines: [],
        lambda all_lines: [*all_lines[:-1], all_lines[-1].replace(b'"patients":24', b'"patients":25')],
        lambda all_lines: [*all_lines, b"garbage\n"],
    ],
)
def test_nothing_is_added_to_a_ledger_whose_end_was_tampered_with(ten, harm) -> None:
    harmed = b"".join(harm(lines(ten)))
    ten.path.write_bytes(harmed)
    with pytest.raises(BadInput, match="consilium site ledger verify"):
        ten.append("answer", round=11)
    assert ten.path.read_bytes() == harmed


def test_nothing_is_added_where_the_ledger_or_its_head_was_removed(ten) -> None:
    content, head = ten.path.read_bytes(), ten.path.with_name("ledger.jsonl.head")
    ten.path.unlink()
    with pytest.raises(BadInput, match="entries 1 to 10 were removed from the end"):
        ten.append("answer", round=11)
    ten.path.write_bytes(content)
    head.unlink()
    with pytest.raises(BadInput, match="its head is missing"):
        ten.append("answer", round=11)


@pytest.mark.parametrize("before", [0, 2])
def test_a_last_line_torn_at_any_byte_is_cut_off_kept_and_said(ledger, tmp_path, before) -> None:
    for number in range(before):
        ledger.append("answer", round=number)
    head = ledger.path.with_name("ledger.jsonl.head")
    whole = ledger.path.read_bytes() if before else b""
    head_before = head.read_bytes() if before else None
    ledger.append("answer", round=before)
    last = ledger.path.read_bytes()[len(whole) :]
    for cut in range(1, len(last)):
        for path in tmp_path.iterdir():
            path.unlink()
        ledger.path.write_bytes(whole + last[:cut])
        if head_before:
            head.write_bytes(head_before)
        torn = verify_ledger(ledger.path, PUBLIC)
        assert (torn.entries, torn.faults, torn.torn) == (before, [], True)

        ledger.append("answer", round=99)
        *earlier, repaired, answer = read_ledger(ledger.path)
        assert len(earlier) == before
        assert (repaired["kind"], repaired["torn_bytes"], answer["round"]) == ("repaired", cut, 99)
        assert (tmp_path / repaired["kept"]).read_bytes() == last[:cut]
        mended = verify_ledger(ledger.path, PUBLIC)
        assert (mended.entries, mended.faults, mended.torn) == (before + 2, [], False)


def test_a_line_whose_head_was_not_written_any_more_is_whole(ten) -> None:
    head = ten.path.with_name("ledger.jsonl.head")
    behind = head.read_bytes()
    ten.append("answer", round=11)
    head.write_bytes(behind)
    assert faults(ten) == []
    ten.append("answer", round=12)
    assert verify_ledger(ten.path, PUBLIC).entries == 12 and faults(ten) == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("answer", {"loss": float("nan")}),
        ("answer", {"loss": [float("inf")]}),
        ("answer", {"image": b"pixels"}),
        ("answer", {"hash": "0"}),
        ("answer", {"previous": "0"}),
        ("answer", {"kind": "refused"}),
        ("answer", {"Round": 1}),
        ("an answer", {}),
        ("answer", {"text": "x" * 17_000_000}),
    ],
)
def test_what_cannot_be_an_entry_is_refused_and_leaves_no_trace(ten, kind, fields) -> None:
    before = ten.path.read_bytes()
    with pytest.raises(BadInput, match="ledger"):
        ten.append(kind, **fields)
    assert ten.path.read_bytes() == before and faults(ten) == []


def test_a_ledger_that_is_a_link_is_not_written_through(ledger, tmp_path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(b"")
    ledger.path.symlink_to(target)
    with pytest.raises(RunStopped, match="nothing can be written to the ledger"):
        ledger.append("started")
    assert target.read_bytes() == b""


def test_a_full_disk_leaves_the_ledger_as_it_was_and_says_so(ten) -> None:
    before, size = ten.path.read_bytes(), ten.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # The kernel writes what fits and refuses the rest, as a full disk does.
        for room in (0, 1, 100):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
            with pytest.raises(RunStopped, match="nothing can be written to the ledger .* free space"):
                ten.append("answer", round=11)
            assert ten.path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert faults(ten) == []
    ten.append("answer", round=11)
    assert verify_ledger(ten.path, PUBLIC).entries == 11


def test_an_entry_whose_head_cannot_be_written_is_taken_back(ten) -> None:
    before = ten.path.read_bytes()
    in_the_way = ten.path.with_name(f".ledger.jsonl.head.{os.getpid()}.tmp")
    in_the_way.mkdir()
    with pytest.raises(RunStopped, match="nothing can be written to the ledger"):
        ten.append("answer", round=11)
    assert ten.path.read_bytes() == before and faults(ten) == []


APPEND = """
import sys
from pathlib import Path
from client.ledger import Ledger
from shared_models.keys import load_private
ledger = Ledger(Path(sys.argv[1]), load_private(Path(sys.argv[2]), None), "aachen")
number = 0
while number < int(sys.argv[3]):
    number += 1
    ledger.append("answer", writer=sys.argv[4], round=number, filler="x" * 20_000)
    print(number, flush=True)
"""


def appending(ledger: Ledger, times: int, writer: str) -> subprocess.Popen:
    key = ledger.path.with_name("site.key")
    if not key.exists():
        save_private(key, KEY, None)
    command = [sys.executable, "-c", APPEND, ledger.path, key, str(times), writer]
    root = Path(__file__).parents[2]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, cwd=root)


def test_two_processes_append_at_once_and_no_line_is_lost(ledger) -> None:
    writers = [appending(ledger, 50, name) for name in ("daemon", "command")]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    assert faults(ledger) == []
    entries = list(read_ledger(ledger.path))
    for name in ("daemon", "command"):
        assert [entry["round"] for entry in entries if entry["writer"] == name] == list(range(1, 51))


def test_a_writer_killed_at_any_moment_loses_nothing_that_it_had_reported(ledger) -> None:
    reported = 0
    for stop_after in (1, 3, 7, 12, 20):
        writer = appending(ledger, 10_000, "daemon")
        assert writer.stdout is not None
        for _ in range(stop_after):
            writer.stdout.readline()
        writer.kill()
        reported += stop_after + len(writer.stdout.read().splitlines())
        writer.wait()
        ledger.append("started")
        assert faults(ledger) == []
    kinds = [entry["kind"] for entry in read_ledger(ledger.path)]
    assert kinds.count("answer") >= reported and kinds.count("started") == 5


def test_the_table_has_a_row_for_everything_that_left(ledger, tmp_path) -> None:
    ledger.append("started", version="0.1.0", device="cpu")
    ledger.append(
        "answer",
        run="r1",
        round=3,
        patients=24,
        tensors=[
            {"name": "conv.weight", "shape": [8, 1, 3, 3], "bytes": 288, "sha256": "ab"},
            {"name": "=cmd()", "shape": [8], "bytes": 32, "sha256": "cd"},
        ],
        numbers={"loss": 0.5},
    )
    out = tmp_path / "table.csv"
    assert export_csv(ledger.path, out) == 4
    with out.open(newline="") as file:
        started, weight, bias, loss = csv.DictReader(file)
    assert started["kind"] == "started" and json.loads(started["more"]) == {"device": "cpu"}
    assert (weight["item"], weight["name"], weight["shape"], weight["bytes"]) == (
        "tensor",
        "conv.weight",
        "[8,1,3,3]",
        "288",
    )
    assert bias["name"] == "'=cmd()"
    assert (loss["item"], loss["name"], loss["value"], loss["run"], loss["patients"]) == (
        "number",
        "loss",
        "0.5",
        "r1",
        "24",
    )
