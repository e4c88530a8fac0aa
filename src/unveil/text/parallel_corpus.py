"""Sentence pairs in two languages: reads files with one sentence per line, and makes batches of sentences of similar length."""

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
from unveil.data.loader import share_size
from unveil.data.shuffle import shuffled
from unveil.data.split_folders import SPLIT_WORDS
from unveil.data.tensor_batch import TensorBatch
from unveil.errors import UnveilError

Lines = tuple[list[str], list[str]]
PAD_MULTIPLE = 4
"""Rows are padded to a multiple of this length, so that there are few shapes."""
POOL = 64
"""Number of batches whose sentences are sorted by length together."""


class Corpus(NamedTuple):
    """Sentences in two languages: line n of one is the translation of line n of the other."""

    train: Lines
    held_out: Lines
    """Sentences to evaluate during training; empty if there are none."""
    tests: dict[str, Lines]
    """Test sets for the final evaluation, by name."""
    fingerprint: str
    unused: tuple[str, ...] = ()
    """Files of these languages that are in no pair, or whose name is that of no set."""

    @property
    def judged(self) -> dict[str, Lines]:
        """The sentences that are translated at the end: the test sets or, without any, the held-out sentences."""
        return self.tests or {"held out": self.held_out}

    def copies(self) -> dict[str, int]:
        """How many pairs of each set that is judged are training pairs as well, if any are."""
        trained = set(zip(*self.train, strict=True))
        counts = {name: sum(pair in trained for pair in zip(*lines, strict=True)) for name, lines in self.judged.items()}
        return {name: count for name, count in counts.items() if count}

    def empty_references(self) -> dict[str, int]:
        """How many translations of each set that is judged are empty, if any are."""
        counts = {name: sum(not line.strip() for line in target) for name, (_, target) in self.judged.items()}
        return {name: count for name, count in counts.items() if count}


def read_corpus(data: str | Path, source: str, target: str) -> Corpus:
    """Reads pairs of files `<name>.<source>` and `<name>.<target>` from a folder or a .tar.gz.

    The name is train, a word for the validation split such as val or dev, or begins with test.

    Raises:
        UnveilError: If there are no training pairs, or the two files of a pair have different numbers of lines.
    """
    files = read_files(Path(data), (source, target))
    names = sorted({name.rsplit(".", 1)[0] for name in files})
    names = [name for name in names if all(f"{name}.{language}" in files for language in (source, target))]
    splits: dict[str, Lines] = {}
    for name in names:
        ours, theirs = files[f"{name}.{source}"], files[f"{name}.{target}"]
        if len(ours) != len(theirs):
            counts = f"{name}.{source} has {len(ours):,} lines, but {name}.{target} has {len(theirs):,}"
            raise UnveilError(f"{data}: {counts}; line n of one must be the translation of line n of the other")
        splits[name] = ours, theirs
    if not any(splits.get("train", ((), ()))[0]):
        found = ", ".join(sorted(files)) or "no file of these languages"
        raise UnveilError(f"{data} has no training pairs: found {found}, expected train.{source} and train.{target}")
    validation = next((name for name in SPLIT_WORDS["val"] if name in splits), "")
    tests = {name: lines for name, lines in splits.items() if name.startswith("test")}
    fingerprint = hashlib.sha256(repr(sorted(splits.items())).encode()).hexdigest()[:16]
    unused = sorted(file for file in files if file.rsplit(".", 1)[0] not in ("train", validation, *tests))
    return Corpus(splits["train"], splits.get(validation, ([], [])), tests, fingerprint, tuple(unused))


def read_files(path: Path, languages: tuple[str, str]) -> dict[str, list[str]]:
    """The lines of all files of these languages, by file name. They lie in one folder, of a path or of an archive."""

    def wanted(name: str) -> bool:
        return name.rsplit(".", 1)[-1] in languages and not Path(name).name.startswith(".")

    if path.is_dir():
        found = {file.name: file.read_bytes() for file in path.iterdir() if wanted(file.name)}
    elif path.is_file():
        try:
            with tarfile.open(path) as archive:
                members = [(member.name, archive.extractfile(member)) for member in archive if member.isfile()]
                read = {name: file.read() for name, file in members if file and wanted(name)}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UnveilError(f"{path} is not an archive that can be read ({error}): expected a folder or a .tar.gz") from None
        folders = sorted({str(Path(name).parent) for name in read})
        if len(folders) > 1:
            raise UnveilError(f"{path} has files of these languages in {' and '.join(folders)}: expected one folder")
        found = {Path(name).name: text for name, text in read.items()}
    else:
        raise UnveilError(
            f"{path} does not exist: expected a folder or a .tar.gz with train.{languages[0]} and train.{languages[1]}"
        )
    try:
        return {name: lines_of(text.decode("utf-8-sig")) for name, text in found.items()}
    except UnicodeDecodeError as error:
        raise UnveilError(f"{path} has text that is not UTF-8 ({error}): convert it to UTF-8 first") from None


