"""Pre-training on text: the plan of a run, and the run once its corpus is open."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.evaluate.held_out import held_out_metrics
from unveil.interop import model_files
from unveil.learner import Method, TextMethod
from unveil.methods import METHODS, method_class
from unveil.models.bert import MODELS, TextConfig
from unveil.paths import absolute_data
from unveil.plain_text import count_of
from unveil.ranges import Range, ShareBelowOne
from unveil.runs.modality import Pretraining, PretrainPlan, slug
from unveil.runs.session import Session, options_by_name
from unveil.text.files import Texts, documents
from unveil.text.wordpiece import SPECIAL, CorpusLoader, WordPieceTokenizer, train_vocabulary, unknown_remarks
from unveil.train.log import Record
from unveil.train.recorder import Monitor


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
    notes: Sequence[str] = ()
    """How the texts were read, each in one sentence."""

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
        for note in plan.notes:
            session.say(note)
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
        for note in unknown_remarks(int((ids == self.tokenizer.unknown).sum()), len(ids)):
            session.say(note)
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
    """Splits a corpus without a validation split: every twentieth block of tokens is held out. Returns the rest, and these blocks.

    The blocks of a small corpus are smaller, so that there is a twentieth one.
    """
    block = min(block, max(1, len(ids) // every))
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
