"""What every model of a file that people write has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of such a file: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