def read_sentences(path: Path) -> list[str]:
    """The lines of a file. Raises `UnveilError` if it cannot be read, or is not UTF-8."""
    try:
        return lines_of(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UnveilError(f"{path} has text that is not UTF-8 ({error}): convert it to UTF-8 first") from None
    except OSError as error:
        raise UnveilError(f"{path} cannot be read: {error.strerror or error}") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text without surrounding white space. Only a newline ends a line."""
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


class _PairBatch(NamedTuple):
    source: Int[Tensor, "B S"]
    target: Int[Tensor, "B T1"]
    weight: Float[Tensor, " B"]
    keys: Int[Tensor, " B"]


class PairBatch(_PairBatch, TensorBatch):
    """A batch of sentence pairs.

    Attributes:
        source: Token ids, `END`, padding.
        target: `BEGIN`, token ids, `END`, padding.
        weight: The weight of each target token in the loss: number of shares of the step / number of target tokens of the step. So
            the mean over all processes and microbatches is the mean over tokens, for any distribution of the pairs.
        keys: The keys of the samples: see `unveil.blocks.stateless_random`.
    """

    __slots__ = ()


class Rows:
    """Rows of token ids of different lengths, stored in one tensor."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor([len(row) for row in rows])
        self.ends = self.lengths.cumsum(0)
        self.tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)

    def padded(self, indices: Int[Tensor, " B"], width: int) -> Int[Tensor, "B width"]:
        """The rows at these indices, padded."""
        position = torch.arange(width) + (self.ends - self.lengths)[indices][:, None]
        inside = position < self.ends[indices][:, None]
        return torch.where(inside, self.tokens[position.clamp(max=len(self.tokens) - 1)].long(), PAD)


class PairLoader:
    """Shuffled sentence pairs in batches of similar length. The pairs of a step depend only on the seed and the step.

    Args:
        source: Token ids of each sentence, without special tokens.
        target: Token ids of the translations.
        batch_size: Pairs in a step, over all processes and microbatches.
        seed: Seed of the order.
    """

    def __init__(self, source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], *, batch_size: int, seed: int) -> None:
        self.source, self.target = Rows([[*row, END] for row in source]), Rows([[BEGIN, *row, END] for row in target])
        self.samples, self.batch_size, self.seed = len(source), batch_size, seed
        self.prefetch = torch.cuda.is_available()  # the CPU is idle while a GPU trains
        self._pool = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Int[Tensor, " B"]:
        """Indices of the pairs of a step. The pairs of a pool of batches are sorted by length, and the batches are shuffled."""
        pool, number = divmod(step, POOL)
        if self._pool[0] != pool:
            size = POOL * self.batch_size
            indices = shuffled(self.seed, torch.arange(pool * size, (pool + 1) * size), self.samples)
            target_lengths, source_lengths = padded_length(self.target.lengths[indices] - 1), self.source.lengths[indices]
            order = (target_lengths * (int(self.source.lengths.max()) + 1) + source_lengths).argsort(stable=True)
            self._pool = pool, indices[order]
        batch = int(shuffled(self.seed + 1, torch.tensor([pool * POOL + number]), POOL))
        return self._pool[1][batch * self.batch_size : (batch + 1) * self.batch_size]

    def share(self, step: int, share: int, shares: int) -> PairBatch:
        size, indices = share_size(self.batch_size, shares), self.indices(step)
        lengths = self.source.lengths[indices], self.target.lengths[indices] - 1
        source_width, target_width = (int(padded_length(each).max()) for each in lengths)
        weight = torch.full((size,), shares / int(lengths[1].sum()))
        indices = indices[share::shares]
        keys = sample_keys(self.seed, step * self.batch_size + share * size, size)
        source, target = self.source.padded(indices, source_width), self.target.padded(indices, target_width + 1)
        return PairBatch(source, target, weight, keys)


def padded_length(lengths: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Lengths, rounded up to a multiple of `PAD_MULTIPLE`."""
    return (lengths + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE
