"""The parts of DATA, and what each of them is used for: training, evaluation during training, and the final test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from unveil.data.source import Source, joined
from unveil.data.split_folders import OTHER, PARTS, split_of
from unveil.errors import UnveilError
from unveil.plain_text import count_of

HELD_OUT = "held-out"
"""The test split that stands for images kept aside from training: the validation split or, without one, a part of the train set."""


class Roles(NamedTuple):
    """What each part of DATA is used for."""

    train: Source
    test: Source | None
    """The test set; None if DATA has none, so that a part of the training images is to be held out."""
    validation: Source | None
    """Evaluated during training, so that the test set is evaluated only once; None if there is no further part."""
    splits: dict[str, list[str]]
    """The folders of "train", "validation", "test" and "unused", as they are named in DATA; empty if DATA has no splits."""
    sentence: str
    """What each folder is used for, in words; "" if DATA has no splits."""
    held_out_of: int
    """Without a test set, a part of this many images from the first one of `train` on is held out. An unlabeled part is not among
    them, so the images that are held out do not depend on whether it is used."""

    def numbered_as(self, classes: Sequence[str]) -> "Roles":
        """The training images with labels numbered as in the run that is resumed, if that has all of their classes.

        An earlier version may have numbered labels in another order, and labels that do not occur.
        """
        same = set(self.train.classes) <= set(classes) and self.train.is_labelled
        return self._replace(train=self.train.with_classes(classes)) if same else self


@dataclass(frozen=True)
class DataParts:
    """The parts of DATA, each listed when it is needed."""

    name: str
    """DATA as the user typed it."""
    makers: Mapping[str, Callable[[], Source]]
    """Lists a part: "train", "val", "test", "unlabeled", and "other" beside the splits. Only "train" if DATA has no splits."""
    folders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The folders of each part as they are named in DATA; empty if DATA has no splits."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Images in each part, as far as that is known without listing it."""

    @property
    def names(self) -> list[str]:
        """The names of the parts, in the order of `PARTS`."""
        return [part for part in PARTS if part in self.makers]

    @property
    def has_splits(self) -> bool:
        """Whether DATA has several parts."""
        return len(self.makers) > 1

    def source(self, *parts: str) -> Source:
        """The images of some parts, by default of all, one part after the other."""
        return joined([self.makers[part]() for part in parts or self.names])

    def chosen(self, split: str, option: str = "--split") -> list[str]:
        """The parts that the value of an option means: "train", "train+val", "all", ...

        Raises:
            UnveilError: If DATA has no such part.
        """
        if split.strip().lower() == "all":
            return self.names
        words = [word.strip() for word in split.split("+")]
        parts = [OTHER if word.lower() == OTHER else split_of(word) for word in words]
        if not all(part in self.makers for part in parts):
            has = f"has the splits {', '.join(self.names)}" if self.has_splits else "has no splits"
            raise UnveilError(
                f"{self.name} {has}: {option} {split} is not among them. Use one or several of them, as in train+val, or all"
            )
        return [part for part in PARTS if part in parts]

    def roles(self, split: str | None = None, test_split: str | None = None, *, unlabeled: bool = False) -> Roles:
        """What each part is used for.

        The test set is the test split or, if that has no labels or does not exist, the validation split. If there are both, the
        validation split is evaluated during training.

        Args:
            split: The parts to train on, as for `chosen`; by default the training split.
            test_split: The part that is the test set, or `HELD_OUT`.
            unlabeled: Whether the training images include the unlabeled part by default.

        Raises:
            UnveilError: If DATA has no such parts, or no part to train on.
        """
        train = self.chosen(split) if split else self._default_train(unlabeled)
        train_set = self.source(*train)
        validation: list[str] = []
        test_set: Source | None = None
        validation_set: Source | None = None
        if test_split == HELD_OUT:
            test = ["val"] if "val" in self.makers and "val" not in train else []
            test_set = self.source(*test) if test else None
        elif test_split:
            test = [part for part in self.chosen(test_split, "--test-split") if part not in train]
            if not test:
                raise UnveilError(f"--test-split {test_split} of {self.name} is trained on: choose another part")
            test_set = self.source(*test)
        else:
            rest = {part: self.makers[part]() for part in ("test", "val") if part in self.makers and part not in train}
            test = sorted(rest, key=lambda part: not rest[part].is_labelled)[:1]  # stable: the test split, if it has labels
            test_set = rest[test[0]] if test else None
            if "val" in rest and test == ["test"] and rest["val"].is_labelled == rest["test"].is_labelled:
                validation, validation_set = ["val"], rest["val"]
        if train_set.is_labelled:
            test_set, validation_set = (each and each.with_classes(train_set.classes) for each in (test_set, validation_set))
        before = train[: train.index("unlabeled")] if "unlabeled" in train else train
        held_out_of = len(self.source(*before)) if before and before != train else len(train_set)
        if not self.has_splits:
            return Roles(train_set, test_set, validation_set, {}, "", held_out_of)
        used = {"train": train, "validation": validation, "test": test}
        used["unused"] = [part for part in self.names if not any(part in parts for parts in used.values())]
        splits = {role: [name for part in parts for name in self._folders(part)] for role, parts in used.items() if parts}
        return Roles(train_set, test_set, validation_set, splits, self._sentence(used), held_out_of)

    def _default_train(self, unlabeled: bool) -> list[str]:
        if "train" in self.makers:
            return ["train"] + ["unlabeled"] * (unlabeled and "unlabeled" in self.makers)
        if OTHER in self.makers:
            others = ", ".join(f"{name}/" for name in self._folders(OTHER)[:5]) or "images"
            splits = ", ".join(f"{name}/" for part in self.names if part != OTHER for name in self._folders(part))
            raise UnveilError(
                f"{self.name} has {splits} and beside it {others}, but no training split: rename the folder with the training "
                f"images to train/, or choose with --split ({', '.join(self.names)})"
            )
        if "unlabeled" in self.makers:
            return ["unlabeled"]
        labelled = sorted(self.names, key=lambda part: (not self.makers[part]().is_labelled, part != "test"))
        return labelled[-1:]  # val/ and test/ without train/: train on the validation split

    def _folders(self, part: str) -> list[str]:
        return list(self.folders.get(part, [part])) or [f"images beside the splits of {self.name}"]

    def _sentence(self, used: Mapping[str, Sequence[str]]) -> str:
        roles = {
            "train": "for training",
            "validation": "evaluated during training",
            "test": "as the test set",
            "unused": "not used",
        }
        said = []
        for role, words in roles.items():
            for part in used[role]:
                count = f" ({count_of(self.counts[part], 'image')})" if part in self.counts else ""
                names = " and ".join(f"{name}/" if " " not in name else name for name in self._folders(part))
                said.append(f"{names}{count} {words}")
        return f"{self.name} has splits: {'; '.join(said)}"
