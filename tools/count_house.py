"""Counts properties of the source that make it hard to read, and the size of the help pages.

    python tools/count_house.py [SRC_ROOT]

SRC_ROOT is the root of a checkout, or its `src`; by default the checkout that this file lies in. Everything is read from
the source with `ast`, without importing it. Only the last part, the width of each `--help`, runs `python -m unveil`.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = "unveil"
ROOT_CLASS = "Learner"
"""The base class of all learners."""
RECIPES = "recipes"
WIDE_FOLDERS = ("train", "runs", "recipes")
"""Folders whose functions are checked for too many parameters."""
MOST_PARAMETERS = 8
IMAGE_PATH = (
    "blocks/patches.py",
    "blocks/masks.py",
    "blocks/transformer.py",
    "models/vit.py",
    "learner.py",
    "methods/mae.py",
    "train/loop.py",
)
"""The files through which an image goes, from the loader to the loss and the step."""
COLUMNS = 80
"""Width of the terminal for which the help is counted."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Module:
    """A file of the package."""

    path: str
    """Path relative to the package."""
    name: str
    """Dotted name, starting with the package."""
    text: str
    tree: ast.Module = field(repr=False)
    house: dict[str, "Module"] = field(repr=False)
    """All files of the package by name, including this one."""

    @property
    def lines(self) -> int:
        """Number of lines."""
        return len(self.text.splitlines())

    @cached_property
    def imports(self) -> dict[str, str]:
        """Full names of everything that the file imports, by local name."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        return found

    def full_name(self, node: ast.expr) -> str:
        """The full name of `C`, `module.C` or `C[X]`; an empty string for anything else."""
        if isinstance(node, ast.Subscript):
            return self.full_name(node.value)
        if isinstance(node, ast.Attribute):
            return self.at_home(f"{self.full_name(node.value)}.{node.attr}")
        return self.at_home(self.imports.get(node.id, f"{self.name}.{node.id}")) if isinstance(node, ast.Name) else ""

    def at_home(self, name: str) -> str:
        """The full name of a definition, found through re-exports."""
        seen: set[str] = set()
        while name not in seen:
            seen.add(name)
            place, _, last = name.rpartition(".")
            if place in self.house:
                name = self.house[place].imports.get(last, name)
        return name


def modules_of(package: Path) -> list[Module]:
    """Reads all files of the package."""
    house: dict[str, Module] = {}
    for path in sorted(package.rglob("*.py")):
        text, place = path.read_text(encoding="utf-8"), path.relative_to(package)
        name = ".".join([PACKAGE, *place.with_suffix("").parts]).removesuffix(".__init__")
        house[name] = Module(place.as_posix(), name, text, ast.parse(text), house)
    return list(house.values())


# Learners ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Class:
    """A class of the package."""

    name: str
    home: str
    bases: list[str]
    """Full names of its base classes."""
    made: set[str]
    """Names of the methods that it defines."""
    asked: set[str]
    """Names of the abstract methods that it defines."""


def bare(node: ast.expr) -> str:
    """The last part of the full name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def classes_of(modules: list[Module]) -> dict[str, Class]:
    """Finds all classes by full name."""
    found = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, Function)]
                asked = {each.name for each in methods if any("abstract" in bare(mark) for mark in each.decorator_list)}
                made = {each.name for each in methods} - asked
                bases = [module.full_name(base) for base in node.bases]
                found[f"{module.name}.{node.name}"] = Class(node.name, module.path, bases, made, asked)
    return found


def ancestry(name: str, classes: dict[str, Class]) -> list[Class]:
    """A class and its ancestors within the package, nearest first."""
    if name not in classes:
        return []
    above = {id(each): each for base in classes[name].bases for each in ancestry(base, classes)}
    return [classes[name], *above.values()]


