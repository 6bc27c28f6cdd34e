"""The hospital's own report: what somebody reads there, of real data, a real model and a real ledger."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.ledger import Ledger, read_ledger
from client.pictures import PREDICTION, REFERENCE
from client.report import ReportFacts, draw_own_cases, judge_own, write_report
from client.training import judge_cases
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.keys import new_site_key
from shared_models.seeds import derive_seed
from shared_models.tasks import CaseRecord, task_of
from shared_models.tasks.bootstrap import interval, replicate_weights
from shared_models.zoo import build
from tests.pixels import share_of

HOSTILE = "<script>alert('x')</script>"
SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 6
SEGMENTATION = {"kind": "segmentation", "classes": ["background", "square"]}
CLASSIFICATION = {"kind": "classification", "classes": ["small", "large"]}


def make_job(task: dict[str, Any], dims: int = 2) -> Job:
    cnn = {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}}
    unet = {"name": "unet", "arguments": {"channels": [4, 8], "strides": [2]}}
    return Job.model_validate(
        {
            "name": "squares",
            "task": task,
            "data": {"spatial_dims": dims, "crop": [16] * dims},
            "model": unet if task["kind"] == "segmentation" else cnn,
            "training": {"local_steps": 1},
            "federation": {"rounds": 5},
            "evaluation": {"bootstrap": 50},
        }
    )


def site_data(folder: Path, job: Job) -> SiteData:
    """A bright square or cube in each of twelve images, one a patient; the last but one cannot be read."""
    size = (12, *[16] * job.data.spatial_dims)
    images = np.random.default_rng(0).integers(0, 100, size, dtype=np.uint8)
    masks = np.zeros(size, np.uint8)
    masks[(slice(None), *[slice(4, 11)] * job.data.spatial_dims)] = 1
    images[masks > 0] += 120
    np.savez(folder / "data.npz", images=images, masks=masks)
    lines = ["case,patient,image,label,split"]
    for i, split in enumerate(SPLITS):
        label = f"data.npz::masks[{i}]" if job.task.kind == "segmentation" else str(i % 2)
        image = "gone.npz::images[0]" if i == 10 else f"data.npz::images[{i}]"
        lines.append(f"case-{i},p{i},{image},{label},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return SiteData(folder / "manifest.csv", job, "north", CaseCache(folder / "cache", 10**8), report_folder=folder)


def ledger_lines(folder: Path, run: str = "run-1") -> list[dict[str, Any]]:
    """Rounds 1, 2 and 4 answered, round 3 refused, between the lines of another run."""
    ledger = Ledger(folder / "ledger.jsonl", new_site_key(), "north")
    tensors = [{"name": f"w{i}", "shape": [250], "bytes": 1000, "sha256": "0" * 64} for i in range(3)]
    ledger.append("started")
    ledger.append("answer", run=run, question="query.prepare", round=0, patients=11, tensors=[], numbers={})
    for number in (1, 2, 3, 4):
        ask = {"run": run, "question": "train", "round": number}
        if number == 3:
            ledger.append("refused", **ask, sentence=f"closed until 20:00 {HOSTILE}")
            continue
        ledger.append("answer", run="other", question="train", round=number, patients=4, tensors=tensors, numbers={})
        ledger.append("answer", **ask, patients=4, tensors=tensors, numbers={"loss": 0.5 / number, "seconds": 2.0})
    return [line for line in read_ledger(folder / "ledger.jsonl") if line.get("run") == run]


def facts_of(folder: Path, job: Job) -> ReportFacts:
    data, network = site_data(folder, job), build(job)
    records = judge_cases(network, data, data.cases("test"), job, task_of(job))
    metric, lines = job.selection_metric(), ledger_lines(folder)
    return ReportFacts(
        site="north",
        federation="imaging-net",
        run="run-1",
        job=job,
        version="0.1.0",
        cohort=data.report,
        answers=[line for line in lines if line["kind"] == "answer"],
        refusals=[line for line in lines if line["kind"] != "answer"],
        evaluations={
            "test": judge_own(job, records, derive_seed(job.seed, "bootstrap", "north", "test")),
            "validation": [{"round": n, "metrics": {metric: 0.5 + n / 100}} for n in (1, 2, 4)],
        },
        pictures=draw_own_cases(job, network, data, records, folder),
    )


def text_of(page: Path) -> str:
    """What a reader sees: the page without its tags, its style and its script."""
    text = re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(text))


@pytest.fixture(autouse=True)
def same_network_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("task", "dims"),
    [
        (SEGMENTATION, 2),
        (SEGMENTATION, 3),
        (CLASSIFICATION, 2),
        (CLASSIFICATION, 3),
        (CLASSIFICATION | {"mode": "multi_label"}, 2),
    ],
)
def test_the_report_says_how_good_when_and_what_left(tmp_path: Path, task: dict[str, Any], dims: int) -> None:
    job = make_job(task, dims)
    facts = facts_of(tmp_path, job)
    page = write_report(tmp_path, facts)
    text, row = text_of(page), facts.evaluations["test"]["metrics"][job.selection_metric()]
    assert page == tmp_path / "report.html"
    label = {"dice": "Dice", "auroc": "AUROC"}[job.selection_metric()]
    assert (
        f"On this hospital's own 5 test patients the federated model reaches {label} {row['value']:.3f} "
        f"(95 % interval {row['low']:.3f} to {row['high']:.3f}, n = 5 cases)." in text
    )
    assert "north trained in 3 of 5 rounds (rounds 1 to 2 and 4), on 4 patients." in text
    assert "4 answers with 9.0 kB of tensors left this hospital, each on record in its ledger (lines 2 to 9)" in text
    assert "run-1 at north" in text and "federation imaging-net, job squares" in text
    assert job.fingerprint() in text and "consilium 0.1.0" in text


def test_the_numbers_are_those_that_the_coordinator_has_of_this_hospital(tmp_path: Path) -> None:
    job = make_job(SEGMENTATION)
    data, network, task = site_data(tmp_path, job), build(job), task_of(job)
    records = judge_cases(network, data, data.cases("test"), job, task)
    seed = derive_seed(job.seed, "bootstrap", "north", "test")
    own = judge_own(job, records, seed)
    sums = task.sums(records, replicate_weights([r.patient for r in records], job.evaluation.bootstrap, seed))
    sent = interval(task.metrics(sums)["dice/square"])
    found = own["metrics"]["dice/square"]
    assert (found["value"], found["low"], found["high"]) == (sent.value, sent.low, sent.high)
    assert (own["patients"], own["cases"], found["n"]) == (5, 5, 5)
    assert next(iter(own["metrics"])) == "dice"


def test_a_round_that_was_refused_is_told_with_its_reason(tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path, facts_of(tmp_path, make_job(SEGMENTATION))))
    assert "No training answer of this hospital in round 3." in text
    assert f"Not answered: closed until 20:00 {HOSTILE}" in text
    assert re.search(r"4 20\d\d-\d\d-\d\d \d\d:\d\d UTC 4 0\.1250 0\.540 2\.0 s 3\.0 kB", text), text


def test_the_cohort_and_the_case_that_was_set_aside_are_told(tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path, facts_of(tmp_path, make_job(CLASSIFICATION))))
    assert "Training 4 4 2 2 Validation 2 2 1 1 Test 5 5 2 3" in text
    assert "1 of 12 cases were set aside as unfit." in text
    assert re.search(r"case-10 .*gone\.npz", text)
    assert "Fewer than 20 test patients here" in text


def test_segmented_cases_are_shown_with_their_contours(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, make_job(SEGMENTATION, 3))
    assert [path.name for path in facts.pictures] == ["cases.png"]
    assert share_of(REFERENCE, facts.pictures[0]) > 0.0005
    assert share_of(PREDICTION, facts.pictures[0]) > 0.0005
    assert "Keep this page at the hospital. It shows images of its patients" in text_of(write_report(tmp_path, facts))


def test_the_most_wrong_cases_stand_above_the_most_right(tmp_path: Path) -> None:
    job = make_job(CLASSIFICATION)
    data = site_data(tmp_path, job)

    def record(number: int, of_truth: float) -> CaseRecord:
        truth = number % 2
        probabilities: list[float | None] = [1 - of_truth, of_truth] if truth else [of_truth, 1 - of_truth]
        return CaseRecord(f"case-{number}", f"p{number}", {"probabilities": probabilities, "label": [float(truth)]})

    class Told(torch.nn.Module):
        """Answers with what the record says of a case, found by the mean of its image."""

        def __init__(self, records: list[CaseRecord]) -> None:
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))
            means = [float(data.load(case)["image"].double().pow(3).mean()) for case in data.cases("test")]
            by_case = {r.case: r.values["probabilities"] for r in records}
            self.known = list(zip(means, [by_case[case.id] for case in data.cases("test")], strict=True))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answers = []
            for image in images:
                mean = float(image.double().pow(3).mean())
                answers.append(min(self.known, key=lambda row: abs(row[0] - mean))[1])
            return torch.tensor(answers).log()

    records = [record(n, p) for n, p in zip((6, 7, 8, 9, 11), (0.1, 0.2, 0.6, 0.8, 0.9), strict=True)]
    [picture] = draw_own_cases(job, Told(records), data, records, tmp_path)
    width, height = Image.open(picture).size
    top, bottom = tmp_path / "top.png", tmp_path / "bottom.png"
    Image.open(picture).crop((0, 0, width, height // 2)).save(top)
    Image.open(picture).crop((0, height // 2, width, height)).save(bottom)
    right, wrong = "#00664B", "#A33C00"
    assert share_of(wrong, top) > 0 and share_of(right, top) == 0
    assert share_of(right, bottom) > 0 and share_of(wrong, bottom) == 0


def test_the_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    page = write_report(tmp_path, facts_of(tmp_path, make_job(SEGMENTATION)))
    content = page.read_text()
    for path in tmp_path.glob("*.png"):
        path.unlink()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']{0,40})""", content)
    assert [source[:22] for source in sources if not source.startswith("#")] == ["data:image/png;base64,"] * 2
    assert not re.search(r"https?://|@import|url\(", content)


