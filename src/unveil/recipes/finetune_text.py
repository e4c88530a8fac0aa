"""Fine-tuning on labelled texts; and the same from scratch, for comparison."""

import csv
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.shuffle import shuffled
from unveil.errors import UnveilError
from unveil.interop.load import load
from unveil.learner import Task
from unveil.models.bert import TextConfig, TextEncoder
from unveil.options import configure
from unveil.runs.finetune_common import Labelled, TuningConfig, tune
from unveil.runs.labelled_data import beside, data_of
from unveil.runs.train_in_run import finished
from unveil.tasks.text_classification import Classify, ClassifyConfig
from unveil.text.files import Texts, open_texts
from unveil.text.wordpiece import LabelledTextLoader, WordPieceTokenizer
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast, join_processes, resolve_precision
from unveil.train.run_folder import Run, open_run, tell

DEFAULTS = {
    "base_lr": 2.4e-3,
    "schedule": "line",
    "beta2": 0.999,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "epochs": 10.0,
    "batch_size": 32,
    "clip": 1.0,
    "epsilon": 1e-6,
}
"""BERT's recipe (appendix A.3) at a rate for small models: 3e-4 for a batch of 32; bert-base wants --base-lr 2.4e-4 --epochs 3."""


def finetune_on_texts(
    run: str | Path,
    data: str | Path | None = None,
    *,
    test: str | Path | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Run:
    """Tunes an encoder on labelled texts, or goes on with a run that was stopped.

    Args:
        run: Whatever `unveil.load` takes.
        data: Labelled texts; by default those that the run was trained on.
        test: Labelled texts to judge on; by default the test part of `data`, or a tenth of it that is kept aside.
        out: The run folder; by default `<run>-finetune`, or `<run>-scratch`.
        **options: Fields of `TuningConfig`, `ClassifyConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    own, recipe, training, optim, hardware = configure(
        DEFAULTS | options, TuningConfig, ClassifyConfig, TrainConfig, OptimConfig, HardwareConfig
    )
    world = join_processes(hardware)
    hardware, say = resolve_precision(hardware, world), tell(world.is_main)
    encoder: TextEncoder = load(run, say=say).encoder
    if own.scratch:
        torch.manual_seed(training.seed)
        encoder = TextEncoder(encoder.config)
    shape = encoder.config
    train_set, test_set, cut = labelled_texts(data if data is not None else data_of(run), test)
    if own.labels:
        train_set = balanced(train_set, own.labels, training.seed)
    samples = LabelledTexts(train_set, test_set, cut, shape)
    config = {
        "from": "scratch" if own.scratch else str(run),
        **asdict(own),
        **asdict(recipe),
        **asdict(training),
        **asdict(optim),
        **asdict(hardware),
    }
    path = Path(out) if out else beside(run, "scratch" if own.scratch else "finetune")
    result = open_run(path, "finetune", config, samples.facts, write=world.is_main, say=say)
    if finished(result, world):
        return result

    def build() -> Classify:
        torch.manual_seed(training.seed)
        return Classify(encoder, len(samples.classes), recipe)

    return tune(result, build, samples, own, training, optim, hardware, world)


class LabelledTexts(Labelled):
    """Texts with labels: some to train on, others to judge on."""

    noun = "texts"

    def __init__(self, train_set: Texts, test_set: Texts, cut: bool, shape: TextConfig) -> None:
        self.train_set, self.test_set, self.cut, self.classes, self.length = (
            train_set,
            test_set,
            cut,
            train_set.classes,
            shape.length,
        )
        self.pieces = WordPieceTokenizer(shape.vocabulary, shape.lower)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train_set), len(self.test_set)

    @property
    def facts(self) -> dict[str, Any]:
        train_set, test_set = self.train_set, self.test_set
        return {
            "name": train_set.name,
            "texts": len(train_set),
            "fingerprint": train_set.fingerprint,
            "test": test_set.name,
            "test_texts": len(test_set),
            "test_fingerprint": test_set.fingerprint,
        }

    def loader(self, training: TrainConfig) -> LabelledTextLoader:
        rows, size = self.pieces.rows(self.train_set.texts, self.length), training.batch_size
        return LabelledTextLoader(rows, labels_of(self.train_set), padding=self.pieces.pad, batch_size=size, seed=training.seed)

    @cached_property
    def rows(self) -> Int[Tensor, "n T"]:
        """The texts to judge on, in pieces."""
        return self.pieces.rows(self.test_set.texts, self.length)

    def judge(
        self, task: Task, hardware: HardwareConfig, world: World, most: int | None = None
    ) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
        rows, labels = self.rows, labels_of(self.test_set)
        if most:
            some = shuffled(0, torch.arange(len(labels)), len(labels))[:most]
            rows, labels = rows[some], labels[some]
        return scores_of(task, rows, hardware, world), labels

    def write(self, run: Path, scores: Float[Tensor, "n K"]) -> None:
        write_predictions(run / "predictions.csv", self.test_set, scores)


def labelled_texts(data: str | Path, test: str | Path | None) -> tuple[Texts, Texts, bool]:
    """Labelled texts to train on and to judge on, and whether the latter were cut off the former.

    Raises:
        UnveilError: Where there are no labels, or only one class.
    """
    train_set, test_set = open_texts(data)
    if train_set.labels is None:
        how = "a .tsv or .csv with a column of classes, or a folder of .txt files for each class"
        raise UnveilError(f"{train_set.name} has no labelled texts: expected {how}")
    if len(train_set.classes) < 2:
        raise UnveilError(f"{train_set.name} has one class only: {train_set.classes[0]}")
    if test is not None:
        training, testing = open_texts(test)
        test_set = testing or training
    if test_set is not None:
        if test_set.labels is None:
            raise UnveilError(f"{test_set.name} has no labelled texts to judge on")
        return train_set, test_set.with_classes(train_set.classes), False
    order = shuffled(0, torch.arange(len(train_set)), len(train_set))
    if len(train_set) < 10:
        raise UnveilError(
            f"{train_set.name} has {len(train_set)} texts, too few to keep a tenth aside: give others to judge on (--test)"
        )
    count = min(1000, len(train_set) // 10)
    return train_set.chosen(order[count:].sort().values), train_set.chosen(order[:count].sort().values), True


def balanced(texts: Texts, count: int, seed: int) -> Texts:
    """So many texts, the same number of each class where there are enough, drawn by the seed."""
    labels = labels_of(texts)
    order = shuffled(seed, torch.arange(len(texts)), len(texts))
    turn = torch.zeros(len(order), dtype=torch.int64)  # how many of its class come before it
    for kind in labels.unique():
        of_kind = labels[order] == kind
        turn[of_kind] = torch.arange(int(of_kind.sum()))
    return texts.chosen(order[turn.argsort(stable=True)[:count]].sort().values)


def labels_of(texts: Texts) -> Int[Tensor, " n"]:
    """The class of each text."""
    return torch.from_numpy(texts.labels)


@torch.no_grad()
def scores_of(
    task: Task, rows: Int[Tensor, "n T"], hardware: HardwareConfig, world: World, at_once: int = 64
) -> Float[Tensor, "n K"]:
    """The scores that a task gives to texts; in float32, on the CPU."""
    found = []
    for part in rows.split(at_once):
        with autocast(hardware, world):
            found.append(task.predict(part.to(world.device)).float().cpu())
    return torch.cat(found)


def write_predictions(path: Path, texts: Texts, scores: Float[Tensor, "n K"]) -> None:
    """A table with a row a text: its beginning, its class, the predicted one and its probability."""
    sure, best = scores.softmax(dim=1).max(dim=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "predicted", "probability"])
        for text, label, guess, p in zip(texts.texts, labels_of(texts).tolist(), best.tolist(), sure.tolist(), strict=True):
            writer.writerow([text[:200], texts.classes[label], texts.classes[guess], f"{p:.4f}"])
