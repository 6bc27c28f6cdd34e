"""Bringing images to the size a network expects, and back."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOWS_AT_ONCE = 4


def tiled(network: nn.Module, images: Tensor, crop: Sequence[int], overlap: float = 0.25) -> Tensor:
    """What a network that keeps the size of its input makes of images (B, C, *spatial) of any size.

    Images that fit into the crop are padded to it; larger ones are covered with windows that overlap by this share,
    and the outputs are blended with Gaussian weights.
    """
    size = list(images.shape[2:])
    if all(have <= want for have, want in zip(size, crop, strict=True)):
        return to_size(network(to_size(images, crop)), size)
    from monai.inferers import SlidingWindowInferer

    windows = SlidingWindowInferer(list(crop), WINDOWS_AT_ONCE, overlap=overlap, mode="gaussian")
    return torch.as_tensor(windows(images, network))


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
