"""Translation: from sentence pairs to a Transformer, judged by BLEU; and sentences through it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from unveil.errors import UnveilError
from unveil.interop import translator_files as translation
from unveil.learner import Learner
from unveil.models.seq2seq import MODELS, Seq2Seq, Seq2SeqConfig
from unveil.options import configure
from unveil.reports.translation_attention import figure
from unveil.runs.pretrain_setup import slug
from unveil.runs.train_in_run import fit
from unveil.tasks.translate import TranslateConfig, Translation, followed, translated
from unveil.text.bpe import BPETokenizer
from unveil.text.parallel_corpus import Corpus, Lines, PairLoader, read_corpus
from unveil.train.checkpoint import write_whole
from unveil.train.log import Record
from unveil.train.loop import TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, join_processes, resolve_precision, shutdown
from unveil.train.run_folder import Run, open_run, show, tell
from unveil.train.state import load_model_state


@dataclass(frozen=True, kw_only=True)
class TranslateRunConfig:
    """What to translate, and how large."""

    source: str = "en"
    """The language to translate from: how the names of its files end."""
    target: str = "de"
    """The language to translate to."""
    vocabulary: int = 8000
    """Sub-words that both languages share, learned from the training pairs; fewer where the text has no more."""
    dropout: float = 0.3
    """Share that is dropped of embeddings, attention weights and branches; 0.3 for tens of thousands of pairs, 0.1 for millions."""
    longest: int = 128
    """Pairs with more sub-words than this on a side are not trained on."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How a translation is looked for."""

    beams: int = 4
    """Sentences that beam search follows at a time; 1 is greedy."""
    length_penalty: float = 0.6
    """Exponent of the length that log-probabilities are divided by: more makes longer sentences."""


Device = Literal["auto", "cpu", "cuda", "mps"]
DEFAULTS = {
    "schedule": "root",
    "base_lr": 4e-3,
    "warmup": 0.1,
    "beta2": 0.98,
    "epsilon": 1e-9,
    "weight_decay": 0.0,
    "epochs": 40.0,
    "batch_size": 128,
}
"""The recipe of 2017, scaled to tens of thousands of pairs."""


def train_translator(data: str | Path, *, model: str = "tiny", out: str | Path | None = None, **options: Any) -> Run:
    """Trains a Transformer on sentence pairs, or goes on with a run that was stopped; judges it on the test files by BLEU.

    Args:
        data: A folder or .tar.gz with `train.<source>` and `train.<target>`; `val.*` and `test*.*` where there are.
        model: A name from `unveil.models.seq2seq.MODELS`.
        out: The run folder, `runs/<data>-<model>-<source>-<target>` by default. If it holds this run already, it goes on.
        **options: Fields of `TranslateRunConfig`, `TranslateConfig`, `SearchConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    own, recipe, search, training, optim, hardware = configure(
        DEFAULTS | options, TranslateRunConfig, TranslateConfig, SearchConfig, TrainConfig, OptimConfig, HardwareConfig
    )
    if model not in MODELS:
        raise UnveilError(f"there is no model {model!r}: use one of {', '.join(MODELS)}")
    world = join_processes(hardware)
    hardware, say = resolve_precision(hardware, world), tell(world.is_main)
    bleu_metric()  # a missing extra is told before the run
    corpus = read_corpus(data, own.source, own.target)
    configs = (own, recipe, search, training, optim, hardware)
    config = {"model": model} | {key: value for each in configs for key, value in asdict(each).items()}
    facts = {"name": Path(data).name, "count": len(corpus.train[0]), "fingerprint": corpus.fingerprint}
    path = Path(out) if out else Path("runs") / f"{slug(str(data))}-{model}-{own.source}-{own.target}"
    run = open_run(path, "translate", config, facts, write=world.is_main, say=say)
    if run.results:
        say(f"{path} is finished")
        shutdown(world)
        return run

    if run.checkpoints().steps():  # words keep their numbers
        words = BPETokenizer.load(run.path / "subwords.json")
    else:
        words = BPETokenizer.learned([*corpus.train[0], *corpus.train[1]], own.vocabulary)
    pairs, left = fitting(corpus, words, own.longest)
    width, depth, heads, mlp_ratio = MODELS[model]
    shape = Seq2SeqConfig(words=len(words), width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, dropout=own.dropout)
    torch.manual_seed(training.seed)
    learner = Translation(Seq2Seq(shape), recipe)
    if world.is_main:
        translation.begin(learner.translator, words, run.path)
    loader = PairLoader(*pairs, batch_size=training.batch_size, seed=training.seed)
    total = total_steps(training, loader)
    parameters = sum(p.numel() for p in learner.translator.parameters())
    say(
        f"a Transformer ({model}: {parameters / 1e6:.1f} M parameters, {len(words):,} sub-words) on {loader.samples:,} pairs of "
        f"{slug(str(data))}{f' ({left:,} that are empty or too long left out)' if left else ''}, {own.source} to {own.target}; "
        f"{total:,} steps of {training.batch_size} in {hardware.precision} on {world.size} {world.device.type} "
        f"process{'es' * (world.size > 1)}"
    )
    watched = [partial(glance, held_out=corpus.held_out, words=words)] if corpus.held_out[0] else []
    fit(learner, loader, run, world, training, optim, hardware, watched, own.tracker, "translate")
    if world.is_main:
        load_model_state(learner := Translation(Seq2Seq(shape), recipe), run.checkpoints().load(total, "model"))
        translator = learner.average.to(world.device)
        translation.save(translator, run.path)
        say("translating the test sentences ...")
        found = judge(translator, words, corpus.tests or {"held out": corpus.held_out}, search, run.path, own.target)
        seconds = sum(line.get("seconds", 0.0) for line in run.log)
        facts = {"beams": search.beams, "pairs": loader.samples, "seconds": seconds, "sacrebleu": version("sacrebleu")}
        run.write_results({"bleu": found} | facts)
        show(bleu_table(run.results))
        say(f'The run: {run.path}   Try: unveil translate run {run.path} "..."')
    shutdown(world)
    return run


def translate(
    run: str | Path, sentences: Sequence[str], *, attention: str | Path | None = None, device: Device = "auto", **options: Any
) -> list[str]:
    """Translates sentences.

    Args:
        run: A run folder of `train_translator`, finished or not.
        sentences: One a string.
        attention: A new .png, .pdf or .svg that shows where the words of the translation of the only sentence looked.
        device: Where to compute.
        **options: Fields of `SearchConfig`.

    Raises:
        UnveilError: On input that cannot be used.
    """
    (search,) = configure(options, SearchConfig)
    if attention is not None:
        attention = Path(attention)
        if attention.exists() or attention.suffix not in (".png", ".pdf", ".svg"):
            raise UnveilError(f"{attention} exists or is none of .png, .pdf, .svg: choose another file for --attention")
        if len(sentences) != 1:
            raise UnveilError(f"attention is drawn for one sentence, found {len(sentences)}: give one")
    translator, words = translation.load(run)
    translator.to(join_processes(HardwareConfig(device=device)).device)
    rows = words.encode(sentences)
    too_long = [i for i, row in enumerate(rows, 1) if len(row) >= translator.config.longest]
    if too_long:
        most, count = translator.config.longest - 1, len(rows[too_long[0] - 1])
        raise UnveilError(f"sentence {too_long[0]} has {count} sub-words, and the model takes {most}: cut it in two")
    found = translated(translator, rows, beams=search.beams, alpha=search.length_penalty)
    if attention is not None:
        marked = [*words.pieces(rows[0]), "(end)"], [*words.pieces(found[0]), "(end)"]
        attention.parent.mkdir(parents=True, exist_ok=True)
        figure(*marked, followed(translator, rows[0], found[0])).savefig(attention, dpi=150)
        tell(True)(f"The figure: {attention}")
    return words.decode(found)


def translate_aloud(
    run: str | Path, sentences: Sequence[str] = (), *, attention: str | Path | None = None, device: Device = "auto", **options: Any
) -> None:
    """`translate` for the terminal: sentences, or one file of lines, or lines from the standard input; prints a line for each."""
    if len(sentences) == 1 and Path(sentences[0]).is_file():
        sentences = Path(sentences[0]).read_text(encoding="utf-8").splitlines()
    elif not sentences:
        sentences = sys.stdin.read().splitlines()
    for line in translate(run, sentences, attention=attention, device=device, **options):
        print(line)


def fitting(corpus: Corpus, words: BPETokenizer, longest: int) -> tuple[tuple[list[list[int]], list[list[int]]], int]:
    """The training pairs as numbers of words, and how many are left out: those of which a side is empty or too long."""
    both = list(zip(*(words.encode(lines) for lines in corpus.train), strict=True))
    kept = [pair for pair in both if all(0 < len(row) <= longest for row in pair)]
    if not kept:
        raise UnveilError(f"none of {len(both):,} pairs has 1 to {longest} sub-words on both sides: raise --longest")
    return ([pair[0] for pair in kept], [pair[1] for pair in kept]), len(both) - len(kept)


def glance(learner: Learner, *, held_out: Lines, words: BPETokenizer) -> Record:
    """BLEU of up to 200 held-out sentences, translated greedily by the average of the weights."""
    assert isinstance(learner, Translation)
    source, target = (lines[:200] for lines in held_out)
    found = translated(learner.average, words.encode(source), beams=1, alpha=0.0)
    return {"bleu": bleu(words.decode(found), target)}


def judge(
    translator: Seq2Seq, words: BPETokenizer, tests: dict[str, Lines], search: SearchConfig, folder: Path, language: str
) -> dict[str, dict[str, float]]:
    """BLEU of each test, greedily and by beam search; the translations stay in the run folder, a line for each sentence."""
    result: dict[str, dict[str, float]] = {}
    for name, (source, target) in tests.items():
        rows = words.encode(source)
        for way, beams in (("greedy", 1), ("beam", search.beams)) if source else ():
            lines = words.decode(translated(translator, rows, beams=beams, alpha=search.length_penalty))
            write_whole(folder / f"{name}.{way}.{language}", "".join(f"{line}\n" for line in lines))
            result.setdefault(name, {})[way] = bleu(lines, target)
    return result


def bleu_metric() -> Any:
    """BLEU as sacrebleu counts it. Raises `UnveilError` where it is not installed."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UnveilError("BLEU needs the library sacrebleu: pip install 'unveil[text]'") from None
    return BLEU()


def bleu(lines: Sequence[str], truth: Sequence[str]) -> float:
    """BLEU, 0 to 100, of plain, detokenised translations beside their references."""
    return float(bleu_metric().corpus_score(list(lines), [list(truth)]).score)


def bleu_table(results: Record) -> Table:
    """What was reached, for a terminal."""
    table = Table(header_style="dim", box=None, padding=(0, 3, 0, 0), title="BLEU (sacrebleu, detokenised)", title_justify="left")
    for i, head in enumerate(("test", "greedy", f"beam of {results['beams']}")):
        table.add_column(head, justify="right" if i else "left")
    for name, row in results["bleu"].items():
        table.add_row(name, f"{row['greedy']:.2f}", f"{row['beam']:.2f}")
    return table
