"""Word pieces (Wu et al., 2016) and batches of token ids."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import Stream, sample_keys, uniform
from unveil.data.loader import share_size
from unveil.data.shuffle import Order
from unveil.data.targets import ClassTargets
from unveil.data.tensor_batch import TensorBatch
from unveil.errors import UnveilError
from unveil.plain_text import count_of
from unveil.text.library import tokenizers_library

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNKNOWN_SHARE = 0.02
"""Share of unknown word pieces above which a user is told."""


class _TextBatch(NamedTuple):
    ids: Int[Tensor, "B T"]
    keys: Int[Tensor, " B"]
    segments: Int[Tensor, "B T"] | None = None
    follows: Int[Tensor, " B"] | None = None
    targets: ClassTargets | None = None


class TextBatch(_TextBatch, TensorBatch):
    """A batch of texts.

    Attributes:
        ids: Token ids: [CLS], the text, [SEP], then [PAD] up to the longest row.
        keys: The key of each sample, which determines its random numbers: see `unveil.blocks.stateless_random`.
        segments: 0 in the first of two segments and 1 in the second; None if there is one segment.
        follows: With two segments, 0 if the second follows the first in the corpus, and 1 if it comes from another place.
        targets: The class of each text; None if there are no classes.
    """

    __slots__ = ()


class WordPieceTokenizer:
    """Splits texts into word pieces, as BERT does.

    Args:
        vocabulary: The word pieces; the index of a piece is its token id. Pieces that continue a word begin with ##.
        lower: Whether to lowercase texts and strip accents.
    """

    def __init__(self, vocabulary: Sequence[str], lower: bool = True) -> None:
        library = tokenizers_library()
        ids = {piece: i for i, piece in enumerate(vocabulary)}
        self.vocabulary, self.lower = tuple(vocabulary), lower
        self.cls, self.sep, self.pad, self.mask = (ids[piece] for piece in ("[CLS]", "[SEP]", "[PAD]", "[MASK]"))
        self.unknown = ids.get("[UNK]", -1)
        self.tokenizer = with_bert_rules(library.Tokenizer(library.models.WordPiece(ids, unk_token="[UNK]")), lower)
        self.tokenizer.add_special_tokens(SPECIAL)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The token ids of each text. "[MASK]" and other special tokens in a text are ordinary text unless `special` is set."""
        self.tokenizer.encode_special_tokens = not special
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids. It stays lowercase, and keeps the spaces around punctuation."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def concatenated(self, texts: Iterable[str], chunk: int = 4096) -> Int[Tensor, " n"]:
        """The token ids of all texts in one row, with [SEP] after each text."""
        parts, waiting = [], list[str]()
        for text in chain(texts, [None]):
            if text is not None:
                waiting.append(text)
            if waiting and (text is None or len(waiting) == chunk):
                row = chain.from_iterable((*ids, self.sep) for ids in self.encode(waiting) if ids)
                parts.append(torch.tensor(list(row), dtype=torch.int32))
                waiting = []
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)

    def padded(self, texts: Sequence[str], max_length: int) -> Int[Tensor, "n T"]:
        """One row per text, of at most `max_length` tokens: [CLS], its first tokens, [SEP], and [PAD] up to the longest row."""
        rows = [torch.tensor([self.cls, *ids[: max_length - 2], self.sep]) for ids in self.encode(texts)]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)

    def remarks(self, texts: Sequence[str], max_length: int) -> list[str]:
        """What a user should know of texts that `padded` cuts, and of words that the vocabulary lacks; each in one sentence."""
        rows, longest, said = self.encode(texts), max_length - 2, list[str]()
        if cut := sum(len(ids) > longest for ids in rows):
            verb = "is" if cut == 1 else "are"
            said.append(f"{cut:,} of {count_of(len(texts), 'text')} {verb} longer than {longest} word pieces, and cut there")
        return [*said, *unknown_remarks(sum(ids.count(self.unknown) for ids in rows), sum(map(len, rows)))]


def unknown_remarks(unknown: int, pieces: int) -> list[str]:
    """A sentence on words that the vocabulary lacks, if they are more than `UNKNOWN_SHARE` of all word pieces."""
    if unknown <= UNKNOWN_SHARE * pieces:
        return []
    return [f"{100 * unknown / pieces:.1f} % of the word pieces are [UNK]: words with characters that the vocabulary lacks"]


