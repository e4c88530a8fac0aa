"""Fine-tuning on labelled texts; and the same from scratch, for comparison."""

import csv
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.order import shuffled
from unveil.data.text import Texts, open_texts
from unveil.data.words import LabelledTextFeed, WordPieces
from unveil.errors import UnveilError
from unveil.interop import native
from unveil.interop.load import load
from unveil.learner import Learner, Task
from unveil.models.bert import TextEncoder
from unveil.options import configure
from unveil.recipes.fitting import fit
from unveil.recipes.labelled import beside, data_of
from unveil.reports.page import write_page
from unveil.tasks.classify import Classify, ClassifyConfig
from unveil.tasks.score import score
from unveil.train.log import Record
from unveil.train.loop import TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, autocast, join, leave, settled
from unveil.train.run import Run, open_run, tell
from unveil.train.state import load_model_state


@dataclass(frozen=True, kw_only=True)
class ClassifyRunConfig:
    """What to fine-tune on."""

    scratch: bool = False
    """The same recipe and budget without pre-training: the yardstick."""
    labels: int = 0
    """Labelled texts to train on, balanced over the classes; 0 takes all."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


DEFAULTS = {
    "base_lr": 2.4e-3, "schedule": "line", "beta2": 0.999, "weight_decay": 0.01, "warmup": 0.1, "epochs": 10.0, "batch_size": 32,
    "clip": 1.0, "epsilon": 1e-6,
}  # fmt: skip
"""BERT's recipe (appendix A.3) at a rate for small models: 3e-4 for a batch of 32; bert-base wants --base-lr 2.4e-4 --epochs 3."""


def finetune_on_texts(
    run: str | Path, data: str | Path | None = None, *, test: str | Path | None = None, out: str | Path | None = None,
    **options: Any,
) -> Run:  # fmt: skip
    """Tunes an encoder on labelled texts, or goes on with a run that was stopped.

    Args:
        run: Whatever `unveil.load` takes.
        data: Labelled texts; by default those that the run was trained on.
        test: Labelled texts to judge on; by default the test part of `data`, or a tenth of it that is kept aside.
        out: The run folder; by default `<run>-finetune`, or `<run>-scratch`.
        **options: Fields of `ClassifyRunConfig`, `ClassifyConfig`, `TrainConfig`, `OptimConfig`, `SpreadConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    own, recipe, training, optim, hardware = configure(
        DEFAULTS | options, ClassifyRunConfig, ClassifyConfig, TrainConfig, OptimConfig, SpreadConfig
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
    config = {
        "from": "scratch" if own.scratch else str(run),
        **asdict(own), **asdict(recipe), **asdict(training), **asdict(optim), **asdict(hardware),
    }  # fmt: skip
    facts = {
        "name": known.name, "texts": len(known), "fingerprint": known.fingerprint,
        "test": asked.name, "test_texts": len(asked), "test_fingerprint": asked.fingerprint,
    }  # fmt: skip
    path = Path(out) if out else beside(run, "scratch" if own.scratch else "finetune")
    result = open_run(path, "finetune", config, facts, write=place.lead, say=say)
    if result.results and (path / "report.html").exists():
        say(f"{path} is finished. Its report: {path / 'report.html'}")
        leave(place)
        return result
    pieces, classes = WordPieces(shape.vocabulary, shape.lower), known.classes
    torch.manual_seed(training.seed)
    learner = Classify(encoder, len(classes), recipe)
    if place.lead:
        native.write_config(learner, path, classes=classes)
    rows, padding = pieces.rows(known.texts, shape.length), pieces.pad
    feed = LabelledTextFeed(rows, labels_of(known), padding=padding, batch_size=training.batch_size, seed=training.seed)
    total = total_steps(training, feed)
    say(
        f"{'training from scratch' if own.scratch else 'fine-tuning'} on {len(known):,} labelled texts of {len(classes)} classes, "
        f"judged on {len(asked):,}{' kept aside' if cut else ''}; {total:,} steps of {training.batch_size} in {hardware.precision}"
    )
    asked_rows, truth = pieces.rows(asked.texts, shape.length), labels_of(asked)
    some = shuffled(0, torch.arange(len(truth)), len(truth))[:1000]
    watch = partial(accuracy, rows=asked_rows[some], labels=truth[some], hardware=hardware, place=place)
    fit(learner, feed, result, place, training, optim, hardware, [watch], own.tracker, "scratch" if own.scratch else "finetune")
    if place.lead:
        load_model_state(learner := Classify(encoder, len(classes), recipe), result.checkpoints().load(total, "model"))
        learner.to(place.device).eval()
        native.save(learner, path, classes=classes)
        scores = scores_of(learner, asked_rows, hardware, place)
        write_predictions(path / "predictions.csv", asked, scores)
        final = score(scores, truth)
        seconds = sum(line.get("seconds", 0.0) for line in result.log)
        result.write_results(
            {
                "score": final.to_json(), "samples": "texts", "classes": classes, "trained_on": len(known), "kept_aside": cut,
                "seconds": seconds,
            }
        )  # fmt: skip
        page = write_page(result, learner)
        say(f"{100 * final.top1:.2f} % of {final.count:,} texts right\nThe report:  {page}")
    leave(place)
    return result


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
    turn = torch.zeros(len(order), dtype=torch.int64)                          # how many of its class come before it
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


def accuracy(
    learner: Learner, *, rows: Int[Tensor, "n T"], labels: Int[Tensor, " n"], hardware: SpreadConfig, place: Place
) -> Record:
    """Accuracy on up to 1,000 of the texts that the end result is judged on."""
    assert isinstance(learner, Task)
    return {"accuracy": score(scores_of(learner, rows, hardware, place), labels).top1}


def write_predictions(path: Path, texts: Texts, scores: Float[Tensor, "n K"]) -> None:
    """A table with a row a text: its beginning, its class, the predicted one and its probability."""
    sure, best = scores.softmax(dim=1).max(dim=1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "predicted", "probability"])
        for text, label, guess, p in zip(texts.texts, labels_of(texts).tolist(), best.tolist(), sure.tolist(), strict=True):
            writer.writerow([text[:200], texts.classes[label], texts.classes[guess], f"{p:.4f}"])
