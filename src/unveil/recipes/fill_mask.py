"""`unveil fill-mask`: predicts the masked words of a sentence."""

import os
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from unveil.errors import UnveilError
from unveil.interop.load import load
from unveil.option_types import check_value
from unveil.plain_text import printable
from unveil.plugins import trust as allow
from unveil.protocols import PredictsTokens
from unveil.ranges import Count
from unveil.text.wordpiece import WordPieceTokenizer
from unveil.train.terminal import printer, show

Prediction = tuple[str, float]
"""A word and its probability."""


def fill_mask(
    run: str | os.PathLike[str], sentence: str, *, count: int = 5, trust: str | Path | None = None
) -> list[list[Prediction]]:
    """Predicts the most likely words for each [MASK] of a sentence, and prints them with their probabilities.

    Args:
        run: Anything that `unveil.load` accepts, if it is a BERT with its language-model head.
        sentence: A text with one [MASK] or more.
        count: Number of words to predict for each [MASK].
        trust: A file or module outside of unveil that `run` needs and that may be imported.

    Returns:
        For each [MASK], the words and their probabilities, the most likely first.

    Raises:
        UnveilError: If the model predicts no words, or the sentence has no [MASK], or too many words.
    """
    allow(trust)
    check_value("count", count, Count)
    learner = load(run, say=printer(True))
    if not isinstance(learner, PredictsTokens):
        raise UnveilError(f"{run} predicts no words: expected a run of `unveil pretrain --method bert`, or a BertForMaskedLM")
    config = learner.encoder.config
    tokenizer = WordPieceTokenizer(config.vocabulary, config.lower)
    ids = [tokenizer.cls, *tokenizer.encode([sentence], special=True)[0], tokenizer.sep]
    masked = [index for index, token in enumerate(ids) if token == tokenizer.mask]
    if not masked:
        raise UnveilError("the sentence has no [MASK]: write [MASK] in place of the word to predict")
    with torch.no_grad():
        logits = learner.token_logits(torch.tensor([ids]))[0, masked].float()  # (M, V)
    probabilities, best = logits.softmax(dim=-1).topk(min(count, len(config.vocabulary)))
    found = [
        [(config.vocabulary[word], p) for word, p in zip(words, chances, strict=True)]
        for words, chances in zip(best.tolist(), probabilities.tolist(), strict=True)
    ]
    for number, predictions in enumerate(found, 1):
        table = Table(header_style="dim", box=None, padding=(0, 3, 0, 0))
        table.add_column(f"[MASK] {number}" if len(found) > 1 else "[MASK]")
        table.add_column("probability", justify="right")
        for word, p in predictions:
            table.add_row(Text(printable(word)), f"{100 * p:.1f} %")
        show(table)
    return found
