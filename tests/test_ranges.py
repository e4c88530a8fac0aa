"""Every number that a user can give has a range, and a value outside of it is a usage error that names both."""

import ast
import dataclasses
import math
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

import unveil
from unveil import cli, command_line
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.methods import METHODS, method_source
from unveil.option_types import check_value, described, from_words, plain_type
from unveil.options import options_of
from unveil.plugins import import_class
from unveil.ranges import Count, NonNegative, Positive, Range, Share, ShareBelowOne
from unveil.tasks import TASKS, task_source
from unveil.verbs import METHOD, TASK, Verb

SOURCE = Path(unveil.__file__).parent
SHAPES = {"TransformerConfig", "ViTConfig", "TextConfig", "Seq2SeqConfig", "PyramidConfig", "UperNetConfig", "MaskRCNNConfig"}
"""Shapes of models. No option sets them: they are built from the name of a model, from the options of a task, or compared with the
tensors of a file."""


def config_paths() -> set[str]:
    """Every dataclass of options as "module:Class": those of the table of commands, of methods and of tasks."""
    forms = [form for verb in VERBS.values() for form in (verb, *verb.forms.values())]
    paths = {path for form in forms for path in form.configs.values() if path not in (METHOD, TASK)}
    paths |= {method_source(name).config() for name in METHODS.names}
    return paths | {task_source(name).config() for name in TASKS.names}


def numbers(kind: Any, ranged: bool = False) -> list[bool]:
    """For each number in a type, whether it has a range."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return numbers(parts[0], any(isinstance(each, Range) for each in parts[1:]))
    if origin is Literal:
        return []
    return [ranged] if kind in (int, float) else [found for part in parts for found in numbers(part, ranged)]


def test_every_number_of_every_config_has_a_range():
    found = {f"{path} {option.name}": numbers(option.type) for path in config_paths() for option in options_of(path)}
    assert sum(map(len, found.values())) > 80
    assert [name for name, each in found.items() if not all(each)] == []
    arguments = {(name, key): each for name, verb in VERBS.items() for key, each in verb.arguments.items()}
    assert [key for key, each in arguments.items() if not all(numbers(each.type))] == []


def test_no_config_is_missing_from_the_tables():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    classes = {node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef)}
    named = {name for name in classes if name.endswith("Config")} - SHAPES
    reached = {path.split(":")[1] for path in config_paths()}
    bases = {base.__name__ for path in config_paths() for base in import_class(path).__mro__}
    assert named - reached - bases == set()


def test_every_default_is_in_its_range():
    for path in config_paths():
        for option in options_of(path):
            assert check_value(option.name, option.default, option.type) == option.default


def outside(kind: Any) -> list[Any]:
    """Numbers just outside of the range of a type, and those that are in no range."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        (limits,) = (each for each in parts[1:] if isinstance(each, Range))
        step = 1 if parts[0] is int else 1e-6
        below = limits.low if limits.above else limits.low - step
        above = limits.high if limits.below else limits.high + step * max(1, abs(limits.high))
        return [below, *([above] if math.isfinite(limits.high) else []), math.nan, math.inf, -math.inf, 10**400]
    return [value for part in parts for value in outside(part)]


OPTIONS = [(path, option) for path in sorted(config_paths()) for option in options_of(path) if numbers(option.type)]


@pytest.mark.parametrize(("path", "option"), OPTIONS, ids=[f"{path.split(':')[1]}.{option.name}" for path, option in OPTIONS])
def test_numbers_outside_of_the_range_are_refused(path, option):
    assert outside(option.type)
    for value in outside(option.type):
        with pytest.raises(UnveilError, match=rf"^{option.name} is .*, expected .*(number|integer)") as caught:
            check_value(option.name, value, option.type)
        assert len(str(caught.value)) < 300
    for value in ("three", True, [[1]], {}, object(), 1 + 2j):
        with pytest.raises(UnveilError, match=rf"^{option.name} is .*, expected "):
            check_value(option.name, value, option.type)


