"""The network of Swin-Unet: Cao et al. 2022, section 3, on MONAI's blocks of the Swin transformer (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from torch import nn


class PatchExpand(nn.Module):
    """Finer patches with fewer features (section 3.5); patches are channels-last here."""

    def __init__(self, width: int, out_width: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(width, out_width * scale**2, bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, width) to (B, scale · H, scale · W, out_width)."""
        x = rearrange(self.expand(x), "b h w (p q c) -> b (h p) (w q) c", p=self.scale, q=self.scale)
        result: torch.Tensor = self.norm(x)
        return result


class SwinUNetNetwork(nn.Module):
    """Encoder, decoder and skip connections, all of them Swin transformer stages and linear layers.

    Args:
        patch_size: side of a patch in pixels.
        embed_dim: width of the first stage, doubled in every further one.
        depths: blocks of every stage of the encoder, and in reverse of the decoder; the last stage is the bottleneck.
        num_heads: of the attention in every stage.
        window_size: side of an attention window in patches.
        drop_path_rate: stochastic depth of the encoder's last block; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        patch_size: int,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))

        def swin(stage: int) -> BasicLayer:
            window, drop_path = (window_size, window_size), rates[stage].tolist()
            return BasicLayer(widths[stage], depths[stage], num_heads[stage], window, drop_path, qkv_bias=True)

        up = list(reversed(widths[:-1]))
        self.embed = PatchEmbed(patch_size, in_channels, embed_dim, spatial_dims=2)
        self.encoder = nn.ModuleList(swin(stage) for stage in range(len(depths)))
        self.merge = nn.ModuleList(PatchMergingV2(width, spatial_dims=2) for width in widths[:-1])
        self.norm = nn.LayerNorm(widths[-1])
        self.expand = nn.ModuleList(PatchExpand(2 * width, width) for width in up)
        self.fuse = nn.ModuleList(nn.Linear(2 * width, width) for width in up)
        self.decoder = nn.ModuleList(swin(stage) for stage in reversed(range(len(depths) - 1)))
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.to_pixels = PatchExpand(embed_dim, embed_dim, scale=patch_size)
        self.head = nn.Conv2d(embed_dim, out_channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, H, W) of images (B, in_channels, H, W)."""
        x = self.encoder[0](self.embed(x))
        skips = []
        for merge, stage in zip(self.merge, self.encoder[1:], strict=True):
            skips.append(_channels_last(x))
            x = stage(_channels_first(merge(skips[-1])))
        x = self.norm(_channels_last(x))
        for expand, fuse, stage, skip in zip(self.expand, self.fuse, self.decoder, reversed(skips), strict=True):
            x = fuse(torch.cat([expand(x), skip], -1))
            x = _channels_last(stage(_channels_first(x)))
        logits: torch.Tensor = self.head(_channels_first(self.to_pixels(self.decoder_norm(x))))
        return logits


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "b c h w -> b h w c")


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "b h w c -> b c h w")
