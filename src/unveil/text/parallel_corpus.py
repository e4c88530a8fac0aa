"""Sentences in two languages: from files of lines to batches of which little is padding."""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.blocks.special_tokens import BEGIN, END, PAD
from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import each, moved, page_locked
from unveil.data.loader import share_size
from unveil.data.shuffle import shuffled
from unveil.errors import UnveilError

Lines = tuple[list[str], list[str]]
STEP = 4
"""Rows are padded to a multiple of this, so that there are few shapes."""
POOL = 64
"""Batches whose sentences are sorted by length together."""


class Corpus(NamedTuple):
    """What DATA holds of two languages: line n of the one means what line n of the other does."""

    train: Lines
    held_out: Lines
    """To watch a run; empty where there is none."""
    tests: dict[str, Lines]
    """To judge the end, by name."""
    fingerprint: str


def read_corpus(data: str | Path, source: str, target: str) -> Corpus:
    """The files `<name>.<source>` and `<name>.<target>` of a folder or a .tar.gz: train; val, valid or dev; and those named test...

    Raises:
        UnveilError: When there is no pair to train on, or the two files of a pair are not of one length.
    """
    files = read_files(Path(data), (source, target))
    names = sorted({name.rsplit(".", 1)[0] for name in files})
    names = [name for name in names if all(f"{name}.{language}" in files for language in (source, target))]
    parts: dict[str, Lines] = {}
    for name in names:
        ours, theirs = files[f"{name}.{source}"], files[f"{name}.{target}"]
        if len(ours) != len(theirs):
            counts = f"{name}.{source} has {len(ours):,} lines and {name}.{target} {len(theirs):,}"
            raise UnveilError(f"{data}: {counts}, and line n must mean what line n does: mend the files")
        parts[name] = ours, theirs
    if not any(parts.get("train", ((), ()))[0]):
        found = ", ".join(sorted(files)) or "no file of these languages"
        raise UnveilError(f"{data} has no pairs to train on: found {found}, expected train.{source} and train.{target}")
    held_out = next((parts[name] for name in ("val", "valid", "dev") if name in parts), ([], []))
    seen = hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:16]
    return Corpus(parts["train"], held_out, {name: part for name, part in parts.items() if name.startswith("test")}, seen)


def read_files(path: Path, languages: tuple[str, str]) -> dict[str, list[str]]:
    """The lines of all files of these languages, by the name of the file."""

    def wanted(name: str) -> bool:
        return name.rsplit(".", 1)[-1] in languages and not name.startswith(".")

    if path.is_dir():
        found = {file.name: file.read_bytes() for file in path.iterdir() if wanted(file.name)}
    elif path.is_file():
        try:
            with tarfile.open(path) as archive:
                members = [(Path(member.name).name, archive.extractfile(member)) for member in archive if member.isfile()]
                found = {name: file.read() for name, file in members if file and wanted(name)}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UnveilError(f"{path} is no archive of texts that can be read ({error}): give a folder or a .tar.gz") from None
    else:
        raise UnveilError(f"there is no {path}: give a folder or a .tar.gz with train.{languages[0]} and train.{languages[1]}")
    try:
        return {name: lines_of(text.decode("utf-8-sig")) for name, text in found.items()}
    except UnicodeDecodeError as error:
        raise UnveilError(f"{path} holds text that is not UTF-8 ({error})") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text, without white space at their ends; only a newline ends a line."""
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


class PairBatch(NamedTuple):
    """Some sentence pairs of a run: `unveil.data.batch.Samples`."""

    source: Int[Tensor, "B S"]
    """Words, `END`, padding."""
    target: Int[Tensor, "B T1"]
    """`BEGIN`, words, `END`, padding."""
    weight: Float[Tensor, " B"]
    """What a word of the target counts: the shares of a step add up to the mean over its words, however they are dealt out."""
    keys: Int[Tensor, " B"]

    def to(self, device: torch.device) -> "PairBatch":
        """See `Samples`."""
        return PairBatch(*moved(self, device))

    def first(self, count: int) -> "PairBatch":
        """See `Samples`."""
        return PairBatch(*each(self, lambda part: part[:count]))

    def pinned(self) -> "PairBatch":
        """See `Samples`."""
        return PairBatch(*page_locked(self))


class Rows:
    """Many rows of tokens, one after the other in memory."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows])
        self.ends = self.lengths.cumsum(0)
        self.tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)

    def padded(self, places: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
        """Some of the rows, filled up with padding."""
        at = torch.arange(width) + (self.ends - self.lengths)[places][:, None]
        return torch.where(at < self.ends[places][:, None], self.tokens[at.clamp(max=len(self.tokens) - 1)].long(), PAD)


class PairLoader:
    """Shuffled sentence pairs in batches of about one length; which ones a step sees depends on the seed and the step alone.

    Args:
        source: Sentences as numbers of words, without marks.
        target: The same in the other language.
        batch_size: Pairs in a step, over all processes and parts.
        seed: Of the order.
    """

    def __init__(self, source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], *, batch_size: int, seed: int) -> None:
        self.source, self.target = Rows([[*row, END] for row in source]), Rows([[BEGIN, *row, END] for row in target])
        self.samples, self.batch_size, self.seed = len(source), batch_size, seed
        self.instant = not torch.cuda.is_available()  # a GPU's processor has time to work ahead
        self._pool = -1, torch.empty(0, dtype=torch.int64)

    def places(self, step: int) -> Int[Tensor, " B"]:
        """The pairs of a step: a pool of batches is sorted by length, and its batches come in any order."""
        pool, turn = divmod(step, POOL)
        if self._pool[0] != pool:
            size = POOL * self.batch_size
            places = shuffled(self.seed, torch.arange(pool * size, (pool + 1) * size), self.samples)
            long, short = padded_length(self.target.lengths[places] - 1), self.source.lengths[places]
            self._pool = pool, places[(long * (int(self.source.lengths.max()) + 1) + short).argsort(stable=True)]
        batch = int(shuffled(self.seed + 1, torch.tensor([pool * POOL + turn]), POOL))
        return self._pool[1][batch * self.batch_size : (batch + 1) * self.batch_size]

    def share(self, step: int, share: int, shares: int) -> PairBatch:
        """See `unveil.data.loader.Feed`."""
        size, places = share_size(self.batch_size, shares), self.places(step)
        lengths = self.source.lengths[places], self.target.lengths[places] - 1
        wide, long = (int(padded_length(each).max()) for each in lengths)
        weight = torch.full((size,), shares / int(lengths[1].sum()))
        places = places[share::shares]
        keys = sample_keys(self.seed, step * self.batch_size + share * size, size)
        return PairBatch(self.source.padded(places, wide), self.target.padded(places, long + 1), weight, keys)


def padded_length(lengths: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Lengths as they are padded."""
    return (lengths + STEP - 1) // STEP * STEP
