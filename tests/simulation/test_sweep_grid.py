"""The cells of a sweep: what a grid means, and the job that each cell gets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from shared_models.errors import BadInput
from simulation.sweep_grid import Cell, cells, job_of, parse_grid, varied

BASE: dict[str, Any] = {
    "name": "x",
    "seed": 4,
    "model": {"name": "cnn", "arguments": {"hidden": 8}, "normalisation": "group"},
    "training": {"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}},
    "federation": {
        "rounds": 2,
        "algorithm": {"name": "fedprox", "mu": 0.5, "server_optimizer": {"name": "adam"}},
    },
    "simulation": {"partition": {"name": "dirichlet", "alpha": 0.3}, "hospitals": 3},
}


def made(**settings: Any) -> dict[str, Any]:
    """The job of a cell with these settings; `__` stands for a dot."""
    chosen = {key.replace("__", "."): value for key, value in settings.items()}
    return job_of(BASE, Path("jobs"), Cell("c", chosen, 9))


def test_values_are_those_of_yaml():
    assert parse_grid(["algorithm.name=fedavg, fedprox", "model.normalisation=batch,null", "rounds=5"]) == {
        "algorithm.name": ["fedavg", "fedprox"],
        "model.normalisation": ["batch", None],
        "rounds": [5],
    }
    assert parse_grid(["training.optimizer.learning_rate=1e-3,0.01"]) == {
        "training.optimizer.learning_rate": [0.001, 0.01]
    }
    assert parse_grid(["algorithm={name: fedavg},{name: fedprox, mu: 0.1}"])["algorithm"][1] == {
        "name": "fedprox",
        "mu": 0.1,
    }
    assert parse_grid(["data.crop=[28, 28],[14, 14]"]) == {"data.crop": [[28, 28], [14, 14]]}


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["algorithm.name"], "--grid algorithm.name: expected a key, '=' and values with commas"),
        (["=a,b"], "expected a key, '=' and values"),
        (["rounds="], "--grid rounds=: expected values with commas between them"),
        (["rounds=2,3,2"], "--grid rounds=2,3,2: the value 2 is there twice"),
        (["rounds=2", "rounds=3"], "--grid rounds is given twice"),
        (["rounds=2", "federation.rounds=3"], "--grid federation.rounds is given twice"),
        (["seed=1,2"], "seed is not for the grid; use --seeds"),
        (["name=a,b"], "name is not for the grid"),
        (["algoritm.name=fedavg"], "a job has no key 'algoritm'; did you mean 'algorithm'?"),
        (["scanners.set=mild,strong"], "no key 'scanners'; did you mean simulation.scanners.set?; `consilium job"),
        (["local_steps=1,2"], "no key 'local_steps'; did you mean training.local_steps?"),
        (["algorithm.mu=2020-01-01,.nan"], "a date or a number that is not finite"),
        (["rounds={a"], "--grid rounds:1: not valid YAML"),
        (["rounds=2]\nother: [3"], "expected values with commas between them"),
    ],
)
def test_a_grid_that_says_nothing_clear_is_refused(texts: list[str], sentence: str):
    with pytest.raises(BadInput) as refused:
        parse_grid(texts)
    assert sentence in str(refused.value)


def test_every_combination_runs_with_every_seed_and_the_first_seed_comes_first():
    grid = parse_grid(["algorithm.name=fedavg,fedprox", "rounds=2,3"])
    found = cells(grid, first_seed=7, seeds=2)
    assert [cell.seed for cell in found] == [7] * 4 + [8] * 4
    combinations = list(itertools.product(("fedavg", "fedprox"), (2, 3)))
    assert [tuple(cell.settings.values()) for cell in found] == combinations * 2
    assert found[0].name == "001-fedavg-2-seed-7" and len({cell.name for cell in found}) == 8


def test_names_of_cells_are_names_of_files():
    grid = parse_grid(["model.pretrained=../../etc/x.pt,null", "algorithm={name: fedprox, mu: 0.1}"])
    names = [cell.name for cell in cells(grid, 0, 1)]
    assert names == ["001-etc-x.pt-fedprox-0.1-seed-0", "002-null-fedprox-0.1-seed-0"]
    rates = parse_grid(["training.optimizer.learning_rate=1e30,1e-30,-0.5"])
    assert [cell.name for cell in cells(rates, 0, 1)] == ["001-1e+30-seed-0", "002-1e-30-seed-0", "003--0.5-seed-0"]


def test_the_keys_that_cells_differ_in_are_whole_and_without_those_that_never_change():
    grid = parse_grid(["rounds=5", "algorithm={name: fedavg},{name: fedprox, mu: 0.1}", "training.batch_size=2,4"])
    found = varied([cell.settings for cell in cells(grid, 0, 2)])
    assert found == ["federation.algorithm.name", "federation.algorithm.mu", "training.batch_size"]


def test_a_cell_changes_its_keys_and_nothing_else():
    job = made(training__optimizer__learning_rate=0.01)
    assert job["training"]["optimizer"] == {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9}
    assert {**job, "training": BASE["training"], "seed": 4} == BASE
    assert job["seed"] == 9 and BASE["seed"] == 4


def test_federation_may_be_left_out_of_a_key():
    assert made(rounds=5)["federation"]["rounds"] == made(federation__rounds=5)["federation"]["rounds"] == 5


def test_a_new_algorithm_keeps_the_server_optimizer_and_nothing_of_the_old_one():
    moon = made(algorithm__name="moon")["federation"]["algorithm"]
    assert moon == {"name": "moon", "server_optimizer": {"name": "adam"}}  # its mu is not fedprox's
    assert made(algorithm__name="fedprox")["federation"]["algorithm"]["mu"] == 0.5


def test_a_new_server_optimizer_has_the_rate_that_goes_with_it():
    """A run directory's job.yaml has 1.0 written out, the rate of plain averaging, with which adam would diverge."""
    plain = {"name": "fedavg", "server_optimizer": {"name": "none", "learning_rate": 1.0}}
    job = {**BASE, "federation": {"rounds": 2, "algorithm": plain}}
    cell = Cell("c", {"algorithm.server_optimizer.name": "adam"}, 9)
    made = job_of(job, Path("jobs"), cell)
    assert made["federation"]["algorithm"]["server_optimizer"] == {"name": "adam"}