def test_hostile_names_are_shown_and_do_nothing(tmp_path: Path) -> None:
    job = make_job({"kind": "segmentation", "classes": ["background", HOSTILE]})
    facts = replace(facts_of(tmp_path, job), federation=HOSTILE, run=HOSTILE, site=HOSTILE, version=HOSTILE)
    facts.cohort.quarantined[HOSTILE] = HOSTILE
    page = write_report(tmp_path, facts)
    assert HOSTILE not in page.read_text()
    assert page.read_text().count("<script>") == 1  # our own, which opens what is folded before printing
    assert text_of(page).count(HOSTILE) > 10


def test_a_run_that_has_hardly_begun_has_a_report_that_says_so(tmp_path: Path) -> None:
    job = make_job(CLASSIFICATION)
    cohort = site_data(tmp_path, job).report
    names = {"site": "north", "federation": "imaging-net", "run": "run-1", "version": "0.1.0"}
    text = text_of(write_report(tmp_path, ReportFacts(**names, job=job, cohort=cohort)))
    assert "The federated model has not been judged on test patients of this hospital." in text
    assert "north trained in no round of 5 rounds." in text
    assert "Nothing has left this hospital for this run." in text
    assert "No case was drawn." in text


def test_a_metric_without_a_value_is_told_and_another_leads(tmp_path: Path) -> None:
    job = make_job(CLASSIFICATION)
    values = {"probabilities": [0.2, 0.8], "label": [1.0]}
    own = judge_own(job, [CaseRecord(f"c{i}", f"p{i}", values) for i in range(3)], 0)
    facts = replace(facts_of(tmp_path, job), evaluations={"test": own})
    text = text_of(write_report(tmp_path, facts))
    assert "own 3 test patients the federated model reaches Calibration error 0.200 (95 % interval 0.200 to 0.2" in text
    assert "AUROC: undefined: no case, or no case of the class, that the metric needs." in text


def test_a_case_that_is_no_longer_usable_is_passed_over(tmp_path: Path) -> None:
    job = make_job(SEGMENTATION)
    data = site_data(tmp_path, job)
    gone = CaseRecord("case-10", "p10", {"dice": [1.0]})
    assert draw_own_cases(job, build(job), data, [gone], tmp_path) == []
    assert not (tmp_path / "cases.png").exists()


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    facts = replace(facts_of(tmp_path, make_job(SEGMENTATION)), pictures=[tmp_path / "nowhere.png"])
    with pytest.raises(BadInput, match=r"nowhere\.png: the picture cannot be read"):
        write_report(tmp_path, facts)
