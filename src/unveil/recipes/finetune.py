"""`unveil finetune`: trains an encoder and a head with labels, or the same model from scratch for comparison."""

import os
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from unveil.data.python_data import with_columns
from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.encoder_only import checksums, encoder_of
from unveil.interop.load import load
from unveil.learner import Learner, Task
from unveil.models.last_blocks import trained_blocks
from unveil.options import configure, known_to
from unveil.plain_text import count_of
from unveil.plugins import trust as allow
from unveil.reports.table import terminal_table, unseen_sentence
from unveil.runs.finetuning import Finetuning
from unveil.runs.labelled_data import beside, recorded_classes
from unveil.runs.modality import AnyData, LabelledRequest, modality
from unveil.runs.option_files import input_facts, takes_options
from unveil.runs.own_code import attach, own_augment, recorded, refuse_without
from unveil.runs.session import RunSpec, Session, join, options_by_name
from unveil.tasks import TASKS, task_class
from unveil.train.loop import total_steps
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import TrainConfig
from unveil.train.resume_from import options_to_keep
from unveil.train.run_folder import Run, finished_run, recorded_options
from unveil.train.terminal import printer


@takes_options("finetune")
def finetune(
    run: str | os.PathLike[str],
    data: AnyData | None = None,
    *,
    task: str | type[Task] | None = None,
    test: AnyData | None = None,
    out: str | Path | None = None,
    resume_from: str | Path | None = None,
    extend: bool = False,
    config: str | Path | None = None,
    trust: str | Path | None = None,
    **options: Any,
) -> Run:
    """Fine-tunes an encoder on labelled data, or resumes a run that was stopped.

    Args:
        run: Anything that `unveil.load` accepts.
        data: Labelled samples; by default the data that the run was trained on.
        task: A name from `unveil.tasks.TASKS`, "package.module:Class", "path/to/file.py:Class", or a class. By default "finetune"
            for images and "text-classification" for text.
        test: Labelled samples to test on; by default the test split of `data`, or a tenth of it that is held out.
        out: The run folder; by default `<run>-finetune`, or `<run>-<task>` if a task is given; with
            `scratch`, `<run>-scratch` or `<run>-<task>-scratch`.
        resume_from: Another fine-tuning run to go on from, as in `pretrain`.
        extend: Go on in the same folder for more epochs, as in `pretrain`.
        config: A file to take options from, as in `pretrain`.
        trust: A file or module outside of unveil that `run` needs and that may be imported.
        **options: Fields of `ImageFinetuneConfig` (`TextFinetuneConfig` for text), the task's `Config`, `AugmentConfig` (images
            only), `TrainConfig`, `OptimConfig`, `HardwareConfig`. For images given in Python, `labels` may also be one label for
            each image, and `split` the name of a split for each. `augment` is a function, as in `pretrain`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    began = time.monotonic()
    allow(trust)
    data, options = with_columns(data, options)
    own_code, options = own_augment(options)
    learner = load(run, say=printer(True))
    samples = modality(learner.modality)
    kind = task_class(task or samples.default_task)
    if not kind.on_encoder:
        raise UnveilError(f"the task {TASKS.label(kind)} is not trained on an encoder: see unveil --help for its own command")
    if kind.modality != learner.modality:
        raise UnveilError(
            f"the task {TASKS.label(kind)} is for {modality(kind.modality).noun}, but {run} is a model of {samples.noun}"
        )
    configs = (*samples.finetune_configs(kind), TrainConfig, OptimConfig, HardwareConfig)
    named = TASKS.label(kind) if task else "" if options.get("scratch") else "finetune"
    suffix = "-".join([named] * bool(named) + ["scratch"] * bool(options.get("scratch")))
    path = Path(out) if out else beside(run, suffix)
    refuse_without(own_code, path, resume_from)
    kept = known_to(options_to_keep(resume_from) | recorded_options(path), *configs)
    defaults = recipe_defaults(kind, {**kept, **options}.get("recipe"), learner)
    own, task_config, *rest = configure({**defaults, **kept, **options}, *configs)
    augment = rest[0] if len(rest) > 3 else None
    recipe = join(*rest[-3:])
    sums = checksums(encoder_of(learner), weights=not own.scratch)  # so that a resume notices another encoder in its place
    encoder = samples.resized(encoder_of(learner), own)
    request = LabelledRequest(
        task=kind,
        encoder=encoder.config,
        config=own,
        recipe=recipe,
        augment=augment,
        task_config=task_config,
        classes=recorded_classes(path),
        read=extend or finished_run(path) is None,
    )
    labelled = samples.labelled(run, data, test, request)
    if not labelled.counts[0]:
        raise UnveilError(
            f"{'validation is ' + format(own.validation, 'g') if own.validation else 'the validation set'}: no {labelled.noun} "
            f"would be left to train on, since {labelled.validation_count:,} are kept aside; use a smaller share"
        )
    if own.patience and not labelled.validation_count:
        raise UnveilError(
            f"patience is {own.patience}, but there are no {labelled.noun} to validate on: add --validation 0.1, which keeps a "
            f"tenth of the {labelled.counts[0]:,} training {labelled.noun} aside"
        )
    is_auto = getattr(task_config, "recipe", "auto") == "auto"
    chosen = dict(kind.settings_for(encoder.config.width, labelled.counts[0])) if is_auto else {}
    chosen |= known_to(labelled.settings, kind.Config)  # what follows from the data, which is open now
    own, task_config, *rest = configure({**defaults, **chosen, **kept, **options}, *configs)
    recipe = replace(recipe, training=rest[-3], optim=rest[-2])
    recipe = replace(recipe, training=recipe.training.with_batch_size(labelled.counts[0]))
    described = {} if TASKS.label(kind) == samples.default_task else TASKS.describe(kind)  # as in older folders
    spec = RunSpec(
        kind="finetune",
        path=path,
        config={"from": "scratch" if own.scratch else str(run), **described}
        | options_by_name(own, task_config, *rest[:-3], recipe.training, recipe.optim, recipe.hardware)
        | recorded(own_code),
        data=labelled.facts,
        title="scratch" if own.scratch else "finetune",
        tracker=own.tracker,
        resume_from=resume_from,
        encoder=sums,
        inputs=input_facts(run=run, test=test),
        extend=extend,
    )
    with Session.open(spec, recipe, began) as session:
        if session.finished:
            return session.run
        labelled.write_skipped(session)
        labelled.adapt(encoder)
        if own.scratch:
            encoder = session.built(partial(samples.untrained, encoder))
        tuning = Finetuning(
            session=session,
            labelled=labelled,
            kind=kind,
            config=task_config,
            augment=augment,
            encoder=encoder,
            source=None if own.scratch else learner,
            patience=own.patience,
        )
        model = session.built(tuning.build)
        attach(own_code, model, compiled=recipe.hardware.compile)
        loader = labelled.loader(recipe, model)
        announce(tuning, total_steps(recipe.training, loader))
        tuning.start(model)
        if session.is_main:
            model_files.write_config(model, session.run.path)
        try:
            session.fit(model, loader, [tuning.validate])
        finally:
            labelled.write_skipped(session)
        if session.is_main:
            model = session.trained(tuning.build)
            model.drop_training_parts()
            model_files.save(model, session.run.path)
            score = labelled.evaluate(model, recipe, session.run.path)
            labelled.write_skipped(session)
            session.finish(model, tuning.results(model, score), terminal_table)
        return session.close()


def recipe_defaults(kind: type[Task], recipe: object, learner: Learner) -> dict[str, Any]:
    """The defaults of a task for a learner: its recipe, and for `recipe` "paper" that of the paper."""
    defaults = dict(kind.DEFAULTS) | (dict(kind.PAPER) if recipe == "paper" else {})
    chooses_pool = any(each.name == "pool" and each.default is None for each in fields(kind.Config))
    return {"pool": learner.pool} | defaults if chooses_pool else defaults


def announce(tuning: Finetuning, total: int) -> None:
    """Prints the model, the data and the number of steps."""
    session, labelled = tuning.session, tuning.labelled
    train, test = labelled.counts
    part = trained_blocks(TASKS.label(tuning.kind), getattr(tuning.config, "blocks", None))
    alone = f" {part} alone" if part else ""
    doing = f"training{alone} from scratch" if tuning.source is None else f"fine-tuning{alone}"
    aside = f", validated on {labelled.validation_count:,}" if labelled.validation_count else ""
    held_out = " held-out" if labelled.held_out else ""
    trained = count_of(train, f"labelled {labelled.noun.removesuffix('s')}")
    session.announce(f"{doing} on {trained} {labelled.about}{aside}, tested on {test:,}{held_out}", total)
    if labelled.unseen:
        session.say(unseen_sentence(labelled.unseen, test, labelled.noun))
