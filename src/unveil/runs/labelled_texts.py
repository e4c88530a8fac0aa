"""Labelled texts for fine-tuning: a train set, a test set, and the predictions on it."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.shuffle import shuffled
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.learner import Task
from unveil.models.bert import TextConfig
from unveil.paths import absolute_data
from unveil.plain_text import count_of, csv_cell
from unveil.runs.modality import AnyData, LabelledData
from unveil.runs.session import Session
from unveil.text.files import Texts, open_texts
from unveil.text.wordpiece import LabelledTextLoader, TextBatch, WordPieceTokenizer
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe


class LabelledTexts(LabelledData):
    """Texts with labels: a train set and a test set."""

    noun = "texts"
    train_set: Texts
    test_set: Texts
    validation_set: Texts | None

    def __init__(
        self, train_set: Texts, test_set: Texts, held_out: bool, shape: TextConfig, validation_set: Texts | None = None
    ) -> None:
        self.train_set, self.test_set, self.held_out, self.validation_set = train_set, test_set, held_out, validation_set
        self.classes, self.length = train_set.classes, shape.length
        self.tokenizer = WordPieceTokenizer(shape.vocabulary, shape.lower)

    @property
    def class_counts(self) -> Int[Tensor, " K"]:
        return torch.bincount(label_tensor(self.train_set), minlength=len(self.classes))

    @property
    def facts(self) -> dict[str, Any]:
        train, test = self.train_set, self.test_set
        return {
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


def labelled_texts(data: AnyData, test: AnyData | None, say: Callable[[str], None]) -> tuple[Texts, Texts, bool]:
    """The train set, the test set, and whether the test set was held out from the training data.

    Args:
        data: Labelled texts to train on. Those without a class are left out.
        test: Labelled texts to test on.
        say: Prints a message for the user.

    Raises:
        UnveilError: If there are no labels, or only one class.
    """
    train_set, test_set = open_texts(data)
    if train_set.labels is None:
        expected = "a .tsv or .csv with a column of classes, or a folder of .txt files for each class"
        raise UnveilError(f"{train_set.name} has no labelled texts: expected {expected}")
    if len(train_set.classes) < 2:
        raise UnveilError(f"{train_set.name} has only one class, {train_set.classes[0]}: give texts of two classes or more")
    if test is not None:
        training, testing = open_texts(test)
        test_set = testing or training
    if test_set is not None and test_set.labels is None:
        raise UnveilError(f"the test set {test_set.name} has no labels: give labelled texts, or leave --test out")
    for texts in (train_set, test_set):
        if texts is not None and len(texts.labelled()) < len(texts):
            say(f"left out {count_of(len(texts) - len(texts.labelled()), 'text')} of {texts.name} without a class")
    train_set = train_set.labelled()
    if test_set is not None:
        return train_set, test_set.labelled().with_classes(train_set.classes), False
    order = shuffled(0, torch.arange(len(train_set)), len(train_set))
    if len(train_set) < 10:
        raise UnveilError(f"{train_set.name} has {len(train_set)} texts, too few to hold out a tenth: give a test set with --test")
    count = min(1000, len(train_set) // 10)
    return train_set.subset(order[count:].sort().values), train_set.subset(order[:count].sort().values), True


def label_tensor(texts: Texts) -> Int[Tensor, " n"]:
    """The class of each text."""
    return torch.from_numpy(texts.labels)
