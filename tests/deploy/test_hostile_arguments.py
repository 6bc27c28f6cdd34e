"""Names that lead elsewhere, files made to explode, links out of a folder: every command refuses them in a sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from deploy import cli, provision
from shared_models.enrolment import make_request, write
from shared_models.keys import canonical_json, new_site_key, public_line, sign
from tests.deploy.test_cli import FINDINGS

ELSEWHERE = ["../x", "../../x", "/tmp/x", "..", ".", "a/../../x", "a\x00b", "x\nb", "", "-", "~/x", "a" * 300]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a coordinator's home and a hospital's, which has joined."""
    folder = tmp_path_factory.mktemp("joined") / "a" / "b"
    folder.mkdir(parents=True)
    key = new_site_key()
    provision.init(folder / "coordinator", "lab", "127.0.0.1:9", None)
    write(folder / "request.json", make_request("north", key))
    provision.admit(folder / "coordinator", folder / "request.json")
    return folder


@pytest.fixture
def refused(
    joined: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """Runs a command that is refused with exit code 2 and nothing but sentences; nothing was made by any."""
    monkeypatch.chdir(joined)
    around = joined.parent.parent
    before = sorted(around.rglob("*"))

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["consilium", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr().err
        assert end.value.code == 2, said
        assert "bug" not in said and "Traceback" not in said, said
        assert all(sign.isprintable() or sign == "\n" for sign in said)
        return said

    yield run
    assert sorted(around.rglob("*")) == before
    assert not Path("/tmp/x").exists()


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("command", ["stop", "log", "resume", "results"])
def test_a_run_is_called_by_a_name_and_by_no_path(refused: Callable[..., str], command: str, name: str) -> None:
    assert "no run" in refused("coordinator", command, "--", name)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_site_or_a_federation_is_called_by_a_name_and_by_no_path(refused: Callable[..., str], name: str) -> None:
    assert "is no name for a site" in refused("site", "init", "--name", name, "--home", "new")
    said = refused("coordinator", "init", "--name", name, "--address", "a.example:1", "--home", "new")
    assert "is no name for a federation" in said
    for command in ("suspend", "readmit", "remove"):
        assert "no site" in refused("coordinator", command, "--", name)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "x\n", "Ä", "", "a" * 64])
def test_a_request_with_a_path_for_a_name_is_no_request_even_when_its_key_signed_it(
    refused: Callable[..., str], tmp_path: Path, name: str
) -> None:
    key = new_site_key()
    values = {"public_key": public_line(key), "created": "2026-01-01T00:00:00Z", "site": name}
    content = {"schema": "consilium-enrolment/1", **values}
    signature = sign(key, canonical_json(content).encode())
    path = tmp_path / "request.json"
    path.write_text(json.dumps({**content, "signature": signature}))
    assert "site: " in refused("coordinator", "admit", path)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "x/y", "a b", ".x"])
def test_a_job_is_called_by_a_name_and_by_no_path(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(FINDINGS.replace("name: findings", f"name: {name!r}", 1))
    assert f"{path}:1: name: " in refused("simulate", path)


BOMBS = {
    "a billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "an alias to itself": "name: &a [*a]\n",
    "nesting without end": "name: " + "[" * 50_000,
    "two megabytes": "name: " + "x" * 2**21,
    "code": "name: !!python/object/apply:os.system ['touch /tmp/x']\n",
    "a number without end": "name: x\nseed: " + "9" * 100_000 + "\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize(
    "command",
    [("simulate",), ("job", "check"), ("site", "start", "--config"), ("site", "status", "--config")],
    ids=" ".join,
)
def test_a_settings_file_made_to_explode_is_a_sentence(
    refused: Callable[..., str], tmp_path: Path, bomb: str, command: tuple[str, ...]
) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(BOMBS[bomb])
    said = refused(*command, path)
    assert str(path) in said and len(said) < 5000


@pytest.mark.parametrize("name", ["runs", "ledger.jsonl", "jobs", "cache"])
def test_a_link_out_of_the_work_directory_keeps_the_daemon_from_starting(
    refused: Callable[..., str], tmp_path: Path, name: str
) -> None:
    work = tmp_path / "work"
    work.mkdir(mode=0o700)
    (work / name).symlink_to("/etc")
    values = {"site": "north", "kit": "kit.json", "key": "site.key", "manifest": "m.csv", "data_root": "."}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({**values, "work": "work"}))
    said = refused("site", "start", "--config", tmp_path / "site.yaml")
    assert f"{work / name} leads to /etc, which is outside {work}" in said and "remove the link" in said
