"""Downloads against a real server on loopback: whole, cut, wrong, missing, and archives that try to break out."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_models.errors import BadInput
from shared_models.job import Job
from simulation.datasets import decathlon, medmnist, open_dataset
from simulation.datasets import fetch as module
from simulation.datasets.fetch import fetch, fetch_archive, unpack
from simulation.datasets.files import cache_folder, new_file

PAYLOAD = np.random.default_rng(0).bytes(300_000)
SHA256 = "sha256:" + hashlib.sha256(PAYLOAD).hexdigest()


def job_for(dataset: dict[str, Any]) -> Job:
    return Job.model_validate(
        {
            "name": "test",
            "task": {"kind": "classification", "classes": ["no", "yes"]},
            "data": {"spatial_dims": 2, "crop": [28, 28]},
            "model": {"name": "any"},
            "training": {"local_epochs": 1},
            "federation": {"rounds": 1},
            "simulation": {"dataset": dataset, "partition": {"name": "iid"}, "hospitals": 2},
        }
    )


class Server(ThreadingHTTPServer):
    """Sends ``content``; cuts the connection after ``cut_after`` bytes of each of the next ``cuts`` answers."""

    content = PAYLOAD
    ranges = True
    cut_after = 0
    cuts = 0
    statuses: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    def url(self, name: str = "data.npz") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.statuses:
            status, *rest = server.statuses
            server.statuses = tuple(rest)
            self.send_error(status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        total = len(server.content)
        if start >= total > 0 and asked:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        body = server.content[start:]
        if server.cuts:
            server.cuts -= 1
            body = body[: server.cut_after]
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_a_file_arrives_whole_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "data.npz"
    assert fetch(server.url(), SHA256, target) == target
    fetch(server.url(), SHA256, target)
    assert target.read_bytes() == PAYLOAD
    assert server.asked == [None]
    assert [path.name for path in target.parent.iterdir()] == ["data.npz"]


def test_a_cut_connection_is_continued_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 100_000, 2
    target = fetch(server.url(), "md5:" + hashlib.md5(PAYLOAD).hexdigest(), tmp_path / "data.npz")
    assert target.read_bytes() == PAYLOAD
    assert server.asked[0] is None
    assert all(asked and int(asked[6:-1]) > 0 for asked in server.asked[1:])


def test_a_later_run_continues_a_download_that_was_given_up(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.cuts = 0, 10
    (tmp_path / "data.npz.part").write_bytes(PAYLOAD[:50_000])
    with pytest.raises(BadInput, match=r"the connection was cut \(50,000 bytes are kept .*--data-dir"):
        fetch(server.url(), SHA256, tmp_path / "data.npz")
    assert not (tmp_path / "data.npz").exists()
    server.cuts = 0
    assert fetch(server.url(), SHA256, tmp_path / "data.npz").read_bytes() == PAYLOAD
    assert server.asked[-1] == "bytes=50000-"


def test_a_complete_part_is_used_as_it_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.npz.part").write_bytes(PAYLOAD)
    assert fetch(server.url(), SHA256, tmp_path / "data.npz").read_bytes() == PAYLOAD


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.npz.part").write_bytes(PAYLOAD + b"more")
    assert fetch(server.url(), SHA256, tmp_path / "data.npz").read_bytes() == PAYLOAD


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after, server.cuts = False, 100_000, 1
    assert fetch(server.url(), SHA256, tmp_path / "data.npz").read_bytes() == PAYLOAD


def test_a_server_that_always_cuts_at_the_same_byte_is_given_up(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after, server.cuts = False, 100_000, 1_000
    with pytest.raises(BadInput, match="the connection was cut"):
        fetch(server.url(), SHA256, tmp_path / "data.npz")
    assert len(server.asked) < 10


def test_a_wrong_hash_names_both_and_leaves_no_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        fetch(server.url(), "sha256:" + "0" * 64, tmp_path / "data.npz")
    assert SHA256.removeprefix("sha256:") in str(error.value) and "0" * 64 in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.statuses = (404,)
    with pytest.raises(BadInput, match="the server answered 404 Not Found"):
        fetch(server.url(), SHA256, tmp_path / "data.npz")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = (503, 429)
    assert fetch(server.url(), SHA256, tmp_path / "data.npz").read_bytes() == PAYLOAD


def test_without_a_network_the_sentence_names_the_address_and_the_way_out(server: Server, tmp_path: Path) -> None:
    url = server.url()
    server.shutdown()
    server.server_close()
    with pytest.raises(BadInput, match=rf"{url} cannot be fetched: the server cannot be reached.*--data-dir"):
        fetch(url, SHA256, tmp_path / "data.npz")


def test_an_archive_is_unpacked_once_and_not_kept(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("Task99_Test/dataset.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    server.content = buffer.getvalue()
    known = "sha256:" + hashlib.sha256(server.content).hexdigest()
    for _ in range(2):
        folder = fetch_archive(server.url("Task99_Test.tar"), known, tmp_path / "Task99")
        assert (folder / "Task99_Test" / "dataset.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["Task99"]
    assert len(server.asked) == 1


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as members:
        for name, content in files.items():
            members.writestr(name, content)
    return buffer.getvalue()


def test_a_table_and_its_images_are_fetched_into_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    server.content = archive_of({"set/cases.csv": b"image,label,patient\na.png,0,p\n", "set/a.png": b""})
    dataset = {"name": "folder", "table": "set/cases.csv", "url": server.url("set.zip?download=1")}
    job = job_for(dataset | {"sha256": hashlib.sha256(server.content).hexdigest()})
    for _ in range(2):
        (case,) = open_dataset(job, None)
        assert Path(case.images[0]).is_file() and tmp_path in Path(case.images[0]).parents
    assert len(server.asked) == 1


def test_medmnist_and_decathlon_are_fetched_from_where_they_are_published(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    monkeypatch.setattr(medmnist, "URL", server.url("").rstrip("/"))
    monkeypatch.setattr(decathlon, "URL", server.url("").rstrip("/"))

    buffer = io.BytesIO()
    arrays = {f"{part}_{kind}": np.zeros((2, 1)) for part in ("train", "val", "test") for kind in ("images", "labels")}
    np.savez(buffer, **arrays)
    server.content = buffer.getvalue()
    monkeypatch.setitem(medmnist.MD5, "breastmnist", (hashlib.md5(server.content).hexdigest(),))
    assert len(open_dataset(job_for({"name": "medmnist", "flag": "breastmnist"}), None)) == 6

    listing = b'{"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}'
    server.content = archive_of({"Task02_Heart/dataset.json": listing})
    monkeypatch.setitem(decathlon.MD5, "Task02_Heart", hashlib.md5(server.content).hexdigest())
    (case,) = open_dataset(job_for({"name": "decathlon", "task": "heart"}), None)
    assert case.images == (str(tmp_path / "datasets" / "Task02_Heart" / "Task02_Heart" / "imagesTr" / "a.nii.gz"),)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadInput, match=r"new\.json cannot be written"),
        new_file(tmp_path / "file" / "new.json") as file,
    ):
        file.write(b"{}")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "new.json") as file:
        file.write(b"half")
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_that_reaches_out_of_its_folder_is_refused(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / f"evil.{kind}"
    if kind == "tar":
        with tarfile.open(archive, "w") as members:
            member = tarfile.TarInfo("../outside.txt")
            member.size = 4
            members.addfile(member, io.BytesIO(b"evil"))
    else:
        with zipfile.ZipFile(archive, "w") as members:
            members.writestr("../outside.txt", "evil")
    with pytest.raises(BadInput, match="outside"):
        unpack(archive, tmp_path / "unpacked")
    assert not (tmp_path / "outside.txt").exists()


def test_a_broken_archive_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(b"not an archive")
    with pytest.raises(BadInput, match=r"broken\.tar cannot be unpacked"):
        unpack(tmp_path / "broken.tar", tmp_path / "unpacked")


def test_the_cache_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    assert cache_folder("datasets") == tmp_path / "datasets"
    monkeypatch.delenv("CONSILIUM_CACHE")
    assert cache_folder("datasets").parts[-3:] == (".cache", "consilium", "datasets")
