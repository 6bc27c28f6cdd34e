"""The network of both autoencoders; the variational one after Kingma & Welling 2014, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from shared_models.zoo.entry import Shape
from shared_models.zoo.pyramid import decoder, deepest, encoder

Reconstructed = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]


class AutoEncoderNetwork(nn.Module):
    """Encoder, a vector per image, decoder."""

    def __init__(self, shape: Shape, latent: int, levels: Sequence[int], variational: bool) -> None:
        super().__init__()
        features = levels[-1] * prod(deepest(shape.crop, levels))
        self.encoder = encoder(shape, shape.channels, levels)
        self.mean = nn.Linear(features, latent)
        self.log_variance = nn.Linear(features, latent) if variational else None
        self.decoder = decoder(shape, latent, levels)

    def forward(self, x: torch.Tensor) -> torch.Tensor | Reconstructed:
        """Reconstructions (B, C, *crop) of images of that shape.

        In training with the mean and log-variance (B, latent) that the vector was drawn with (equation 10), both None
        where it is not drawn.
        """
        features = self.encoder(x)
        mean = self.mean(features)
        if not self.training:
            reconstruction: torch.Tensor = self.decoder(mean)
            return reconstruction
        if self.log_variance is None:
            return self.decoder(mean), None, None
        log_variance = self.log_variance(features)
        vector = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        return self.decoder(vector), mean, log_variance
