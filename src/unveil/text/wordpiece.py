"""Texts as numbers of word pieces, and batches of them."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.blocks.stateless_random import sample_keys, uniform
from unveil.data.batch import each, moved, page_locked
from unveil.data.loader import share_size
from unveil.data.shuffle import shuffled
from unveil.errors import UnveilError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class TextBatch(NamedTuple):
    """Some texts of a run: `unveil.data.batch.Samples`."""

    ids: Int[Tensor, "B T"]
    """Numbers of pieces: [CLS], the text, [SEP], and [PAD] where a row is shorter than others."""
    keys: Int[Tensor, " B"]
    """What is drawn at random for a sample is a function of its key: see `unveil.blocks.stateless_random`."""
    segments: Int[Tensor, "B T"] | None = None
    """0 in the first of two parts and 1 in the second; None where there is one part."""
    labels: Int[Tensor, " B"] | None = None
    """Classes; or, of two parts, 0 where the second follows the first and 1 where it comes from elsewhere."""

    def to(self, device: torch.device) -> "TextBatch":
        """See `Samples`."""
        return TextBatch(*moved(self, device))

    def first(self, count: int) -> "TextBatch":
        """See `Samples`."""
        return TextBatch(*each(self, lambda part: part[:count]))

    def pinned(self) -> "TextBatch":
        """See `Samples`."""
        return TextBatch(*page_locked(self))


class WordPieceTokenizer:
    """Cuts texts into pieces of words that are in a vocabulary (Wu et al., 2016), as BERT does.

    Args:
        vocabulary: The pieces by number; one that goes on inside a word begins with ##.
        lower: Whether texts are put in lower case, without accents, first.
    """

    def __init__(self, vocabulary: Sequence[str], lower: bool = True) -> None:
        kit = tokenizers()
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        self.vocabulary, self.lower = tuple(vocabulary), lower
        self.cls, self.sep, self.pad, self.mask = (numbers[piece] for piece in ("[CLS]", "[SEP]", "[PAD]", "[MASK]"))
        self.tokenizer = fitted_out(kit.Tokenizer(kit.models.WordPiece(numbers, unk_token="[UNK]")), lower)
        self.tokenizer.add_special_tokens(SPECIAL)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """The pieces of each text; "[MASK]" in it is a mask only where `special` says so, and else a word like any other."""
        self.tokenizer.encode_special_tokens = not special
        return [found.ids for found in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Pieces as a text: lower case stays, and so do the spaces around punctuation."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def flat(self, texts: Iterable[str], at_once: int = 4096) -> Int[Tensor, " n"]:
        """All texts in one row, with [SEP] after each."""
        parts, waiting = [], list[str]()
        for text in chain(texts, [None]):
            if text is not None:
                waiting.append(text)
            if waiting and (text is None or len(waiting) == at_once):
                rows = chain.from_iterable((*ids, self.sep) for ids in self.encode(waiting) if ids)
                parts.append(torch.tensor(list(rows), dtype=torch.int32))
                waiting = []
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)

    def rows(self, texts: Sequence[str], length: int) -> Int[Tensor, "n T"]:
        """A row a text: [CLS], its first pieces, [SEP], and [PAD] up to the longest, which has `length` pieces at most."""
        cut = [torch.tensor([self.cls, *ids[: length - 2], self.sep]) for ids in self.encode(texts)]
        return torch.nn.utils.rnn.pad_sequence(cut, batch_first=True, padding_value=self.pad)


def trained_vocabulary(texts: Sequence[str], size: int, lower: bool = True) -> tuple[str, ...]:
    """The word pieces of a corpus, at most so many: the special ones, letters, and what joins them most often.

    The letters are the 1,000 most frequent ones, ties in order: the same corpus gives the same vocabulary each time.
    """
    kit, counts = tokenizers(), Counter[str]()
    tokenizer = fitted_out(kit.Tokenizer(kit.models.WordPiece(unk_token="[UNK]")), lower)
    for text in texts:
        counts.update(tokenizer.normalizer.normalize_str(text))
    letters = sorted((letter for letter in counts if not letter.isspace()), key=lambda letter: (-counts[letter], letter))
    letters = letters[:1000]
    inside = ["##" + letter for letter in letters if not is_punctuation(letter)]
    trainer = kit.trainers.WordPieceTrainer(  # what is not listed is numbered by chance
        vocab_size=size,
        special_tokens=[*SPECIAL, *letters, *inside],
        show_progress=False,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
    )
    tokenizer.train_from_iterator(texts, trainer)
    numbers: dict[str, int] = tokenizer.get_vocab()
    if len(numbers) <= len(SPECIAL):
        raise UnveilError("the corpus has no words: expected texts in UTF-8")
    return tuple(sorted(numbers, key=lambda piece: numbers[piece]))


def is_punctuation(letter: str) -> bool:
    """Whether BERT cuts words before and after it."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def fitted_out(tokenizer: "Tokenizer", lower: bool) -> "Tokenizer":
    """With BERT's cleaning of texts, and its cuts at spaces and punctuation."""
    kit = tokenizers()
    tokenizer.normalizer = kit.normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = kit.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = kit.decoders.WordPiece(cleanup=False)
    return tokenizer


def tokenizers() -> Any:
    """The library of that name. Raises `UnveilError` where it is not installed."""
    try:
        import tokenizers as kit
    except ImportError:
        raise UnveilError("texts need the library `tokenizers`: install it with `pip install 'unveil[text]'`") from None
    return kit


class CorpusLoader:
    """Sequences of a fixed length out of one long row of pieces; which ones a step sees depends on the seed and the step alone.

    An epoch has as many sequences as the corpus holds side by side, each shifted by a share of its length that its key draws.

    Args:
        ids: The corpus, as `WordPieceTokenizer.flat` makes it.
        pieces: What made it.
        length: Pieces in a sequence, the special ones included.
        batch_size: Sequences in a step, over all processes and parts.
        seed: Of the order, and of all that is drawn for a sample.
        pairs: A sequence is two parts, and in half of them the second comes from elsewhere (BERT, section 3.1, task 2).

    Raises:
        UnveilError: When the corpus is shorter than a sequence.
    """

    instant = True

    def __init__(
        self, ids: Int[Tensor, " n"], pieces: WordPieceTokenizer, *, length: int, batch_size: int, seed: int, pairs: bool = False
    ) -> None:
        self.ids, self.pieces, self.batch_size, self.seed, self.pairs = ids, pieces, batch_size, seed, pairs
        self.span = length - (3 if pairs else 2)
        if self.span < 2 or len(ids) < self.span:
            raise UnveilError(f"the corpus has {len(ids):,} word pieces, fewer than a sequence of {length}: use a smaller --length")
        self.samples = len(ids) // self.span

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        """See `unveil.data.loader.Feed`."""
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        keys = sample_keys(self.seed, first, size)
        drawn = uniform(keys, 3, stream=16)
        starts = shuffled(self.seed, torch.arange(first, first + size), self.samples) * self.span + (drawn[:, 0] * self.span).long()
        if not self.pairs:
            return TextBatch(self.between(size, self.cut(starts, self.span)), keys)
        head, tail = (self.span + 1) // 2, self.span // 2
        elsewhere = drawn[:, 1] < 0.5
        second = torch.where(elsewhere, (drawn[:, 2].double() * len(self.ids)).long(), starts + head)
        ids = self.between(size, self.cut(starts, head), self.cut(second, tail))
        parts = torch.tensor([0] * (head + 2) + [1] * (tail + 1)).expand(size, -1)
        return TextBatch(ids, keys, parts, elsewhere.long())

    def cut(self, starts: Int[Tensor, " B"], length: int) -> Int[Tensor, "B _"]:
        """Pieces from these places on; behind the end of the corpus is its beginning."""
        return self.ids[(starts[:, None] + torch.arange(length)) % len(self.ids)].long()

    def between(self, size: int, *parts: Int[Tensor, "B _"]) -> Int[Tensor, "B T"]:
        """[CLS], and [SEP] after each part."""
        row = [torch.full((size, 1), self.pieces.cls)]
        for part in parts:
            row += [part, torch.full((size, 1), self.pieces.sep)]
        return torch.cat(row, dim=1)


class LabelledTextLoader:
    """Shuffled texts with their classes, fed like images; what only fills up every row of a batch is cut off, by eights."""

    instant = True

    def __init__(self, rows: Int[Tensor, "n T"], labels: Int[Tensor, " n"], *, padding: int, batch_size: int, seed: int) -> None:
        self.rows, self.labels, self.batch_size, self.seed = rows, labels, batch_size, seed
        self.samples, self.lengths = len(rows), (rows != padding).sum(dim=1)

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        """See `unveil.data.loader.Feed`."""
        size = share_size(self.batch_size, shares)
        first = step * self.batch_size + share * size
        order = shuffled(self.seed, torch.arange(first, first + size), self.samples)
        longest = -(-int(self.lengths[order].max()) // 8) * 8
        return TextBatch(self.rows[order, :longest], sample_keys(self.seed, first, size), labels=self.labels[order])
