"""A discrete variational autoencoder (Ramesh et al., 2021): encodes an image to one token per patch, and decodes it.

    image -> patches -> residual convolutions on the grid -> logits of the tokens -> Gumbel-softmax
            -> vectors of the tokens -> residual convolutions on the grid -> patches -> image

B images, C H W, N patches, K tokens in the codebook, D width. Convolutions are on the grid of patches, so images may have any size.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unveil.blocks.patches import PatchEmbed, Size, grid_size, unpatchify
from unveil.blocks.visual_tokenizer import VisualTokenizer
from unveil.models.vit_config import ViTConfig


class Residual(nn.Module):
    """A residual block with two 3 x 3 convolutions, on (B, D, rows, columns)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.convolve1, self.convolve2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Float[Tensor, "B D R S"]) -> Float[Tensor, "B D R S"]:
        inner: Tensor = self.convolve2(F.gelu(self.convolve1(F.gelu(self.norm(x)))))
        return x + inner


class DiscreteVAE(VisualTokenizer):
    """Encoder, codebook and decoder. As a `VisualTokenizer`, it returns the most probable token of each patch.

    Args:
        config: The config of a ViT, which gives image size, patch size and channels. The width is that of the ViT, up to 256.
            Encoder and decoder have a quarter of the depth of the ViT in residual blocks.
        codebook: K, the number of different tokens.
    """

    def __init__(self, config: ViTConfig, codebook: int) -> None:
        super().__init__()
        self.config, self.size = config, codebook
        width, blocks = min(config.width, 256), max(1, config.depth // 4)
        self.embed = PatchEmbed(config.patch_size, config.channels, width)
        self.encoder = nn.Sequential(*(Residual(width) for _ in range(blocks)), nn.GroupNorm(1, width))
        self.scores = nn.Linear(width, codebook)
        self.codebook = nn.Linear(codebook, width, bias=False)  # its columns are the vectors of the tokens
        self.decoder = nn.Sequential(*(Residual(width) for _ in range(blocks)), nn.GroupNorm(1, width))
        self.paint = nn.Linear(width, self.embed.in_features)
        nn.init.normal_(self.codebook.weight)

    def encode_patches(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The output of the encoder for each patch."""
        grid = grid_size((images.shape[2], images.shape[3]), self.config.patch_size)
        return on_grid(self.encoder, self.embed(images), grid)

    def features(self, images: Float[Tensor, "B C H W"], pool: Literal["mean"] = "mean") -> Float[Tensor, "B D"]:
        """One vector for each image: the mean of the outputs of the encoder."""
        return self.encode_patches(images).float().mean(dim=1)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """Logits of the tokens for each patch, in float32."""
        scores: Tensor = self.scores(self.encode_patches(images))
        return scores.float()

    def decode(self, weights: Float[Tensor, "B N K"], image_size: Size) -> Float[Tensor, "B C H W"]:
        """Decodes a weighted mean of token vectors for each patch. One-hot weights select single tokens."""
        grid = grid_size(image_size, self.config.patch_size)
        patches = self.paint(on_grid(self.decoder, self.codebook(weights), grid))
        return unpatchify(patches, image_size, self.config.patch_size)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        return self.encode(images).argmax(dim=-1)

    @torch.no_grad()
    def autoencode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images, encoded to tokens and decoded."""
        one_hot = F.one_hot(self(images), self.size).to(images.dtype)
        return self.decode(one_hot, (images.shape[2], images.shape[3]))


class DVAETokenizer(VisualTokenizer):
    """A trained dVAE as the visual tokenizer of an encoder.

    If the two have different patch sizes, images are resized so that there is one token for each patch of the encoder. For
    example, BEiT resizes images of 224 px to 112 px for its dVAE.
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
    """Applies convolutions to tokens that are arranged on a grid."""
    out: Tensor = module(tokens.transpose(1, 2).unflatten(2, grid))
    return out.flatten(2).transpose(1, 2)


def gumbel_softmax(
    scores: Float[Tensor, "B N K"], noise: Float[Tensor, "B N K"], temperature: Float[Tensor, ""], straight: bool
) -> Float[Tensor, "B N K"]:
    """A differentiable sample from the distribution of the tokens (Jang et al., 2017).

    Args:
        scores: Logarithms of the probabilities, up to a constant.
        noise: Uniform in [0, 1).
        temperature: A high one mixes tokens; a low one nearly selects one of them.
        straight: Select a single token, with the gradient of the mixture (straight-through).
    """
    gumbel = -torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
    soft = ((scores + gumbel) / temperature).softmax(dim=-1)
    if not straight:
        return soft
    hard = torch.zeros_like(soft).scatter(-1, soft.argmax(dim=-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())
