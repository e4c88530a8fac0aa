"""Texts without labels in a fixed order, for `unveil predict`."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unveil.data.read_ahead import read_ahead
from unveil.errors import UnveilError
from unveil.models.bert import TextConfig
from unveil.predictions import Columns
from unveil.runs.sample_stream import SampleStream, Span
from unveil.text.files import Texts, open_texts, unlabelled_texts
from unveil.text.wordpiece import TextBatch, WordPieceTokenizer
from unveil.train.parallel import HardwareConfig, World

SHOWN = 200
"""Characters of a text that stand in the table."""


class TextStream(SampleStream):
    """Texts, as token ids for a model.

    Args:
        parts: The texts of each split.
        shape: The vocabulary and the length of the model.
        notes: See `SampleStream`.
    """

    noun = "text"

    def __init__(self, parts: Mapping[str, Texts], shape: TextConfig, notes: Sequence[str] = ()) -> None:
        self.parts, self.length, self.notes = parts, shape.length, notes
        self.tokenizer = WordPieceTokenizer(shape.vocabulary, shape.lower)
        self.counts = {name: len(texts) for name, texts in parts.items()}
        self.fingerprints = [fingerprint_of(texts) for texts in parts.values()]
        self.listed = {}

    def batches(self, spans: Iterable[Span], hardware: HardwareConfig, world: World) -> Iterator[Any | None]:
        def read(span: Span) -> TextBatch:
            ids = self.tokenizer.padded(self.parts[span.split].texts[span.start : span.stop], self.length)
            return TextBatch(ids, torch.arange(span.start, span.stop))

        for batch in read_ahead(read, spans):
            yield batch.to(world.device)

    def columns(self, split: str, keys: Int[Tensor, " B"]) -> Columns:
        texts, rows = self.parts[split], keys.tolist()
        found = {
            "path": np.array([texts.places[row] for row in rows]),
            "text": np.array([texts.texts[row][:SHOWN] for row in rows]),
        }
        return found | ({"split": np.full(len(rows), split)} if len(self.parts) > 1 else {})


def fingerprint_of(texts: Texts) -> str:
    """It changes with the texts and with the names of their files."""
    return hashlib.sha256("\0".join([texts.fingerprint, *texts.places]).encode("utf-8", "surrogateescape")).hexdigest()


def open_text_stream(data: Any, split: str | None, shape: TextConfig) -> TextStream:
    """The texts of a file, a folder or an archive, or of a list.

    Raises:
        UnveilError: If there are none, or there is no such split.
    """
    if isinstance(data, list | tuple):
        wrong = next((each for each in data if not isinstance(each, str)), None)
        if wrong is not None or not data:
            found = "an empty list" if not data else f"a list with a {type(wrong).__name__}"
            raise UnveilError(f"the texts are {found}: give a list of texts, or the path of a file or a folder")
        return TextStream({"train": unlabelled_texts("list", data, [f"text-{i:06d}" for i in range(len(data))])}, shape)
    parts, notes, _ = open_texts(data)
    wanted = list(parts) if split in (None, "all") else [word.strip() for word in str(split).split("+")]
    if not set(wanted) <= parts.keys():
        raise UnveilError(f"{data} has the splits {', '.join(parts)}: --split {split} is not among them")
    stream = TextStream({name: texts for name, texts in parts.items() if name in wanted}, shape, notes)
    every = [text for texts in stream.parts.values() for text in texts.texts]
    stream.notes = [*notes, *stream.tokenizer.remarks(every, shape.length)]
    return stream
