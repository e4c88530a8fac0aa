"""`unveil translate`: trains a Transformer on sentence pairs, evaluates it by BLEU, and translates with it."""

import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.table import Table

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.interop import translator_files
from unveil.models.seq2seq import MODELS, Seq2Seq, Seq2SeqConfig
from unveil.options import configure, known_to
from unveil.plain_text import count_of
from unveil.ranges import Range, ShareBelowOne
from unveil.reports.style import save_figure
from unveil.reports.translation_attention import translation_figure
from unveil.runs.modality import slug
from unveil.runs.option_files import input_facts, takes_options
from unveil.runs.session import RunSpec, Session, join, options_by_name
from unveil.tasks.translate import BLEU, Translation, TranslationConfig, cross_attention, translate_tokens
from unveil.text.bpe import BPETokenizer
from unveil.text.parallel_corpus import Corpus, Lines, PairLoader, lines_of, read_corpus, read_sentences
from unveil.train.log import Record
from unveil.train.loop import total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, join_processes
from unveil.train.recipe import TrainConfig
from unveil.train.resume_from import options_to_keep
from unveil.train.run_folder import Run
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class TranslateRunConfig:
    """The languages, the vocabulary, and the model."""

    HIDDEN = ("tracker",)
    source: str = "en"
    """Language to translate from: the suffix of its files."""
    target: str = "de"
    """Language to translate to."""
    vocabulary_size: Annotated[int, Range(1, 2**20)] = 8000
    """Largest number of subwords in the shared vocabulary, which is learned from the training pairs."""
    dropout: ShareBelowOne = 0.3
    """Dropout rate of embeddings, attention weights and residual branches: 0.3 for tens of thousands of pairs, 0.1 for millions."""
    max_length: Annotated[int, Range(1, 65_536)] = 128
    """Maximum number of subwords. Longer sentences, and their translations, are not used for training."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also log to TensorBoard or Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search for the best translation."""

    beams: Annotated[int, Range(1, 1000)] = 4
    """Number of beams in beam search; 1 is greedy search."""
    length_penalty: Annotated[float, Range(-10, 10)] = 0.6
    """Exponent of the length by which log-probabilities are divided; a higher one favours longer sentences."""


Device = Literal["auto", "cpu", "cuda", "mps"]


