"""site.yaml: what a hospital has configured, read strictly, and written once with every key explained."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

from pydantic import AfterValidator, Field

from client.policy import Policy
from shared_models import yaml_file
from shared_models.enrolment import SITE_NAME
from shared_models.errors import BadInput
from shared_models.files import whole_file
from shared_models.section import Section

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def _a_path(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(f"expected a path, found {text!r}")
    return text


Written = Annotated[str, AfterValidator(_a_path)]
"""A path as it stands in the file."""


class SiteFile(Section):
    """The keys of site.yaml."""

    site: str = Field(pattern=SITE_NAME)
    kit: Written
    key: Written
    manifest: Written
    data_root: Written
    work: Written
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,2})?|mps)$")
    threads: int | None = Field(None, ge=1, le=1024)
    cache_gb: float = Field(20, gt=0, allow_inf_nan=False)
    health_port: int = Field(9471, ge=1, le=65535)
    policy: Policy = Policy()


@dataclass(frozen=True)
class SiteConfig:
    """One hospital's site, as its owner configured it; all paths are absolute."""

    site: str
    kit: Path
    key: Path
    manifest: Path
    data_root: Path
    """No image outside this folder is opened."""
    work: Path
    """Everything that the site writes: ledger.jsonl, jobs/, cache/, logs/, runs/."""
    device: str = "cpu"
    threads: int | None = None
    """Threads of the worker; None leaves it to torch."""
    cache_gb: float = 20
    """Limit of the prepared images kept on disk, in GiB."""
    health_port: int = 9471
    """On loopback."""
    policy: Policy = field(default_factory=Policy)


def load_site_config(path: Path) -> SiteConfig:
    """The configuration in a file; makes the work directory, readable by its owner only, where there is none.

    Relative paths start at the file's folder. The kit, key, manifest and data are looked at by whatever opens them,
    so that the ledger can be verified while a data disk is away.

    Raises:
        BadInput: one line per mistake with file, line and key; or the work directory is not safe to write to.
    """
    if not path.exists():
        raise BadInput(
            f"{path}: no site configuration here; `consilium site join` writes it, --config says where one is"
        )
    values = _parse(yaml_file.read_text(path, "site configuration"), str(path))
    folder = path.absolute().parent
    paths = {key: folder / getattr(values, key) for key in ("kit", "key", "manifest", "data_root", "work")}
    _make_work(paths["work"], path)
    rest = {key: getattr(values, key) for key in SiteFile.model_fields if key not in paths}
    return SiteConfig(**paths, **rest)


def write_site_config(
    path: Path, *, site: str, kit: Path, key: Path, manifest: Path, data_root: Path, work: Path, coordinator: str
) -> None:
    """Write a commented site.yaml whose policy trusts one coordinator and allows nothing yet.

    Args:
        kit, key, manifest, data_root, work: relative ones start at the current directory.
        coordinator: fingerprint of its job-signing key, such as SHA256:...

    Raises:
        BadInput: there is a file already, or a value is none that `load_site_config` would take.
    """
    if path.exists():
        raise BadInput(f"{path} exists already; edit it, or move it away first")
    folder = path.absolute().parent
    files = {"kit": kit, "key": key, "manifest": manifest, "data_root": data_root, "work": work}
    values = {"site": site, "coordinator": coordinator}
    values |= {name: _seen_from(folder, file) for name, file in files.items()}
    template = Template(resources.files("client").joinpath("site_template.yaml").read_text("utf-8"))
    # A JSON text is a quoted YAML text, whatever it holds.
    text = template.substitute({name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})
    _parse(text, str(path))
    with whole_file(path) as file:
        file.write(text.encode())


def inside(root: Path, path: Path) -> Path:
    """Where a path leads, symbolic links followed.

    Raises:
        BadInput: it leads out of the root, or round in a circle.
    """
    try:
        end = path.resolve()
        within = end.is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a name too long, a NUL in it
        raise BadInput(f"{path} leads nowhere ({getattr(error, 'strerror', None) or error})") from None
    if not within:
        raise BadInput(f"{path} leads to {end}, which is outside {root}")
    return end


def _parse(text: str, source: str) -> SiteFile:
    example = "`consilium site join` writes one"
    return yaml_file.parse(text, source, SiteFile, kind="site configuration", example=example)


def _make_work(work: Path, source: Path) -> None:
    """Raises BadInput where the work directory cannot be had, others may write to it, or a link leads out of it."""
    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = work.stat().st_mode
        links = [entry for entry in work.iterdir() if entry.is_symlink()]
    except OSError as error:
        raise BadInput(f"{source}: work: {work} cannot be the work directory ({error.strerror or error})") from None
    if mode & OTHERS_WRITE:
        raise BadInput(f"{source}: work: others may write to {work}; take that away with `chmod go-w {work}`")
    for link in links:
        try:
            inside(work, link)
        except BadInput as error:
            raise BadInput(
                f"{source}: work: {error}; a work directory keeps everything in itself: "
                "remove the link, or give another `work`"
            ) from None


def _seen_from(folder: Path, file: Path) -> str:
    """Relative where the file lies in the folder, so that the folder can be moved; else absolute."""
    full = Path(os.path.abspath(file))
    return str(full.relative_to(folder) if full.is_relative_to(folder) else full)
