"""Visual tokens: an integer for each patch of an image, to be predicted as BERT predicts words (BEiT, section 2.1).

Letters: B images, N patches, P values in a patch, K tokens in the codebook.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import Size, patchify
from unveil.errors import UnveilError


class VisualTokenizer(nn.Module, ABC):
    """Assigns each patch of a normalised image one of `size` tokens. It is frozen, or fitted once before the first step."""

    size: int
    """K, the number of different tokens."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """The token of each patch, row by row."""

    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Receives a sample of the images once, before the first step of a run; the same one on every process."""


class KMeansTokenizer(VisualTokenizer):
    """Assigns each patch to the nearest of K centres, which are fitted by k-means to the patches of a sample (Lloyd, 1982).

    Patches are compared after subtracting their mean and dividing by their standard deviation. Otherwise most tokens would encode
    brightness.

    Attributes:
        centres: (K, P); random until `prepare` is called.
    """

    centres: Tensor

    def __init__(self, patch_size: Size, channels: int, size: int, rounds: int = 20) -> None:
        super().__init__()
        self.patch_size, self.size, self.rounds = patch_size, size, rounds
        self.register_buffer("centres", torch.randn(size, patch_size[0] * patch_size[1] * channels))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.nearest(self.points(images))

    def points(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """The points to cluster: each patch in float32, normalised."""
        patches = patchify(images, self.patch_size).float()
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-2).sqrt()  # a patch without structure stays near 0

    def nearest(self, points: Float[Tensor, "*B P"]) -> Int[Tensor, "*B"]:
        """The index of the nearest centre c: the smallest |x - c|^2 without |x|^2, which is the same for all centres."""
        with torch.autocast(points.device.type, enabled=False):
            distance = self.centres.square().sum(dim=1) - 2 * points @ self.centres.T
        return distance.argmin(dim=-1)

    @torch.no_grad()
    def prepare(self, images: Float[Tensor, "B C H W"]) -> None:
        """Repeats: assign each patch to its nearest centre, and move each centre to the mean of its patches.

        The first centres are patches of the sample. A centre without patches moves to a patch that is far from its own centre.
        """
        points = self.points(images).flatten(0, 1)  # (B * N, P)
        order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).to(points.device)
        self.centres.copy_(points[order[torch.arange(self.size, device=points.device) % len(points)]])
        for _ in range(self.rounds):
            tokens = self.nearest(points)
            sums = torch.zeros_like(self.centres).index_add_(0, tokens, points)
            counts = torch.bincount(tokens, minlength=self.size)
            farthest = (points - self.centres[tokens]).square().sum(dim=1).argsort(descending=True)
            empty = counts == 0
            rank = (empty.cumsum(0) - 1).clamp(min=0) % len(points)  # the i-th empty centre gets the i-th farthest patch
            means = sums / counts.clamp(min=1)[:, None]
            self.centres.copy_(torch.where(empty[:, None], points[farthest[rank]], means))


class MissingTokenizer(VisualTokenizer):
    """A placeholder for a tokenizer that was not saved with the weights of a model."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Raises `UnveilError`."""
        raise UnveilError(
            "this model was loaded without its visual tokenizer: it can be used and fine-tuned, but not pre-trained further"
        )


def token_frequencies(tokens: Int[Tensor, "*B"], size: int) -> Float[Tensor, " K"]:
    """The share of each of `size` tokens."""
    each = tokens.flatten()
    counts = torch.zeros(size, device=each.device).scatter_add_(0, each, torch.ones_like(each, dtype=torch.float32))
    return counts / tokens.numel()


def codebook_metrics(frequencies: Float[Tensor, " K"]) -> dict[str, Float[Tensor, ""]]:
    """The share of tokens that occur, and their perplexity: the number of equally frequent tokens with the same entropy."""
    return {"codebook_usage": (frequencies > 0).float().mean(), "perplexity": torch.special.entr(frequencies).sum().exp()}
