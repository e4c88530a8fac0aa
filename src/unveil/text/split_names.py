"""Splits and classes of text files, from the names of their folders and of the files themselves."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from unveil.data.split_folders import SPLIT_WORDS, split_of

PLAIN = (".txt",)
TRAIN, TESTS = "train", ("test", "val")
"""The splits. The test set is the first of `TESTS` that exists or, for fine-tuning, that has labels."""
SPLIT_OF = {word: split for split in (*TESTS, TRAIN) for word in SPLIT_WORDS[split] if not word.startswith("label")}
SPLIT_OF |= {"eval": "val", "evaluation": "val"}
"""The splits by the words in the name of a file or of a folder. Of texts, an eval split often has a test split beside it."""


def suffix_of(name: str) -> str:
    """The suffix of a file, in lower case."""
    return PurePosixPath(name).suffix.lower()


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """The splits of files, for those that have one: by the outermost folder that names it, then by the words of their own names.

    Folders that hold all files say nothing, and neither do the names of a few files in class folders, such as
    pos/training-tips.txt.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    steps = zip(*folders, strict=False)
    shared = next((i for i, step in enumerate(steps) if len(set(step)) > 1), min(map(len, folders), default=0))
    by_folder = {
        name: next(filter(None, map(split_of_folder, parts[shared:])), None) for name, parts in zip(names, folders, strict=True)
    }
    by_name = {name: split_of_file(PurePosixPath(name).stem) for name in names if by_folder[name] is None}
    few = sum(map(bool, by_name.values())) < len(by_name) / 2
    if few and suffix_of(names[0]) in PLAIN and class_folders([*by_name]):
        by_name = {}
    return {name: split for name, split in {**by_folder, **by_name}.items() if split is not None}


def split_of_folder(name: str) -> str | None:
    """The split of a folder, from its last word, as in 20news-bydate-train."""
    return SPLIT_OF.get((words_of(name) or [""])[-1])


def split_of_file(stem: str) -> str | None:
    """The split of a file, from the words of its name without the suffix, as in imdb_train and testData."""
    found = {SPLIT_OF.get(word) for word in words_of(stem)}
    return next((split for split in (*TESTS, TRAIN) if split in found), None)


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
