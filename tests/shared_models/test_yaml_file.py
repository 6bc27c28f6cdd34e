"""What holds for every YAML file of settings, whatever its keys; the sentences are tested with job files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import Field

from shared_models.errors import BadInput
from shared_models.job_file import load_job, parse_job
from shared_models.job_sentences import Refusal
from shared_models.section import Section
from shared_models.yaml_file import LIMIT_BYTES, dump, parse


class Settings(Section):
    name: str
    numbers: list[float] = Field(default_factory=list)


def read(text: str, **changes) -> Settings:
    return parse(text, "some.yaml", Settings, kind="setting", example="ask for one", **changes)


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path):
    (tmp_path / "job.yaml").write_bytes(b"#" * (LIMIT_BYTES + 1))
    with pytest.raises(BadInput, match="job.yaml: larger than 1 MiB, which no job needs"):
        load_job(tmp_path / "job.yaml")
    with pytest.raises(BadInput, match="larger than 1 MiB"):
        parse_job("#" * (LIMIT_BYTES + 1), "job.yaml")


def test_a_file_that_never_ends_is_refused():
    with pytest.raises(BadInput, match="/dev/zero: larger than 1 MiB"):
        load_job(Path("/dev/zero"))


def test_what_is_wrong_between_keys_is_named_with_the_line_of_its_key():
    with pytest.raises(BadInput, match=r"^some\.yaml:2: numbers: too many$"):
        read("name: x\nnumbers: [1, 2]\n", meaning=lambda _: [Refusal(("numbers",), "too many")])


def test_an_empty_file_says_where_to_get_one():
    with pytest.raises(BadInput, match="some.yaml:1: empty; expected a setting, ask for one"):
        read("# nothing\n")


@given(st.text(), st.lists(st.floats(allow_nan=False)))
@example("\x85", [])
def test_what_is_written_is_read_back(name: str, numbers: list[float]):
    try:
        name.encode()
    except UnicodeEncodeError:  # half a character, which no file can hold
        return
    assert read(dump({"name": name, "numbers": numbers})) == Settings(name=name, numbers=numbers)
