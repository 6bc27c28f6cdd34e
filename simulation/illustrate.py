"""The pictures of a finished run: who has what, and the cases that the federated model got best, middling and worst."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.own_tensors import load_own
from client.pictures import best_to_worst
from client.ranked_pictures import RANKINGS, Ranking
from client.site import Site
from client.synthetic_pictures import draw_synthetic
from client.training import infer_cases, judging_seed
from server.checkpoint import load_weights, round_of, write_atomically
from server.events import EventLog
from server.judgement import FEDERATED
from shared_models.errors import BadInput
from shared_models.tasks import CaseRecord, task_of
from shared_models.weights import load
from shared_models.zoo import build
from simulation.pictures import draw_partition
from simulation.run_folder import RunFolder


def draw_pictures(run: RunFolder, events: EventLog) -> None:
    """Writes pictures/partition.png and, for all tasks but classification, pictures/cases.png.

    A picture that cannot be drawn is a warning in the report, not the end of a run that is done.
    """
    sites: dict[str, SiteData] = {}
    for node in run.nodes():
        if node["site"] in run.split.hospitals:
            try:
                sites[node["site"]] = SiteData(
                    Path(node["manifest"]), run.job, node["site"], CaseCache(Path(node["cache"]), 0)
                )
            except BadInput as error:
                events.emit("warning", text=f"{node['site']} is in no picture: {error}")
    try:
        manifests = {name: run.path / "sites" / name / "manifest.csv" for name in sites}
        reports = {name: data.report for name, data in sites.items()}
        draw_partition(run.job, manifests, reports, run.path / "pictures" / "partition.png")
        if not (run.path / "evaluations.json").exists():
            return
        if run.job.task.kind in RANKINGS:
            _draw_cases(run, sites, RANKINGS[run.job.task.kind])
        elif run.job.task.kind == "synthesis":
            _draw_synthetic(run, sites)
    except BadInput as error:
        events.emit("warning", text=f"a picture could not be drawn: {error}")


def _draw_cases(run: RunFolder, sites: Mapping[str, SiteData], ranking: Ranking) -> None:
    """Draws the test cases at the top, the middle and the bottom of what the federated model did."""
    ranked = sorted(_scores(run, sites, ranking), key=lambda row: (-row[0], row[1:]))
    if not ranked:
        return
    network, task, best = build(run.job), task_of(run.job), run.path / "models" / "federated-best.safetensors"
    weights, number = load_weights(best), round_of(best)
    nodes = {str(node["site"]): Site.from_node_config(node) for node in run.nodes()}
    samples = []
    for title, (score, site, case_id) in best_to_worst(ranked).items():
        data = sites[site]
        load_own(network, nodes[site], run.job, number)
        load(network, weights, run.job.federation.share)
        case = next(case for case in data.cases("test") if case.id == case_id)
        for sample, probabilities in infer_cases(network, data, [case], run.job, task):
            heading = f"{title}: {case_id} at {site}, {ranking.text(score)}"
            samples.append({**sample, "probabilities": probabilities, "title": heading})
    write_atomically(run.path / "pictures" / "cases.png", ranking.draw(run.job, samples))


def _draw_synthetic(run: RunFolder, sites: Mapping[str, SiteData]) -> None:
    """Draws what the federated model makes beside the training images of the first hospital."""
    site, data = next(iter(sites.items()))
    network, best = build(run.job), run.path / "models" / "federated-best.safetensors"
    nodes = {str(node["site"]): Site.from_node_config(node) for node in run.nodes()}
    load_own(network, nodes[site], run.job, round_of(best))
    load(network, load_weights(best), run.job.federation.share)
    content = draw_synthetic(run.job, network, data.samples("train"), site, judging_seed(run.job))
    write_atomically(run.path / "pictures" / "cases.png", content)


def _scores(run: RunFolder, sites: Mapping[str, SiteData], ranking: Ranking) -> list[tuple[float, str, str]]:
    """(score, hospital, case) of every test case that has a score."""
    rows = []
    for site in sites:
        path = run.path / "sites" / site / "evaluations" / f"{FEDERATED}.json"
        for content in json.loads(path.read_text()) if path.exists() else []:
            record = CaseRecord.from_json(content)
            score = ranking.score(record)
            if score is not None:
                rows.append((score, site, record.case))
    return rows
