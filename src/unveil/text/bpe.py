"""Subwords by byte-pair encoding (Sennrich et al., 2016) over bytes, trained with `tokenizers` on the user's own text."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unveil.blocks.special_tokens import SPECIAL_TOKENS
from unveil.errors import UnveilError
from unveil.json_files import LARGEST, read_regular
from unveil.text.library import tokenizers_library


class BPETokenizer:
    """A subword vocabulary that can encode any text, since it contains every byte."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "BPETokenizer":
        """Builds a vocabulary of up to `size` subwords, special tokens and bytes included, by merging the most frequent pairs.

        Raises:
            UnveilError: If `tokenizers` is not installed, or the size is too small for the bytes.
        """
        library = tokenizers_library()
        if size < len(SPECIAL_TOKENS) + 256:
            raise UnveilError(
                f"a vocabulary of {size} is too small for {len(SPECIAL_TOKENS)} special tokens and 256 bytes: use 1000 or more"
            )
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = library.decoders.ByteLevel()
        alphabet = library.pre_tokenizers.ByteLevel.alphabet()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> "BPETokenizer":
        """Reads a vocabulary file. Raises `UnveilError` if it cannot be read."""
        library = tokenizers_library()
        try:
            return cls(library.Tokenizer.from_str(read_regular(path, LARGEST).decode("utf-8")))
        except Exception as error:  # the library raises no narrower exception
            raise UnveilError(f"{path} is not a vocabulary of `tokenizers`: {error}") from None

    @property
    def text(self) -> str:
        """The vocabulary as JSON in the format of `tokenizers`, which other libraries read too."""
        text: str = self.tokenizer.to_str()
        return text

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens. The name of a special token in a text is encoded as ordinary text."""
        self.tokenizer.encode_special_tokens = True
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The texts of token ids, without special tokens."""
        texts: list[str] = self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def pieces(self, row: Sequence[int]) -> list[str]:
        """The text of each token: a special token by its name, an incomplete character as a replacement character."""
        return [SPECIAL_TOKENS[i] if i < len(SPECIAL_TOKENS) else self.tokenizer.decode([i]) for i in row]
