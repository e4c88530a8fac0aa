"""Classes from outside of the package: how they are named, found, read and trusted."""

import importlib.metadata
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from unveil import methods, plugins
from unveil.command_line import form_of, groups_of
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.options import ClassSource, options_of
from unveil.plugins import Registry, absolute, home_of, import_class, import_file, name_of

BUILTIN = {"path": "pathlib:Path", "counter": "collections:Counter"}


@pytest.fixture(autouse=True)
def nothing_is_trusted(monkeypatch):
    monkeypatch.setattr(plugins, "_trusted", set())
    monkeypatch.setattr(plugins, "_classes", {})


@pytest.fixture
def registry() -> Registry:
    return Registry("method", BUILTIN)


def write(file: Path, text: str) -> str:
    """Writes a Python file; its name without a class."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


# How a class is named


def test_the_parts_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home_of("package.module:Class.Inner") == "package.module"
    assert home_of("/here/file.py:Class") == "/here/file.py"
    assert home_of("/here/file.py") == "/here/file.py"
    assert home_of("package.module") == "package.module"
    assert absolute("mine.py:Class") == f"{tmp_path / 'mine.py'}:Class"
    assert absolute("mine.py") == str(tmp_path / "mine.py")
    assert absolute("package.module:Class") == "package.module:Class"


def test_names_lead_to_classes(registry, tmp_path):
    file = write(tmp_path / "mine.py", "class Denoise:\n    class Inner: pass\n")
    assert registry.load("path") is Path
    assert registry.load("pathlib:Path") is Path
    assert registry.load(Path) is Path
    found = registry.load(f"{file}:Denoise")
    assert registry.load(f"{file}:Denoise") is found
    assert registry.load(f"{file}:Denoise.Inner") is found.Inner
    assert registry.find(found) == name_of(found) == f"{file}:Denoise"
    assert registry.label(found) == registry.label(f"{file}:Denoise") == "denoise"
    assert registry.label("path") == registry.label("pathlib:Path") == "path"
    assert import_file(Path(file)) is sys.modules[found.__module__]


def test_names_that_lead_nowhere(registry, tmp_path):
    file = write(tmp_path / "mine.py", "class Denoise: pass\n")
    with pytest.raises(UnveilError, match=r"there is no method 'pth'; did you mean path\? \(or \"package.module:Class\""):
        registry.find("pth")
    with pytest.raises(UnveilError, match="there is no method 'zzz'; use one of path, counter"):
        registry.find("zzz")
    with pytest.raises(UnveilError, match=rf"{file} names a file but no class: write {file}:MyClass"):
        registry.find(file)
    with pytest.raises(UnveilError, match=r"missing.py does not exist, so its class X cannot be loaded"):
        registry.load(str(tmp_path / "missing.py:X"))
    with pytest.raises(UnveilError, match=r"mine.py cannot be imported for its class Nope: AttributeError"):
        registry.load(f"{file}:Nope")
    with pytest.raises(UnveilError, match=r"no_such_module cannot be imported for its class X: ModuleNotFoundError"):
        registry.load("no_such_module:X")


def test_a_file_that_fails_is_not_left_half_imported(tmp_path):
    file = Path(write(tmp_path / "broken.py", "raise RuntimeError('no licence')\n"))
    for _ in range(2):
        with pytest.raises(UnveilError, match=r"broken.py:1 cannot be imported for its class X: RuntimeError: no licence"):
            import_class(f"{file}:X")
    assert not any(name.startswith("unveil_plugin_broken") for name in sys.modules)


def test_files_of_the_same_name_are_different_modules(tmp_path):
    one, two = (write(tmp_path / name / "mine.py", f"class X:\n    origin = {name!r}\n") for name in ("one", "two"))
    assert [import_class(f"{file}:X").origin for file in (one, two)] == ["one", "two"]


def test_a_class_of_a_script_is_found_in_its_file(tmp_path):
    script = write(
        tmp_path / "script.py",
        "from unveil.plugins import import_class, name_of\n"
        "class Mine: pass\n"
        "if __name__ == '__main__':\n"
        "    print(name_of(Mine))\n"
        "    from unveil import plugins; plugins._classes.clear()\n"
        "    print(import_class(name_of(Mine)) is Mine)\n",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{script}:Mine", "True"]
    code = "from unveil.plugins import name_of\nclass Mine: pass\nname_of(Mine)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Mine was defined in an interactive session: move it to a file" in done.stderr


# Entry points


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package with a method, installed as a wheel would be."""
    write(tmp_path / "site/denoising/__init__.py", "from .method import Denoise as Denoise\n")
    write(tmp_path / "site/denoising/base.py", "class Base:\n    modality = 'images'\n    DEFAULTS = {'epochs': 3.0}\n")
    write(
        tmp_path / "site/denoising/method.py",
        "from dataclasses import dataclass\nfrom . import base\nfrom .base import Base\n\n"
        "@dataclass(frozen=True)\nclass Options:\n    noise: float = 1.0\n    '''Strength of the noise.'''\n\n"
        "class Denoise(Base):\n    Config = Options\n\nclass Other(base.Base):\n    Config = Options\n",
    )
    write(tmp_path / "site/denoising-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: denoising\nVersion: 1.0\n")
    write(
        tmp_path / "site/denoising-1.0.dist-info/entry_points.txt",
        "[unveil.methods]\ndenoise = denoising:Denoise\npath = denoising:Denoise\n",
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    for name in [name for name in sys.modules if name.startswith("denoising")]:
        del sys.modules[name]


def test_entry_points_are_in_the_table(installed, registry):
    assert registry.names == ["path", "counter", "denoise"]
    assert registry.find("path") == "pathlib:Path"  # a plug-in does not replace what is built in
    found = registry.load("denoise")
    assert found.__name__ == "Denoise"
    assert Registry("task", {}).names == [each.name for each in importlib.metadata.entry_points(group="unveil.tasks")]


def test_an_installed_class_needs_no_trust(installed, registry):
    found = registry.load("denoise")
    assert registry.label(found) == "denoise"
    plugins._trusted.clear()
    facts = registry.describe(found)
    assert facts["method"] == "denoise"
    assert registry.recorded(facts, "runs/x") is found


def test_the_source_of_a_package_is_read_without_importing_it(installed):
    source = ClassSource.find("denoising:Denoise")
    assert source.config() == "denoising.method:Options"
    assert source.literal("modality") == "images"
    assert source.literal("DEFAULTS") == {"epochs": 3.0}
    assert ClassSource.find("denoising.method:Other").literal("DEFAULTS") == {"epochs": 3.0}
    assert [(option.name, option.help) for option in options_of(source.config())] == [("noise", "Strength of the noise.")]
    assert not any(name.startswith("denoising") for name in sys.modules)


# What config.json records, and who may import it


def test_a_builtin_class_is_recorded_by_its_name(registry):
    registry = Registry("method", {"registry": "unveil.plugins:Registry"})
    assert registry.describe(Registry) == {"method": "registry"}
    assert registry.recorded({"method": "registry"}, "runs/x") is Registry


def test_a_run_folder_alone_imports_nothing(registry, tmp_path):
    marker = tmp_path / "imported"
    file = write(tmp_path / "mine.py", f"open({str(marker)!r}, 'w').close()\nclass Denoise: pass\n")
    facts = {"method": "denoise", "class": f"{file}:Denoise"}
    with pytest.raises(UnveilError) as caught:
        registry.recorded(facts, "runs/x")
    assert f"runs/x needs the method 'denoise' from {file}, which is not part of unveil" in str(caught.value)
    assert f"add --trust {file} (Python: trust={file!r})" in str(caught.value)
    assert not marker.exists()
    plugins.trust(file)
    assert registry.recorded(facts, "runs/x").__name__ == "Denoise"
    assert marker.exists()


@pytest.mark.parametrize("way", ["file.py", "file.py:Class", "method="])
def test_ways_to_trust_a_file(registry, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "mine.py", "class Denoise: pass\n")
    if way == "method=":
        registry.find("mine.py:Denoise")
    else:
        plugins.trust(way.replace("file", "mine").replace("Class", "Denoise"))
    assert registry.recorded({"method": "denoise", "class": f"{file}:Denoise"}, "runs/x").__name__ == "Denoise"
    with pytest.raises(UnveilError, match="add --trust"):
        registry.recorded({"method": "other", "class": f"{tmp_path / 'other.py'}:Other"}, "runs/x")


def test_trust_in_a_module(registry):
    facts = {"method": "fraction", "class": "fractions:Fraction"}
    with pytest.raises(UnveilError, match="add --trust fractions "):
        registry.recorded(facts, "runs/x")
    plugins.trust(None)
    plugins.trust("fractions")
    assert registry.recorded(facts, "runs/x").__name__ == "Fraction"


def test_a_file_that_has_moved(registry, tmp_path):
    file = write(tmp_path / "new/mine.py", "class Denoise: pass\n")
    facts = {"method": "denoise", "class": f"{tmp_path / 'old/mine.py'}:Denoise"}
    with pytest.raises(UnveilError, match="add --trust"):
        registry.recorded(facts, "runs/x")
    plugins.trust(file)
    assert name_of(registry.recorded(facts, "runs/x")) == f"{file}:Denoise"


def test_a_class_that_is_gone(registry, tmp_path):
    file = tmp_path / "mine.py"
    with pytest.raises(UnveilError, match=r"mine.py does not exist, so it cannot be trusted"):
        plugins.trust(file)
    file.touch()
    plugins.trust(file)
    file.unlink()
    with pytest.raises(UnveilError, match=r"mine.py does not exist, so its class Denoise cannot be loaded: restore the file"):
        registry.recorded({"method": "denoise", "class": f"{file}:Denoise"}, "runs/x")


def test_a_plug_in_may_be_called_like_a_builtin(registry, tmp_path):
    file = write(tmp_path / "mine.py", "class Path: pass\n")
    found = registry.load(f"{file}:Path")
    assert registry.describe(found) == {"method": "path", "class": f"{file}:Path"}
    assert registry.recorded(registry.describe(found), "runs/x") is found


# Options, as they stand in the file

HEAD = (
    "import dataclasses\nfrom dataclasses import dataclass\nfrom typing import ClassVar, Literal\n"
    "Side = tuple[int, int]\nBASE = 3\n\n"
)


def read(tmp_path: Path, body: str, name: str = "Options", head: str = HEAD) -> dict[str, tuple[object, object]]:
    """Type and default of each option of a class; the dataclass itself says the same."""
    file = write(tmp_path / "mine.py", head + body)
    found = options_of(f"{file}:{name}")
    real = import_class(f"{file}:{name}")
    assert [option.name for option in found] == [field.name for field in fields(real)]
    assert [option.default for option in found] == [getattr(real(), option.name) for option in found]
    return {option.name: (option.type, option.default) for option in found}


@pytest.mark.parametrize(
    ("line", "kind", "default"),
    [
        ("x: int = 2 ** 5", int, 32),
        ("x: int = BASE", int, 3),
        ("x: float = -1e-3", float, -1e-3),
        ("x: 'int' = 4", int, 4),
        ("x: Side = (4, 5)", tuple[int, int], (4, 5)),
        ("x: 'Side | None' = None", tuple[int, int] | None, None),
        ("x: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))", tuple[int, ...], (1, 2)),
        ("x: int = dataclasses.field(default=7, metadata={})", int, 7),
        ("x: str = 'a' 'b'", str, "ab"),
        ("x: bool = not BASE", bool, False),
    ],
)
def test_any_default_and_any_type(tmp_path, line, kind, default):
    body = f"@dataclass(frozen=True, kw_only=True)\nclass Options:\n    {line}\n    '''The side.'''\n"
    assert read(tmp_path, body) == {"x": (kind, default)}
    assert read(tmp_path / "future", body, head=f"from __future__ import annotations\n{HEAD}") == {"x": (kind, default)}


def test_inherited_hidden_and_class_variables(tmp_path):
    body = (
        "@dataclass(frozen=True)\nclass Base:\n    HIDDEN = ('a',)\n    a: int = 1\n    '''A.'''\n    b: int = 2\n    '''B.'''\n\n"
        "@dataclass(frozen=True)\nclass Options(Base):\n    LIMIT: ClassVar[int] = 5\n    b: int = 3\n"
        "    '''B again,\n    longer.'''\n"
        "    c: int = 4\n\n    def double(self): return 2 * self.c\n"
    )
    assert list(read(tmp_path, body)) == ["a", "b", "c"]
    found = {option.name: option for option in options_of(f"{tmp_path / 'mine.py'}:Options")}
    assert (found["a"].hidden, found["b"].hidden) == (True, False)
    assert (found["b"].help, found["b"].default, found["c"].help) == ("B again, longer.", 3, "")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("@dataclass\nclass Options:\n    x: int\n", "{file}:9: option 'x' of {file}:Options has no default: give it one"),
        ("class Options:\n    x: int = 3\n", "{file}:7: Options holds options, so it must be a dataclass: write @dataclass"),
        (
            "@dataclass\nclass Options:\n    x: Nope = 3\n",
            "{file}:9 cannot be imported for its class Options: NameError: name 'Nope'",
        ),
        ("@dataclass\nclass Options:\n    x: int = nope()\n", "{file}:9 cannot be imported for its class Options: NameError"),
        ("@dataclass\nclass Options:\n    x: 'Nope' = 3\n", "{file}:9: the option 'x' cannot be read"),
        ("@dataclass\nclass Options:\n    x: dict = None\n", "{file}:9: the option 'x' has the type dict, which cannot be given"),
        (
            "@dataclass\nclass Options:\n    x: list[int] = dataclasses.field(default_factory=list)\n",
            "{file}:9: the option 'x' has the type list[int], which cannot be given on the command line: use int, float",
        ),
        ("class Other: pass\n", "{file} has no class 'Options' at its top level"),
        ("class Options:\n    x: = 3\n", "{file}:8 is not valid Python: invalid syntax"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence_with_file_and_line(tmp_path, body, sentence):
    file = write(tmp_path / "mine.py", HEAD + body)
    with pytest.raises(UnveilError) as caught:
        options_of(f"{file}:Options")
    assert str(caught.value).startswith(sentence.format(file=file))
    assert "\n" not in str(caught.value)


METHOD = (
    "from dataclasses import dataclass\nimport unveil.learner as promise\nfrom unveil.learner import Method\n\n"
    "@dataclass(frozen=True, kw_only=True)\nclass Settings:\n    noise: float = 1.0\n    '''Strength of the noise.'''\n\n"
)


@pytest.mark.parametrize(
    ("body", "config"),
    [
        ("class Mine(Method):\n    Config = Settings\n", "Settings"),
        ("class Mine(promise.Method):\n    Config = Settings\n", "Settings"),
        ("class Mine(Method):\n    Config, DEFAULTS = Settings, {'epochs': 3.0}\n", "Settings"),
        ("class Mine(Method):\n    @dataclass(frozen=True)\n    class Config:\n        noise: float = 1.0\n", "Mine.Config"),
        ("class Base(Method):\n    Config = Settings\n\nclass Mine(Base):\n    modality = 'images'\n", "Settings"),
        ("class Mine(*[Method]):\n    Config = [Settings][0]\n", "Settings"),
        ("class Mine(Method):\n    Config: type = Settings\n    modality: str = 'images'\n", "Settings"),
    ],
)
def test_the_options_of_a_method_are_found_whatever_they_are_called(tmp_path, body, config):
    file = write(tmp_path / "mine.py", METHOD + body)
    name = f"{file}:Mine"
    assert methods.method_source(name).config() == f"{file}:{config}"
    assert methods.modality_of_method(name) == "images"
    argv = ["photos", "--method", name]
    groups, _ = groups_of(form_of("pretrain", VERBS["pretrain"], argv), argv)
    assert [option.name for option in groups["method"]] == ["noise"]
    if "DEFAULTS" in body:
        assert methods.method_defaults(name) == {"epochs": 3.0}
        assert {option.name: option.default for option in groups["training"]}["epochs"] == 3.0


def test_a_method_without_a_config(tmp_path):
    file = write(tmp_path / "mine.py", METHOD + "class Mine(Method):\n    pass\n")
    with pytest.raises(UnveilError, match=rf"{file}:10: class Mine has no `Config`: assign it a frozen dataclass"):
        methods.method_source(f"{file}:Mine").config()


@pytest.mark.parametrize("argv", [["--help"], ["--noise", "2"], ["--nois", "2"]])
def test_a_method_in_a_file_on_the_command_line(tmp_path, argv):
    file = write(tmp_path / "mine.py", METHOD + "class Mine(Method):\n    Config = Settings\n")
    command = [sys.executable, "-m", "unveil", "pretrain", str(tmp_path / "missing"), "--method", f"{file}:Mine", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"COLUMNS": "80"})
    if argv[0] == "--help":
        assert done.returncode == 0
        assert "--noise FLOAT" in done.stdout
        assert "Strength of the noise. (default: 1.0)" in done.stdout
    elif argv[0] == "--nois":
        assert (done.returncode, done.stderr) == (2, "unveil: pretrain has no option --nois; did you mean --noise?\n")
    else:
        assert done.returncode == 1
        assert done.stderr.startswith("unveil: no file or folder")


def test_a_module_from_beside_a_script_is_found_by_its_file(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_trusted", set())
    file = tmp_path / "beside_a_script.py"
    file.write_text("class Mine:\n    pass\n")
    plugins.trust(file)
    assert registry.recorded({"method": "mine", "class": "beside_a_script:Mine"}, "runs/x").__name__ == "Mine"
