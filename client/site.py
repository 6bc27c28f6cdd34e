"""What a site knows of itself when a message arrives: its name, manifest, folders and device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared_models.errors import BadInput

DEFAULT_CACHE_BYTES = 20 * 2**30


@dataclass(frozen=True)
class Site:
    """One hospital, as configured by whoever runs it."""

    name: str
    manifest: Path
    folder: Path
    cache: Path
    device: str = "cpu"
    cache_bytes: int = DEFAULT_CACHE_BYTES

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