def train_vocabulary(texts: Sequence[str], size: int, lower: bool = True) -> tuple[str, ...]:
    """Builds a vocabulary of up to `size` word pieces: the special tokens, characters, and their most frequent merges.

    The characters are the 1,000 most frequent ones. Ties are broken by code point, so a corpus always gives the same vocabulary.
    """
    library, counts = tokenizers_library(), Counter[str]()
    tokenizer = with_bert_rules(library.Tokenizer(library.models.WordPiece(unk_token="[UNK]")), lower)
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    letters = sorted((letter for letter in counts if not letter.isspace()), key=lambda letter: (-counts[letter], letter))
    letters = letters[:1000]
    inside = ["##" + letter for letter in letters if not is_punctuation(letter)]
    trainer = library.trainers.WordPieceTrainer(  # characters that are not listed would get random ids
        vocab_size=size,
        special_tokens=[*SPECIAL, *letters, *inside],
        show_progress=False,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
    )
    tokenizer.train_from_iterator(texts, trainer)
    numbers: dict[str, int] = tokenizer.get_vocab()
    if len(numbers) <= len(SPECIAL):
        raise UnveilError("the corpus has no words: expected text in UTF-8")
    return tuple(sorted(numbers, key=lambda piece: numbers[piece]))


def is_punctuation(letter: str) -> bool:
    """Whether BERT splits words before and after this character."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def with_bert_rules(tokenizer: "Tokenizer", lower: bool) -> "Tokenizer":
    """Adds BERT's normalisation of texts and its splits at spaces and punctuation."""
    library = tokenizers_library()
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece(cleanup=False)
    return tokenizer


class CorpusLoader:
    """Sequences of a fixed length from a long row of tokens. The sequences of a step depend only on the seed and the step.

    The number of sequences in an epoch is the length of the corpus divided by that of a sequence. Each sequence starts at a random
    offset of up to its length.

    Args:
        ids: The corpus, from `WordPieceTokenizer.concatenated`.
        tokenizer: The tokenizer of the corpus.
        length: Number of tokens in a sequence, including special tokens.
        batch_size: Sequences in a step, over all processes and microbatches.
        seed: Seed of the order, and of the random numbers of each sample.
        pairs: Whether a sequence has two segments. In half of the sequences, the second segment comes from another place (BERT,
            section 3.1, task 2).

    Raises:
        UnveilError: If the corpus is shorter than a sequence.
    """

    prefetch = False

    def __init__(
        self, ids: Int[Tensor, " n"], tokenizer: WordPieceTokenizer, *, length: int, batch_size: int, seed: int, pairs: bool = False
    ) -> None:
        self.ids, self.tokenizer, self.batch_size, self.seed, self.pairs = ids, tokenizer, batch_size, seed, pairs
        self.span = length - (3 if pairs else 2)
        if self.span < 2 or len(ids) < self.span:
            found = f"the corpus has {len(ids):,} word pieces, fewer than a sequence of {length}"
            raise UnveilError(f"{found}: use more text or a smaller --max-length")
        self.samples = len(ids) // self.span
        self.order = Order(seed, self.samples, batch_size)

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        keys = sample_keys(self.seed, first, size)
        drawn = uniform(keys, 3, stream=Stream.SPAN)
        starts = self.order.indices(step, share, shares) * self.span + (drawn[:, 0] * self.span).long()
        if not self.pairs:
            return TextBatch(self.with_special_tokens(size, self.excerpt(starts, self.span)), keys)
        first_length, second_length = (self.span + 1) // 2, self.span // 2
        elsewhere = drawn[:, 1] < 0.5
        second = torch.where(elsewhere, (drawn[:, 2].double() * len(self.ids)).long(), starts + first_length)
        ids = self.with_special_tokens(size, self.excerpt(starts, first_length), self.excerpt(second, second_length))
        segments = torch.tensor([0] * (first_length + 2) + [1] * (second_length + 1)).expand(size, -1)
        return TextBatch(ids, keys, segments, follows=elsewhere.long())

    def excerpt(self, starts: Int[Tensor, " B"], length: int) -> Int[Tensor, "B _"]:
        """`length` tokens from each start. After the end of the corpus comes its beginning."""
        return self.ids[(starts[:, None] + torch.arange(length)) % len(self.ids)].long()

    def with_special_tokens(self, size: int, *segments: Int[Tensor, "B _"]) -> Int[Tensor, "B T"]:
        """[CLS] and the segments, with [SEP] after each segment."""
        row = [torch.full((size, 1), self.tokenizer.cls)]
        for segment in segments:
            row += [segment, torch.full((size, 1), self.tokenizer.sep)]
        return torch.cat(row, dim=1)


class LabelledTextLoader:
    """Shuffled texts with their classes. Padding that all rows of a batch share is removed, down to a multiple of eight tokens."""

    prefetch = False

    def __init__(self, rows: Int[Tensor, "n T"], labels: Int[Tensor, " n"], *, padding: int, batch_size: int, seed: int) -> None:
        self.rows, self.labels, self.batch_size, self.seed = rows, labels, batch_size, seed
        self.samples, self.lengths = len(rows), (rows != padding).sum(dim=1)
        self.order = Order(seed, self.samples, batch_size)

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        order = self.order.indices(step, share, shares)
        width = -(-int(self.lengths[order].max()) // 8) * 8
        keys = sample_keys(self.seed, first, size)
        return TextBatch(self.rows[order, :width], keys, targets=ClassTargets(self.labels[order]))
