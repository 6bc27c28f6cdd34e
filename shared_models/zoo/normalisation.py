"""Which normalisation layers a network has: a walk over its modules, as constructor arguments do not reach all.

MONAI's ResNet and FlexibleUNet hand their `norm` to the stem only, AttentionUnet, VNet and SENet have none.
"""

from __future__ import annotations

from typing import get_args

from torch import nn

from shared_models.job import Normalisation

GROUPS = 8

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_DIMS: dict[type[nn.Module], int] = {kind: dims for kinds in (_BATCH, _INSTANCE) for dims, kind in kinds.items()}


def normalise(network: nn.Module, kind: Normalisation, spatial_dims: int) -> nn.Module:
    """Replaces every batch, instance and group norm, in place; returns the network (or the layer, if it is one itself).

    Layer norms stay: they belong to transformers, and know neither batches nor hospitals. Instance norm is affine.
    Groups are the largest number up to 8 that divides the channels.
    """
    channels = _channels(network)
    if channels is not None:
        return layer(kind, channels, _DIMS.get(type(network), spatial_dims))
    for name, child in network.named_children():
        replaced = normalise(child, kind, spatial_dims)
        if replaced is not child:
            setattr(network, name, replaced)
    return network


def layer(kind: Normalisation, channels: int, spatial_dims: int) -> nn.Module:
    """One normalisation layer over so many channels.

    Raises:
        ValueError: there is no such kind.
    """
    match kind:
        case "batch":
            return _BATCH[spatial_dims](channels)
        case "instance":
            return _INSTANCE[spatial_dims](channels, affine=True)
        case "group":
            return nn.GroupNorm(max(k for k in range(1, min(GROUPS, channels) + 1) if channels % k == 0), channels)
        case "none":
            return nn.Identity()
    raise ValueError(f"a normalisation is one of {', '.join(get_args(Normalisation))}, found {kind!r}")


def _channels(module: nn.Module) -> int | None:
    """Of a layer that is replaced; None for any other module."""
    if type(module) in _DIMS:
        return int(module.num_features)  # type: ignore[arg-type]
    return module.num_channels if isinstance(module, nn.GroupNorm) else None
