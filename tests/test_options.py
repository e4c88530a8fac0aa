"""The options that are read from the source, compared with the dataclasses themselves."""

import dataclasses
import importlib
import inspect
import typing

import numpy as np
import pytest

from unveil import methods, tasks, verbs
from unveil.command_line import form_of, groups_of
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.option_synonyms import EXPLAINED, NOTES, SYNONYMS, hint
from unveil.options import configure, literal, options_of, refuse_unknown
from unveil.verbs import METHOD, REQUIRED, TASK, Verb

FORMS: dict[str, tuple[str, Verb]] = {
    f"{name} ({modality})": (name, form)
    for name, verb in VERBS.items()
    for modality, form in {"images": verb, **verb.forms}.items()
}
METHODS, TASKS = list(methods.METHODS.builtin), list(tasks.TASKS.builtin)
PATHS = sorted(
    {path for _, verb in FORMS.values() for path in verb.configs.values() if path not in (METHOD, TASK)}
    | {methods.method_source(name).config() for name in METHODS}
    | {tasks.task_source(name).config() for name in TASKS}
)


def real(path: str) -> type:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", PATHS)
def test_options_are_the_fields_of_the_class(path):
    config = real(path)
    fields, found, kinds = dataclasses.fields(config), options_of(path), typing.get_type_hints(config, include_extras=True)
    assert [option.name for option in found] == [field.name for field in fields]
    for option, field in zip(found, fields, strict=True):
        assert option.default == field.default
        assert type(option.default) is type(field.default)
        assert option.type == kinds[option.name]
        assert option.hidden == any(option.name in vars(each).get("HIDDEN", ()) for each in config.__mro__)
    assert {name for each in config.__mro__ for name in vars(each).get("HIDDEN", ())} <= {option.name for option in found}


@pytest.mark.parametrize("path", PATHS)
def test_every_option_has_a_description(path):
    for option in options_of(path):
        assert len(option.help) > 5, f"{option.name} has no docstring"
        assert option.help[0].isupper(), option.help
        assert option.help.endswith((".", ".)")), option.help
        assert "\n" not in option.help


@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_shows_the_config_and_the_defaults_of_a_method(name):
    argv = ["x", "--method", name]
    verb = form_of("pretrain", VERBS["pretrain"], argv)
    groups, _ = groups_of(verb, argv)
    method = methods.method_class(name)
    assert {option.name for option in groups["method"]} == {field.name for field in dataclasses.fields(method.Config)}
    shown = {option.name: option.default for options in groups.values() for option in options}
    assert method.DEFAULTS.items() - {("model", method.DEFAULTS.get("model"))} <= shown.items()
    assert groups_of(verb, [f"--method={name}"])[0] == groups


@pytest.mark.parametrize("name", METHODS)
def test_the_modality_of_a_method_is_read_from_its_source(name):
    assert methods.modality_of_method(name) == methods.method_class(name).modality


@pytest.mark.parametrize("name", TASKS)
def test_the_defaults_of_a_task_are_options(name):
    own = VERBS["probe"] if name == "partial" else VERBS["finetune"]
    verb = next((form for _, form in FORMS.values() if form.task == name), own)
    groups, _ = groups_of(verb, [verb.task_option, name])
    shown = {option.name: option.default for options in groups.values() for option in options}
    assert tasks.task_class(name).DEFAULTS.items() <= shown.items()
    assert tasks.task_defaults(name) == tasks.task_class(name).DEFAULTS


@pytest.mark.parametrize("form", FORMS)
def test_no_two_options_of_a_command_share_a_name(form):
    _, verb = FORMS[form]
    modality = form.split("(")[1].rstrip(")")
    for method in METHODS if METHOD in verb.configs.values() else ["mae"]:
        if methods.modality_of_method(method) == modality or METHOD not in verb.configs.values():
            groups, notes = groups_of(verb, ["--method", method])
            names = [*verb.arguments, "trust", *(option.name for options in groups.values() for option in options)]
            assert len(names) == len(set(names))
            assert not set(verb.ignores) & set(names)
            assert set(notes) <= set(names)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_command_hides_or_ignores_are_options(form):
    _, verb = FORMS[form]
    paths = {METHOD: methods.method_source("mae").config(), TASK: tasks.task_source(verb.task).config() if verb.task else ""}
    names = {option.name for path in verb.configs.values() for option in options_of(paths.get(path, path))}
    assert set(verb.ignores) <= names
    assert verb.hides <= names | {"color_jitter"}  # which commands for texts do not have


@pytest.mark.parametrize("form", FORMS)
def test_a_command_and_its_function_have_the_same_arguments(form):
    _, verb = FORMS[form]
    module, _, function = verb.call.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    named = {key: p for key, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD and key not in ("say", "trust")}
    assert list(named) == list(verb.arguments)
    for key, argument in verb.arguments.items():
        default = named[key].default
        if form.endswith("(images)"):
            assert (default is inspect.Parameter.empty) == (argument.default is REQUIRED)
            assert argument.default is REQUIRED or default == argument.default
    assert bool(verb.configs) == any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (verbs.VIT_NAMES, "unveil.models.vit_config:MODELS"),
        (verbs.BERT_NAMES, "unveil.models.bert:MODELS"),
        (VERBS["translate train"].arguments["model"].type, "unveil.models.seq2seq:MODELS"),
        (verbs.EXPORT_FORMATS, "unveil.recipes.export:DEFAULT_NAMES"),
    ],
)
def test_the_names_to_choose_from_are_those_of_the_table(names, table):
    literals = [part for part in typing.get_args(names) if typing.get_origin(part) is typing.Literal] or [names]
    assert sorted(typing.get_args(literals[0])) == sorted(real(table))


