"""The modality of text: options, plans of pre-training, and labelled data."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unveil.data.splits import balanced_indices, check_count, stratified_split
from unveil.learner import Method, Task
from unveil.methods import METHODS, method_class
from unveil.models.bert import MODELS, TextEncoder
from unveil.options import configure
from unveil.runs.labelled_data import data_of
from unveil.runs.labelled_texts import LabelledTexts, label_tensor, labelled_texts, without_copies
from unveil.runs.modality import AnyData, FinetuneRunConfig, LabelledRequest, Modality
from unveil.runs.seen_texts import sentences_on_seen_texts
from unveil.runs.session import join
from unveil.runs.text_pretraining import TextPlan, TextPretrainConfig
from unveil.runs.text_stream import TextStream, open_text_stream
from unveil.text.files import OpenedTexts, open_texts, split_sentence
from unveil.text.split_names import TRAIN
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.terminal import printer


@dataclass(frozen=True, kw_only=True)
class TextFinetuneConfig(FinetuneRunConfig):
    """The labelled texts."""

    HIDDEN = ("test_split",)
    test_split: Literal["held-out"] | None = None
    """What to test on in place of the test split of DATA: held-out is the validation split or, without one, a tenth of the
    training texts, and keeps the test split for later."""


def watched_split(opened: OpenedTexts) -> str:
    """The split whose masked words are predicted in pre-training: val, since test is kept for later; "" if there is none."""
    return "val" if "val" in opened.splits else ""


class TextModality(Modality):
    """The modality of text."""

    noun = "texts"
    models = MODELS
    default_model = "bert-mini"
    default_task = "text-classification"

    def configs(self, method: str | type[Method]) -> tuple[type, ...]:
        return (TextPretrainConfig, method_class(method).Config, TrainConfig, OptimConfig, HardwareConfig)

    def plan(
        self,
        data: AnyData,
        method: str | type[Method],
        model: str | None,
        options: Mapping[str, Any],
        *,
        out: str | Path | None = None,
        resume_from: str | Path | None = None,
    ) -> TextPlan:
        defaults = self.defaults(data, method)
        model = self.check_model(model or defaults.pop("model"))
        defaults.pop("model", None)
        config, method_config, *rest = configure(defaults | dict(options), *self.configs(method))
        recipe = join(*rest)
        opened = open_texts(data)
        watched = watched_split(opened)
        sentence = split_sentence(opened, {TRAIN: "for training", watched: "held out", "test": "kept for later"})
        return TextPlan(
            method=METHODS.find(method),
            model=model,
            method_config=method_config,
            recipe=recipe,
            run_config=config,
            texts=opened.train,
            test_texts=opened.splits.get(watched),
            notes=[*filter(None, [sentence]), *opened.notes],
        )

    def finetune_configs(self, task: type[Task]) -> tuple[type, ...]:
        return (TextFinetuneConfig, task.Config)

    def untrained(self, encoder: TextEncoder) -> TextEncoder:
        return TextEncoder(encoder.config)

    def labelled(
        self, run: str | os.PathLike[str], data: AnyData | None, test: AnyData | None, request: LabelledRequest
    ) -> LabelledTexts:
        say = printer(request.recipe.world.is_main)
        splits = labelled_texts(data if data is not None else data_of(run), test, say, request.config.test_split)
        if not request.config.scratch:
            splits = splits._replace(cautions=[*sentences_on_seen_texts(run, splits), *splits.cautions])
        for clause in splits.cautions:
            say(clause)
        if set(splits.train.classes) <= set(request.classes):  # of the run that is resumed
            splits = splits.with_classes(list(request.classes))
        train_set, seed = splits.train, request.recipe.training.seed
        if labels := request.config.labels:
            check_count(labels, len(train_set), noun="labelled texts")
            train_set = train_set.subset(balanced_indices(label_tensor(train_set), labels, seed))
        splits = splits._replace(train=train_set)
        if splits.validation is None and (share := request.config.kept_aside(len(train_set))):
            rest, aside = stratified_split(label_tensor(train_set), share, seed)
            validation = train_set.subset(aside) if len(aside) else None
            kept = train_set.subset(rest)
            splits = splits._replace(train=without_copies(kept, validation, say) if validation else kept, validation=validation)
        labelled = LabelledTexts(splits, request.encoder)
        for note in labelled.tokenizer.remarks([*splits.train.texts, *splits.test.texts], labelled.length):
            say(note)
        return labelled

    def stream(self, learner: Any, data: AnyData, *, split: str | None, max_pixels: int) -> TextStream:
        return open_text_stream(data, split, learner.encoder.config)

    def label_count(self, data: AnyData) -> int:
        labels = open_texts(data).train.labels
        return 0 if labels is None else int((labels >= 0).sum())


TEXT = TextModality()
