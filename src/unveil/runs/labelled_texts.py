"""Labelled texts for fine-tuning: a train set, a test set, and the predictions on it."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.label_table import examples
from unveil.data.labels import classes_sentence
from unveil.data.parts import HELD_OUT
from unveil.data.shuffle import shuffled
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.learner import Task
from unveil.models.bert import TextConfig
from unveil.paths import absolute_data
from unveil.plain_text import count_of, csv_cell
from unveil.runs.modality import AnyData, LabelledData
from unveil.runs.session import Session
from unveil.text.files import Texts, open_texts, split_sentence
from unveil.text.wordpiece import LabelledTextLoader, TextBatch, WordPieceTokenizer
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe


class LabelledSplits(NamedTuple):
    """Labelled texts for fine-tuning."""

    train: Texts
    test: Texts
    validation: Texts | None
    """The validation split, if it has labels and is not the test set."""
    held_out: bool
    """Whether the test set was held out from the training set."""
    roles: dict[str, list[str]]
    """The splits of DATA that are "train", "validation", "test" and "unused", as run.json records them; empty if there is one."""
    cautions: list[str]
    """Clauses on test texts that the encoder, or the model, is trained on as well. Nothing has said them yet."""

    def with_classes(self, classes: list[str]) -> "LabelledSplits":
        """The same texts, with labels numbered as in `classes`."""
        validation = self.validation and self.validation.with_classes(classes)
        return self._replace(train=self.train.with_classes(classes), test=self.test.with_classes(classes), validation=validation)


class LabelledTexts(LabelledData):
    """Texts with labels: a train set and a test set."""

    noun = "texts"
    train_set: Texts
    test_set: Texts
    validation_set: Texts | None

    def __init__(self, splits: LabelledSplits, shape: TextConfig) -> None:
        self.train_set, self.test_set, self.validation_set, self.held_out, self.roles, self.cautions = splits
        self.classes, self.length = splits.train.classes, shape.length
        self.tokenizer = WordPieceTokenizer(shape.vocabulary, shape.lower)

    @property
    def class_counts(self) -> Int[Tensor, " K"]:
        return torch.bincount(label_tensor(self.train_set), minlength=len(self.classes))

    @property
    def facts(self) -> dict[str, Any]:
        train, test = self.train_set, self.test_set
        splits = {"splits": self.roles} if self.roles else {}
        return splits | {
            "name": train.name,
            "path": absolute_data(train.name),
            "texts": len(train),
            "fingerprint": train.fingerprint,
            "test": test.name,
            "test_texts": len(test),
            "test_fingerprint": test.fingerprint,
        }

    @property
    def unseen(self) -> dict[str, int]:
        trained = set(label_tensor(self.train_set).tolist())
        counts = Counter(label for label in label_tensor(self.test_set).tolist() if label not in trained)
        return {self.test_classes[label]: count for label, count in sorted(counts.items())}

    @property
    def test_classes(self) -> Sequence[str]:
        return self.test_set.classes

    def loader(self, recipe: Recipe, learner: Task) -> LabelledTextLoader:
        rows, training = self.tokenizer.padded(self.train_set.texts, self.length), recipe.training
        return LabelledTextLoader(
            rows, label_tensor(self.train_set), padding=self.tokenizer.pad, batch_size=training.batch_size, seed=training.seed
        )

    @cached_property
    def validation_rows(self) -> Int[Tensor, "n T"]:
        """Token ids of the texts to validate on."""
        assert self.validation_set is not None
        return self.tokenizer.padded(self.validation_set.texts, self.length)

    def predictions(self, task: Task, recipe: Recipe, *, validation: bool = False) -> Iterator[tuple[Any, Any, Any]]:
        if validation:
            assert self.validation_set is not None
            rows, labels = self.validation_rows, label_tensor(self.validation_set)
        else:
            rows, labels = self.tokenizer.padded(self.test_set.texts, self.length), label_tensor(self.test_set)
        return text_predictions(task, rows, labels, recipe.hardware, recipe.world)

    def write_skipped(self, session: Session) -> None:
        pass  # a text that cannot be read is refused on opening

    def unreadable(self) -> dict[str, int]:
        return {}

    def evaluate(self, task: Task, recipe: Recipe, folder: Path) -> dict[str, Any]:
        """One row per text: its beginning, its class, the predicted class and the probability of that."""
        metric, scores = task.metric(), list[Tensor]()
        for _, predictions, targets in self.predictions(task, recipe):
            metric.update(predictions, targets)
            scores.append(predictions)
        probability, best = torch.cat(scores).softmax(dim=1).max(dim=1)
        texts, classes, labels = self.test_set.texts, self.test_classes, label_tensor(self.test_set).tolist()
        with replacing(folder / "predictions.csv") as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label", "predicted", "probability"])
            for text, label, guess, p in zip(texts, labels, best.tolist(), probability.tolist(), strict=True):
                writer.writerow([csv_cell(text[:200]), csv_cell(classes[label]), csv_cell(classes[guess]), f"{p:.6g}"])
        return metric.compute()


@torch.no_grad()
def text_predictions(
    task: Task, rows: Int[Tensor, "n T"], labels: Int[Tensor, " n"], hardware: HardwareConfig, world: World, batch_size: int = 64
) -> Iterator[tuple[TextBatch, Tensor, ClassTargets]]:
    """Yields (batch, predictions, targets) for token ids, with predictions in float32 on the CPU."""
    task.eval()
    for ids, classes in zip(rows.split(batch_size), labels.split(batch_size), strict=True):
        batch = TextBatch(ids, torch.zeros(len(ids), dtype=torch.int64), targets=ClassTargets(classes)).to(world.device)
        with autocast(hardware, world):
            predictions = task.predict(batch)
        yield batch, predictions.float().cpu(), ClassTargets(classes)


def labelled_texts(
    data: AnyData, test: AnyData | None, say: Callable[[str], None], test_split: Literal["held-out"] | None = None
) -> LabelledSplits:
    """Opens labelled texts, and says what they are. Of copies among the splits, it only tells in the result.

    Args:
        data: Labelled texts to train on. Those without a class are left out.
        test: Labelled texts to test on; by default the test split of `data`, or the validation split, or a tenth of it.
        say: Prints a message for the user.
        test_split: "held-out" keeps the test split for later.

    Raises:
        UnveilError: If there are no labels, or only one class.
    """
    opened = open_texts(data)
    parts = {name: texts for name, texts in opened.splits.items() if name == "train" or texts.labels is not None}
    train_set, validation = parts["train"], parts.get("val")
    test_set = None if test_split == HELD_OUT else parts.get("test")
    notes = list(opened.notes)
    if test is not None:
        of_test = open_texts(test, opened.columns)
        test_set = next((texts for texts in of_test.tests if texts.labels is not None), (of_test.tests or [of_test.train])[0])
        notes += [split_sentence(of_test, {name: "as the test set" for name, texts in of_test.splits.items() if texts is test_set})]
        notes += of_test.notes
    elif test_set is None:
        test_set, validation = validation, None
    chosen = {"train": train_set, "validation": validation, "test": test_set}
    roles = {role: [name for name, texts in parts.items() if texts is found] for role, found in chosen.items()}
    roles["unused"] = [name for name in opened.splits if not any(name in names for names in roles.values())]
    words = {"train": "for training", "validation": "evaluated during training", "test": "as the test set"}
    use = {name: words[role] for role in words for name in roles[role]}
    roles = roles if len(opened.splits) > 1 else {}
    for note in dict.fromkeys([split_sentence(opened, use), *notes]):
        if note:
            say(note)
    if train_set.labels is None:
        reason = train_set.unclear or "expected a .tsv or .csv with a column of classes, or a folder of .txt files for each class"
        raise UnveilError(f"{train_set.name} has no labelled texts: {reason}")
    say(classes_sentence(train_set.label_source, train_set.labels, train_set.classes, "text"))
    refuse_one_class(train_set)
    if test_set is not None and test_set.labels is None:
        raise UnveilError(f"the test set {test_set.name} has no labels: {test_set.unclear or 'give labelled texts with --test'}")
    for noun, texts in (("training text", train_set), ("test text", test_set), ("validation text", validation)):
        if texts is not None and len(texts.labelled()) < len(texts):
            say(f"left out {count_of(len(texts) - len(texts.labelled()), noun)} without a class")
    train_set = train_set.labelled()
    validation = validation and validation.labelled().with_classes(train_set.classes)
    cautions = copies_clauses(validation, "validation text", train_set, "training texts", "the validation is")
    if test_set is None:
        train_set, test_set = hold_out(train_set, say)
        refuse_one_class(train_set)
        return LabelledSplits(train_set, test_set, validation, True, roles, cautions)
    test_set = test_set.labelled().with_classes(train_set.classes)
    refuse_other_classes(test_set, train_set)
    cautions += copies_clauses(test_set, "test text", train_set, "training texts", "the results are")
    cautions += copies_clauses(test_set, "test text", validation, "validation texts", "the results are")
    return LabelledSplits(train_set, test_set, validation, False, roles, cautions)


def copies_clauses(texts: Texts | None, noun: str, known: Texts | None, known_noun: str, what: str) -> list[str]:
    """A clause on how many of some texts are among others that the model has seen or was chosen on; none if there are no others."""
    if texts is None or known is None:
        return []
    found = set(map(without_case, known.texts))
    copies = sum(without_case(text) in found for text in texts.texts)
    verb = "is a copy" if copies == 1 else "are copies"
    return [f"{copies:,} of {count_of(len(texts), noun)} {verb} of {known_noun}: {what} too good"] if copies else []


def hold_out(texts: Texts, say: Callable[[str], None]) -> tuple[Texts, Texts]:
    """Keeps a tenth of some texts, at most 1,000, and its copies, apart from the rest. Returns the rest and the tenth."""
    order = shuffled(0, torch.arange(len(texts)), len(texts))
    if len(texts) < 10:
        raise UnveilError(f"{texts.name} has {len(texts)} texts, too few to hold out a tenth: give a test set with --test")
    count = min(1000, len(texts) // 10)
    held_out, rest = texts.subset(order[:count].sort().values), texts.subset(order[count:].sort().values)
    return without_copies(rest, held_out, say), held_out


def without_copies(texts: Texts, held_out: Texts, say: Callable[[str], None]) -> Texts:
    """Texts to train on without those that are copies of held-out ones. Raises `UnveilError` if none is left."""
    apart = set(map(without_case, held_out.texts))
    kept = [index for index, text in enumerate(texts.texts) if without_case(text) not in apart]
    if not kept:
        raise UnveilError(f"each text of {texts.name} is a copy of one that is held out, so none is left to train on")
    if copies := len(texts) - len(kept):
        verb = "is a copy of a held-out one" if copies == 1 else "are copies of held-out ones"
        say(f"left out {count_of(copies, 'training text')} that {verb}")
    return texts.subset(kept)


def refuse_other_classes(test_set: Texts, train_set: Texts) -> None:
    """Raises `UnveilError` if no text of a test set has a class that occurs in training."""
    trained = set(label_tensor(train_set).tolist())
    found = [test_set.classes[label] for label in sorted(set(label_tensor(test_set).tolist()))]
    if trained.isdisjoint(label_tensor(test_set).tolist()):
        raise UnveilError(
            f"the test set {test_set.name} has the classes {examples(found)}, and none of those of the training texts, "
            f"{examples(train_set.classes)}: give the classes the same names"
        )


def without_case(text: str) -> str:
    """A text as copies are compared: without case, and with one space for any white space."""
    return " ".join(text.casefold().split())


def refuse_one_class(texts: Texts) -> None:
    """Raises `UnveilError` if all labels of texts to train on are the same."""
    labels = label_tensor(texts)
    distinct = labels[labels >= 0].unique().tolist()
    if len(distinct) < 2:
        only = texts.classes[distinct[0]]
        raise UnveilError(f"the texts of {texts.name} to train on have only one class, {only}: give texts of two classes or more")


def label_tensor(texts: Texts) -> Int[Tensor, " n"]:
    """The class of each text."""
    return torch.from_numpy(texts.labels)