FLAGS = {
    (name, option.name): option
    for name, verb in VERBS.items()
    for option in [each for group in command_line.groups_of(verb, [])[0].values() for each in group]
    if numbers(option.type)
}
INPUTS = {"study": ["mask_ratio=0.5"], "study information-density": ["a", "b"], "fill-mask": ["a", "b"]}


@pytest.mark.parametrize(("name", "key"), FLAGS, ids=[f"{name} {key}" for name, key in FLAGS])
def test_the_command_line_refuses_them_before_anything_is_read(name, key, capsys):
    """DATA does not exist, which would be exit code 1."""
    flag = f"--{key.replace('_', '-')}"
    value = outside(FLAGS[name, key].type)[0]
    for words in ([flag, str(value)], [f"{flag}={value}"], [flag, "nan"], [flag, "-inf"], [flag, "three"], [flag, "9" * 400]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*name.split(), *INPUTS.get(name, ["no/such/data"]), *words])
        error = capsys.readouterr().err
        assert caught.value.code == 2, words
        assert error.startswith(f"unveil: {flag} is {words[-1].removeprefix(f'{flag}=')[:10]}"), words
        assert ", expected " in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ("pretrain no/data --epochs 0", "--epochs is 0, expected a number above 0 and at most 1,000,000"),
        ("pretrain no/data --batch-size -1", "--batch-size is -1, expected an integer from 0 to 16,777,216"),
        ("pretrain no/data --mask-ratio 1.5", "--mask-ratio is 1.5, expected a number from 0 to 1"),
        ("pretrain no/data --decoder-depth -1", "--decoder-depth is -1, expected an integer from 0 to 1,000, or None"),
        ("pretrain no/data --patch-size 0", "--patch-size is 0, expected integers from 1 to 16,384"),
        ("pretrain no/data --image-size 64 -1", "--image-size is 64 -1, expected integers from 1 to 16,384"),
        ("pretrain no/data --seed 18446744073709551616", "--seed is 18446744073709551616, expected an integer from 0 to 9,223,"),
        ("reconstruct no/run --count 0", "--count is 0, expected an integer from 1 to 100"),
        ("fill-mask no/run words --count 0", "--count is 0, expected an integer from 1 to 1,000,000,000,000"),
        ("plan no/data --seconds 0", "--seconds is 0, expected a number from 1 to 3,600"),
        ("plan no/data --hours soon", "--hours is soon, expected a number above 0, or None"),
        ("compare mae no/data --mae.mask-ratio 2", "--mask-ratio is 2, expected a number from 0 to 1"),
        ("compare mae no/data --finetune.epochs 0", "--epochs is 0, expected a number above 0"),
        ("pretrain no/data --model vit_tiny", "--model is vit_tiny: did you mean vit-tiny?"),
        ("pretrain no/data --device gpu0", "--device is gpu0, expected one of auto, cpu, cuda, mps"),
        ("export no/run --to tensorflow", "--to is tensorflow, expected one of timm, transformers, mae, safetensors, onnx"),
    ],
)
def test_sentences(argv, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv.split())
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"unveil: {sentence}")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: unveil.pretrain("no/data", epochs="three"), "epochs is 'three', expected a number above 0"),
        (lambda: unveil.pretrain("no/data", epochs=0), "epochs is 0, expected a number above 0"),
        (lambda: unveil.pretrain("no/data", batch_size=64.0), "batch_size is 64.0, expected an integer from 0"),
        (lambda: unveil.pretrain("no/data", image_size=(64, "64")), r"image_size is \(64, '64'\), expected integers from 1"),
        (lambda: unveil.pretrain("no/data", method="bert", mask_ratio=-0.1), "mask_ratio is -0.1, expected a number from 0 to 1"),
        (lambda: unveil.plan("no/data", seconds=0), "seconds is 0, expected a number from 1 to 3,600"),
        (lambda: unveil.plan("no/data", hours=-1), "hours is -1, expected a number above 0, or None"),
        (lambda: unveil.pack("no/data", "out", quality=101), "quality is 101, expected an integer from 1 to 100"),
        (lambda: unveil.embed("no/run", "no/data", batch_size=0), "batch_size is 0, expected an integer from 1"),
        (lambda: unveil.probe("no/run", neighbours=0), "neighbours is 0, expected an integer from 1 to 1,000,000,000,000"),
        (lambda: unveil.reconstruct("no/run", count=0), "count is 0, expected an integer from 1 to 100"),
        (lambda: unveil.compare("mae", "no/data", seeds=(0, -1)), r"seeds is \(0, -1\), expected integers from 0"),
        (lambda: unveil.compare("mae", "no/data", mae={"mask_ratio": 3}), "mask_ratio is 3, expected a number from 0 to 1"),
        (lambda: unveil.compare("mae", "no/data", finetune={"epochs": 0}), "epochs is 0, expected a number above 0"),
        (lambda: unveil.study("mask_ratio=0.5,1.5", "no/data"), "mask_ratio is 1.5, expected a number from 0 to 1"),
    ],
)
def test_python_refuses_them_before_data_is_read(call, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnveilError, match=f"^{match}"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_values_become_plain_python():
    for value, kind, expected in (
        (np.int64(5), Count, 5),
        (np.float32(0.5), Share, 0.5),
        (3, Positive, 3.0),
        (np.bool_(True), bool, True),
        (1, bool, True),
        ([64, np.int32(32)], tuple[Count, ...], (64, 32)),
        (64, tuple[Count, ...], (64,)),
        (None, Count | None, None),
        (Path("runs/dvae"), str, "runs/dvae"),
        ("runs", Path, Path("runs")),
        (object, Any, object),
    ):
        found = check_value("x", value, kind)
        assert (found, type(found)) == (expected, type(expected))


def test_words_of_a_command_line():
    assert from_words(["8", "9"], tuple[Count, ...]) == (8, 9)
    assert from_words(["None"], Count | None) is None
    assert from_words(["1e-3"], Positive | None) == 1e-3
    assert from_words(["many"], Count) == "many"
    assert from_words(["None"], Count) == "None"
    assert plain_type(tuple[Count, ...]) == tuple[int, ...]
    assert plain_type(Count | None) == (int | None)


def test_ranges_in_words():
    assert described(NonNegative) == "a number of 0 or more"
    assert described(ShareBelowOne) == "a number of at least 0 and below 1"
    assert described(tuple[Share, Share]) == "2 numbers from 0 to 1"
    assert described(Literal["a", "b"] | None) == "one of a, b, or None"


def test_options_of_a_plug_in_have_ranges_too(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom typing import Annotated\n\nfrom unveil.methods.mae import MAE, MAEConfig\n"
        "from unveil.ranges import Range\n\n\n@dataclass(frozen=True, kw_only=True)\nclass MyConfig(MAEConfig):\n"
        "    strength: Annotated[int, Range(1, 5)] = 2\n    free: float = 1.0\n\n\nclass Mine(MAE):\n    Config = MyConfig\n"
    )
    name = f"{tmp_path / 'mine.py'}:Mine"
    for words, sentence in (
        (["--strength", "6"], "--strength is 6, expected an integer from 1 to 5"),
        (["--free", "nan"], "--free is nan, expected a number"),
        (["--mask-ratio", "2"], "--mask-ratio is 2, expected a number from 0 to 1"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["pretrain", "no/data", "--method", name, *words])
        assert capsys.readouterr().err == f"unveil: {sentence}\n"
    assert isinstance(VERBS["pretrain"], Verb)
    assert dataclasses.is_dataclass(import_class(f"{tmp_path / 'mine.py'}:MyConfig"))
