"""Visual tokens: a whole number for each patch of an image, to be predicted as BERT predicts words (BEiT, section 2.1)."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import Size, patchify
from unveil.errors import UnveilError


class VisualTokenizer(nn.Module, ABC):
    """Tells which of `size` tokens each patch of a normalised image is. It is fitted once, before the first step, or frozen."""

    size: int
    """How many different tokens there are: the codebook."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The token of each patch, row by row."""

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Sees a sample of the images once, before the first step of a run; the same one on every process."""


class KMeans(VisualTokenizer):
    """The nearest of the centres that k-means finds among the patches of a sample (Lloyd, 1982), without training.

    Patches are compared less their own mean and over their own deviation, or brightness alone would take most of the tokens.

    Attributes:
        centres: (size, P); random directions until `prepare` is called.
    """

    centres: Tensor

    def __init__(self, patch_size: Size, channels: int, size: int, rounds: int = 20) -> None:
        super().__init__()
        self.patch_size, self.size, self.rounds = patch_size, size, rounds
        self.register_buffer("centres", torch.randn(size, patch_size[0] * patch_size[1] * channels))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.nearest(self.points(images))

    def points(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """What is clustered: each patch in float32, normalised."""
        patches = patchify(images, self.patch_size).float()
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-2).sqrt()  # a patch without structure stays near 0

    def nearest(self, points: Float[Tensor, "*B P"]) -> Int[Tensor, "*B"]:
        """The number of the nearest centre; |x|^2 is the same for all of them, so it is left out."""
        with torch.autocast(points.device.type, enabled=False):
            distance = self.centres.square().sum(dim=1) - 2 * points @ self.centres.T
        return distance.argmin(dim=-1)

    @torch.no_grad()
    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Rounds of: give each patch to its nearest centre, move each centre to the mean of its patches.

        It starts from patches of the sample; a centre that no patch is nearest to moves to a patch that is far from its own.
        """
        points = self.points(images).flatten(0, 1)  # (B * N, P)
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).to(points.device)
        self.centres.copy_(points[order[torch.arange(self.size, device=points.device) % len(points)]])
        for _ in range(self.rounds):
            tokens = self.nearest(points)
            sums = torch.zeros_like(self.centres).index_add_(0, tokens, points)
            counts = torch.bincount(tokens, minlength=self.size)
            away = (points - self.centres[tokens]).square().sum(dim=1).argsort(descending=True)
            empty = counts == 0
            turn = (empty.cumsum(0) - 1).clamp(min=0) % len(points)
            means = sums / counts.clamp(min=1)[:, None]
            self.centres.copy_(torch.where(empty[:, None], points[away[turn]], means))


class MissingTokenizer(VisualTokenizer):
    """Stands in for a tokenizer that did not come with a model's weights."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Raises `UnveilError`."""
        raise UnveilError("this model came without its tokenizer, so it can be used and tuned, and not trained further as it was")


def shares_of(tokens: Int[Tensor, "*B"], size: int) -> Float[Tensor, " K"]:
    """How often each token of a codebook of `size` occurs among some."""
    each = tokens.flatten()
    counts = torch.zeros(size, device=each.device).scatter_add_(0, each, torch.ones_like(each, dtype=torch.float32))
    return counts / tokens.numel()


def usage(shares: Float[Tensor, " K"]) -> dict[str, Float[Tensor, ""]]:
    """The share of the codebook that occurs, and its perplexity: how many equally likely tokens would say as much."""
    return {"codebook_usage": (shares > 0).float().mean(), "perplexity": torch.special.entr(shares).sum().exp()}
