"""Runs on text: pre-training, labelled data, and the evaluation of a text encoder."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.atomic_files import replacing
from unveil.data.shuffle import shuffled
from unveil.data.splits import balanced_indices, stratified_split
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.evaluate.held_out import held_out_metrics
from unveil.interop import model_files
from unveil.learner import Method, Task, TextMethod
from unveil.methods import METHODS, method_class
from unveil.models.bert import MODELS, TextConfig, TextEncoder
from unveil.options import configure
from unveil.paths import absolute_data
from unveil.plain_text import count_of, csv_cell
from unveil.ranges import Range, ShareBelowOne
from unveil.runs.labelled_data import data_of
from unveil.runs.modality import (
    AnyData,
    FinetuneRunConfig,
    LabelledData,
    LabelledRequest,
    Modality,
    Pretraining,
    PretrainPlan,
    slug,
)
from unveil.runs.session import Session, join, options_by_name
from unveil.runs.text_stream import TextStream, open_text_stream
from unveil.text.files import Texts, documents, open_texts
from unveil.text.wordpiece import SPECIAL, CorpusLoader, LabelledTextLoader, TextBatch, WordPieceTokenizer, train_vocabulary
from unveil.train.log import Record
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Monitor
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class TextPretrainConfig:
    """The model, the corpus, and how it is read."""

    HIDDEN = ("grad_checkpointing", "tracker")
    vocabulary_size: Annotated[int, Range(1, 2**20)] = 8192
    """Largest number of word pieces in the vocabulary, which is learned from the corpus (BERT: 30,000)."""
    max_length: Annotated[int, Range(1, 65_536)] = 128
    """Maximum number of word pieces in a sequence, including special tokens."""
    lower: bool = True
    """Lower-case the text and strip accents."""
    dropout: ShareBelowOne = 0.1
    """Dropout rate in every block."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, which saves memory for a third more time (gradient checkpointing)."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class TextPlan(PretrainPlan):
    """The plan of a pre-training run on text."""

    run_config: TextPretrainConfig
    texts: Texts
    test_texts: Texts | None

    @property
    def config(self) -> dict[str, Any]:
        recipe = self.recipe
        groups = (self.run_config, self.method_config, recipe.training, recipe.optim, recipe.hardware)
        return {**METHODS.describe(method_class(self.method)), "model": self.model} | options_by_name(*groups)

    @property
    def facts(self) -> dict[str, Any]:
        name = self.texts.name
        facts = {"name": name, "path": absolute_data(name), "texts": len(self.texts), "fingerprint": self.texts.fingerprint}
        if self.test_texts:
            facts |= {"test_texts": len(self.test_texts), "test_fingerprint": self.test_texts.fingerprint}
        return facts

    def path(self, out: str | Path | None) -> Path:
        return Path(out) if out else Path("runs") / f"{slug(self.texts.name)}-{METHODS.label(self.method)}-{self.model}"

    def open(self, session: Session) -> "TextPretraining":
        return TextPretraining(self, session)


