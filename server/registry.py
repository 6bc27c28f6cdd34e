"""The registry: which sites are in the federation, by which key, and whether they may take part now.

One JSON file is the truth. The commands change it under a lock; a coordinator that runs sees a change at its next look.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from shared_models.enrolment import Document, Moment, check_name, check_public_key, moment, read_document, write
from shared_models.errors import BadInput
from shared_models.keys import key_fingerprint
from shared_models.section import Section

LARGEST = 4 * 1024 * 1024  # bytes; about ten thousand sites

State = Literal["active", "suspended"]


@dataclass(frozen=True)
class Entry:
    """One site; ``public_key`` is its one spelling as a line of OpenSSH, ``admitted`` a UTC time."""

    name: str
    public_key: str
    state: State
    admitted: str


class _Site(Section):
    public_key: str
    state: State
    admitted: Moment

    @field_validator("public_key")
    @classmethod
    def _is_of_a_site(cls, line: str) -> str:
        return check_public_key(line, of_site=True)


class _Sites(Document):
    schema_name: ClassVar[str] = "consilium-registry/1"

    sites: dict[str, _Site] = Field(default_factory=dict)

    @field_validator("sites")
    @classmethod
    def _one_name_for_one_key(cls, sites: dict[str, _Site]) -> dict[str, _Site]:
        owners: dict[str, str] = {}
        for name, site in sites.items():
            try:
                check_name(name, "a site")
            except BadInput as error:
                raise ValueError(str(error)) from None
            if (other := owners.setdefault(site.public_key, name)) != name:
                raise ValueError(f"{other} and {name} have the same key")
        return sites


class Registry:
    """The registry in a file. Looking a site up costs one `stat` while the file does not change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._by_key: dict[str, Entry] = {}

    def site_of(self, public_key_line: str) -> Entry | None:
        """The site with this key, active or suspended; None when no site has it.

        Raises:
            BadInput: the file is missing or damaged.
        """
        return self._entries().get(public_key_line)

    def entries(self) -> list[Entry]:
        """All sites by name.

        Raises:
            BadInput: the file is missing or damaged.
        """
        return sorted(self._entries().values(), key=lambda entry: entry.name)

    def admit(self, name: str, public_key: str, now: datetime) -> Entry:
        """Take a site in. The same name with the same key again is fine, and a suspended site stays suspended.

        Raises:
            BadInput: the name is none or has another key, the key has another name, or the file is damaged.
        """
        check_name(name, "a site")
        with self._changed() as sites:
            for other, site in sites.items():
                if other == name and site.public_key != public_key:
                    raise BadInput(
                        f"{name} is a site already, with the key {key_fingerprint(site.public_key)}; the request has "
                        f"{key_fingerprint(public_key)}. If the hospital made a new key, remove the site first"
                    )
                if other != name and site.public_key == public_key:
                    raise BadInput(f"the key of this request is the one of site {other}; a site makes a key of its own")
            sites.setdefault(name, _Site(public_key=public_key, state="active", admitted=moment(now)))
        return self._named(name)

    def suspend(self, name: str) -> Entry:
        """Keep a site out until it is readmitted.

        Raises:
            BadInput: there is no such site, or the file is damaged.
        """
        return self._set_state(name, "suspended")

    def readmit(self, name: str) -> Entry:
        """Let a suspended site take part again.

        Raises:
            BadInput: there is no such site, or the file is damaged.
        """
        return self._set_state(name, "active")

    def remove(self, name: str) -> None:
        """Forget a site; its name and its key are free again.

        Raises:
            BadInput: there is no such site, or the file is damaged.
        """
        with self._changed() as sites:
            del sites[_known(name, sites, self.path)]

    def _set_state(self, name: str, state: State) -> Entry:
        with self._changed() as sites:
            site = sites[_known(name, sites, self.path)]
            sites[name] = site.model_copy(update={"state": state})
        return self._named(name)

    def _named(self, name: str) -> Entry:
        return next(entry for entry in self.entries() if entry.name == name)

    def _entries(self) -> dict[str, Entry]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise BadInput(f"{self.path}: the registry cannot be read ({error.strerror or error})") from None
        # Every change is a new file under the same name, so the number of the file tells two quick changes apart.
        found = (status.st_ino, status.st_mtime_ns, status.st_size)
        if found != self._seen:
            sites = read_document(self.path, _Sites, LARGEST).sites
            self._by_key = {
                site.public_key: Entry(name, site.public_key, site.state, site.admitted) for name, site in sites.items()
            }
            self._seen = found
        return self._by_key

    @contextmanager
    def _changed(self) -> Iterator[dict[str, _Site]]:
        """The sites to change; written when the block ends well. Two commands at once wait for each other."""
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sites = dict(read_document(self.path, _Sites, LARGEST).sites)
            yield sites
            write(self.path, _Sites(sites=sites))
        finally:
            os.close(lock)


def new_registry(path: Path) -> None:
    """Write a registry without sites."""
    write(path, _Sites())


def _known(name: str, sites: dict[str, _Site], path: Path) -> str:
    if name in sites:
        return name
    there = f"there are: {', '.join(sorted(sites)[:20])}" if sites else "there is none yet"
    raise BadInput(f"{path}: no site {name[:80]!r}; {there}")
