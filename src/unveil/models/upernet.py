"""Heads for semantic segmentation: UperNet (Xiao et al., 2018), and a light one for small sets.

UperNet, on four maps from fine to coarse:

    coarsest map -> average over 1, 2, 3, 6 cells a side, each 1 x 1 conv, resized -> with the map itself: 3 x 3 conv
    other maps   -> 1 x 1 conv, plus the level above, resized -> 3 x 3 conv
    all levels, resized to the finest -> 3 x 3 conv -> 1 x 1 conv    class scores
    third map    -> 3 x 3 conv -> 1 x 1 conv    class scores of the auxiliary head, in training

A convolution that is not the last has a norm and ReLU. All resizing is bilinear, with `align_corners=False`.

`LinearHead` is a few convolutions on maps of any resolution.

Letters: B images, C channels, K classes, h w rows and columns of the finest map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unveil.blocks.map_norms import MapNorm, map_norm
from unveil.blocks.patches import Size

POOLS = (1, 2, 3, 6)
"""Cells a side of the averages of the pyramid pooling."""
AUXILIARY_LEVEL = 2
"""The map that the auxiliary head sees: that of the patches."""


class Maps(NamedTuple):
    """Class scores of each pixel of a feature map."""

    logits: Float[Tensor, "B K h w"]
    auxiliary: Float[Tensor, "B K _ _"] | None
    """Those of the auxiliary head, in training."""


@dataclass(frozen=True, kw_only=True)
class UperNetConfig:
    """The shape of a head."""

    channels: int = 512
    """Channels of all levels. MAE and BEiT have 768 for ViT-B and 1024 for ViT-L."""
    auxiliary_channels: int = 256
    """Channels of the auxiliary head; 0 leaves it out."""
    dropout: float = 0.1
    """Share of the channels that are dropped before the class scores."""
    norm: MapNorm = "layer"
    """Norm after each convolution: see `unveil.blocks.map_norms`. The literature has "batch"."""


class UperNet(nn.Module):
    """Pyramid pooling, a feature pyramid and their fusion.

    Args:
        channels: Channels of each of the four maps.
        classes: K.
        config: The shape.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: UperNetConfig = UperNetConfig()) -> None:
        super().__init__()
        width, norm = config.channels, config.norm
        *finer, coarsest = channels
        self.pools = nn.ModuleList(convolution(coarsest, width, 1, norm) for _ in POOLS)
        self.top = convolution(coarsest + len(POOLS) * width, width, 3, norm)
        self.lateral = nn.ModuleList(convolution(each, width, 1, norm) for each in finer)
        self.levels = nn.ModuleList(convolution(width, width, 3, norm) for _ in finer)
        self.fusion = convolution(len(channels) * width, width, 3, norm)
        self.classify = classifier(width, classes, config.dropout)
        hidden = config.auxiliary_channels
        self.auxiliary = (
            nn.Sequential(convolution(channels[AUXILIARY_LEVEL], hidden, 3, norm), classifier(hidden, classes, config.dropout))
            if hidden
            else None
        )
        self.apply(initialise)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Maps:
        """Class scores at the resolution of the finest map."""
        levels = [lateral(each) for lateral, each in zip(self.lateral, maps[:-1], strict=True)]
        levels.append(self.pooled(maps[-1]))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resized(levels[i], size_of(levels[i - 1]))
        levels = [*(conv(each) for conv, each in zip(self.levels, levels[:-1], strict=True)), levels[-1]]
        fused = self.fusion(torch.cat([resized(each, size_of(levels[0])) for each in levels], dim=1))
        auxiliary = self.auxiliary(maps[AUXILIARY_LEVEL]) if self.training and self.auxiliary is not None else None
        return Maps(self.classify(fused), auxiliary)

    def pooled(self, x: Float[Tensor, "B C _ _"]) -> Float[Tensor, "B D _ _"]:
        """The coarsest map, with what is around each pixel on four scales."""
        around = [conv(F.adaptive_avg_pool2d(x, cells)) for conv, cells in zip(self.pools, POOLS, strict=True)]
        top: Tensor = self.top(torch.cat([x, *(resized(each, size_of(x)) for each in around)], dim=1))
        return top


class LinearHead(nn.Module):
    """A few convolutions on feature maps, for small sets: 2 million weights on a ViT-B with 150 classes.

    UperNet has 34 million with 512 channels and 70 million with 768, and the pyramid below it another 7 million.

    Each map has a norm, since the encoder's own final norm is left out; one linear layer sees them all. Two steps then double the
    resolution, each with a 3 x 3 convolution, so that edges can be finer than a patch.

    Args:
        channels: Channels of each map, such as those of `Pyramid` with the levels "patches".
        classes: K.
        config: The shape, without an auxiliary head.
    """

    def __init__(self, channels: Sequence[int], classes: int, config: UperNetConfig = UperNetConfig(channels=256)) -> None:
        super().__init__()
        width = config.channels
        self.norms = nn.ModuleList(map_norm(config.norm, each) for each in channels)
        self.mix = convolution(sum(channels), width, 1, config.norm)
        self.finer = nn.ModuleList(convolution(width, width, 3, config.norm) for _ in range(2))
        self.classify = classifier(width, classes, config.dropout)
        self.apply(initialise)

    def forward(self, maps: Sequence[Float[Tensor, "B _ _ _"]]) -> Maps:
        """Class scores at four times the resolution of the finest map."""
        size = size_of(maps[0])
        x = self.mix(torch.cat([resized(norm(each), size) for norm, each in zip(self.norms, maps, strict=True)], dim=1))
        for conv in self.finer:
            size = (2 * size[0], 2 * size[1])
            x = conv(resized(x, size))
        return Maps(self.classify(x), None)


def convolution(channels: int, width: int, side: int, norm: MapNorm) -> nn.Sequential:
    """A convolution that keeps the resolution, a norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, width, side, padding=side // 2, bias=False), map_norm(norm, width), nn.ReLU(inplace=True)
    )


def classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    """Dropout of whole channels, and the class scores of each pixel."""
    return nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, classes, 1))


def initialise(module: nn.Module) -> None:
    """Convolutions before ReLU as He et al. (2015); class scores, the only ones with a bias, near zero."""
    if isinstance(module, nn.Conv2d):
        if module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def resized(x: Float[Tensor, "B C _ _"], size: Size) -> Float[Tensor, "B C h w"]:
    """A map at another resolution."""
    return x if size_of(x) == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def size_of(x: Float[Tensor, "B C h w"]) -> Size:
    """Rows and columns of a map."""
    return x.shape[2], x.shape[3]
