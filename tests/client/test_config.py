"""site.yaml: what is read, what is refused, and that the written one is safe and says everything."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.config import SiteFile, inside, load_site_config, write_site_config
from client.policy import Policy, Protections
from shared_models.algorithms import ALGORITHMS
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.tasks import TASKS, task_of

FINGERPRINT = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
SITE = """\
site: north
kit: kit.json
key: site.key
manifest: /data/manifest.csv
data_root: /data
work: work
device: cuda:1
cache_gb: 5
policy:
  coordinators: [SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU]
  max_rounds: 50
  opening_hours: 20:00-06:00
"""


def write(folder: Path, text: str = SITE) -> Path:
    path = folder / "site.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_site_config(path)
    return str(caught.value)


def test_a_right_file_is_read_and_relative_paths_start_at_its_folder(tmp_path: Path, monkeypatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    config = load_site_config(Path(tmp_path.name) / "site.yaml")
    assert (config.site, config.device, config.cache_gb, config.threads) == ("north", "cuda:1", 5, None)
    assert (config.kit, config.key, config.work) == tuple(tmp_path / name for name in ("kit.json", "site.key", "work"))
    assert config.data_root == Path("/data")
    assert config.policy.max_rounds == 50
    assert config.policy.opening_hours == "20:00-06:00"
    assert config.policy.coordinators == [FINGERPRINT]


def test_the_work_directory_is_made_for_its_owner_only(tmp_path: Path):
    config = load_site_config(write(tmp_path, SITE.replace("work: work", "work: far/away")))
    assert config.work.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("site: north", "site: ../../etc", "site.yaml:1: site: expected text of the form"),
        ("site: north", "site: a/b", "site.yaml:1: site: expected text of the form"),
        ("site: north", "site: North", "site.yaml:1: site: expected text of the form"),
        ("site: north", 'site: "north\\n"', "site.yaml:1: site: expected text of the form"),
        ("kit: kit.json", "kit: ''", "site.yaml:2: kit: expected a path, found ''"),
        ("kit: kit.json", 'kit: "a\\0b"', "site.yaml:2: kit: expected a path"),
        ("key: site.key\n", "", "site.yaml:1: key: missing; expected text"),
        ("cuda:1", "gpu", "site.yaml:7: device: expected text of the form"),
        ("cache_gb: 5", "cache_gb: 0", "site.yaml:8: cache_gb: expected a number > 0"),
        ("cache_gb: 5", "cache_gb: .inf", "site.yaml:8: cache_gb: expected a number > 0"),
        ("cache_gb: 5", "threads: 0", "site.yaml:8: threads: expected an integer >= 1"),
        ("cache_gb: 5", "cache: 5", "site.yaml:8: cache: unknown key; did you mean 'cache_gb'?"),
        ("cache_gb: 5", "cache_gb: 5\ncache_gb: 6", "site.yaml:9: cache_gb: given twice, in lines 8 and 9; keep one"),
        ("max_rounds: 50", "max_round: 50", "policy.max_round: unknown key; did you mean 'max_rounds'?"),
        ("20:00-06:00", "20:00", "policy.opening_hours: expected text"),
        (SITE, "", "site.yaml:1: empty; expected a site configuration, `consilium site join` writes one"),
        (SITE, "- north\n", "site.yaml:1: expected keys with values"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_key(tmp_path: Path, old: str, new: str, told: str):
    assert told in refused(write(tmp_path, SITE.replace(old, new, 1)))
    assert not (tmp_path / "work").exists()


def test_every_mistake_is_named_not_only_the_first(tmp_path: Path):
    text = SITE.replace("cuda:1", "gpu").replace("max_rounds: 50", "max_rounds: many")
    assert len(refused(write(tmp_path, text)).splitlines()) == 2


def test_a_yaml_bomb_is_refused_before_it_grows(tmp_path: Path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "site.yaml:2: not valid YAML: aliases (*name) are not read" in refused(write(tmp_path, bomb))


@pytest.mark.parametrize("text", ["site: !!python/object/apply:os.system [id]", "site: !!python/name:os.system x"])
def test_yaml_that_would_make_an_object_is_refused(tmp_path: Path, text: str):
    assert "not valid YAML" in refused(write(tmp_path, text))


def test_a_file_that_is_too_large_or_nested_too_deeply_is_refused(tmp_path: Path):
    assert "larger than 1 MiB" in refused(write(tmp_path, "# " + "x" * 2**20 + "\n" + SITE))
    assert "nested too deeply" in refused(write(tmp_path, "a: " + "[" * 5000))


@pytest.mark.parametrize("name", ["jobs", "logs", "cache", "runs", "ledger.jsonl"])
def test_a_link_out_of_the_work_directory_is_refused(tmp_path: Path, name: str):
    path = write(tmp_path)
    work = load_site_config(path).work
    (tmp_path / "elsewhere").mkdir()
    (work / name).symlink_to(tmp_path / "elsewhere")
    told = refused(path)
    assert f"{work / name} leads to {tmp_path / 'elsewhere'}, which is outside {work}" in told
    assert "remove the link" in told


def test_a_link_that_leads_nowhere_yet_is_refused_and_one_that_stays_inside_is_not(tmp_path: Path):
    path = write(tmp_path)
    work = load_site_config(path).work
    (work / "logs").mkdir()
    (work / "runs").symlink_to(work / "logs")
    assert load_site_config(path).work == work
    (work / "ledger.jsonl").symlink_to("../not-there-yet")
    assert "outside" in refused(path)


def test_a_work_directory_may_itself_be_a_link_to_a_larger_disk(tmp_path: Path):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "jobs").mkdir()
    assert load_site_config(write(tmp_path)).work == tmp_path / "work"


def test_a_work_directory_that_others_may_write_to_is_refused(tmp_path: Path):
    (tmp_path / "work").mkdir()
    os.chmod(tmp_path / "work", 0o777)
    assert "chmod go-w" in refused(write(tmp_path))


def test_a_work_directory_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "work").write_text("")
    assert "cannot be the work directory" in refused(write(tmp_path))


def test_inside_follows_links_and_refuses_what_leads_out(tmp_path: Path):
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "up").symlink_to("..")
    assert inside(root, root / "deep" / ".." / "deep" / "a.png") == root / "deep" / "a.png"
    assert inside(root, root) == root
    for path in (root / "up" / "a", root / ".." / "roots", Path("/"), root / "deep" / ".." / ".."):
        with pytest.raises(BadInput, match="outside"):
            inside(root, path)
    with pytest.raises(BadInput, match="leads nowhere"):
        inside(root, root / "a\0b")


def written(folder: Path, **changes: object) -> Path:
    values = {
        "site": "north",
        "kit": folder / "kit.json",
        "key": folder / "site.key",
        "manifest": Path("/data/ä 'quoted' $x: #1/manifest.csv"),
        "data_root": Path("/data"),
        "work": folder / "work",
        "coordinator": FINGERPRINT,
    }
    write_site_config(folder / "site.yaml", **(values | changes))
    return folder / "site.yaml"


def test_the_written_file_is_read_back_and_allows_nothing(tmp_path: Path):
    config = load_site_config(written(tmp_path))
    assert config.manifest == Path("/data/ä 'quoted' $x: #1/manifest.csv")
    assert config.work == tmp_path / "work"
    assert config.policy == Policy(coordinators=[FINGERPRINT])
    assert config.policy.approve == "ask"


def test_the_written_folder_can_be_moved(tmp_path: Path):
    (tmp_path / "here").mkdir()
    written(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_site_config(tmp_path / "there" / "site.yaml").key == tmp_path / "there" / "site.key"


def test_relative_paths_are_written_for_the_folder_that_the_file_is_in(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("site").mkdir()
    written(Path("site"), manifest=Path("data/manifest.csv"))
    config = load_site_config(tmp_path / "site" / "site.yaml")
    assert config.kit == tmp_path / "site" / "kit.json"
    assert config.manifest == tmp_path / "data" / "manifest.csv"


def test_an_existing_file_is_not_touched(tmp_path: Path):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(BadInput, match="exists already"):
        written(tmp_path, site="south")
    assert path.read_bytes() == before


@pytest.mark.parametrize("wrong", [{"site": "../x"}, {"coordinator": "*"}, {"coordinator": "x]\npolicy: {"}])
def test_a_value_that_would_not_be_read_is_not_written(tmp_path: Path, wrong: dict[str, str]):
    with pytest.raises(BadInput):
        written(tmp_path, **wrong)
    assert not (tmp_path / "site.yaml").exists()


CLASSES = ["no", "yes"]
EVERY_TASK: list[dict[str, Any]] = [
    *({"kind": kind, "classes": CLASSES} for kind in ("segmentation", "classification", "synthesis", "anomaly")),
    {"kind": "translation", "how": {"mode": "paired", "noise": 0.1}},
    {
        "kind": "translation",
        "how": {"mode": "unpaired", "domains": CLASSES, "mask": "organ", "mask_classes": CLASSES},
    },
]


def test_the_written_file_explains_every_key_and_names_everything_that_can_be_allowed(tmp_path: Path):
    text = written(tmp_path).read_text(encoding="utf-8")
    for model in (SiteFile, Policy, Protections):
        for key in model.model_fields:
            assert f"{key}: " in text or f"{key}:\n" in text, key
    for name in (*TASKS, *ALGORITHMS):
        assert name in text
    lists = [yaml.safe_load(found) for found in re.findall(r"\[[^\]$]*\]", text.replace("\n  #", "\n"))]
    for task in EVERY_TASK:
        values = {
            "name": "any",
            "task": task,
            "data": {"spatial_dims": 2, "crop": [32, 32]},
            "model": {"name": "unet"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 1},
        }
        names = dict.fromkeys(name.split("/")[0] for name in task_of(Job.model_validate(values)).metric_info())
        assert list(names) in lists  # and so can be copied: without quotes, the metric `false` would be no text
    assert {task["kind"] for task in EVERY_TASK} == set(TASKS)
    assert yaml.safe_load(text)["policy"]["max_rounds"] == 0
