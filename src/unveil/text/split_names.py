"""Splits and classes of text files, from the names of their folders and of the files themselves."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from unveil.data.split_folders import SPLIT_WORDS, split_of

PLAIN = (".txt", ".tokens")  # the latter of WikiText
TABLES = (".csv", ".tsv")
TRAIN, TESTS = "train", ("test", "val")
"""The splits. The test set is the first of `TESTS` that exists or, for fine-tuning, that has labels."""
SPLIT_OF = {word: split for split in (*TESTS, TRAIN) for word in SPLIT_WORDS[split] if not word.startswith("label")}
SPLIT_OF |= {"eval": "val", "evaluation": "val"}
"""The splits by the words in the name of a file or of a folder. Of texts, an eval split often has a test split beside it."""

MAX_NAME_WORDS = 3
"""Largest number of words in the name of a plain text file that names its split, as in wiki.train.tokens."""


def suffix_of(name: str) -> str:
    """The suffix of a file, in lower case."""
    return PurePosixPath(name).suffix.lower()


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """The splits of files, for those that have one: by the outermost folder that names it, then by the words of their own names.

    Folders that hold all files say nothing, and neither do the names of a few files in class folders, such as
    pos/training-tips.txt, or a few long ones, such as training_for_a_marathon.txt.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    steps = zip(*folders, strict=False)
    shared = next((i for i, step in enumerate(steps) if len(set(step)) > 1), min(map(len, folders), default=0))
    by_folder = {
        name: next(filter(None, map(split_of_folder, parts[shared:])), None) for name, parts in zip(names, folders, strict=True)
    }
    by_name = {name: split_of_file(PurePosixPath(name).stem) for name in names if by_folder[name] is None}
    named = [name for name, split in by_name.items() if split is not None]
    if len(named) < len(by_name) / 2 and suffix_of(names[0]) in PLAIN:
        are_titles = all(len(words_of(PurePosixPath(name).stem)) > MAX_NAME_WORDS for name in named)
        by_name = {} if are_titles or class_folders([*by_name]) else by_name
    return {name: split for name, split in {**by_folder, **by_name}.items() if split is not None}


def split_of_folder(name: str) -> str | None:
    """The split of a folder, from its last word, as in 20news-bydate-train."""
    return SPLIT_OF.get((words_of(name) or [""])[-1])


def split_of_file(stem: str) -> str | None:
    """The split of a file, from the words of its name without the suffix, as in imdb_train and testData; train for train_val."""
    found = {SPLIT_OF.get(word) for word in words_of(stem)}
    return next((split for split in ("test", TRAIN, "val") if split in found), None)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without "data" or "set" at their end: train, test for TrainData_testset."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return [re.sub(r"(?<=.)(data|set|dataset)s?$", "", word) for word in words if word not in ("data", "set", "dataset")]


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """The class of each file: its folder. Empty unless there are at least two such folders.

    Files beside the class folders, and in a folder such as unsup/ or unlabeled/, have no class.
    """
    folders = {name: PurePosixPath(name).parent.name for name in names}
    folders = {name: folder for name, folder in folders.items() if folder and split_of(folder) is None}
    return folders if len(set(folders.values())) > 1 else {}


class Splits(NamedTuple):
    """The splits of the files of DATA."""

    of: dict[str, str]
    """The split of each file, by its path in DATA; without those in no split."""
    train_is_named: bool
    """Whether a file, a folder or an archive is named train."""
    sentence: str = ""
    """What to say if files are used for training whose names do not say so."""


def splits_in(loose: Sequence[str], archives: Mapping[str, Sequence[str]]) -> Splits:
    """The splits of the files of DATA.

    An archive with a split named train inside has its own splits. Any other archive has the split in its name or, if there is none,
    is for training. If nothing is named train, the tables, the archives and the class folders without a split are for training; if
    there are none, everything is.

    Args:
        loose: Files that lie in no archive.
        archives: The files of each archive, with their paths in the archive, by its path in DATA.
    """
    found, unnamed = splits_of(loose), list[str]()
    for archive, names in archives.items():
        own = splits_of(names)
        if TRAIN in own.values():
            found |= {f"{archive}/{name}": split for name, split in own.items()}
        elif split := split_of_archive(archive):
            found |= {f"{archive}/{name}": split for name in names}
        else:
            unnamed += [f"{archive}/{name}" for name in names]
    if TRAIN in found.values():
        return Splits(found | dict.fromkeys(unnamed, TRAIN), train_is_named=True)
    everything = [*loose, *(f"{archive}/{name}" for archive, names in archives.items() for name in names)]
    plain = {name for name in loose if suffix_of(name) in PLAIN}
    in_folders = {name for name in plain if any(map(split_of_folder, PurePosixPath(name).parts[:-1]))}
    tests = {name: split for name, split in found.items() if name not in plain - in_folders}  # blood-test.txt is none
    rest = [name for name in everything if name not in tests]
    if tests and (unnamed or class_folders(rest) or any(suffix_of(name) in TABLES for name in rest)):
        reason = "nothing is named train, so what has no name of a split is for training"
        return Splits(tests | dict.fromkeys(rest, TRAIN), train_is_named=False, sentence=reason)
    pooled = len({found.get(name) for name in everything}) > 1
    reason = "nothing is named train, so all files are for training" if pooled else ""
    return Splits(dict.fromkeys(everything, TRAIN), train_is_named=False, sentence=reason)


def split_of_archive(path: str) -> str | None:
    """The split of an archive, from the names of its folders and then from the words of its own, as in test.csv.zip."""
    *folders, name = PurePosixPath(path).parts
    return next(filter(None, [*map(split_of_folder, folders), split_of_file(name.partition(".")[0])]), None)
