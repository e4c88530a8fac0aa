"""Sub-words: byte-pair encoding (Sennrich et al., 2016) over bytes, learned by `tokenizers` from the user's own text."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unveil.blocks.special_tokens import MARKS
from unveil.errors import UnveilError


class BPETokenizer:
    """A vocabulary of pieces of words that can spell any text, since every byte is one of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def learned(cls, texts: Iterable[str], size: int) -> "BPETokenizer":
        """At most `size` pieces, marks and bytes included: the pairs that stand beside each other most often become one.

        Raises:
            UnveilError: When `tokenizers` is not installed, or the size has no room for the bytes.
        """
        library = tokenizers()
        if size < len(MARKS) + 256:
            raise UnveilError(f"a vocabulary of {size} has no room for {len(MARKS)} marks and 256 bytes: use 1000 or more")
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "BPETokenizer":
        """What `save` wrote. Raises `UnveilError` where it cannot be read."""
        library = tokenizers()
        try:
            return cls(library.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises nothing narrower
            raise UnveilError(f"{path} holds no sub-words: {error}") from None

    @property
    def text(self) -> str:
        """The vocabulary as JSON in the layout of `tokenizers`, which other libraries read too."""
        text: str = self.tokenizer.to_str()
        return text

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text, by number, without marks. Marks that a text spells out are read as plain letters."""
        self.tokenizer.encode_special_tokens = True
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The texts of pieces; marks are left out."""
        texts: list[str] = self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def pieces(self, row: Sequence[int]) -> list[str]:
        """The pieces of one text as they are read, one by one; a mark by its name, half a letter as a question mark."""
        return [MARKS[i] if i < len(MARKS) else self.tokenizer.decode([i]) for i in row]


def tokenizers() -> Any:
    """The library. Raises `UnveilError` where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise UnveilError("text needs the library tokenizers: pip install 'unveil[text]'") from None
    return tokenizers
