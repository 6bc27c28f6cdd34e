"""What stays of a model at a site: kept by round, found again, never mixed up with another site's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.own_tensors import Own, keep_own, load_own, personal_model, read_own
from client.site import Site
from shared_models.errors import BadInput
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.weights import own, travelling
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


def kept(value: float, site: Site, number: int, best_used: int = 0, job: Job = FEDBN, last_used: int | None = None):
    tensors = {name: array.copy() for name, array in own(filled(value, job), job.federation.share).items()}
    return keep_own(Own(tensors, round=number), site, number - 1 if last_used is None else last_used, best_used)


def rounds_in(site: Site) -> list[int]:
    return sorted(int(path.stem.removeprefix("round-")) for path in site.own.iterdir())


def loaded(site: Site, number: int) -> torch.nn.Module:
    network = build(FEDBN)
    load_own(network, site, FEDBN, number)
    return network


def weight_of(network, job=FEDBN) -> float:
    return next(float(array.flat[0]) for name, array in own(network, job.federation.share).items() if "weight" in name)


def test_a_site_trains_on_from_what_it_has_and_is_not_judged_with_another_rounds(tmp_path):
    site = site_in(tmp_path / "north")
    for number in (1, 2, 5):
        kept(number, site, number, best_used=2)
    assert [weight_of(loaded(site, number)) for number in (2, 5)] == [2.0, 5.0]
    (site.own / "round-000005.safetensors").unlink()
    assert read_own(site, FEDBN, 5).round == 2
    with pytest.raises(Fault, match="for round 5") as lost:
        load_own(build(FEDBN), site, FEDBN, 5)
    assert (lost.value.code, lost.value.parameters) == ("lost", {"round": 5})


def test_before_its_first_round_a_site_has_the_initial_tensors_whatever_the_network_held(tmp_path):
    kept(7.0, site_in(tmp_path / "north"), 1)
    network = filled(7.0)
    load_own(network, site_in(tmp_path / "south"), FEDBN, 0)
    assert weight_of(network) == 1.0


def test_only_the_best_round_and_those_that_a_resumed_run_may_go_back_to_are_kept(tmp_path):
    site = site_in(tmp_path / "north")
    for number, best_used in ((1, 0), (2, 1), (4, 2), (5, 2), (6, 2)):
        kept(number, site, number, best_used)
    assert rounds_in(site) == [2, 4, 5, 6]


def test_a_site_goes_on_from_the_last_round_that_counted_however_often_it_trained_since(tmp_path):
    site = site_in(tmp_path / "north")
    kept(2.0, site, 2, last_used=0)
    kept(5.0, site, 5, last_used=2, best_used=2)
    for value in (9.0, 9.5):  # the round is tried again, or the run was killed in it
        kept(value, site, 9, last_used=5, best_used=2)
        assert weight_of(loaded(site, 5)) == 5.0
    kept(12.0, site, 12, last_used=5, best_used=5)  # its update of round 9 came too late
    assert weight_of(loaded(site, 5)) == 5.0 and rounds_in(site) == [2, 5, 12]
    kept(13.0, site, 13, last_used=12, best_used=5)
    assert weight_of(loaded(site, 5)) == 5.0


def test_what_an_algorithm_keeps_and_a_personal_model_come_back_apart(tmp_path):
    site = site_in(tmp_path / "north")
    whole = travelling(filled(3.0))
    keep_own(Own(algorithm={"control/w": np.ones(2, np.float32)}, personal=whole, round=1), site, 0, 0)
    found = read_own(site, FEDBN, 1)
    assert found.algorithm["control/w"].tolist() == [1.0, 1.0]
    assert personal_model(site, FEDBN, 1).keys() == whole.keys()
    assert personal_model(site_in(tmp_path / "south"), FEDBN, 0) is None


def test_a_job_that_shares_everything_writes_nothing(tmp_path):
    site, job = site_in(tmp_path), job_that_shares()
    assert not kept(2.0, site, 1, job=job)
    assert not site.own.exists()


def test_a_damaged_file_is_named(tmp_path):
    site = site_in(tmp_path)
    kept(2.0, site, 4)
    path = site.own / "round-000004.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BadInput, match=r"round-000004\.safetensors cannot be read"):
        load_own(build(FEDBN), site, FEDBN, 4)
