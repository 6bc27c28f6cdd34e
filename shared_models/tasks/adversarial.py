"""What the tasks share in which one network is trained against another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextlib.contextmanager
def not_trained(module: nn.Module) -> Iterator[None]:
    """Gradients go through the module to what it is given, and none are computed for its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def cross_entropy(logits: Tensor, answer: float) -> Tensor:
    """Of a discriminator's logits, any shape, where all of them should say 1 (real) or 0 (made): a float32 scalar."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, answer))
