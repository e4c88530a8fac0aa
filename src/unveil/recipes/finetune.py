"""Fine-tuning: the whole encoder learns from labels; and the same from scratch, for comparison."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch

from unveil.data.augment import AugmentConfig
from unveil.data.feed import PictureFeed
from unveil.data.sources import Data
from unveil.interop import native
from unveil.interop.load import load
from unveil.interop.reads import reads
from unveil.learner import Learner, Task
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.recipes.classify import finetune_on_texts
from unveil.recipes.fitting import fit
from unveil.recipes.labelled import beside, labelled_parts, predicted, write_predictions
from unveil.recipes.reading import Part, few_labels, write_skipped
from unveil.reports.page import write_page
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.score import score
from unveil.train.log import Record
from unveil.train.loop import TrainConfig, total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, join, leave, settled
from unveil.train.run import Run, open_run, tell
from unveil.train.state import load_model_state


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig:
    """What to fine-tune on."""

    scratch: bool = False
    """The same recipe and budget without pre-training: the yardstick."""
    labels: int = 0
    """Labelled pictures to train on, balanced over the classes; 0 takes all."""
    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Log to TensorBoard or Weights & Biases as well."""


DEFAULTS = {
    "base_lr": 1e-3, "layer_decay": 0.75, "beta2": 0.999, "weight_decay": 0.05, "warmup": 0.05, "epochs": 100.0, "batch_size": 256,
    "crop_scale": 0.08,
}  # fmt: skip
"""The paper's recipe (appendix A.1, table 9); the learning rate follows the batch size."""


def finetune(
    run: str | Path, data: Data | None = None, *, test: Data | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Tunes an encoder on labelled pictures, or goes on with a run that was stopped.

    For a run of texts it is `unveil.recipes.classify.finetune_on_texts`.

    Args:
        run: Whatever `unveil.load` takes.
        data: Labelled pictures; by default those that the run was trained on.
        test: Labelled pictures to judge on; by default the test split of `data`, or a tenth of it that is kept aside.
        out: The run folder; by default `<run>-finetune`, or `<run>-scratch`.
        **options: Fields of `FinetuneRunConfig`, `FinetuneConfig`, `AugmentConfig`, `TrainConfig`, `OptimConfig`, `SpreadConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    if reads(run) == "texts":
        return finetune_on_texts(run, cast("str | Path | None", data), test=cast("str | Path | None", test), out=out, **options)
    own, recipe, augment, training, optim, hardware = configure(
        DEFAULTS | options, FinetuneRunConfig, FinetuneConfig, AugmentConfig, TrainConfig, OptimConfig, SpreadConfig
    )
    place = join(hardware)
    hardware, say = settled(hardware, place), tell(place.lead)
    encoder: ViT = load(run, say=say).encoder
    if own.scratch:
        torch.manual_seed(training.seed)
        encoder = ViT(encoder.config)
    vit = encoder.config
    known, asked, cut = labelled_parts(run, data, test, vit, pixel_limit=own.pixel_limit, show=place.lead)
    if own.labels:
        known = few_labels(known, own.labels, training.seed)
    source, judged = known.pictures.source, asked.pictures.source
    config = {
        "from": "scratch" if own.scratch else str(run),
        **asdict(own), **asdict(recipe), **asdict(augment), **asdict(training), **asdict(optim), **asdict(hardware),
    }  # fmt: skip
    facts = {
        "name": source.name, "count": len(source.names), "fingerprint": source.fingerprint,
        "test": judged.name, "test_count": len(judged.names), "test_fingerprint": judged.fingerprint,
    }  # fmt: skip
    path = Path(out) if out else beside(run, "scratch" if own.scratch else "finetune")
    result = open_run(path, "finetune", config, facts, write=place.lead, say=say)
    if result.results and (path / "report.html").exists():
        say(f"{path} is finished. Its report: {path / 'report.html'}")
        leave(place)
        return result
    write_skipped(result.path, [known, asked], place, say)
    classes = known.pictures.classes
    torch.manual_seed(training.seed)
    learner = Finetune(encoder, len(classes), recipe, augment)
    if place.lead:
        native.write_config(learner, path, classes=classes)
    feed = PictureFeed(known.pictures, places=known.places, batch_size=training.batch_size, seed=training.seed)
    total = total_steps(training, feed)
    say(
        f"{'training from scratch' if own.scratch else 'fine-tuning'} on {len(known):,} labelled pictures "
        f"of {len(classes)} classes, judged on {len(asked):,}{' kept aside' if cut else ''}; {total:,} steps of "
        f"{training.batch_size} in {hardware.precision}"
    )
    watch = partial(accuracy, part=asked.labelled(1000), hardware=hardware, place=place)
    fit(learner, feed, result, place, training, optim, hardware, [watch], own.tracker, "scratch" if own.scratch else "finetune")
    if place.lead:
        load_model_state(learner := Finetune(encoder, len(classes), recipe, augment), result.checkpoints().load(total, "model"))
        learner.to(place.device).eval()
        native.save(learner, path, classes=classes)
        scores = predicted(learner, asked, hardware, place)
        write_predictions(path / "predictions.csv", asked, scores)
        final = score(scores, asked.labels)
        result.write_results(
            {
                "score": final.to_json(), "classes": classes, "trained_on": len(known), "kept_aside": cut,
                "seconds": sum(line.get("seconds", 0.0) for line in result.log),
            }
        )  # fmt: skip
        page = write_page(result, learner)
        five = f"   top-5 {100 * final.top5:.2f} %" if len(classes) > 5 else ""
        say(f"top-1 {100 * final.top1:.2f} %{five}   on {final.count:,} pictures\nThe report:  {page}")
    leave(place)
    return result


def accuracy(learner: Learner, *, part: Part, hardware: SpreadConfig, place: Place) -> Record:
    """Accuracy on up to 1,000 of the pictures that the end result is judged on."""
    assert isinstance(learner, Task)
    return {"accuracy": score(predicted(learner, part, hardware, place), part.labels).top1}