def concrete_learners(classes: dict[str, Class]) -> dict[str, Class]:
    """Concrete descendants of `ROOT_CLASS`: those without abstract methods."""
    found = {}
    for name, own in classes.items():
        line = ancestry(name, classes)
        if own.name == ROOT_CLASS or ROOT_CLASS not in [each.name for each in line]:
            continue
        made: set[str] = set()
        still_open: set[str] = set()
        for each in line:
            made |= each.made
            still_open |= each.asked - made
        if not still_open:
            found[name] = own
    return found


def groups_of(modules: list[Module]) -> dict[str, tuple[Module, ast.expr]]:
    """Module-level names for several classes, such as `Kind = A | B` or `KINDS = (A, B)`, by full name."""
    groups: dict[str, tuple[Module, ast.expr]] = {}
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.BinOp | ast.Tuple):
                groups |= {module.full_name(target): (module, node.value) for target in node.targets}
    return groups


def named_classes(node: ast.expr, module: Module, groups: dict[str, tuple[Module, ast.expr]]) -> set[str]:
    """Full names of the classes in a type check: a class, a tuple, a union, or a name for one of these."""
    if isinstance(node, ast.Tuple):
        return {name for each in node.elts for name in named_classes(each, module, groups)}
    if isinstance(node, ast.BinOp):
        return named_classes(node.left, module, groups) | named_classes(node.right, module, groups)
    name = module.full_name(node)
    if name in groups:
        home, value = groups[name]
        return named_classes(value, home, {other: group for other, group in groups.items() if other != name})
    return {name} if name else set()


def questions(module: Module) -> Iterator[tuple[str, int, ast.expr]]:
    """Type checks in a file (`isinstance`, `issubclass`, `type(x) is C`, `case C()`), with their lines and classes."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and bare(node.func) in ("isinstance", "issubclass") and len(node.args) == 2:
            yield bare(node.func), node.lineno, node.args[1]
        elif isinstance(node, ast.MatchClass):
            yield "case", node.cls.lineno, node.cls
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Call) and bare(node.left.func) == "type":
            for other in node.comparators:
                yield "type(x) is", node.lineno, other


def told_apart(modules: list[Module], learners: dict[str, Class]) -> list[tuple[str, str, list[str]]]:
    """All type checks for concrete learners: the kind of check, its place, and the classes."""
    groups, found = groups_of(modules), []
    for module in modules:
        for sort, line, node in sorted(questions(module), key=lambda each: each[1]):
            asked = sorted(learners[name].name for name in named_classes(node, module, groups) & learners.keys())
            if asked:
                found.append((sort, f"{module.path}:{line}", asked))
    return found


# Names and parameters ----------------------------------------------------------------------------------------------------------


def defined_names(module: Module) -> set[str]:
    """Functions, classes and constants defined at the top level of a file, including under an `if` or a `try`."""

    def of(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if isinstance(node, Function | ast.ClassDef):
                yield node.name
            elif isinstance(node, ast.Assign):
                yield from (each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.If | ast.Try):
                yield from of(node.body)
                yield from of(node.orelse)

    return {name for name in of(module.tree.body) if not (name.startswith("__") and name.endswith("__"))}


def repeated_names(modules: list[Module]) -> dict[str, list[str]]:
    """Names that several files define, with the files."""
    homes = defaultdict(list)
    for module in modules:
        for name in defined_names(module):
            homes[name].append(module.path)
    return {name: places for name, places in sorted(homes.items()) if len(places) > 1}


def parameters(function: Function) -> int:
    """Number of parameters, including `*args` and `**kwargs`, without `self` and `cls`."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [each.arg for each in (given.vararg, given.kwarg) if each]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def wide_functions(modules: list[Module]) -> list[tuple[int, str]]:
    """Functions with more than `MOST_PARAMETERS` parameters in some folders."""
    looked_at = [module for module in modules if module.path.split("/")[0] in WIDE_FOLDERS]
    functions = [(module, node) for module in looked_at for node in ast.walk(module.tree) if isinstance(node, Function)]
    found = [(parameters(node), f"{module.path}:{node.lineno} {node.name}") for module, node in functions]
    return sorted((each for each in found if each[0] > MOST_PARAMETERS), key=lambda each: (-each[0], each[1]))


