"""What stays warm between the messages of one process: the job, the data of its sites, one network.

The keys hold the job as text, because a parsed job has lists and cannot be hashed.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import nn

from client.data.cache import CaseCache
from client.data.dataset import SiteData
from client.site import Site
from shared_models.job import Job
from shared_models.zoo import build


@functools.lru_cache(maxsize=4)
def job_of(text: str) -> Job:
    """The job in its canonical JSON."""
    return Job.model_validate_json(text)


def data_of(site: Site, job: Job) -> SiteData:
    """The site's cases, looked at once for each job."""
    return _data(site, job.canonical_json())


def network_of(job: Job, device: str) -> nn.Module:
    """The job's network on its device; whoever asks loads weights into it."""
    return _network(job.canonical_json(), device)


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
    return build(job_of(job_text)).to(torch.device(device))


def forget_data() -> None:
    """Lets the next question look at the site's data anew, as after a file was changed."""
    _data.cache_clear()
