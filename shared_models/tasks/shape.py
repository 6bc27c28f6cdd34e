"""Bringing images to the size a network expects, and back."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def to_size(images: Tensor, size: Sequence[int]) -> Tensor:
    """Pads with zeros or crops the last len(size) axes around their centre to `size`.

    Padding and then cropping to the first size gives the image back exactly.
    """
    padding: list[int] = []
    for have, want in zip(reversed(images.shape[-len(size) :]), reversed(size), strict=True):
        # Truncated towards zero for both signs, so that a crop undoes a padding.
        before = int((want - have) / 2)
        padding += [before, want - have - before]
    return F.pad(images, padding) if any(padding) else images
