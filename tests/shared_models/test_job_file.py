"""A job file with mistakes: each is named in one sentence with file, line and key path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.job_file import dump_job, load_job, parse_job

JOB = """\
name: lungs
seed: 7
task:
  kind: classification
  classes: [normal, pneumonia]
data:
  spatial_dims: 2
  crop: [28, 28]
model:
  name: cnn
training:
  batch_size: 8
  local_epochs: 1
  optimizer:
    name: sgd
    learning_rate: 1e-2
federation:
  rounds: 3
simulation:
  dataset: {name: medmnist, flag: pneumoniamnist}
  partition:
    name: iid
  hospitals: 3
"""


def complaint(text: str) -> str:
    with pytest.raises(BadInput) as caught:
        parse_job(text, "job.yaml")
    return str(caught.value)


def test_a_right_job_is_read_with_its_numbers():
    job = parse_job(JOB, "job.yaml")
    assert job.name == "lungs"
    assert job.training.optimizer.learning_rate == 0.01  # YAML 1.1 would read `1e-2` as text


MISTAKES = {
    "a typo in a key": (
        ("  batch_size: 8", "  batchsize: 8"),
        "job.yaml:12: training.batchsize: unknown key; did you mean 'batch_size'?",
    ),
    "text for a number": (
        ("batch_size: 8", "batch_size: eight"),
        "job.yaml:12: training.batch_size: expected an integer >= 1, found 'eight'",
    ),
    "a number in quotes": (
        ("rounds: 3", "rounds: '3'"),
        "job.yaml:18: federation.rounds: expected an integer >= 1, found '3'",
    ),
    "a number out of bounds": (
        ("rounds: 3", "rounds: 0"),
        "job.yaml:18: federation.rounds: expected an integer >= 1, found 0",
    ),
    "true is not one": (
        ("rounds: 3", "rounds: true"),
        "job.yaml:18: federation.rounds: expected an integer >= 1, found true",
    ),
    "null where a number may be": (
        ("hospitals: 3", "hospitals: many"),
        "job.yaml:23: simulation.hospitals: expected an integer >= 1 or null, found 'many'",
    ),
    "a class that YAML takes for false": (
        ("[normal, pneumonia]", "[no, pneumonia]"),
        "job.yaml:5: task.classes[0]: expected text, found false; put it in quotes",
    ),
    "a key of the other task": (
        ("  classes: [", "  surface_tolerance_mm: 1.0\n  classes: ["),
        "job.yaml:5: task.surface_tolerance_mm: unknown key here; it is a key of segmentation; "
        "known in task: kind, classes, mode",
    ),
    "a key in the wrong section": (
        ("seed: 7", "rounds: 7"),
        "job.yaml:2: rounds: unknown key here; did you mean federation.rounds?",
    ),
    "an unknown task": (
        ("kind: classification", "kind: clasification"),
        "job.yaml:4: task.kind: expected one of segmentation, classification, translation, synthesis, anomaly; "
        "found 'clasification'; did you mean 'classification'?",
    ),
    "a task without its kind": (
        ("  kind: classification\n", ""),
        "job.yaml:3: task.kind: missing; expected one of segmentation, classification",
    ),
    "an unknown data set": (
        ("name: medmnist", "name: medminst"),
        "job.yaml:20: simulation.dataset.name: expected one of decathlon, medmnist, folder, phantom; "
        "found 'medminst'; did you mean 'medmnist'?",
    ),
    "an unknown partition": (
        ("name: iid", "name: nature"),
        "job.yaml:22: simulation.partition.name: expected one of iid, dirichlet, quantity, pathological, natural; "
        "found 'nature'; did you mean 'natural'?",
    ),
    "a key missing behind a kind": (
        ("name: iid", "name: dirichlet"),
        "job.yaml:21: simulation.partition.alpha: missing; expected a number > 0",
    ),
    "an unknown optimiser": (
        ("name: sgd", "name: sdg"),
        "job.yaml:15: training.optimizer.name: expected one of sgd, adam, adamw; found 'sdg'; did you mean 'sgd'?",
    ),
    "a section missing": (
        ("model:\n  name: cnn\n", ""),
        "job.yaml:1: model: missing; expected a section of keys (name, arguments, normalisation, pretrained)",
    ),
    "a section that is a list": (
        ("  name: cnn", "  - cnn"),
        "job.yaml:9: model: expected a section of keys (name, arguments, normalisation, pretrained), found ['cnn']",
    ),
    "the name of a section instead of the section": (
        ("rounds: 3", "rounds: 3\n  aggregation: median"),
        "job.yaml:19: federation.aggregation: expected a section of keys, found 'median'; write {name: median}",
    ),
    "the value of a key instead of its section": (
        ("  hospitals: 3", "  hospitals: 3\n  scanners: strong"),
        "job.yaml:24: simulation.scanners: expected a section of keys (set, by_hospital), found 'strong'; "
        "write {set: strong}",
    ),
    "a key of every algorithm, one level too high": (
        ("rounds: 3", "rounds: 3\n  server_optimizer: {name: adam}"),
        "job.yaml:19: federation.server_optimizer: unknown key here; "
        "did you mean federation.algorithm.server_optimizer?",
    ),
    "an algorithm that is fedavg with a server optimiser": (
        ("rounds: 3", "rounds: 3\n  algorithm: {name: FedAdam}"),
        "job.yaml:17: federation: FedAdam is fedavg with a server optimiser: "
        "write algorithm: {name: fedavg, server_optimizer: {name: adam, learning_rate: 0.01}}",
    ),
    "a word for a list of one of two kinds": (
        ("seed: 7", "seed: 7\nevaluation: {subgroups: {sex: F}}"),
        "job.yaml:3: evaluation.subgroups.sex: "
        "expected a list of at least 1 text or a list of at least 1 number, found 'F'",
    ),
    "a name that is no file name": (
        ("name: lungs", "name: my lungs"),
        "job.yaml:1: name: expected text of the form ^[A-Za-z0-9][A-Za-z0-9_.-]*$, found 'my lungs'",
    ),
    "too few axes": (("[28, 28]", "[28]"), "job.yaml:6: data: crop needs 2 positive numbers, one per axis; found [28]"),
    "epochs and steps": (
        ("local_epochs: 1", "local_epochs: 1\n  local_steps: 5"),
        "job.yaml:11: training: set exactly one of local_epochs and local_steps",
    ),
    "an unknown model": (("name: cnn", "name: resnet8"), "job.yaml:10: model.name: there is no model 'resnet8'"),
    "a model for another task": (
        ("name: cnn", "name: unet"),
        "job.yaml:10: model.name: 'unet' cannot do classification in 2D; models that can: ",
    ),
    "an unknown argument": (
        ("name: cnn", "name: cnn\n  arguments: {hiden: 64}"),
        "job.yaml:11: model.arguments.hiden: unknown key; did you mean 'hidden'?",
    ),
    "an argument of the wrong type": (
        ("name: cnn", "name: cnn\n  arguments:\n    channels: [16, x]"),
        "job.yaml:12: model.arguments.channels[1]: expected an integer > 0, found 'x'",
    ),
    "an argument that is no list": (
        ("name: cnn", "name: cnn\n  arguments: {channels: 16}"),
        "job.yaml:11: model.arguments.channels: expected a list of at least 1 integer, found 16",
    ),
    "a model that does not fit the crop": (
        ("name: cnn", "name: vit\n  arguments: {patch_size: 5}"),
        "job.yaml:9: model: model 'vit' does not fit data.crop [28, 28]: ",
    ),
    "momentum without sgd": (
        ("name: sgd", "name: adam\n    momentum: 0.9"),
        "job.yaml:16: training.optimizer.momentum: only sgd has it; leave it out for adam",
    ),
    "more sites than hospitals": (
        ("rounds: 3", "rounds: 3\n  quorum: 4"),
        "job.yaml:19: federation.quorum: 4 sites of only 3 hospitals (simulation.hospitals)",
    ),
    "an infinite rate": (
        ("1e-2", ".inf"),
        "job.yaml:16: training.optimizer.learning_rate: expected a finite number",
    ),
    "a class without a name": (("[normal, pneumonia]", "[a, '']"), "job.yaml:5: task.classes: '' is no name"),
    "a class twice": (("[normal, pneumonia]", "[a, a]"), "job.yaml:5: task.classes: 'a' is listed twice"),
    "nothing left to train on": (
        ("federation:", "evaluation: {validation_share: 0.5, test_share: 0.5}\nfederation:"),
        "job.yaml:17: evaluation: validation_share and test_share leave nothing to train on",
    ),
    "a key twice": (
        ("seed: 7", "seed: 7\nseed: 8"),
        "job.yaml:3: seed: given twice, in lines 2 and 3; keep one",
    ),
    "a tab": (("  kind:", "\tkind:"), "job.yaml:4: not valid YAML: found character '\\t' that cannot start any token"),
    "an unclosed bracket": (("pneumonia]", "pneumonia"), "job.yaml:6: not valid YAML: "),
    "an alias": (("seed: 7", "seed: &x 7\nx: *x"), "job.yaml:3: not valid YAML: aliases (*name) are not read"),
    "a Python object": (("seed: 7", "seed: !!python/name:os.system"), "job.yaml:2: not valid YAML: "),
    "a control character": (("seed: 7", "seed: \x07"), "job.yaml:2: not valid YAML: character"),
    "no such date": (("name: lungs", "name: 2024-13-45"), "job.yaml: not valid YAML: month must be in 1..12"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_with_its_line(mistake: str):
    (right, wrong), sentence = MISTAKES[mistake]
    assert right in JOB
    found = complaint(JOB.replace(right, wrong, 1))
    assert found.startswith(sentence)
    assert "\n" not in found


def test_a_text_for_several_keys_gets_no_advice_which_of_them_it_is():
    assert complaint(JOB.replace("rounds: 3", "rounds: 3\n  share: all")).endswith("found 'all'")


def test_all_mistakes_are_listed_in_the_order_of_the_file():
    found = complaint(JOB.replace("seed: 7", "sed: 7").replace("rounds: 3", "rounds: x").replace("[28, 28]", "[28, a]"))
    assert [line.split(": ")[:2] for line in found.splitlines()] == [
        ["job.yaml:2", "sed"],
        ["job.yaml:8", "data.crop[1]"],
        ["job.yaml:18", "federation.rounds"],
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ":1: empty; expected a job"),
        (b"# nothing\n", ":1: empty; expected a job"),
        (b"- a\n- b\n", ":1: expected keys with values"),
        (b"just text", ":1: expected keys with values"),
        (b"name: a\nseed: \xff\xfe\n", ":2: not UTF-8 text (byte 0xff); save the file as UTF-8"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        (b"[" * 5000, ": nested too deeply to be a job"),
    ],
)
def test_a_file_that_is_no_job(tmp_path: Path, content: bytes, sentence: str):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_job(path)
    assert str(caught.value).startswith(f"{path}{sentence}")


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(BadInput, match="No such file"):
        load_job(tmp_path / "none.yaml")
    with pytest.raises(BadInput, match="Is a directory"):
        load_job(tmp_path)


def test_a_byte_order_mark_and_windows_lines_do_not_matter(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    assert load_job(path) == parse_job(JOB, "")


def test_the_resolved_job_reads_back_as_the_same_job():
    job = parse_job(JOB, "job.yaml")
    text = dump_job(job)
    assert "bootstrap: 500" in text
    assert parse_job(text, "resolved").fingerprint() == job.fingerprint()


NAMES = st.text(min_size=1, max_size=10).filter(lambda name: name.isprintable() and bool(name.strip()))
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)


@given(
    classes=st.lists(NAMES, min_size=2, max_size=4, unique=True),
    rate=st.floats(min_value=1e-300, max_value=1e300),
)
def test_any_names_and_rates_survive_writing_and_reading(classes: list[str], rate: float):
    values = yaml.safe_load(JOB)
    values["task"]["classes"] = classes
    values["training"]["optimizer"]["learning_rate"] = rate
    job = Job.model_validate(values)
    assert parse_job(dump_job(job), "resolved") == job


@given(
    path=st.sampled_from([("name",), ("task",), ("task", "kind"), ("data", "crop"), ("simulation", "dataset", "name")]),
    value=st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(VALUES, inner, max_size=3)),
)
def test_any_value_anywhere_gives_a_job_or_sentences_never_a_traceback(path: tuple[str, ...], value: Any):
    values = yaml.safe_load(JOB)
    section = values
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    try:
        parse_job(yaml.safe_dump(values), "job.yaml")
    except BadInput as error:
        assert all(line.startswith("job.yaml") for line in str(error).splitlines())


def _keys(value: Any, prefix: str = "") -> set[str]:
    if not isinstance(value, dict):
        return set()
    return {prefix + key for key in value} | {k for key in value for k in _keys(value[key], f"{prefix}{key}.")}


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_the_example_passes_and_shows_every_key(task: str):
    path = Path("shared_models/job_templates") / f"{task}.yaml"
    job = load_job(path)
    assert job.task.kind == task
    assert _keys(yaml.safe_load(dump_job(job))) == _keys(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(("name", "rate"), [("momentum", 1.0), ("adam", 0.01), ("yogi", 0.01), ("adagrad", 0.01)])
def test_another_server_optimizer_in_the_example_has_a_rate_of_its_own(name: str, rate: float):
    text = Path("shared_models/job_templates/classification.yaml").read_text()
    job = parse_job(text.replace("name: none ", f"name: {name} "), "job.yaml")
    written = f'"learning_rate":{rate},"momentum":0.9,"name":"{name}"'
    assert written in job.canonical_json()
    assert Job.model_validate_json(job.canonical_json()) == job
    stated = text.replace("name: none ", f"name: {name} ").replace("learning_rate: null", "learning_rate: 0.5")
    assert parse_job(stated, "job.yaml").federation.algorithm.server_optimizer.learning_rate == 0.5


def test_a_single_finding_has_no_class_to_be_flipped_with():
    values = yaml.safe_load(JOB)
    values["task"] = {"kind": "classification", "classes": ["nodule"], "mode": "multi_label"}
    values["simulation"] = {
        "dataset": {"name": "medmnist", "flag": "chestmnist"},
        "partition": {"name": "iid"},
        "hospitals": 3,
        "faulty": {"hospital-1": {"kind": "label_flip"}},
    }
    assert "faulty.hospital-1.kind: a single class has none to be flipped with" in complaint(yaml.safe_dump(values))


@pytest.mark.parametrize(
    ("simulation", "sentence"),
    [
        ("participation: {hospital-9: {joins: 2}}", "simulation.participation: there is no hospital 'hospital-9'"),
        ("participation: {hospital-1: {joins: 4, leaves: 4}}", "leaves in round 4, but joins in round 4"),
        ("participation: {hospital-1: {answers: 0}}", "hospital-1.answers: expected a number > 0 and <= 1, found 0"),
        ("participation: {hospital-1: {joins: 4}}", "hospital-1.joins: round 4 of only 3 (federation.rounds)"),
        ("faulty: {hospital-1: {kind: sign_flap}}", "faulty.hospital-1.kind: expected one of sign_flip, scaling,"),
        (
            "faulty: {hospital-1: {kind: stale, strength: 2}}",
            "strength: unknown key here; it is a key of sign_flip, scaling, noise and colluding; known in simulation",
        ),
        ("faulty: {hospital-1: {kind: noise, from_round: 99}}", "hospital-1.from_round: round 99 of only"),
        ("faulty: {hospital-1: {kind: label_flip}}", "hospital-1.kind: flipping masks needs two classes beside"),
    ],
)
def test_hospitals_that_cannot_be_so_are_refused(simulation: str, sentence: str):
    values = yaml.safe_load(JOB)
    values["task"] = {"kind": "segmentation", "classes": ["background", "organ"]}
    values["simulation"] = {
        "dataset": {"name": "decathlon", "task": "Task04_Hippocampus"},
        "partition": {"name": "iid"},
        "hospitals": 3,
        **yaml.safe_load(simulation),
    }
    assert sentence in complaint(yaml.safe_dump(values))
