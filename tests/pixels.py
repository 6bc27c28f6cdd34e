"""What a test sees in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image


def share_of(colour: str, picture: Path) -> float:
    """Share of the pixels that have a colour, within what smoothing does to it."""
    pixels = np.asarray(Image.open(picture).convert("RGB"), dtype=float)
    return float((np.abs(pixels - 255 * np.array(to_rgb(colour))).max(axis=-1) < 12).mean())
