"""The knobs that are read from the source against the dataclasses themselves."""

import dataclasses
import importlib
import inspect
import typing

import pytest

from unveil.cli import method_of
from unveil.commands import REQUIRED, VERBS
from unveil.errors import UnveilError
from unveil.methods import METHODS, TEXTS, defaults_of
from unveil.options import configure, literal, options_of, refuse_unknown

ALL = VERBS | {f"{name} of texts": verb.of_texts for name, verb in VERBS.items() if verb.of_texts}
PLACES = sorted(
    {place for verb in ALL.values() for place in verb.configs.values() if place != "METHOD"}
    | {f"{place}Config" for place in METHODS.values()}
)


def real(place: str) -> type:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("place", PLACES)
def test_knobs_are_the_fields_of_the_class(place):
    fields, found = dataclasses.fields(real(place)), options_of(place)
    kinds = typing.get_type_hints(real(place))
    assert [knob.name for knob in found] == [field.name for field in fields]
    for knob, field in zip(found, fields, strict=True):
        assert knob.default == field.default
        assert type(knob.default) is type(field.default)
        assert knob.type == kinds[knob.name]
        assert len(knob.help) > 5, f"{knob.name} has no docstring"
        assert knob.help.endswith("."), knob.help
        assert "\n" not in knob.help


@pytest.mark.parametrize("name", METHODS)
def test_the_command_line_finds_the_config_of_a_method(name):
    for argv in (["x", "--method", name], [f"--method={name}"]):
        assert method_of(argv) == name
    assert method_of([]) == method_of(["--method", "nonsense"]) == "mae"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_usual_for_a_method_are_knobs_of_its_command(name):
    verb = ALL["pretrain of texts" if name in TEXTS else "pretrain"]
    places = [f"{METHODS[name]}Config" if place == "METHOD" else place for place in verb.configs.values()]
    assert set(defaults_of(name)) <= {"model", *(knob.name for place in places for knob in options_of(place))}


@pytest.mark.parametrize("name", ALL)
def test_no_two_options_of_a_verb_share_a_name(name):
    verb = ALL[name]
    for method in METHODS.values():
        places = [f"{method}Config" if place == "METHOD" else place for place in verb.configs.values()]
        names = [*verb.arguments, *(knob.name for place in places for knob in options_of(place))]
        assert len(names) == len(set(names))
        if verb.defaults:
            module, _, attribute = verb.defaults.partition(":")
            defaults = literal(module, attribute)
            assert defaults == getattr(importlib.import_module(module), attribute)
            assert set(defaults) <= set(names)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_and_its_function_have_the_same_arguments(name):
    module, _, function = VERBS[name].call.partition(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    named = {key: p for key, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD and key != "say"}
    assert list(named) == list(VERBS[name].arguments)
    for key, argument in VERBS[name].arguments.items():
        required = named[key].default is inspect.Parameter.empty
        assert required == (argument.default is REQUIRED)
        if not required:
            assert named[key].default == argument.default
    assert bool(VERBS[name].configs) == any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def test_literal():
    assert literal("unveil.recipes.probe", "DEFAULTS")["optimizer"] == "sgd"
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


def test_options_are_dealt_out():
    assert configure({}, Left, Right) == [Left(), Right()]
    dealt = configure({"epochs": 2.0, "flip": False, "shared": 9}, Left, Right)
    assert dealt == [Left(epochs=2.0, shared=9), Right(shared=9, flip=False)]
    with pytest.raises(UnveilError, match="there is no option 'epoch'; did you mean epochs"):
        configure({"epoch": 2}, Left, Right)
    with pytest.raises(UnveilError, match="there is no option 'zzz'; there are: epochs, flip, shared"):
        configure({"zzz": 2}, Left, Right)
    refuse_unknown(["flip"], ["flip"])
