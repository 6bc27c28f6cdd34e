"""`consilium models`: the table, the details of one network, and jobs that are ready to run."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from deploy import cli, cli_job, cli_models
from deploy.ready_job import as_yaml, ready_job
from shared_models.job_file import load_job
from shared_models.zoo import MODELS

EVERY = [(name, dims) for name, kind in MODELS.items() for dims in sorted(kind.spatial_dims)]


# Each network is built once for the tests of both tables.
ROW = functools.cache(cli_models._row)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def consilium(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(cli_models, "_row", ROW)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["consilium", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_the_ready_job_of_every_network_is_one_that_can_run(name, dims, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(as_yaml(ready_job(name, dims)), encoding="utf-8")
    job = load_job(path)
    assert (job.model.name, job.data.spatial_dims, len(job.data.crop)) == (name, dims, dims)
    assert job.simulation is not None
    assert cli_job.selection_metric(path) == job.selection_metric()


def test_the_table_has_every_network_and_fits_a_screen(consilium):
    code, table, told = consilium("models")
    assert code == 0 and "counting parameters" in told
    assert max(map(len, table.splitlines())) <= 120
    rows = [line for line in table.splitlines() if any(f" {name} " in line for name in MODELS)]
    assert len(rows) == len(MODELS)
    (unet,) = [row for row in rows if " unet " in row]
    assert "segmentation" in unet and "1.6" in unet and "4.8" in unet and "instance" in unet


def test_the_table_for_programs_has_what_the_networks_are(consilium):
    code, text, _ = consilium("models", "--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert code == 0 and set(rows) == set(MODELS)
    assert rows["resnet18"]["parameters"] == {"2D": 11169602, "3D": 33141698}
    assert rows["swin_unet"]["parameters"].keys() == {"2D"}
    assert rows["cyclegan"]["tasks"] == ["unpaired translation"] and rows["vae"]["family"] == "autoencoder"


def test_the_details_of_a_network(consilium):
    code, text, _ = consilium("models", "show", "dynunet", "--dims", "3")
    lines = [line.split() for line in text.splitlines()]
    assert code == 0
    assert "Isensee et al. 2021, nnU-Net" in text
    assert any(line[:4] == ["filters", "list", "of", "integers"] for line in lines)
    assert "at least 3 entries" in text and "Width of every level." in text
    assert "Normalisation layers: 18 InstanceNorm3d." in text
    # Its tensors have two names each; the second ones do not travel.
    assert ["alias", "58", "0"] in lines and ["shared", "22", "22.6"] in lines
    assert "crop: [48, 64, 48]" in text


def test_a_job_goes_from_the_terminal_into_a_file(consilium, tmp_path):
    code, text, told = consilium("models", "show", "pix2pix", "--job")
    assert code == 0 and not told
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    code, text, _ = consilium("job", "check", str(tmp_path / "job.yaml"))
    assert code == 0 and "is a job that can run" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["unett"], "consilium: there is no model 'unett'; did you mean 'unet'?\n"),
        (["x\ny"], "consilium: there is no model 'x\\ny'; `consilium models` shows all\n"),
        (["xyz"], "consilium: there is no model 'xyz'; `consilium models` shows all\n"),
        (["swin_unet", "--dims", "3"], "consilium: 'swin_unet' cannot take 3D images; it is for 2D\n"),
    ],
)
def test_what_there_is_not_is_refused_in_a_sentence(consilium, arguments, sentence):
    assert consilium("models", "show", *arguments) == (2, "", sentence)


def test_help_imports_nothing_that_is_slow():
    program = (
        "import sys; sys.argv = ['consilium', 'models', 'show', '--help']\n"
        "from deploy.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "slow = {'torch', 'numpy', 'monai', 'pydantic'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--job > job.yaml" in done.stdout