def format_marks(package: Path) -> dict[str, int]:
    """Comments that turn the formatter off."""
    counts = {"fmt: skip": 0, "fmt: off": 0}
    for path in sorted(package.rglob("*.py")):
        with tokenize.open(path) as file:
            comments = [token.string for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
        for mark in counts:
            counts[mark] += sum(re.search(rf"\b{mark}\b", comment) is not None for comment in comments)
    return counts


# Help --------------------------------------------------------------------------------------------------------------------------


def help_of(source: Path, *words: str) -> str:
    """The output of `unveil ... --help` on a terminal of `COLUMNS` columns."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PYTHONPATH": str(source), "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", PACKAGE, *words, "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def verbs_of(overview: str) -> list[str]:
    """The commands that the overview lists."""
    return [match[1] for line in overview.splitlines() if (match := re.match(r"  ([a-z][a-z-]*(?: [a-z][a-z-]*)?)\s{2,}\S", line))]


def options_in(text: str) -> int:
    """Number of options in a help page, without `--help`; a switch and its `--no-` form count once."""
    heads = [line for line in text.splitlines() if re.match(r"[│|]?\s{0,4}(-\w(, |\|))?--\w", line)]
    return sum(not re.match(r"\W*-h\b|\W*--help\b", line) for line in heads)


def main() -> None:
    """Prints all counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent, metavar="SRC_ROOT")
    parser.add_argument("--no-help-pages", action="store_true", help="leave out the part that runs the command line")
    asked = parser.parse_args()
    source = asked.root.resolve() / "src" if (asked.root / "src").is_dir() else asked.root.resolve()
    package = source / PACKAGE
    if not package.is_dir():
        sys.exit(f"{package} is no folder: give the root of a checkout, or its src")
    modules = modules_of(package)
    by_path = {module.path: module for module in modules}

    print(f"the package: {len(modules)} files, {sum(module.lines for module in modules):,} lines")
    recipes = [module for module in modules if module.path.startswith(f"{RECIPES}/")]
    print(f"{RECIPES}/: {len(recipes)} files, {sum(module.lines for module in recipes):,} lines")

    print(f"the path of an image: {sum(by_path[path].lines for path in IMAGE_PATH if path in by_path):,} lines")
    for path in IMAGE_PATH:
        print(f"  {path:24} {by_path[path].lines if path in by_path else 'is not there'}")

    learners = concrete_learners(classes_of(modules))
    found = told_apart(modules, learners)
    print(f"concrete learners: {len(learners)}: {', '.join(sorted(f'{own.name} ({own.home})' for own in learners.values()))}")
    for sort in ("isinstance", "issubclass", "type(x) is", "case"):
        own = [(place, names) for each, place, names in found if each == sort]
        print(f"{sort} of a concrete learner: {len(own)}")
        for place, names in own:
            print(f"  {place}  {', '.join(names)}")

    repeated = repeated_names(modules)
    print(f"module-level names that several files define: {len(repeated)}")
    for name, places in repeated.items():
        print(f"  {name}: {', '.join(places)}")

    wide = wide_functions(modules)
    print(f"functions with more than {MOST_PARAMETERS} parameters in {', '.join(WIDE_FOLDERS)}: {len(wide)}")
    for count, place in wide:
        print(f"  {count:3}  {place}")

    for mark, count in format_marks(package).items():
        print(f"{mark}: {count}")

    if asked.no_help_pages:
        return
    verbs = verbs_of(help_of(source))
    print(f"help of {len(verbs)} verbs on {COLUMNS} columns: visible options, lines, and the widest line")
    for verb in verbs:
        text = help_of(source, *verb.split())
        lines = text.splitlines()
        print(f"  {verb:16} {options_in(text):3} options  {len(lines):4} lines  {max(map(len, lines)):3} columns")


if __name__ == "__main__":
    main()