def test_the_parameter_of_a_new_algorithm_is_set_whichever_comes_first():
    for settings in (
        {"algorithm__mu": 2.0, "algorithm__name": "moon"},
        {"algorithm__name": "moon", "algorithm__mu": 2.0},
    ):
        assert made(**settings)["federation"]["algorithm"]["mu"] == 2.0


def test_other_kinds_of_a_section_begin_anew_too():
    assert made(simulation__partition__name="iid")["simulation"]["partition"] == {"name": "iid"}
    assert made(model__name="resnet18")["model"] == {"name": "resnet18", "normalisation": "group"}
    assert made(training__optimizer__name="adamw")["training"]["optimizer"]["learning_rate"] == 0.1


def test_a_section_that_is_not_there_is_made():
    assert made(aggregation__name="median")["federation"]["aggregation"] == {"name": "median"}
    without = {**BASE, "simulation": {**BASE["simulation"], "scanners": None}}
    job = job_of(without, Path("jobs"), Cell("c", {"simulation.scanners.set": "mild"}, 9))
    assert job["simulation"]["scanners"] == {"set": "mild"}


def test_a_key_below_a_value_is_refused():
    with pytest.raises(BadInput, match="federation.rounds: this is 2, and no section"):
        made(rounds__more=1)


def test_pretrained_weights_are_looked_for_beside_the_job():
    assert made(model__pretrained="w.pt")["model"]["pretrained"] == str(Path("jobs/w.pt").absolute())
    assert made(model__pretrained=None)["model"]["pretrained"] is None
