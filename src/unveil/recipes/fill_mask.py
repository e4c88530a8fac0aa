"""Filling in the blanks of a sentence."""

from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from unveil.errors import UnveilError
from unveil.interop.load import load
from unveil.methods.bert import BERT
from unveil.text.wordpiece import WordPieceTokenizer
from unveil.train.run_folder import show, tell

Guess = tuple[str, float]


def fill_mask(run: str | Path, sentence: str, *, count: int = 5) -> list[list[Guess]]:
    """Names the likeliest words for each [MASK] of a sentence, with their probabilities, and prints them.

    Args:
        run: Whatever `unveil.load` takes, as long as it is a BERT with its word head.
        sentence: A text with one [MASK] or more.
        count: How many words are named for each.

    Returns:
        For each [MASK] the words and their probabilities, the likeliest first.

    Raises:
        UnveilError: When the model names no words, or the sentence has no [MASK], or too many words.
    """
    learner = load(run, say=tell(True))
    if not isinstance(learner, BERT):
        raise UnveilError(f"{run} names no hidden words: expected a run of `unveil pretrain --method bert`, or a BertForMaskedLM")
    shape = learner.encoder.config
    pieces = WordPieceTokenizer(shape.vocabulary, shape.lower)
    ids = [pieces.cls, *pieces.encode([sentence], special=True)[0], pieces.sep]
    places = [place for place, piece in enumerate(ids) if piece == pieces.mask]
    if not places:
        raise UnveilError("the sentence has no [MASK]: write it where a word is to be guessed")
    if count < 1:
        raise UnveilError(f"{count} words cannot be named: give --count 1 or more")
    with torch.no_grad():
        sure, best = learner.scores(torch.tensor([ids]))[0, places].float().softmax(dim=-1).topk(min(count, len(shape.vocabulary)))
    found = [
        [(shape.vocabulary[word], p) for word, p in zip(words, chances, strict=True)]
        for words, chances in zip(best.tolist(), sure.tolist(), strict=True)
    ]
    for number, guesses in enumerate(found, 1):
        shown = Table(header_style="dim", box=None, padding=(0, 3, 0, 0))
        shown.add_column(f"[MASK] {number}" if len(found) > 1 else "[MASK]".replace("[", r"\["))
        shown.add_column("probability", justify="right")
        for word, p in guesses:
            shown.add_row(Text(word), f"{100 * p:.1f} %")
        show(shown)
    return found