@takes_options("translate train")
def train_translator(
    data: str | Path,
    *,
    model: str = "tiny",
    out: str | Path | None = None,
    resume_from: str | Path | None = None,
    config: str | Path | None = None,
    **options: Any,
) -> Run:
    """Trains a Transformer on sentence pairs, or resumes a run that was stopped, and evaluates it on the test files by BLEU.

    Args:
        data: A folder or .tar.gz with `train.<source>` and `train.<target>`, and optionally `val.*` and `test*.*`.
        model: A name from `unveil.models.seq2seq.MODELS`.
        out: The run folder, by default `runs/<data>-<model>-<source>-<target>`. If it holds this run already, training resumes.
        resume_from: Another run to go on from, as in `pretrain`.
        config: A file to take options from, as in `pretrain`.
        **options: Fields of `TranslateRunConfig`, `TranslationConfig`, `SearchConfig`, `TrainConfig`, `OptimConfig`,
            `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    began = time.monotonic()
    configs = (TranslateRunConfig, TranslationConfig, SearchConfig, TrainConfig, OptimConfig, HardwareConfig)
    kept = known_to(options_to_keep(resume_from), *configs)
    own, task_config, search, *rest = configure({**Translation.DEFAULTS, **kept, **options}, *configs)
    if model not in MODELS:
        raise UnveilError(f"there is no model {model!r} for translation: use one of {', '.join(MODELS)}")
    BLEU()  # reports a missing package before the run starts
    recipe = join(*rest)
    corpus = read_corpus(data, own.source, own.target)
    spec = RunSpec(
        kind="translate",
        path=Path(out) if out else Path("runs") / f"{slug(str(data))}-{model}-{own.source}-{own.target}",
        config={"model": model} | options_by_name(own, task_config, search, recipe.training, recipe.optim, recipe.hardware),
        data={"name": Path(data).name, "count": len(corpus.train[0]), "fingerprint": corpus.fingerprint},
        title="translate",
        tracker=own.tracker,
        resume_from=resume_from,
        inputs=input_facts(data=data),
    )
    with Session.open(spec, recipe, began) as session:
        if session.finished:
            return session.run
        if corpus.unused:
            session.say(f"not used: {', '.join(corpus.unused)}")
        if not corpus.tests:
            last = "the held-out sentences are translated at the end" if corpus.held_out[0] else "nothing is translated at the end"
            session.say(f"{data} has no test set, such as test.{own.source} and test.{own.target}: {last}")
        for name, count in corpus.copies().items():
            verb = "is a training pair" if count == 1 else "are training pairs"
            session.say(f"{count:,} of {count_of(len(corpus.judged[name][0]), 'pair')} of {name} {verb} as well: BLEU is too high")
        for name, count in corpus.empty_references().items():
            counted = "is empty, and counts" if count == 1 else "are empty, and count"
            session.say(f"{count:,} of {count_of(len(corpus.judged[name][1]), 'reference')} of {name} {counted} in BLEU")
        run = session.run
        if run.checkpoints().steps():  # a resumed run keeps its vocabulary
            tokenizer = BPETokenizer.load(run.path / "subwords.json")
        else:
            tokenizer = BPETokenizer.train([*corpus.train[0], *corpus.train[1]], own.vocabulary_size)
        pairs, left_out = tokenized_pairs(corpus, tokenizer, own.max_length)
        width, depth, heads, mlp_ratio = MODELS[model]
        shape = Seq2SeqConfig(words=len(tokenizer), width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, dropout=own.dropout)

        def build() -> Translation:
            return Translation(Seq2Seq(shape), task_config)

        def monitor(learner: Any) -> Record:
            """BLEU of up to 200 held-out sentences, translated greedily by the averaged weights."""
            source, target = (lines[:200] for lines in corpus.held_out)
            metric = learner.metric()
            metric.update(
                tokenizer.decode(translate_tokens(learner.average, tokenizer.encode(source), beams=1, length_penalty=0.0)), target
            )
            return dict(metric.compute())

        learner = session.built(build)
        if session.is_main:
            translator_files.write_config(learner.translator, tokenizer, run.path)
        loader = PairLoader(*pairs, batch_size=recipe.training.batch_size, seed=recipe.training.seed)
        parameters = sum(p.numel() for p in learner.translator.parameters())
        short = f" ({count_of(left_out, 'empty or too long pair')} left out)" if left_out else ""
        session.announce(
            f"a Transformer ({model}: {parameters / 1e6:.1f} M parameters, {len(tokenizer):,} subwords) on "
            f"{count_of(loader.samples, 'pair')} of {slug(str(data))}{short}, {own.source} to {own.target}",
            total_steps(recipe.training, loader),
        )
        session.fit(learner, loader, [monitor] if corpus.held_out[0] else [])
        if session.is_main:
            learner = session.trained(build)
            translator = learner.average
            translator_files.save(translator, run.path)
            if any(source for source, _ in corpus.judged.values()):
                session.say("translating the test sentences ...")
            results = {
                "bleu": evaluate_translations(translator, tokenizer, corpus.judged, search, run.path, own.target),
                "beams": search.beams,
                "pairs": loader.samples,
                "sacrebleu": version("sacrebleu"),
            }
            session.finish(learner, results, bleu_table, f'The run: {run.path}   Try: unveil translate run {run.path} "..."')
        return session.close()


def translate(
    run: str | os.PathLike[str],
    sentences: Sequence[str],
    *,
    attention: str | Path | None = None,
    device: Device = "auto",
    **options: Any,
) -> list[str]:
    """Translates sentences.

    Args:
        run: A run folder of `train_translator`. If the run is not finished, its newest checkpoint is used.
        sentences: The sentences to translate.
        attention: A new .png, .pdf or .svg that shows the attention of the translation to its source, for a single sentence.
        device: The device to compute on.
        **options: Fields of `SearchConfig`.

    Raises:
        UnveilError: On input that cannot be used.
    """
    (search,) = configure(options, SearchConfig)
    if attention is not None:
        attention = Path(attention)
        if attention.exists() or attention.suffix not in (".png", ".pdf", ".svg"):
            raise UnveilError(f"{attention} exists or does not end in .png, .pdf or .svg: choose another file for --attention")
        if len(sentences) != 1:
            raise UnveilError(f"--attention draws one sentence, but there are {len(sentences)}: give one sentence")
    translator, tokenizer = translator_files.load(run)
    translator.to(join_processes(HardwareConfig(device=device)).device)
    rows = tokenizer.encode(sentences)
    for number, row in enumerate(rows, 1):
        if len(row) >= (longest := translator.config.longest):
            raise UnveilError(f"sentence {number} has {len(row)} subwords, but the model takes up to {longest - 1}: split it")
    found = translate_tokens(translator, rows, beams=search.beams, length_penalty=search.length_penalty)
    if attention is not None:
        labels = [*tokenizer.pieces(rows[0]), "(end)"], [*tokenizer.pieces(found[0]), "(end)"]
        save_figure(translation_figure(*labels, cross_attention(translator, rows[0], found[0])), attention, dpi=150)
        printer(True)(f"The figure: {attention}")
    return tokenizer.decode(found)


def translate_and_print(
    run: str | os.PathLike[str],
    sentences: Sequence[str] = (),
    *,
    attention: str | Path | None = None,
    device: Device = "auto",
    **options: Any,
) -> None:
    """`translate` for the terminal: reads sentences, a file or standard input, and prints one line per sentence."""
    if len(sentences) == 1 and Path(sentences[0]).is_file():
        sentences = read_sentences(Path(sentences[0]))
    elif not sentences:
        sentences = lines_of(sys.stdin.read())
    elif len(sentences) == 1 and re.fullmatch(r"\S+\.\w+", sentences[0]) and ("/" in sentences[0] or sentences[0].endswith(".txt")):
        raise UnveilError(f"{sentences[0]} does not exist: give a file with one sentence per line, or sentences")
    for line in translate(run, sentences, attention=attention, device=device, **options):
        print(line)


def tokenized_pairs(
    corpus: Corpus, tokenizer: BPETokenizer, max_length: int
) -> tuple[tuple[list[list[int]], list[list[int]]], int]:
    """The training pairs as token ids, and the number of pairs that were left out because a side is empty or too long."""
    both = list(zip(*(tokenizer.encode(lines) for lines in corpus.train), strict=True))
    kept = [pair for pair in both if all(0 < len(row) <= max_length for row in pair)]
    if not kept:
        raise UnveilError(f"none of the {len(both):,} pairs has 1 to {max_length} subwords on both sides: raise --max-length")
    return ([pair[0] for pair in kept], [pair[1] for pair in kept]), len(both) - len(kept)


def evaluate_translations(
    translator: Seq2Seq, tokenizer: BPETokenizer, tests: dict[str, Lines], search: SearchConfig, folder: Path, language: str
) -> dict[str, dict[str, float]]:
    """BLEU of each test set with greedy and with beam search. Writes the translations into the run folder, one per line."""
    result: dict[str, dict[str, float]] = {}
    for name, (source, target) in tests.items():
        rows = tokenizer.encode(source)
        for way, beams in (("greedy", 1), ("beam", search.beams)) if source else ():
            tokens = translate_tokens(translator, rows, beams=beams, length_penalty=search.length_penalty)
            lines = tokenizer.decode(tokens)
            write_text(folder / f"{name}.{way}.{language}", "".join(f"{line}\n" for line in lines))
            metric = BLEU()
            metric.update(lines, target)
            result.setdefault(name, {})[way] = metric.compute()["bleu"]
    return result


def bleu_table(results: Record) -> Table:
    """A table for the terminal with the BLEU of each test set."""
    table = Table(header_style="dim", box=None, padding=(0, 3, 0, 0), title="BLEU (sacrebleu, detokenised)", title_justify="left")
    for i, head in enumerate(("test", "greedy", f"beam of {results['beams']}")):
        table.add_column(head, justify="right" if i else "left")
    for name, row in results["bleu"].items():
        table.add_row(name, f"{row['greedy']:.2f}", f"{row['beam']:.2f}")
    return table
