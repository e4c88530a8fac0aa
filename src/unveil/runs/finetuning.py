"""What fine-tuning does around the training loop: where it starts, what it validates on, and what its result is compared with."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.interop.files import read_tensors, write_tensors
from unveil.learner import Learner, Task
from unveil.protocols import HasPixelDecoder
from unveil.runs.modality import LabelledData
from unveil.runs.session import Session
from unveil.tasks import TASKS
from unveil.train.log import Record
from unveil.train.parallel import is_replicated

HEAD = "probe.safetensors"
"""The file of a run folder with the linear probe from which its head started."""


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """A fine-tuning run whose folder and data are open."""

    session: Session
    labelled: LabelledData
    kind: type[Task]
    config: Any
    """The options of the task."""
    augment: Any
    encoder: Any
    """The encoder to start from; the tasks get copies."""
    source: Learner | None
    """The learner that the encoder comes from; None for a model that starts from scratch."""
    patience: int = 0
    """See `FinetuneRunConfig`."""

    @property
    def head_path(self) -> Path:
        """The file of the probed head."""
        return self.session.run.path / HEAD

    @property
    def validates(self) -> bool:
        """Whether the task is evaluated during training. If not, the last weights are kept, since no other step has a value."""
        recipe = self.session.recipe
        evaluated = recipe.training.num_evals > 0 and is_replicated(recipe.hardware, recipe.world)
        return self.labelled.validation_count > 0 and evaluated

    def build(self) -> Task:
        """A task that is not trained yet."""
        task = self.kind.build(copy.deepcopy(self.encoder), self.config, self.augment, self.labelled.classes)
        task.set_class_counts(self.labelled.class_counts)
        if (values := self.labelled.mask_values) is not None:
            task.set_mask_values(values)
        if (ids := self.labelled.category_ids) is not None:
            task.set_category_ids(ids)
        if (targets := self.labelled.train_targets) is not None:
            task.set_train_targets(targets)
        if isinstance(self.source, HasPixelDecoder):
            task.set_decoder(self.source.decoder_state())
        task.add_training_parts()
        return task

    def start(self, task: Task) -> None:
        """Prepares a task for training. If the run is new and starts from a probe, that is fitted, and may be the best weights.

        A model from scratch starts from a probe of its untrained encoder, so that nothing but the encoder differs: with a random
        head, it was up to 6 points less accurate, which looked like a gain of pre-training (LAB.md).

        Raises:
            UnveilError: If patience is asked for, but nothing is evaluated during training.
        """
        session, labelled = self.session, self.labelled
        if self.validates:
            metric = task.metric()
            primary = labelled.primary_of(metric, validation=True)
            session.keep_best(primary, lower_is_better=metric.lower_is_better, patience=self.patience)
        elif labelled.validation_count:
            cause = "sharded weights are not evaluated during training" if session.recipe.training.num_evals else "num_evals is 0"
            if self.patience:
                raise UnveilError(f"patience is {self.patience}, but nothing is validated: {cause}. Leave patience out")
            session.say(f"nothing is validated, so the last weights are kept: {cause}")
        if not task.starts_from_probe or session.run.checkpoints().steps():
            return
        session.say("fitting a linear probe ...")
        task.to(session.world.device)
        heads = labelled.probed_heads(task, session.recipe)
        if session.is_main:
            write_tensors(self.head_path, {"weight": heads.probe[0].cpu(), "bias": heads.probe[1].cpu()})
            task.set_head(*heads.probe)
            session.offer(0, self.validate(task), task)
        task.set_head(*heads.start)

    def validate(self, learner: Any) -> Record:
        """The primary metric on the samples to validate on; {} if there are none."""
        metric, seen = learner.metric(), False
        if self.labelled.validation_count:
            for _, predictions, targets in self.labelled.predictions(learner, self.session.recipe, validation=True):
                metric.update(predictions, targets)
                seen = True
        found = metric.compute() if seen else {}
        primary = self.labelled.primary_of(metric, validation=True)
        return {primary: found[primary]} if primary in found else {}

    def probe_score(self) -> dict[str, Any]:
        """The metric of the probe from which the head started, on the test set; {} if it did not."""
        if not self.head_path.is_file():
            return {}
        task, head = self.session.built(self.build), read_tensors(self.head_path)
        task.set_head(head["weight"], head["bias"])
        task.to(self.session.world.device).eval()
        metric = task.metric()
        for _, predictions, targets in self.labelled.predictions(task, self.session.recipe):
            metric.update(predictions, targets)
        found = metric.compute()
        return {key: value for key, value in found.items() if isinstance(value, int | float)}

    def results(self, task: Task, score: Mapping[str, Any]) -> Record:
        """What `results.json` records of a trained task and its score on the test set."""
        labelled, unreadable, unseen, metric = self.labelled, self.labelled.unreadable(), self.labelled.unseen, task.metric()
        return {
            "task": TASKS.label(self.kind),
            "score": dict(score),
            "primary": labelled.primary_of(metric),
            **({"lower_is_better": True} if metric.lower_is_better else {}),
            **({"probe": probe} if (probe := self.probe_score()) else {}),
            **self.session.chosen,
            "samples": labelled.noun,
            "classes": list(labelled.test_classes),
            **({"unseen_classes": dict(unseen)} if unseen else {}),
            **({"cautions": list(labelled.cautions)} if labelled.cautions else {}),
            "trained_on": labelled.counts[0],
            **({"validated_on": labelled.validation_count} if labelled.validation_count else {}),
            **({"unreadable": unreadable} if unreadable else {}),
            "kept_aside": labelled.held_out,
        }
