"""What stays of a model at a site: kept by round, found again, never mixed up with another site's."""

from pathlib import Path

import pytest
import torch

from client.own_tensors import keep_own, load_own
from client.site import Site
from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.weights import own
from shared_models.zoo import build


def job_that_shares(**share):
    return Job.model_validate(
        {
            "name": "own",
            "task": {"kind": "classification", "classes": ["a", "b"]},
            "data": {"spatial_dims": 2, "crop": [16, 16]},
            "model": {"name": "cnn", "arguments": {"channels": [4], "hidden": 8}, "normalisation": "batch"},
            "training": {"local_steps": 1},
            "federation": {"rounds": 9, "share": share},
        }
    )


FEDBN = job_that_shares(normalisation="nothing")


def site_in(folder: Path) -> Site:
    return Site(folder.name, folder / "manifest.csv", folder, folder / "cache")


def filled(value: float, job: Job = FEDBN) -> torch.nn.Module:
    network = build(job)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    return network


def weight_of(network, job=FEDBN) -> float:
    return next(float(array.flat[0]) for name, array in own(network, job.federation.share).items() if "weight" in name)


def test_a_site_finds_what_it_had_behind_a_round_or_the_last_before_it(tmp_path):
    site, network = site_in(tmp_path / "north"), build(FEDBN)
    for number in (1, 2, 5):
        keep_own(filled(number), site, FEDBN, number)
    for asked, expected in ((1, 1.0), (2, 2.0), (4, 2.0), (9, 5.0)):
        load_own(network, site, FEDBN, asked)
        assert weight_of(network) == expected


def test_before_its_first_round_a_site_has_the_initial_tensors_whatever_the_network_held(tmp_path):
    keep_own(filled(7.0), site_in(tmp_path / "north"), FEDBN, 1)
    network = filled(7.0)
    load_own(network, site_in(tmp_path / "south"), FEDBN, 3)
    assert weight_of(network) == 1.0


def test_a_job_that_shares_everything_writes_nothing(tmp_path):
    site, job = site_in(tmp_path), job_that_shares()
    keep_own(filled(2.0, job), site, job, 1)
    assert not site.own.exists()


def test_a_damaged_file_is_named(tmp_path):
    site = site_in(tmp_path)
    keep_own(filled(2.0), site, FEDBN, 4)
    path = site.own / "round-000004.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BadInput, match=r"round-000004\.safetensors cannot be read"):
        load_own(build(FEDBN), site, FEDBN, 4)
