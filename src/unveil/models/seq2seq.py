"""The Transformer of 2017 (Vaswani et al., "Attention is all you need"): a sentence in, a translation out."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unveil.blocks.dropout import Dropout
from unveil.blocks.kv_cache import KVCache, advance, begin
from unveil.blocks.positions import sincos_1d
from unveil.blocks.special_tokens import PAD
from unveil.blocks.transformer import Block, Transformer, TransformerConfig
from unveil.errors import UnveilError

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

    words: int
    """Tokens in the vocabulary that both languages share."""
    width: int
    depth: int
    """Blocks of the encoder, and as many of the decoder."""
    heads: int
    mlp_ratio: float = 4.0
    longest: int = 512
    """Tokens in a sentence at most, with the mark at its end."""
    dropout: float = 0.1
    """Share that is dropped of embeddings, of attention weights, and of what each branch adds."""


class Seq2Seq(nn.Module):
    """Encoder, decoder, and one matrix that embeds what comes in on both sides and scores what goes out (section 3.4)."""

    positions: Tensor

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.randn(config.words, config.width) * config.width**-0.5)
        self.register_buffer("positions", sincos_1d(torch.arange(config.longest), config.width), persistent=False)
        self.dropout = Dropout(config.dropout)
        shape: dict[str, Any] = {key: getattr(config, key) for key in ("width", "depth", "heads", "mlp_ratio", "dropout")}
        self.encoder = Transformer(TransformerConfig(norm="post", activation="relu", **shape))
        self.decoder = Transformer(TransformerConfig(norm="post", activation="relu", cross=True, **shape))

    @property
    def steps(self) -> list[Block]:
        """The blocks of the decoder."""
        return [block for block in self.decoder.blocks if isinstance(block, Block)]

    def embed(self, tokens: Int[Tensor, "B T"], first: int = 0) -> Float[Tensor, "B T D"]:
        """Scaled embeddings and positions, the first token being number `first` of its sentence."""
        end = first + tokens.shape[1]
        if end > self.config.longest:
            raise UnveilError(f"a sentence has {end} tokens or more, and the model takes {self.config.longest}: cut it")
        x = F.embedding(tokens, self.embedding) * math.sqrt(self.config.width) + self.positions[first:end]
        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x  # then it stays in half precision
        out: Tensor = self.dropout(x)
        return out

    def encode(self, source: Int[Tensor, "B S"]) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B 1 1 S"]]:
        """The source as the decoder sees it, and which of its tokens are none of padding."""
        allowed = (source != PAD)[:, None, None]
        return self.encoder(self.embed(source), allowed=allowed), allowed

    def decode(
        self, target: Int[Tensor, "B T"], context: Float[Tensor, "B S D"], allowed: Bool[Tensor, "B 1 1 S"]
    ) -> Float[Tensor, "B T D"]:
        """What is known at each token of the target about the next one; padding stands behind, where no token looks."""
        out: Tensor = self.decoder(self.embed(target), context, causal=True, context_allowed=allowed)
        return out

    def scores(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B K"]:
        """A score for each word of the vocabulary."""
        return F.linear(x, self.embedding)

    def forward(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "B T K"]:
        """Scores of the word that follows each token of the target."""
        return self.scores(self.decode(target, *self.encode(source)))

    @torch.no_grad()
    def attention(self, source: Int[Tensor, "B S"], target: Int[Tensor, "B T"]) -> Float[Tensor, "depth B h T S"]:
        """How much each token of the target looks at each of the source, in each block of the decoder; without padding."""
        context, _ = self.encode(source)
        x, seen = self.embed(target), []
        for block in self.steps:
            asking = block.norm1(x + block.attention(x, causal=True))
            seen.append(block.cross.weights(asking, context=context))
            x = block(x, context, causal=True)
        return torch.stack(seen)


class Cached:
    """The next word of many sentences, token by token, with all keys and values kept: `Next` of `unveil.models.beam_search`."""

    def __init__(self, translator: Seq2Seq, source: Int[Tensor, "B S"], beams: int) -> None:
        self.translator, self.seen = translator, 0
        context, self.allowed = translator.encode(source)
        self.memories: list[KVCache] = [begin(block, context, len(source) * beams) for block in translator.steps]

    def __call__(self, words: Int[Tensor, " R"], parents: Int[Tensor, " R"]) -> Float[Tensor, "R K"]:
        x = self.translator.embed(words[:, None], self.seen)
        for i, block in enumerate(self.translator.steps):
            x, self.memories[i] = advance(block, x, self.memories[i].of(parents), self.allowed)
        self.seen += 1
        return self.translator.scores(x[:, 0]).float().log_softmax(dim=-1)
