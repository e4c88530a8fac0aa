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
from unveil.text.wordpiece import LabelledTextFeed, WordPieces
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, autocast, join, settled
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
        **options: Fields of `TuningConfig`, `ClassifyConfig`, `TrainConfig`, `OptimConfig`, `SpreadConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    own, recipe, training, optim, hardware = configure(
        DEFAULTS | options, TuningConfig, ClassifyConfig, TrainConfig, OptimConfig, SpreadConfig
    )
    place = join(hardware)
    hardware, say = settled(hardware, place), tell(place.lead)
    encoder: TextEncoder = load(run, say=say).encoder
    if own.scratch:
        torch.manual_seed(training.seed)
        encoder = TextEncoder(encoder.config)
    shape = encoder.config
    known, asked, cut = labelled_texts(data if data is not None else data_of(run), test)
    if own.labels:
        known = balanced(known, own.labels, training.seed)
    samples = LabelledTexts(known, asked, cut, shape)
    config = {
        "from": "scratch" if own.scratch else str(run),
        **asdict(own),
        **asdict(recipe),
        **asdict(training),
        **asdict(optim),
        **asdict(hardware),
    }
    path = Path(out) if out else beside(run, "scratch" if own.scratch else "finetune")
    result = open_run(path, "finetune", config, samples.facts, write=place.lead, say=say)
    if finished(result, place):
        return result

    def build() -> Classify:
        torch.manual_seed(training.seed)
        return Classify(encoder, len(samples.classes), recipe)

    return tune(result, build, samples, own, training, optim, hardware, place)


class LabelledTexts(Labelled):
    """Texts with labels: some to train on, others to judge on."""

    noun = "texts"

    def __init__(self, known: Texts, asked: Texts, cut: bool, shape: TextConfig) -> None:
        self.known, self.asked, self.cut, self.classes, self.length = known, asked, cut, known.classes, shape.length
        self.pieces = WordPieces(shape.vocabulary, shape.lower)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.known), len(self.asked)

    @property
    def facts(self) -> dict[str, Any]:
        known, asked = self.known, self.asked
        return {
            "name": known.name,
            "texts": len(known),
            "fingerprint": known.fingerprint,
            "test": asked.name,
            "test_texts": len(asked),
            "test_fingerprint": asked.fingerprint,
        }

    def feed(self, training: TrainConfig) -> LabelledTextFeed:
        rows, size = self.pieces.rows(self.known.texts, self.length), training.batch_size
        return LabelledTextFeed(rows, labels_of(self.known), padding=self.pieces.pad, batch_size=size, seed=training.seed)

    @cached_property
    def rows(self) -> Int[Tensor, "n T"]:
        """The texts to judge on, in pieces."""
        return self.pieces.rows(self.asked.texts, self.length)

    def judge(
        self, task: Task, hardware: SpreadConfig, place: Place, most: int | None = None
    ) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
        rows, labels = self.rows, labels_of(self.asked)
        if most:
            some = shuffled(0, torch.arange(len(labels)), len(labels))[:most]
            rows, labels = rows[some], labels[some]
        return scores_of(task, rows, hardware, place), labels

    def write(self, run: Path, scores: Float[Tensor, "n K"]) -> None:
        write_predictions(run / "predictions.csv", self.asked, scores)


def labelled_texts(data: str | Path, test: str | Path | None) -> tuple[Texts, Texts, bool]:
    """Labelled texts to train on and to judge on, and whether the latter were cut off the former.

    Raises:
        UnveilError: Where there are no labels, or only one class.
    """
    known, asked = open_texts(data)
    if known.labels is None:
        how = "a .tsv or .csv with a column of classes, or a folder of .txt files for each class"
        raise UnveilError(f"{known.name} has no labelled texts: expected {how}")
    if len(known.classes) < 2:
        raise UnveilError(f"{known.name} has one class only: {known.classes[0]}")
    if test is not None:
        training, testing = open_texts(test)
        asked = testing or training
    if asked is not None:
        if asked.labels is None:
            raise UnveilError(f"{asked.name} has no labelled texts to judge on")
        return known, asked.with_classes(known.classes), False
    order = shuffled(0, torch.arange(len(known)), len(known))
    if len(known) < 10:
        raise UnveilError(f"{known.name} has {len(known)} texts, too few to keep a tenth aside: give others to judge on (--test)")
    count = min(1000, len(known) // 10)
    return known.chosen(order[count:].sort().values), known.chosen(order[:count].sort().values), True


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
    task: Task, rows: Int[Tensor, "n T"], hardware: SpreadConfig, place: Place, at_once: int = 64
) -> Float[Tensor, "n K"]:
    """The scores that a task gives to texts; in float32, on the CPU."""
    found = []
    for part in rows.split(at_once):
        with autocast(hardware, place):
            found.append(task.predict(part.to(place.device)).float().cpu())
    return torch.cat(found)


def write_predictions(path: Path, texts: Texts, scores: Float[Tensor, "n K"]) -> None:
    """A table with a row a text: its beginning, its class, the predicted one and its probability."""
    sure, best = scores.softmax(dim=1).max(dim=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "predicted", "probability"])
        for text, label, guess, p in zip(texts.texts, labels_of(texts).tolist(), best.tolist(), sure.tolist(), strict=True):
            writer.writerow([text[:200], texts.classes[label], texts.classes[guess], f"{p:.4f}"])
