"""Which normalisation layers a network has: a walk over its modules, as constructor arguments do not reach all."""

from __future__ import annotations

from typing import Literal

from torch import nn

Normalisation = Literal["batch", "instance", "group"]

_INSTANCE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: nn.InstanceNorm1d,
    nn.BatchNorm2d: nn.InstanceNorm2d,
    nn.BatchNorm3d: nn.InstanceNorm3d,
}


def replace_batch_norm(network: nn.Module, kind: Normalisation, groups: int = 8) -> nn.Module:
    """Replaces every batch norm by instance norm (affine) or group norm; `batch` leaves all as it is.

    MONAI's ResNet hands its norm argument only to the stem, hence the walk. Groups are the largest number up to
    `groups` that divides the channels.
    """
    if kind == "batch":
        return network
    for name, child in network.named_children():
        if type(child) in _INSTANCE:
            channels = int(child.num_features)  # type: ignore[arg-type]
            if kind == "group":
                divisor = max(k for k in range(1, min(groups, channels) + 1) if channels % k == 0)
                layer: nn.Module = nn.GroupNorm(divisor, channels)
            else:
                layer = _INSTANCE[type(child)](channels, affine=True)
            setattr(network, name, layer)
        else:
            replace_batch_norm(child, kind, groups)
    return network
