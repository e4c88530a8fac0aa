"""Pre-training on texts: from a folder of text files to an encoder, with proof that it learned."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from unveil.errors import UnveilError
from unveil.interop import model_files as native
from unveil.learner import Method, TextMethod
from unveil.methods import defaults_of, method_class
from unveil.models.bert import MODELS, TextConfig
from unveil.options import configure
from unveil.reports.page import write_page
from unveil.reports.table import terminal_table
from unveil.runs.pretrain_setup import slug
from unveil.runs.train_in_run import finished, fit
from unveil.text.files import documents, open_texts
from unveil.text.wordpiece import SPECIAL, CorpusLoader, WordPieceTokenizer, trained_vocabulary
from unveil.train.log import Record
from unveil.train.loop import TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast, join_processes, resolve_precision, shutdown
from unveil.train.run_cost import bill_line, bill_of
from unveil.train.run_folder import Run, open_run, show, tell
from unveil.train.state import load_model_state


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """What to train, and on what."""

    vocabulary_size: int = 8192
    """Word pieces that are made of the corpus, at most (BERT: 30,000)."""
    length: int = 128
    """Pieces in a sequence, the special ones included."""
    lower: bool = True
    """Put texts in lower case, and take accents off."""
    dropout: float = 0.1
    """Share of values dropped in every block while training."""
    recompute: bool = False
    """Gradient checkpointing: less memory, a third more time."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


def pretrain_on_texts(
    data: str | Path, *, method: str = "bert", model: str | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Trains an encoder on texts without labels, or goes on with a run that was stopped.

    Args:
        data: As `unveil.text.files.open_texts`.
        method: A name from `unveil.methods.TEXTS`.
        model: A name from `unveil.models.bert.MODELS`; bert-mini by default.
        out: The run folder, `runs/<data>-<method>-<model>` by default. If it holds this run already, it goes on.
        **options: Fields of `CorpusConfig`, the method's `Config`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    began, model = time.monotonic(), model or "bert-mini"
    if model not in MODELS:
        raise UnveilError(f"there is no model {model!r} for texts: use one of {', '.join(MODELS)}")
    kind = method_class(method)
    own, settings, training, optim, hardware = configure(
        defaults_of(method) | options, CorpusConfig, kind.Config, TrainConfig, OptimConfig, HardwareConfig
    )
    world = join_processes(hardware)
    hardware, say = resolve_precision(hardware, world), tell(world.is_main)
    texts, test = open_texts(data)
    facts = {"name": texts.name, "texts": len(texts), "fingerprint": texts.fingerprint}
    if test:
        facts |= {"test_texts": len(test), "test_fingerprint": test.fingerprint}
    groups = (own, settings, training, optim, hardware)
    config = {"method": method, "model": model} | {key: value for group in groups for key, value in asdict(group).items()}
    path = Path(out) if out else Path("runs") / f"{slug(texts.name)}-{method}-{model}"
    run = open_run(path, "pretrain", config, facts, write=world.is_main, say=say)
    if finished(run, world):
        return run

    say("cutting the corpus into word pieces ...")
    corpus = list(documents(texts.texts))
    train_set = native.config_of(run.path)  # a run that goes on keeps its vocabulary
    vocabulary = (
        tuple(train_set["encoder"]["vocabulary"]) if train_set else trained_vocabulary(corpus, own.vocabulary_size, own.lower)
    )
    pieces = WordPieceTokenizer(vocabulary, own.lower)
    ids, judged = pieces.flat(corpus), pieces.flat(documents(test.texts)) if test else None
    if judged is None:
        ids, judged = kept_aside(ids)
    width, depth, heads = MODELS[model]
    shape = TextConfig(
        width=width,
        depth=depth,
        heads=heads,
        vocabulary=vocabulary,
        length=own.length,
        lower=own.lower,
        dropout=own.dropout,
        recompute=own.recompute,
    )
    torch.manual_seed(training.seed)
    learner = kind.build(shape, settings, None)
    assert isinstance(learner, TextMethod)
    if world.is_main:
        native.write_config(learner, run.path)
    pairs = learner.pairs
    loader = CorpusLoader(ids, pieces, length=own.length, batch_size=training.batch_size, seed=training.seed, pairs=pairs)
    total = total_steps(training, loader)
    parameters = sum(p.numel() for p in learner.parameters())
    say(
        f"{type(learner).__name__} with {model} ({parameters / 1e6:.1f} M parameters) on {len(corpus):,} texts of {texts.name}, "
        f"{len(ids):,} pieces of {len(vocabulary):,} kinds; {total:,} steps of {training.batch_size} sequences of {own.length} in "
        f"{hardware.precision} on {world.size} {world.device.type} process{'es' * (world.size > 1)}"
    )
    test_set = None
    if len(judged) >= own.length:
        test_set = CorpusLoader(judged, pieces, length=own.length, batch_size=32, seed=0, pairs=pairs)
    watch = partial(held_out, test_set=test_set, hardware=hardware, world=world)
    first = fit(learner, loader, run, world, training, optim, hardware, [watch], own.tracker, "pretrain")
    if world.is_main:
        load_model_state(learner := kind.build(shape, settings, None), run.checkpoints().load(total, "model"))
        learner.to(world.device).eval()
        native.save(learner, run.path)
        results: dict[str, Any] = {"words": held_out(learner, test_set=test_set, hardware=hardware, world=world, most=32)}
        if results["words"]:
            results["words"] |= frequent(ids, judged, vocabulary)
        seconds = sum(line.get("seconds", 0.0) for line in run.log)
        run.write_results(results | {"sequences_seen": total * training.batch_size, "seconds": seconds})
        page = write_page(run, learner)
        run.write_results(run.results | {"cost": bill_of(run, began, first, world)})
        show(terminal_table(run.results))
        say(f"{bill_line(run.results['cost'])}\nThe encoder: {run.path / 'encoder.safetensors'}\nThe report:  {page}")
    shutdown(world)
    return run


def kept_aside(ids: Int[Tensor, " n"], block: int = 2048, every: int = 20) -> tuple[Int[Tensor, " n"], Int[Tensor, " m"]]:
    """The corpus without every twentieth block of pieces, and these blocks: to judge on where DATA has no test part."""
    aside = torch.arange(len(ids)) // block % every == every - 1
    return ids[~aside], ids[aside]


@torch.no_grad()
def held_out(learner: Method, *, test_set: CorpusLoader | None, hardware: HardwareConfig, world: World, most: int = 8) -> Record:
    """What the method says of texts that were not trained on, with the same pieces hidden every time."""
    if test_set is None:
        return {}
    count, totals = max(1, min(most, test_set.samples // test_set.batch_size)), dict[str, Any]()
    for step in range(count):
        with autocast(hardware, world):
            seen = learner.validation_metrics(test_set.share(step, 0, 1).to(world.device))
        totals = {key: totals.get(key, 0.0) + value / count for key, value in seen.items()}
    return learner.reduce_metrics(totals)


def frequent(ids: Int[Tensor, " n"], judged: Int[Tensor, " m"], vocabulary: Sequence[str]) -> dict[str, float]:
    """The same numbers for a guess that needs no model: how often each piece occurs in the corpus."""
    special = torch.tensor([piece in SPECIAL for piece in vocabulary])
    counts, seen = (torch.bincount(part, minlength=len(special)).double().masked_fill(special, 0.0) for part in (ids, judged))
    chances = (counts + 1) / (counts + 1).sum()
    return {
        "frequency_loss": float(-(seen * chances.log()).sum() / seen.sum()),
        "frequency_accuracy": float(seen[counts.argmax()] / seen.sum()),
    }
