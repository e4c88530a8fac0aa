"""`unveil pretrain`: trains an encoder on unlabelled data, and evaluates what it learned."""

import copy
import time
from pathlib import Path
from typing import Any

from unveil.data.python_data import with_columns
from unveil.interop import model_files
from unveil.learner import Method
from unveil.methods import method_class
from unveil.options import known_to
from unveil.plain_text import count_of
from unveil.reports.table import terminal_table
from unveil.runs.modality import AnyData, modality
from unveil.runs.option_files import input_facts, takes_options
from unveil.runs.own_code import attach, own_augment, recorded, refuse_without
from unveil.runs.session import RunSpec, Session
from unveil.train.loop import total_steps
from unveil.train.resume_from import options_to_keep
from unveil.train.run_folder import Run, recorded_options


@takes_options("pretrain")
def pretrain(
    data: AnyData = "digits",
    *,
    method: str | type[Method] = "mae",
    model: str | None = None,
    out: str | Path | None = None,
    resume_from: str | Path | None = None,
    extend: bool = False,
    config: str | Path | None = None,
    **options: Any,
) -> Run:
    """Trains an encoder without labels, or resumes a run that was stopped.

    Args:
        data: Images: see `unveil.data.sources.FORMS`; or arrays, tensors, a list, a DataFrame or a Dataset, see "Data in Python" in
            the documentation. For a method for text: a file, a folder or an archive of texts, see
            `unveil.text.files.open_texts`.
        method: A name from `unveil.methods.METHODS`, "package.module:Class", "path/to/file.py:Class", or a class.
        model: A name from `unveil.models.vit_config.MODELS`, by default vit-base, or vit-nano for the embedded digits; for text a
            name from `unveil.models.bert.MODELS`, by default bert-mini.
        out: The run folder, by default `runs/<data>-<method>-<model>`. If it holds this run already, training resumes.
        resume_from: Another run, from whose newest checkpoint this one goes on, with its steps, data order and optimiser. Options
            that are not given are those of that run. The length, the options of the optimiser and the precision may differ.
        extend: Go on in the same folder for more epochs, from the last checkpoint and with a warm restart of the learning rate.
        config: A run folder, its `run.json`, or a TOML file: what is not given here is taken from it, except `out`.
        **options: Fields of `PretrainConfig` (`TextPretrainConfig` for text), the method's `Config`, `AugmentConfig` (images only),
            `TrainConfig`, `OptimConfig`, `HardwareConfig`. For images given in Python, also `labels`, one for each image, and
            `split`, the name of a split for each. `augment` is a function that changes each augmented batch of images, see
            `unveil.data.own_augment.OwnAugment`; `run.json` records its name only.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    began, kind = time.monotonic(), method_class(method)
    data, options = with_columns(data, options)
    own, options = own_augment(options)
    refuse_without(own, resume_from)
    samples = modality(kind.modality)
    kept = options_to_keep(resume_from)
    model, options = model or kept.get("model"), known_to(kept, *samples.configs(method)) | options
    folders: dict[str, Any] = {"out": out, "resume_from": resume_from}
    plan = samples.plan(data, method, model, options, **folders)
    if earlier := recorded_options(plan.path(out)):
        plan = samples.plan(data, method, model, known_to(earlier, *samples.configs(method)) | options, **folders)
    refuse_without(own, plan.path(out))
    spec = RunSpec(
        kind="pretrain",
        path=plan.path(out),
        config=plan.config | recorded(own),
        data=plan.facts,
        title="pretrain",
        tracker=plan.config["tracker"],
        resume_from=resume_from,
        weights=plan.weights,
        inputs=input_facts(init=plan.config.get("init")),
        extend=extend,
    )
    with Session.open(spec, plan.recipe, began) as session:
        if session.finished:
            return session.run
        pretraining = plan.open(session)
        learner = session.built(pretraining.build)
        attach(own, learner, compiled=session.recipe.hardware.compile)
        untrained = copy.deepcopy(learner.encoder)
        pretraining.start(learner)
        loader, run = pretraining.loader(learner), session.run
        if session.is_main:
            model_files.write_config(learner, run.path)
        session.announce(pretraining.summary(learner), total := total_steps(plan.recipe.training, loader))
        if total < 500:
            session.say(f"only {count_of(total, 'step')}: consider more --epochs or a smaller --batch-size")
        try:
            session.fit(learner, loader, pretraining.monitors())
        finally:
            pretraining.write_skipped()
        if session.is_main:
            learner = session.trained(pretraining.build)
            model_files.save(learner, run.path)
            session.say("evaluating the encoder ...")
            results = pretraining.evaluate(learner, untrained)
            session.finish(learner, results, terminal_table, f"The encoder: {run.path / 'encoder.safetensors'}")
        return session.close()
