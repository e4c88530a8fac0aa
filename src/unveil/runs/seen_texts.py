"""Test texts that a run was trained on before. They make its results too good.

As for images (`unveil.runs.seen_images`), the texts of a run are found again by its `run.json` and read again, if their
fingerprint is still the one that is recorded. If they are gone or have changed, nothing can be told.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from unveil.errors import UnveilError
from unveil.plain_text import count_of
from unveil.runs.labelled_texts import LabelledSplits, hold_out, without_case
from unveil.runs.seen_images import beginning, lineage
from unveil.text.files import Texts, documents, open_texts
from unveil.train.run_folder import Run


def trained_texts(run: Run) -> Texts | None:
    """The texts that a run was trained on; None if they cannot be told any more, as after fine-tuning with a part of the labels."""
    facts, config = run.facts.get("data") or {}, run.config
    path = facts.get("path")
    if not path or not Path(path).exists() or config.get("labels"):
        return None
    try:
        texts = open_texts(path).train
    except (UnveilError, OSError):
        return None
    if texts.fingerprint != facts.get("fingerprint"):
        return None
    held_out = run.facts.get("kind") == "finetune" and facts.get("test_fingerprint") == texts.fingerprint
    return hold_out(texts.labelled(), lambda text: None)[0] if held_out else texts


def held_out_words(run: Run) -> bool:
    """Whether a pre-training run held out some of its words, so that it was not trained on all of its texts."""
    return run.facts.get("kind") == "pretrain" and "test_texts" not in run.facts["data"]


def parts_of(texts: Texts) -> Iterator[str]:
    """What another text may be a copy of: each text, and its documents and lines."""
    for text in texts.texts:
        yield without_case(text)
        if "\n" in text:
            yield from map(without_case, documents([text]))
            yield from map(without_case, text.splitlines())


def sentences_on_seen_texts(run: str | os.PathLike[str], splits: LabelledSplits) -> list[str]:
    """Clauses on test texts that a run, or a run that it started from, was trained on.

    Args:
        run: The run.
        splits: The texts of today. Copies between its splits are not told here.
    """
    found = list[str]()
    for number, each in enumerate(lineage(run)):
        trained = trained_texts(each)
        if trained is None or (trained.fingerprint == splits.train.fingerprint and not splits.held_out):
            continue
        known = set(parts_of(trained))
        seen = sum(without_case(text) in known for text in splits.test.texts)
        if seen:
            who = beginning(run, number, each)
            how = "trained or validated on" if each.facts.get("kind") == "finetune" else "trained, without labels, on"
            some = f"{'up to ' * held_out_words(each)}{seen:,} of {count_of(len(splits.test), 'test text')}"
            found.append(f"{who} {how} {some}: its results may be too good")
    return found
