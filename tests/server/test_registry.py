"""The registry decides who takes part: it is strict, seen at once when it changes, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.registry import Registry, new_registry
from shared_models.errors import BadInput
from shared_models.keys import new_signing_key, new_site_key, public_line

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    path = tmp_path / "registry.json"
    new_registry(path)
    return Registry(path)


def a_key() -> str:
    return public_line(new_site_key())


def test_a_site_is_found_by_its_key(registry: Registry):
    key = a_key()
    assert registry.site_of(key) is None
    admitted = registry.admit("berlin", key, NOW)
    assert registry.site_of(key) == admitted
    assert (admitted.name, admitted.state, admitted.admitted) == ("berlin", "active", "2030-01-02T03:04:05Z")
    assert registry.site_of(a_key()) is None


def test_the_same_request_again_changes_nothing(registry: Registry):
    key = a_key()
    registry.admit("berlin", key, NOW)
    registry.suspend("berlin")
    before = registry.entries()
    assert registry.admit("berlin", key, datetime.now(UTC)).state == "suspended"
    assert registry.entries() == before


def test_a_name_and_a_key_have_one_owner(registry: Registry):
    key = a_key()
    registry.admit("berlin", key, NOW)
    with pytest.raises(BadInput, match="berlin is a site already, with the key SHA256:"):
        registry.admit("berlin", a_key(), NOW)
    with pytest.raises(BadInput, match="the key of this request is the one of site berlin"):
        registry.admit("munich", key, NOW)
    assert [(entry.name, entry.public_key) for entry in registry.entries()] == [("berlin", key)]


def test_a_site_is_suspended_readmitted_and_removed_without_touching_the_other(registry: Registry):
    berlin, munich = a_key(), a_key()
    registry.admit("berlin", berlin, NOW)
    other = registry.admit("munich", munich, NOW)
    assert registry.suspend("berlin").state == "suspended"
    assert registry.readmit("berlin").state == "active"
    registry.remove("berlin")
    assert registry.site_of(berlin) is None
    assert registry.site_of(munich) == other
    assert registry.admit("berlin", a_key(), NOW).state == "active"


def test_an_unknown_site_is_named_with_those_that_are_known(registry: Registry):
    registry.admit("berlin", a_key(), NOW)
    for change in (registry.suspend, registry.readmit, registry.remove):
        with pytest.raises(BadInput, match="no site 'munich'; there are: berlin"):
            change("munich")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "A", "a\n"])
def test_a_name_that_could_lead_out_of_a_folder_is_none(registry: Registry, name: str):
    with pytest.raises(BadInput, match="no name for a site"):
        registry.admit(name, a_key(), NOW)
    assert registry.entries() == []


def test_a_change_by_another_process_is_seen_at_the_next_look(registry: Registry):
    key = a_key()
    registry.admit("berlin", key, NOW)
    assert registry.site_of(key).state == "active"
    program = """
import sys
from pathlib import Path
from server.registry import Registry
getattr(Registry(Path(sys.argv[1])), sys.argv[2])("berlin")
"""
    for change, state in (("suspend", "suspended"), ("readmit", "active"), ("suspend", "suspended")):
        subprocess.run([sys.executable, "-c", program, registry.path, change], check=True)
        assert registry.site_of(key).state == state


def test_two_processes_that_admit_at_once_lose_no_site(registry: Registry):
    program = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from server.registry import Registry
from shared_models.keys import new_site_key, public_line
for number in range(15):
    Registry(Path(sys.argv[1])).admit(f"{sys.argv[2]}-{number}", public_line(new_site_key()), datetime.now(UTC))
"""
    both = [subprocess.Popen([sys.executable, "-c", program, registry.path, name]) for name in ("a", "b")]
    assert [process.wait() for process in both] == [0, 0]
    assert {entry.name for entry in registry.entries()} == {f"{name}-{n}" for name in "ab" for n in range(15)}


def test_a_registry_that_was_damaged_lets_nobody_in(registry: Registry):
    key, whole = a_key(), {"public_key": a_key(), "state": "active", "admitted": "2030-01-02T03:04:05Z"}
    registry.admit("berlin", key, NOW)
    cases = {
        "two sites with one key": {"a": whole, "b": whole},
        "a name that is a path": {"../a": whole},
        "an unknown state": {"a": whole | {"state": "admin"}},
        "a key that signs orders": {"a": whole | {"public_key": public_line(new_signing_key())}},
        "a key with a comment": {"a": whole | {"public_key": whole["public_key"] + " me"}},
        "an unknown key": {"a": whole | {"role": "admin"}},
    }
    for case, sites in cases.items():
        registry.path.write_text(json.dumps({"schema": "consilium-registry/1", "sites": sites}))
        with pytest.raises(BadInput, match="registry.json: sites"):
            pytest.fail(f"{case}: {registry.site_of(key)}")
    registry.path.write_text('{"schema": "consilium-registry/1", "si')
    with pytest.raises(BadInput, match="not valid JSON"):
        registry.site_of(key)
    registry.path.unlink()
    with pytest.raises(BadInput, match="the registry cannot be read"):
        registry.site_of(key)