class TextPretraining(Pretraining):
    """A pre-training run on text whose corpus is open and tokenised."""

    def __init__(self, plan: TextPlan, session: Session) -> None:
        session.say("tokenising the corpus ...")
        self.plan, self.session, config = plan, session, plan.run_config
        self.corpus = list(documents(plan.texts.texts))
        written = model_files.config_of(session.run.path)  # a resumed run keeps its vocabulary
        self.vocabulary = (
            tuple(written["encoder"]["vocabulary"])
            if written
            else train_vocabulary(self.corpus, config.vocabulary_size, config.lower)
        )
        self.tokenizer = WordPieceTokenizer(self.vocabulary, config.lower)
        ids = self.tokenizer.concatenated(self.corpus)
        test_ids = self.tokenizer.concatenated(documents(plan.test_texts.texts)) if plan.test_texts else None
        self.ids, self.test_ids = held_out_blocks(ids) if test_ids is None else (ids, test_ids)

    def build(self) -> Method:
        plan, config = self.plan, self.plan.run_config
        width, depth, heads = MODELS[plan.model]
        shape = TextConfig(
            width=width,
            depth=depth,
            heads=heads,
            vocabulary=self.vocabulary,
            length=config.max_length,
            lower=config.lower,
            dropout=config.dropout,
            grad_checkpointing=config.grad_checkpointing,
        )
        return method_class(plan.method).build(shape, plan.method_config, None)

    def loader(self, learner: Method) -> CorpusLoader:
        assert isinstance(learner, TextMethod)
        training, length = self.session.recipe.training, self.plan.run_config.max_length
        return CorpusLoader(
            self.ids, self.tokenizer, length=length, batch_size=training.batch_size, seed=training.seed, pairs=learner.pairs
        )

    def summary(self, learner: Method) -> str:
        parameters = sum(p.numel() for p in learner.parameters())
        count = count_of(len(self.corpus), "text")
        return (
            f"{type(learner).__name__} with {self.plan.model} ({parameters / 1e6:.1f} M parameters) on {count} "
            f"of {self.plan.texts.name}: {len(self.ids):,} word pieces, a vocabulary of {len(self.vocabulary):,}, sequences of "
            f"{self.plan.run_config.max_length}"
        )

    def monitors(self) -> list[Monitor]:
        return [self.held_out]

    def held_out(self, learner: Any, most: int = 8) -> Record:
        """The method's validation metrics on held-out text, with the same masks at every call."""
        recipe, length = self.session.recipe, self.plan.run_config.max_length
        if len(self.test_ids) < length:
            return {}
        loader = CorpusLoader(self.test_ids, self.tokenizer, length=length, batch_size=32, seed=0, pairs=learner.pairs)
        count = max(1, min(most, loader.samples // loader.batch_size))
        batches = ((loader.share(step, 0, 1).to(recipe.world.device), 1 / count) for step in range(count))
        return held_out_metrics(learner, batches, recipe.hardware, recipe.world)

    def evaluate(self, learner: Method, untrained: Any) -> Record:
        words = self.held_out(learner, most=32)
        if words:
            words |= unigram_baseline(self.ids, self.test_ids, self.vocabulary)
        return {"words": words, "sequences_seen": self.session.samples_trained}

    def write_skipped(self) -> None:
        pass  # a text that cannot be read is refused on opening


def held_out_blocks(ids: Int[Tensor, " n"], block: int = 2048, every: int = 20) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """Splits a corpus without a test split: every twentieth block of tokens is held out. Returns the rest, and these blocks."""
    held_out = torch.arange(len(ids)) // block % every == every - 1
    return ids[~held_out], ids[held_out]


def unigram_baseline(ids: Int[Tensor, " n"], test_ids: Int[Tensor, " m"], vocabulary: Sequence[str]) -> dict[str, float]:
    """Loss and accuracy of a baseline without a model, which predicts the frequency of each token in the corpus."""
    special = torch.tensor([piece in SPECIAL for piece in vocabulary])
    counts, test = (torch.bincount(part, minlength=len(special)).double().masked_fill(special, 0.0) for part in (ids, test_ids))
    probability = (counts + 1) / (counts + 1).sum()
    return {
        "frequency_loss": float(-(test * probability.log()).sum() / test.sum()),
        "frequency_accuracy": float(test[counts.argmax()] / test.sum()),
    }


class LabelledTexts(LabelledData):
    """Texts with labels: a train set and a test set."""

    noun = "texts"

    def __init__(
        self, train_set: Texts, test_set: Texts, held_out: bool, shape: TextConfig, validation_set: Texts | None = None
    ) -> None:
        self.train_set, self.test_set, self.held_out, self.validation_set = train_set, test_set, held_out, validation_set
        self.classes, self.length = train_set.classes, shape.length
        self.tokenizer = WordPieceTokenizer(shape.vocabulary, shape.lower)

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train_set), len(self.test_set)

    @property
    def validation_count(self) -> int:
        return 0 if self.validation_set is None else len(self.validation_set)

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


class TextModality(Modality):
    """The modality of text."""

    noun = "texts"
    models = MODELS
    default_model = "bert-mini"
    default_task = "text-classification"

    def configs(self, method: str | type[Method]) -> tuple[type, ...]:
        return (TextPretrainConfig, method_class(method).Config, TrainConfig, OptimConfig, HardwareConfig)

    def plan(
        self,
        data: AnyData,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
        *,
        out: str | Path | None = None,
        resume_from: str | Path | None = None,
    ) -> TextPlan:
        defaults = self.defaults(data, method)
        model = self.check_model(model or defaults.pop("model"))
        defaults.pop("model", None)
        config, method_config, *rest = configure(defaults | dict(options), *self.configs(method))
        recipe = join(*rest)
        texts, test_texts = open_texts(data)
        return TextPlan(
            method=METHODS.find(method),
            model=model,
            method_config=method_config,
            recipe=recipe,
            run_config=config,
            texts=texts,
            test_texts=test_texts,
        )

    def finetune_configs(self, task: type[Task]) -> tuple[type, ...]:
        return (FinetuneRunConfig, task.Config)

    def untrained(self, encoder: TextEncoder) -> TextEncoder:
        return TextEncoder(encoder.config)

    def labelled(
        self, run: str | os.PathLike[str], data: AnyData | None, test: AnyData | None, request: LabelledRequest
    ) -> LabelledTexts:
        train_set, test_set, held_out = labelled_texts(
            data if data is not None else data_of(run), test, printer(request.recipe.world.is_main)
        )
        if set(train_set.classes) <= set(request.classes):  # of the run that is resumed
            train_set, test_set = (texts.with_classes(list(request.classes)) for texts in (train_set, test_set))
        if request.config.labels:
            train_set = train_set.subset(
                balanced_indices(label_tensor(train_set), request.config.labels, request.recipe.training.seed)
            )
        validation_set = None
        if share := request.config.kept_aside(len(train_set)):
            rest, aside = stratified_split(label_tensor(train_set), share, request.recipe.training.seed)
            train_set, validation_set = train_set.subset(rest), train_set.subset(aside) if len(aside) else None
        return LabelledTexts(train_set, test_set, held_out, request.encoder, validation_set)

    def stream(self, learner: Any, data: AnyData, *, split: str | None, max_pixels: int) -> TextStream:
        return open_text_stream(data, split, learner.encoder.config)

    def has_labels(self, data: AnyData) -> bool:
        labels = open_texts(data)[0].labels
        return labels is not None and bool((labels >= 0).any())


TEXT = TextModality()
