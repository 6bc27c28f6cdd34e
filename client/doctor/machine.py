"""The machine under a site: Python and packages, what it computes on, memory and disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from client.config import SiteConfig
from client.doctor.row import Row, fault, gib, warning
from shared_models.machine import machine_memory

FLWR = SpecifierSet("==1.41.*")
"""The one series of flwr whose runtime this version of consilium knows; constraints.txt pins a release of it."""

SHOWN = ("consilium", "flwr", "torch", "monai", "numpy")
ENOUGH_MEMORY, LEAST_MEMORY = 4 * 2**30, 1 * 2**30  # bytes
ENOUGH_ON_GPU = 2 * 2**30
LEAST_DISK = 1 * 2**30


def software() -> Iterator[Row]:
    """Whether Python and every package are of the versions that consilium needs."""
    found = {name: _version(name) for name in SHOWN}
    try:
        about = importlib.metadata.metadata("consilium")
        needs, python = importlib.metadata.requires("consilium") or [], about["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        needs, python = [], ""
    here = platform.python_version()
    if SpecifierSet(python).contains(here, prereleases=True):
        yield Row("python", here)
    else:
        remedy = "make a new environment with such a Python, and install consilium there"
        yield fault("python", here, f"Python {here} runs this, and consilium needs {python}; {remedy}")
    expected = {name: SpecifierSet() for name in SHOWN}
    for need in map(Requirement, needs):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            expected[need.name] = need.specifier
    expected["flwr"] = FLWR  # narrower than what pip is asked for
    wrong = [sentence for name, versions in expected.items() if (sentence := _misfit(name, versions))]
    shown = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if not wrong:
        yield Row("packages", shown)
    for sentence in wrong:
        yield fault("packages", shown, sentence)


def _misfit(name: str, versions: SpecifierSet) -> str | None:
    """What is wrong with an installed package, if something is."""
    version = _version(name)
    if version is not None and versions.contains(version, prereleases=True):
        return None
    found = f"{name} {version} is installed" if version else f"{name} is not installed"
    wanted = str(versions).removeprefix("==") if versions else "any version"
    install = f"python -m pip install '{name}{versions}'"
    return f"{found}, expected {wanted}; in this environment run: {install}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device(config: SiteConfig) -> Iterator[Row]:
    """Whether torch computes on the configured device, and how much memory that has."""
    name = config.device
    try:
        import torch
    except Exception as error:  # a library that is missing, or one for another processor
        remedy = "install it anew: python -m pip install --force-reinstall torch"
        yield fault("device", name, f"torch cannot be imported ({type(error).__name__}); {remedy}")
        return
    if name == "cpu":
        yield Row("device", f"cpu, {config.threads or torch.get_num_threads()} threads")
        return
    there = torch.backends.mps.is_available() if name == "mps" else torch.cuda.is_available()
    if not there:
        remedy = "install its driver and a torch that is built for it, or set `device: cpu` in site.yaml"
        yield fault("device", f"{name} is missing", f"torch {torch.__version__} finds no {name} here; {remedy}")
        return
    index = int(name.partition(":")[2] or 0)
    if name != "mps" and index >= torch.cuda.device_count():
        found = f"cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        yield fault(
            "device", f"{name} is missing", f"site.yaml asks for {name}, and there is {found}; set one of these"
        )
        return
    try:
        torch.ones(8, device=name).sum().item()
    except RuntimeError as error:  # such as a torch that has no code for this GPU
        remedy = "see `nvidia-smi`, and install a torch that is built for this GPU, or set `device: cpu` in site.yaml"
        yield fault("device", f"{name} fails", f"{name} cannot compute ({type(error).__name__}); {remedy}")
        return
    if name == "mps":
        yield Row("device", f"mps, {gib(torch.mps.recommended_max_memory())}")
        return
    free, total = torch.cuda.mem_get_info(index)
    found = f"{torch.cuda.get_device_name(index)}, {gib(free)} of {gib(total)} free"
    if free < ENOUGH_ON_GPU:
        remedy = f"expected {gib(ENOUGH_ON_GPU)} or more; see with `nvidia-smi` what else uses it"
        yield warning("device", found, f"{name} has {gib(free)} free; {remedy}")
    else:
        yield Row("device", found)


def memory() -> Iterator[Row]:
    """Whether there is enough memory to prepare images and train in, within the limit of a container."""
    free, total = machine_memory()
    found = f"{gib(free)} of {gib(total)} free"
    if free >= ENOUGH_MEMORY:
        yield Row("memory", found)
    else:
        how = fault if free < LEAST_MEMORY else warning
        remedy = f"expected {gib(ENOUGH_MEMORY)} or more; end other programs, or give this machine more"
        yield how("memory", found, f"{gib(free)} of memory are free; {remedy}")


def disk(config: SiteConfig) -> Iterator[Row]:
    """Whether the disk of the work directory has room for what a site writes, and for the cache up to its limit."""
    free = shutil.disk_usage(config.work).free
    limit = config.cache_gb * 2**30
    growth = max(0.0, limit - _size(config.work / "cache"))
    found = f"{gib(free)} free, cache up to {gib(limit)}"
    if free < LEAST_DISK:
        remedy = f"expected {gib(LEAST_DISK)} or more for the ledger and models: free space there, or move `work`"
        yield fault("disk", found, f"the disk of {config.work} has {gib(free)} free; {remedy}")
    elif free < growth + LEAST_DISK:
        fits = max(0.1, (limit - growth + free - LEAST_DISK) / 2**30)
        remedy = f"free space there, or set cache_gb to {fits:.1f} or less in site.yaml"
        room = f"the cache may still grow by {gib(growth)}"
        yield warning("disk", found, f"the disk of {config.work} has {gib(free)} free, and {room}; {remedy}")
    else:
        yield Row("disk", found)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; 0 without one."""
    size = 0
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):  # evicted meanwhile
                size += entry.stat(follow_symlinks=False).st_size
    return size
