"""Fine-tuning: the whole encoder learns from labels; and the same from scratch, for comparison."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unveil.data.augment import AugmentConfig
from unveil.data.loader import PictureFeed
from unveil.data.sources import Data
from unveil.interop.load import load
from unveil.interop.model_files import vit_of
from unveil.interop.model_kind import reads
from unveil.learner import Task
from unveil.models.vit import ViT
from unveil.options import configure
from unveil.recipes.finetune_text import finetune_on_texts
from unveil.runs.finetune_common import Labelled, TuningConfig, tune
from unveil.runs.labelled_data import beside, labelled_parts, predicted, write_predictions
from unveil.runs.open_data import Part, few_labels, write_skipped
from unveil.runs.train_in_run import finished
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.train.loop import TrainConfig
from unveil.train.optim import OptimConfig
from unveil.train.parallel import Place, SpreadConfig, join, settled
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
    """Tunes an encoder on labelled pictures, or goes on with a run that was stopped.

    For a run of texts it is `unveil.recipes.finetune_text.finetune_on_texts`.

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
    encoder = vit_of(load(run, say=say))
    if own.scratch:
        torch.manual_seed(training.seed)
        encoder = ViT(encoder.config)
    known, asked, cut = labelled_parts(run, data, test, encoder.config, pixel_limit=own.pixel_limit, show=place.lead)
    if own.labels:
        known = few_labels(known, own.labels, training.seed)
    samples = LabelledPictures(known, asked, cut)
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
    result = open_run(path, "finetune", config, samples.facts, write=place.lead, say=say)
    if finished(result, place):
        return result
    write_skipped(result.path, [known, asked], place, say)

    def build() -> Finetune:
        torch.manual_seed(training.seed)
        return Finetune(encoder, len(samples.classes), recipe, augment)

    return tune(result, build, samples, own, training, optim, hardware, place)


class LabelledPictures(Labelled):
    """Pictures with labels: some to train on, others to judge on."""

    noun = "pictures"

    def __init__(self, known: Part, asked: Part, cut: bool) -> None:
        self.known, self.asked, self.cut, self.classes = known, asked, cut, known.pictures.classes

    @property
    def counts(self) -> tuple[int, int]:
        return len(self.known), len(self.asked)

    @property
    def facts(self) -> dict[str, Any]:
        source, judged = self.known.pictures.source, self.asked.pictures.source
        return {
            "name": source.name,
            "count": len(source.names),
            "fingerprint": source.fingerprint,
            "test": judged.name,
            "test_count": len(judged.names),
            "test_fingerprint": judged.fingerprint,
        }

    def feed(self, training: TrainConfig) -> PictureFeed:
        size, seed = training.batch_size, training.seed
        return PictureFeed(self.known.pictures, places=self.known.places, batch_size=size, seed=seed)

    def judge(
        self, task: Task, hardware: SpreadConfig, place: Place, most: int | None = None
    ) -> tuple[Float[Tensor, "n K"], Int[Tensor, " n"]]:
        part = self.asked.labelled(most) if most else self.asked
        return predicted(task, part, hardware, place), part.labels

    def write(self, run: Path, scores: Float[Tensor, "n K"]) -> None:
        write_predictions(run / "predictions.csv", self.asked, scores)
