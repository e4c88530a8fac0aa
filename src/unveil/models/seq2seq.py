"""The original Transformer (Vaswani et al., 2017, "Attention is all you need"): an encoder and a decoder for translation.

Letters: B sentences, S tokens of the source, T of the target, K words in the vocabulary, R rows (beams), D width.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.dropout import Dropout
from unveil.blocks.kv_cache import CachedBlocks
from unveil.blocks.positions import sincos_1d
from unveil.blocks.special_tokens import PAD
from unveil.blocks.transformer import Block, Transformer, TransformerConfig
from unveil.errors import UnveilError
from unveil.ranges import Count, Depth, Positive, ShareBelowOne, Width

MODELS: dict[str, tuple[int, int, int, float]] = {  # width, depth, heads, mlp_ratio
    "nano": (32, 2, 2, 2.0),
    "tiny": (128, 4, 4, 2.0),
    "small": (256, 3, 4, 4.0),
    "base": (512, 6, 8, 4.0),
    "big": (1024, 6, 16, 4.0),
}


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """The shape of a translator."""

    words: Count
    """Number of tokens in the vocabulary, which both languages share."""
    width: Width
    depth: Depth
    """Number of blocks of the encoder, and of the decoder."""
    heads: Width
    mlp_ratio: Positive = 4.0
    longest: Count = 512
    """Maximum number of tokens in a sentence, including `END`."""
    dropout: ShareBelowOne = 0.1
    """Dropout rate of embeddings, attention weights and residual branches."""


class Seq2Seq(nn.Module):
    """Encoder, decoder, and one matrix that is both the embedding of both languages and the output layer (section 3.4)."""

    positions: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.words, config.width) * config.width**-0.5)
        self.register_buffer("positions", sincos_1d(torch.arange(config.longest), config.width), persistent=False)
        self.dropout = Dropout(config.dropout)
        encoder = TransformerConfig(
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            norm="post",
            activation="relu",
        )
        self.encoder = Transformer(encoder)
        self.decoder = Transformer(replace(encoder, cross=True))

    @property
    def decoder_blocks(self) -> list[Block]:
        return [block for block in self.decoder.blocks if isinstance(block, Block)]

    def embed(self, tokens: Int[Tensor, "B T"], first: int = 0) -> Float[Tensor, "B T D"]:
        """Scaled embeddings and positions; `first` is the index of the first token in its sentence."""
        end = first + tokens.shape[1]
        if end > self.config.longest:
            raise UnveilError(f"a sentence has {end} tokens or more, but the model takes up to {self.config.longest}: shorten it")
        x = F.embedding(tokens, self.embedding) * math.sqrt(self.config.width) + self.positions[first:end]
        device = x.device.type  # keeps half precision under autocast
        x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        out: Tensor = self.dropout(x)
        return out

    def encode(self, source: Int[Tensor, "B S"]) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B 1 1 S"]]:
        """The encoded source, and the mask that hides its padding."""
        allowed = (source != PAD)[:, None, None]
        return self.encoder(self.embed(source), allowed=allowed), allowed

    def decode(
        self, target: Int[Tensor, "B T"], context: Float[Tensor, "B S D"], allowed: Bool[Tensor, "B 1 1 S"]
    ) -> Float[Tensor, "B T D"]:
        """The decoded target. Padding needs no mask: it comes last, so with causal attention no real token attends to it."""
        out: Tensor = self.decoder(self.embed(target), context, causal=True, context_allowed=allowed)
        return out

    def scores(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """Logits over the vocabulary."""
        return F.linear(x, self.embedding)

    def forward(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T K"]:
        """Logits of the next word after each token of the target."""
        return self.scores(self.decode(target, *self.encode(source)))

    @torch.no_grad()
    def attention(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "depth B h T S"]:
        """Attention of each target token to each source token in each decoder block, for sentences without padding."""
        context, _ = self.encode(source)
        x, weights = self.embed(target), []
        for block in self.decoder_blocks:
            query = block.norm1(x + block.attention(x, causal=True))
            weights.append(block.cross.weights(query, context=context))
            x = block(x, context, causal=True)
        return torch.stack(weights)


class CachedDecoder:
    """Predicts the next word of a batch of sentences with cached keys and values: a `NextWord` of `unveil.models.beam_search`."""

    def __init__(self, translator: Seq2Seq, source: Int[Tensor, "B S"], beams: int) -> None:
        self.translator = translator
        self.blocks = CachedBlocks(translator.decoder_blocks, *translator.encode(source), beams)

    def __call__(self, words: Int[Tensor, " R"], parents: Int[Tensor, " R"] | None) -> Float[Tensor, "R K"]:
        if parents is not None:
            self.blocks.select(parents)
        x = self.translator.embed(words[:, None], self.blocks.cache.length)[:, 0]
        return self.translator.scores(self.blocks(x)).float()
