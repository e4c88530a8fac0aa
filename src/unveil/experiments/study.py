"""`unveil study`: a method with a knob at several values, all else alike, as a curve with its spread."""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.experiments.compare import contest_of, tested_on
from unveil.experiments.runner import Comparison
from unveil.reports.run_info import spoken
from unveil.reports.study_page import Sweep, sweep_grid, write_study
from unveil.reports.table import terminal_grid
from unveil.runs.pretrain_setup import slug
from unveil.train.checkpoint import write_whole
from unveil.train.run_folder import show, tell


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: a method on DATA with a knob at several values."""

    method: str
    data: str
    knob: str
    values: tuple[Any, ...]
    title: str = ""
    """What it is called; the method and DATA by default."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options that are the same at every value, and are not shared with other lines."""
    labelled: str | None = None
    """Labelled data to fine-tune on; as the options say by default."""

    def comparison(self, folder: Path, options: Mapping[str, Any]) -> Comparison:
        """Its runs: each value is a contestant."""
        alone = {**self.fixed, **options.get(self.method, {})}
        each = [(f"{self.method}-{self.knob}-{value}", {**alone, self.knob: value}) for value in self.values]
        shared = {key: value for key, value in options.items() if not isinstance(value, Mapping) or key == "finetune"}
        return contest_of(each, self.data, folder, shared | ({"labelled": self.labelled} if self.labelled else {}))

    def sweep(self, comparison: Comparison) -> Sweep:
        """What the run folders say, as far as they have ended."""
        rows = comparison.rows()
        found = {row.name: row for row in rows if not row.yardstick}
        ended = [(value, found[name]) for value, name in zip(self.values, comparison.names, strict=True) if name in found]
        return Sweep(
            self.title or f"{self.method} on {self.data}",
            self.knob,
            [value for value, _ in ended],
            [row for _, row in ended],
            [row for row in rows if row.yardstick],
            tested_on(comparison),
        )


def study(
    what: str,
    data: str | Path = "digits",
    *,
    method: str = "mae",
    model: str | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> list[Sweep]:
    """Trains a method with a knob at several values, judges each run alike, and draws the curve; the same call again goes on.

    Args:
        what: `knob=value,value,...`, such as `mask_ratio=0.25,0.5,0.75`.
        data: See `unveil.data.sources.FORMS`.
        method: A name from `unveil.methods.METHODS`.
        model: As for `pretrain`.
        out: The folder for the runs, `study.json` and `report.html`; `runs/<data>-<method>-<knob>` by default.
        **options: As for `unveil.compare`.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    knob, values = knob_of(what)
    line = Line(method=method, data=str(data), knob=knob, values=values)
    folder = Path(out) if out else Path("runs") / f"{slug(str(data))}-{method}-{knob}"
    return draw({spoken(knob): {"": line}}, folder, f"{spoken(knob)} of {method} on {data}", {"model": model} | options)


def draw(groups: Mapping[str, Mapping[str, Line]], folder: Path, title: str, options: Mapping[str, Any]) -> list[Sweep]:
    """Trains the lines, and writes `study.json` and `report.html` after each run.

    Args:
        groups: Lines by the folder of their runs inside `folder`, by the heading under which they stand.
        folder: For all.
        title: What is studied.
        options: As for `study`.
    """
    contests = {
        heading: [(line, line.comparison(folder / name, options)) for name, line in lines.items()]
        for heading, lines in groups.items()
    }

    def write() -> dict[str, list[Sweep]]:
        sweeps = {heading: [line.sweep(comparison) for line, comparison in pairs] for heading, pairs in contests.items()}
        sweeps = {heading: ended for heading, found in sweeps.items() if (ended := [sweep for sweep in found if sweep.rows])}
        facts = next(comparison.facts for pairs in contests.values() for _, comparison in pairs)
        plain = {heading: [sweep.to_json() for sweep in found] for heading, found in sweeps.items()}
        write_whole(folder / "study.json", json.dumps(facts | {"sweeps": plain}, indent=1) + "\n")
        write_study(folder, title, sweeps, facts)
        return sweeps

    for pairs in contests.values():
        for _, comparison in pairs:
            comparison.run(write)
    ended = [sweep for found in write().values() for sweep in found]
    for sweep in ended:
        show(terminal_grid(sweep_grid(sweep)))
    tell(True)(f"The report: {folder / 'report.html'}")
    return ended


def knob_of(what: str) -> tuple[str, tuple[Any, ...]]:
    """The knob and its values out of `knob=value,value`: numbers where they can be read as such, else words."""
    knob, sign, listed = what.partition("=")
    words = [word.strip() for word in listed.split(",") if word.strip()]
    if not sign or not words:
        raise UnveilError(f"{what!r} is no knob with values: give for example mask_ratio=0.25,0.5,0.75")
    return knob.strip().replace("-", "_"), tuple(value_of(word) for word in words)


def value_of(word: str) -> Any:
    """A number, True, False, None, or the word itself."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
