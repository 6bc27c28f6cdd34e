"""What a site knows of itself when a message arrives: its name, manifest, folders and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared_models.errors import BadInput
from shared_models.job import Job
from shared_models.seeds import derive_seed

DEFAULT_CACHE_BYTES = 20 * 2**30


@dataclass(frozen=True)
class Site:
    """One hospital, as configured by whoever runs it.

    Attributes:
        data_root: no image outside this folder is opened; None for anywhere.
        secret: in the seed of bootstrap draws, so that a coordinator cannot repeat them and solve the sums for single
            patients; empty in a simulation, where whoever runs it has all patients anyway.
        min_patients: the least patients that a told group of them has, whatever a job says.
        own: where the tensors are kept that stay at this site in the run at hand; a folder of `folder` if not said.
    """

    name: str
    manifest: Path
    folder: Path
    cache: Path
    device: str = "cpu"
    cache_bytes: int = DEFAULT_CACHE_BYTES
    data_root: Path | None = None
    secret: str = ""
    min_patients: int = 1
    own: Path = field(default=None, compare=False)  # type: ignore[assignment]  # it depends on folder

    def __post_init__(self) -> None:
        if self.own is None:
            object.__setattr__(self, "own", self.folder / "own")

    @classmethod
    def from_node_config(cls, config: Mapping[str, object]) -> Site:
        """Reads Flower's node config, which belongs to the site.

        Raises:
            BadInput: a key is missing.
        """
        missing = {"site", "manifest", "folder", "cache"} - config.keys()
        if missing:
            raise BadInput(f"the node config of this site lacks {', '.join(sorted(missing))}")
        return cls(
            name=str(config["site"]),
            manifest=Path(str(config["manifest"])),
            folder=Path(str(config["folder"])),
            cache=Path(str(config["cache"])),
            device=str(config.get("device", "cpu")),
        )


def bootstrap_seed(site: Site, job: Job, split: str) -> int:
    """The seed of a site's bootstrap draws of a split: the same for every model, so that differences are paired."""
    own = (site.secret,) if site.secret else ()
    return derive_seed(job.seed, "bootstrap", site.name, split, *own)
