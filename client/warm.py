"""What stays warm between the messages of one process: the job, the data of its sites, one network.

The keys hold the job as text, because a parsed job has lists and cannot be hashed.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from pathlib import Path

import torch
from torch import nn

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.site import Site
from client.training import memory_layout
from shared_models.faults import Fault
from shared_models.job import Job
from shared_models.memory import REMEDIES, MemoryEstimate, free_memory, recompute_activations, training_memory
from shared_models.zoo import build


@functools.lru_cache(maxsize=4)
def job_of(text: str) -> Job:
    """The job in its canonical JSON."""
    return Job.model_validate_json(text)


def data_of(site: Site, job: Job) -> SiteData:
    """The site's cases, looked at once for each job."""
    return _data(site, job.canonical_json())


def network_of(job: Job, device: str) -> nn.Module:
    """The job's network on its device; whoever asks loads weights into it.

    Raises:
        Fault: it shall be compiled, and this machine has no compiler.
    """
    return _network(job.canonical_json(), device)


def memory_of(job: Job) -> MemoryEstimate | None:
    """What training takes, see `training_memory`; looked at once for each job."""
    return _memory(job.canonical_json())


def check_memory(job: Job, device: str) -> None:
    """Says before training that it will not fit into the memory that is free now.

    Raises:
        Fault: it will not.
    """
    estimate, free = memory_of(job), free_memory(torch.device(device))
    if estimate is not None and free is not None and estimate.total > free:
        needed, there = math.ceil(estimate.total / 1e6), int(free / 1e6)
        text = f"training takes at least {needed} MB of memory on {device}, and {there} MB are free: use {REMEDIES}"
        raise Fault(text, "does_not_fit", needed=needed, there=there)


@functools.lru_cache(maxsize=128)
def _data(site: Site, job_text: str) -> SiteData:
    cache = _cache(site.cache, site.cache_bytes)
    return SiteData(site.manifest, job_of(job_text), site.name, cache, report_folder=site.folder, root=site.data_root)


@functools.lru_cache(maxsize=8)
def _cache(folder: Path, limit_bytes: int) -> CaseCache:
    """One for all sites of this process, so that a full disk is told once and the folder is measured once."""
    return CaseCache(folder, limit_bytes)


@functools.lru_cache(maxsize=1)
def _network(job_text: str, device: str) -> nn.Module:
    job = job_of(job_text)
    network = build(job).to(memory_format=memory_layout(job))  # type: ignore[call-overload]  # missing in torch's stubs
    network = network.to(torch.device(device))
    if job.training.gradient_checkpointing:
        recompute_activations(network, job)
    if job.training.compile:
        if not shutil.which(os.environ.get("CXX", "g++")):
            raise Fault("training.compile needs a C++ compiler; install g++, or set CXX to another", "compiler")
        _compile(network)
    return network


def _compile(network: nn.Module) -> None:
    """In place, so that names stay; of networks that are trained against each other each one, as each is called."""
    names = [*getattr(network, "generators", ()), *getattr(network, "discriminators", ())]
    for module in [network.get_submodule(name) for name in names] or [network]:
        module.compile()


@functools.lru_cache(maxsize=4)
def _memory(job_text: str) -> MemoryEstimate | None:
    return training_memory(job_of(job_text))


def forget_data() -> None:
    """Lets the next question look at the site's data anew, as after a file was changed."""
    _data.cache_clear()
