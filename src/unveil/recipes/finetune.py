"""Fine-tuning: the whole encoder learns from labels; and the same from scratch, for comparison."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.augment import AugmentConfig
from unveil.data.loader import ImageLoader
from unveil.data.sources import Data
from unveil.interop.load import load
from unveil.interop.model_files import vit_of
from unveil.interop.model_kind import model_kind
from unveil.learner import Task
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.recipes.finetune_text import finetune_on_texts
from unveil.runs.finetune_common import Labelled, TuningConfig, tune
from unveil.runs.labelled_data import beside, labelled_parts, predicted, write_predictions
from unveil.runs.open_data import Subset, few_labels, write_skipped
from unveil.runs.train_in_run import finished
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, join_processes, resolve_precision
from unveil.train.run_folder import Run, open_run, tell


@dataclass(frozen=True, kw_only=True)
class FinetuneRunConfig(TuningConfig):
    """What to fine-tune on."""

    pixel_limit: int = 64_000_000
    """No file is decoded beyond this many pixels."""


DEFAULTS = {
    "base_lr": 1e-3,
    "layer_decay": 0.75,
    "beta2": 0.999,
    "weight_decay": 0.05,
    "warmup": 0.05,
    "epochs": 100.0,
    "batch_size": 256,
    "crop_scale": 0.08,
}
"""The paper's recipe (appendix A.1, table 9); the learning rate follows the batch size."""


def finetune(
    run: str | Path, data: Data | None = None, *, test: Data | None = None, out: str | Path | None = None, **options: Any
) -> Run:
    """Tunes an encoder on labelled images, or goes on with a run that was stopped.

    For a run of texts it is `unveil.recipes.finetune_text.finetune_on_texts`.

    Args:
        run: Whatever `unveil.load` takes.
        data: Labelled images; by default those that the run was trained on.
        test: Labelled images to judge on; by default the test split of `data`, or a tenth of it that is kept aside.
        out: The run folder; by default `<run>-finetune`, or `<run>-scratch`.
        **options: Fields of `FinetuneRunConfig`, `FinetuneConfig`, `AugmentConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    if model_kind(run) == "texts":
        return finetune_on_texts(run, cast("str | Path | None", data), test=cast("str | Path | None", test), out=out, **options)
    own, recipe, augment, training, optim, hardware = configure(
        DEFAULTS | options, FinetuneRunConfig, FinetuneConfig, AugmentConfig, TrainConfig, OptimConfig, HardwareConfig
    )
    world = join_processes(hardware)
    hardware, say = resolve_precision(hardware, world), tell(world.is_main)
    encoder = vit_of(load(run, say=say))
    if own.scratch:
        torch.manual_seed(training.seed)
        encoder = ViT(encoder.config)
    train_set, test_set, cut = labelled_parts(run, data, test, encoder.config, pixel_limit=own.pixel_limit, show=world.is_main)
    if own.labels:
        train_set = few_labels(train_set, own.labels, training.seed)
    samples = LabelledImages(train_set, test_set, cut)
    config = {
        "from": "scratch" if own.scratch else str(run),
        **asdict(own),
        **asdict(recipe),
        **asdict(augment),
        **asdict(training),
        **asdict(optim),
        **asdict(hardware),
    }
    path = Path(out) if out else beside(run, "scratch" if own.scratch else "finetune")
    result = open_run(path, "finetune", config, samples.facts, write=world.is_main, say=say)
    if finished(result, world):
        return result
    write_skipped(result.path, [train_set, test_set], world, say)

    def build() -> Finetune:
        torch.manual_seed(training.seed)
        return Finetune(encoder, len(samples.classes), recipe, augment)

    return tune(result, build, samples, own, training, optim, hardware, world)


class LabelledImages(Labelled):
    """Images with labels: some to train on, others to judge on."""

    noun = "images"

    def __init__(self, train_set: Subset, test_set: Subset, cut: bool) -> None:
        self.train_set, self.test_set, self.cut, self.classes = train_set, test_set, cut, train_set.dataset.classes

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.train_set), len(self.test_set)

    @property
    def facts(self) -> dict[str, Any]:
        source, judged = self.train_set.dataset.source, self.test_set.dataset.source
        return {
            "name": source.name,
            "count": len(source.names),
            "fingerprint": source.fingerprint,
            "test": judged.name,
            "test_count": len(judged.names),
            "test_fingerprint": judged.fingerprint,
        }

    def loader(self, training: TrainConfig) -> ImageLoader:
        size, seed = training.batch_size, training.seed
        return ImageLoader(self.train_set.dataset, places=self.train_set.places, batch_size=size, seed=seed)

    def judge(
        self, task: Task, hardware: HardwareConfig, world: World, most: int | None = None
    ) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
        part = self.test_set.labelled(most) if most else self.test_set
        return predicted(task, part, hardware, world), part.labels

    def write(self, run: Path, scores: Float[Tensor, "n K"]) -> None:
        write_predictions(run / "predictions.csv", self.test_set, scores)