def test_literal():
    assert literal("unveil.runs.images", "DIGITS_DEFAULTS")["target"] == "pixel"
    with pytest.raises(KeyError):
        literal("unveil.methods", "NOTHING")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Left:
    epochs: float = 1.0
    shared: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Right:
    shared: int = 4
    flip: bool = True


def test_options_are_distributed():
    assert configure({}, Left, Right) == [Left(), Right()]
    dealt = configure({"epochs": 2.0, "flip": False, "shared": 9}, Left, Right)
    assert dealt == [Left(epochs=2.0, shared=9), Right(shared=9, flip=False)]
    with pytest.raises(UnveilError, match=r"there is no option 'epoch'; did you mean epochs\?"):
        configure({"epoch": 2}, Left, Right)
    with pytest.raises(UnveilError, match=r"there is no option 'max_epochs'; did you mean epochs\?"):
        configure({"max_epochs": 2}, Left, Right)
    with pytest.raises(UnveilError, match="there is no option 'zzz'; the options are: epochs, flip, shared"):
        configure({"zzz": 2}, Left, Right)
    refuse_unknown(["flip"], ["flip"])


ALL_OPTIONS = {option.name for path in PATHS for option in options_of(path)} | {
    key for _, v in FORMS.values() for key in v.arguments
}


def test_synonyms_lead_to_options_that_exist():
    assert {name for meant in SYNONYMS.values() for name in meant} <= ALL_OPTIONS
    assert not set(SYNONYMS) & set(EXPLAINED)
    assert set(NOTES) <= ALL_OPTIONS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lr", "did you mean base_lr (the peak learning rate for a batch of 256, which is scaled with the batch size)?"),
        ("learning-rate", "did you mean base_lr (the peak learning rate"),
        ("blr", "did you mean base_lr"),
        ("wd", "did you mean weight_decay?"),
        ("accum_iter", "did you mean accum_steps?"),
        ("accumulate", "did you mean accum_steps?"),
        ("clip", "did you mean clip_grad?"),
        ("warmup", "did you mean warmup_epochs or warmup_ratio (a share of the run)?"),
        ("recompute", "did you mean grad_checkpointing?"),
        ("gradient_checkpointing", "did you mean grad_checkpointing?"),
        ("img_size", "did you mean image_size?"),
        ("input_size", "did you mean image_size?"),
        ("output_dir", "did you mean out?"),
        ("mask_ratoi", "did you mean mask_ratio"),
        ("resume", "the same command again resumes the run in --out"),
        ("gpus", "start one process per GPU with torchrun"),
        ("zzzzzz", ""),
    ],
)
def test_hints(name, expected):
    assert hint(name, ALL_OPTIONS - {"workers"}).startswith(expected)
    assert bool(hint(name, ALL_OPTIONS)) == bool(expected)


@pytest.mark.parametrize("name", ["workers", "num_workers", "num-workers", "dataloader_num_workers"])
def test_workers_have_no_counterpart(name):
    assert hint(name, ALL_OPTIONS - {"workers"}) == "the number of reading threads is chosen automatically"


def test_a_hint_names_only_what_exists():
    assert hint("lr", ["epochs"]) == ""
    assert hint("tokenizer", ["visual_tokenizer", "epochs"]) == "did you mean visual_tokenizer?"
    assert hint("lr", ["base_lr"], lambda name: f"--{name.replace('_', '-')}").startswith("did you mean --base-lr (")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "knnn"}, "kind is 'knnn': did you mean knn"),
        ({"kind": "x"}, "kind is 'x', expected one of linear, knn, partial"),
        ({"neighbours": "20"}, "neighbours is '20', expected an integer from 1"),
        ({"neighbours": True}, "neighbours is True, expected an integer from 1"),
        ({"blocks": float("nan")}, "blocks is nan, expected a number of 0 or more"),
        ({"views": "no"}, "views is 'no', expected True or False"),
    ],
)
def test_values_of_the_wrong_type_are_refused(options, message):
    with pytest.raises(UnveilError, match=message):
        configure(options, real("unveil.runs.probing:ProbeConfig"))


def test_values_of_the_right_type_are_taken():
    (config,) = configure({"blocks": 2, "pool": None, "labels": np.int64(5)}, real("unveil.runs.probing:ProbeConfig"))
    assert (config.blocks, config.pool, config.labels) == (2, None, 5)
    with pytest.raises(UnveilError, match="pool is 'max', expected one of mean, class"):
        configure({"pool": "max"}, real("unveil.runs.probing:ProbeConfig"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
    ],
)
def test_impossible_lengths_of_a_run_are_refused(options, message):
    with pytest.raises(UnveilError, match=message):
        configure(options, real("unveil.train.recipe:TrainConfig"))
