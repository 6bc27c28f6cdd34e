"""Fetching public data: hash-checked by pooch, resumed where it was cut, unpacked without surprises.

A download grows in ``<name>.part`` beside its target and is continued from there (HTTP Range), also by a later run.
Only a file with the right hash ever gets its name, so a file that has its name is not hashed again.
"""

from __future__ import annotations

import os
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_models.errors import BadInput

if TYPE_CHECKING:
    import requests

ATTEMPTS_WITHOUT_PROGRESS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 30.0
CHUNK_BYTES = 1 << 15  # what a cut may lose
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def fetch(url: str, known_hash: str, target: Path) -> Path:
    """Download ``url`` to ``target`` unless it is there, continuing a download that was cut.

    Args:
        url: an http(s) address.
        known_hash: ``"md5:..."`` or ``"sha256:..."``; nothing is used whose hash is unknown.
        target: where the file goes.

    Raises:
        BadInput: no network, the server does not have it, or the file is not the expected one.
    """
    if target.exists():
        return target
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            url,
            known_hash,
            fname=target.name,
            path=target.parent,
            downloader=lambda _, checked, __: _download(url, target.with_name(f"{target.name}.part"), Path(checked)),
        )
    except ValueError as error:  # pooch's sentence names both hashes
        raise BadInput(f"{url} is not the file that was expected: {error}") from None
    except OSError as error:
        raise BadInput(f"{url} cannot be written to {target}: {error}") from None
    return target


def fetch_archive(url: str, known_hash: str, folder: Path) -> Path:
    """Download a tar or zip archive and unpack it as ``folder`` unless that is there; the archive itself is not kept.

    Raises:
        BadInput: as `fetch`; or a member of the archive would land outside of the folder.
    """
    if folder.exists():
        return folder
    archive = fetch(url, known_hash, folder.with_name(f"{folder.name}.archive"))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as half_way:
        unpacked = Path(half_way) / "unpacked"
        unpack(archive, unpacked)
        os.replace(unpacked, folder)
    archive.unlink()
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive; one that reaches out of the folder (.., absolute paths, links) is refused."""
    folder.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise BadInput(f"{archive} is refused: its member {name!r} would land outside of the folder")
                members.extractall(folder)
        else:
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise BadInput(f"{archive} is refused: {error}") from None
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise BadInput(f"{archive} cannot be unpacked: {error}") from None


def _download(url: str, part: Path, finished: Path) -> None:
    """Complete ``part``, over as many requests as it takes while each brings something, and move it to ``finished``."""
    import requests

    failures, best = 0, part.stat().st_size if part.exists() else 0
    while True:
        try:
            _continue_download(url, part)
            break
        except requests.RequestException as error:
            reason = _in_short(error)
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > best else failures + 1
        best = max(best, now)
        if failures == ATTEMPTS_WITHOUT_PROGRESS:
            kept = f" ({best:,} bytes are kept and the next try goes on from there)" if best else ""
            raise BadInput(
                f"{url} cannot be fetched: {reason}{kept}; where there is no network, copy the data here by other "
                "means and name their folder with --data-dir"
            )
        time.sleep(PAUSE_SECONDS * failures)
    os.replace(part, finished)


def _continue_download(url: str, part: Path) -> None:
    """One request, which asks for what ``part`` does not have yet."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if start and response.status_code == 416:  # nothing is left to send, or the file is a smaller one now
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink()
            return _continue_download(url, part)
        if response.status_code >= 400:
            answer = f"the server answered {response.status_code} {response.reason}"
            if response.status_code < 500 and response.status_code not in (408, 429):
                raise BadInput(f"{url} cannot be fetched: {answer}")
            raise requests.HTTPError(answer)  # may pass: asked again
        continued = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        start = start if continued else 0
        with part.open("ab" if continued else "wb") as file, _progress(response, part.stem, start) as advance:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                advance(len(chunk))


@contextmanager
def _progress(response: requests.Response, name: str, start: int) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    length = response.headers.get("Content-Length")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=start + int(length) if length else None, completed=start)
        yield lambda count: bar.advance(task, count)


def _in_short(error: Exception) -> str:
    """The reason at the bottom of a requests error, without its wrappings."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT_SECONDS:.0f} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was cut"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return str(error)
