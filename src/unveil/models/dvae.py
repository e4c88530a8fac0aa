"""A discrete variational autoencoder (Ramesh et al., 2021): an image as one token a patch, and back.

    image -> patches -> residual convolutions on the grid -> a score for each token -> Gumbel-softmax
            -> the tokens' vectors -> residual convolutions on the grid -> patches -> image

B images, C H W, N patches, K tokens in the codebook, D width. Any image and patch size: all happens on the grid of patches.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import PatchEmbed, Size, grid_size, unpatchify
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.models.vit import ViTConfig


class Residual(nn.Module):
    """Two convolutions of 3 x 3 around a residual sum, on (B, D, rows, columns)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.convolve1, self.convolve2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "B D R S"]) -> Float[Tensor, "B D R S"]:
        inner: Tensor = self.convolve2(F.gelu(self.convolve1(F.gelu(self.norm(x)))))
        return x + inner


class DiscreteVAE(VisualTokenizer):
    """Encoder, codebook and decoder. As a `Tokenizer` it gives the most probable token of each patch.

    Args:
        config: What it takes in, its width (256 at most), and four times its residual blocks on either side: the dials of a ViT.
        codebook: K, how many different tokens there are.
    """

    def __init__(self, config: ViTConfig, codebook: int) -> None:
        super().__init__()
        self.config, self.size = config, codebook
        width, blocks = min(config.width, 256), max(1, config.depth // 4)
        self.embed = PatchEmbed(config.patch_size, config.channels, width)
        self.encoder = nn.Sequential(*(Residual(width) for _ in range(blocks)), nn.GroupNorm(1, width))
        self.scores = nn.Linear(width, codebook)
        self.codebook = nn.Linear(codebook, width, bias=False)  # its columns are the tokens' vectors
        self.decoder = nn.Sequential(*(Residual(width) for _ in range(blocks)), nn.GroupNorm(1, width))
        self.paint = nn.Linear(width, self.embed.in_features)
        nn.init.normal_(self.codebook.weight)  # one token's vector has a scale of 1

    def hidden(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """What the encoder sees at each patch."""
        grid = grid_size((images.shape[2], images.shape[3]), self.config.patch_size)
        return on_grid(self.encoder, self.embed(images), grid)

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean"] = "mean") -> Float[Tensor, "B D"]:
        """One vector an image: the mean of what is seen."""
        return self.hidden(images).float().mean(dim=1)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The score of each token at each patch, in float32."""
        scores: Tensor = self.scores(self.hidden(images))
        return scores.float()

    def decode(self, chosen: Float[Tensor, "B N K"], image_size: Size) -> Float[Tensor, "B C H W"]:
        """The image of a mixture of tokens at each patch: one-hot rows for plain tokens."""
        grid = grid_size(image_size, self.config.patch_size)
        painted = self.paint(on_grid(self.decoder, self.codebook(chosen), grid))
        return unpatchify(painted, image_size, self.config.patch_size)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.encode(images).argmax(dim=-1)

    @torch.no_grad()
    def rebuild(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images as their tokens tell them."""
        chosen = F.one_hot(self(images), self.size).to(images.dtype)
        return self.decode(chosen, (images.shape[2], images.shape[3]))


class FrozenDVAE(VisualTokenizer):
    """A trained dVAE as the tokenizer of an encoder.

    Where its patches are of another size, images are resized to give one token for each patch of the encoder, as BEiT shows its
    dVAE 112 px where the encoder sees 224.
    """

    def __init__(self, dvae: DiscreteVAE, grid: Size) -> None:
        super().__init__()
        self.dvae, self.size = dvae.requires_grad_(False), dvae.size
        self.image_size = (grid[0] * dvae.config.patch_size[0], grid[1] * dvae.config.patch_size[1])

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        if images.shape[2:] != self.image_size:
            images = F.interpolate(images, size=self.image_size, mode="bicubic", antialias=True)
        tokens: Tensor = self.dvae(images)
        return tokens


def on_grid(module: nn.Module, tokens: Float[Tensor, "B N D"], grid: Size) -> Float[Tensor, "B N D"]:
    """What convolutions make of tokens that stand on a grid."""
    seen: Tensor = module(tokens.transpose(1, 2).unflatten(2, grid))
    return seen.flatten(2).transpose(1, 2)


def gumbel_softmax(
    scores: Float[Tensor, "B N K"], noise: Float[Tensor, "B N K"], temperature: Float[Tensor, ""], straight: bool
) -> Float[Tensor, "B N K"]:
    """A draw from the tokens' distribution that gradients go through (Jang et al., 2017), given noise in [0, 1).

    Args:
        scores: The logarithms of the tokens' probabilities, up to a constant.
        noise: Uniform.
        temperature: High is a blend of tokens, low is nearly one of them.
        straight: One token alone, with the gradient of the blend (straight-through).
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
    soft = ((scores + gumbel) / temperature).softmax(dim=-1)
    if not straight:
        return soft
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())
