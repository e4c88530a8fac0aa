"""The report of a run: one HTML page in the run folder, without scripts, other files or network access."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.methods import METHODS
from unveil.models.last_blocks import trained_blocks
from unveil.reports.box_samples import boxes_section, precision_section
from unveil.reports.chance import within_chance
from unveil.reports.confusion import class_section
from unveil.reports.html import Markup, element, join_markup
from unveil.reports.map_samples import maps_section
from unveil.reports.map_section import map_section
from unveil.reports.mistakes import calibration_section, mistake_section, scatter_section
from unveil.reports.run_info import data_section, environment_section, resolved_options, settings_section, skipped_section
from unveil.reports.run_summary import conclusion, position_of_score
from unveil.reports.sections import (
    attention_section,
    curve_section,
    draw_samples,
    prediction_section,
    read_samples,
    reconstruction_section,
)
from unveil.reports.style import style_sheet
from unveil.reports.table import html_table
from unveil.reports.vocabulary import format_number, independent_count_of, primary_of
from unveil.train.run_folder import Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""The Content-Security-Policy, which does not allow the page to load anything."""
KINDS = {
    "pretrain": "pretrained on",
    "finetune": "fine-tuned on",
    "scratch": "trained from scratch on",
    "probe": "evaluated on",
    "translate": "a translation model trained on",
}
"""The wording of the title for each kind of run."""


def write_page(run: Run, learner: Learner | None) -> Path:
    """Writes `report.html` into a run folder. Sections for which the run has no data are left out.

    Args:
        run: The run.
        learner: Its trained model in eval mode, for figures of reconstructions and attention; None leaves them out.
    """
    draw_maps = partial(prediction_section, classes=run.results.get("classes") or [])
    builders: list[tuple[str, Callable[[], Markup | None]]] = [
        ("Results", lambda: html_table({**run.results, "scratch": scratch_score(run)}) or None),
        ("Curves", lambda: curve_section(run)),
        ("Predictions", lambda: draw_samples(run, learner, draw_maps) if has_maps(run) else maps_section(run, worst=False)),
        ("Detections", lambda: boxes_section(run, worst=False)),
        ("Worst images", lambda: maps_section(run, worst=True) or boxes_section(run, worst=True)),
        ("Precision", lambda: precision_section(run.results)),
        ("Reconstructions", lambda: draw_samples(run, learner, reconstruction_section)),
        ("Attention", lambda: draw_samples(run, learner, attention_section)),
        ("Mistakes", lambda: mistake_section(run.path / "mistakes.npz", learner)),
        ("Map", lambda: map_section(run)),
        ("Classes", lambda: class_section(run.results)),
        ("Calibration", lambda: calibration_section(run.results)),
        ("Numbers", lambda: scatter_section(run.results)),
        ("Data", lambda: data_section(data, sample_noun(run.facts.get("kind"))) if (data := run.facts.get("data")) else None),
        ("Skipped", lambda: skipped_section(run.path / "skipped.txt", run.results.get("unreadable") or {})),
        ("Settings", lambda: settings_section(config, resolved_options(run)) if (config := run.facts.get("config")) else None),
        ("Environment", lambda: environment_section(run.facts, run.results)),
    ]
    sections = [(name, body) for name, build in builders if (body := build())]
    version = (run.facts.get("versions") or {}).get("unveil")
    program = f"; trained with unveil {version}" if version else ""
    return write_document(run.path, *headline(run), sections, f"Generated from the run folder {run.path.name}{program}.")


def write_document(folder: Path, heading: Markup, title: str, sections: Sequence[tuple[str, Markup]], footer: str) -> Path:
    """Writes `report.html` into a folder, with a heading, named sections, and a footer."""
    path = folder / "report.html"
    text = "<!DOCTYPE html>\n" + document(heading, title, sections, footer) + "\n"
    write_text(path, text.encode("ascii", "xmlcharrefreplace").decode())  # ASCII is valid in every encoding
    return path


def document(heading: Markup, title: str, sections: Sequence[tuple[str, Markup]], footer: str) -> Markup:
    """The HTML of a whole document."""
    links = element("nav", *(element("a", name, href=f"#{anchor(name)}") for name, _ in sections), aria_label="Sections")
    bodies = [element("section", element("h2", name), body, id=anchor(name)) for name, body in sections]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style_sheet())),
    )
    body = element("body", element("header", heading, links), element("main", *bodies), element("footer", footer))
    return element("html", head, body, lang="en")


def anchor(name: str) -> str:
    """The identifier of a section, for links."""
    return name.lower().replace(" ", "-").replace(",", "")


def headline(run: Run) -> tuple[Markup, str]:
    """The heading of the page, with model, data and headline; and the title of the page."""
    title, sentences, line = headline_parts(run)
    parts = element("h1", title), element("p", sentences, class_="verdict"), element("p", line, class_="muted")
    return join_markup(parts), title


def headline_parts(run: Run) -> tuple[str, str, str]:
    """The title of the page of a run, the conclusion, and a line with the run, its data and its length."""
    config, data = run.facts.get("config") or {}, run.facts.get("data") or {}
    kind = str(run.facts.get("kind", "run"))
    model = " with ".join(str(each) for each in (method_name(config), config.get("model")) if each)
    if not model and config.get("from") and not config.get("scratch"):
        model = f"The encoder of {Path(str(config['from'])).name}"
    if kind == "finetune" and (part := trained_blocks(config.get("task", "finetune"), config.get("blocks"))):
        model = f"T{part[1:]} of {(model or 'a model').replace('The ', 'the ', 1)}"
    name, wording = str(data.get("name", "unnamed data")), "scratch" if config.get("scratch") else kind
    title = f"{model or 'A model'}, {KINDS.get(wording, f'({kind}) on')} {Path(name).name or name}"
    trained = (run.results.get("trained_on"), run.results.get("samples", "images"))
    counts = (trained, (data.get("count"), sample_noun(kind)), (data.get("texts"), "texts"))
    count = next((f"{number:,} {noun}" for number, noun in counts if isinstance(number, int)), "")
    epochs = config.get("epochs")
    facts = [count, f"{epochs:g} epoch{'s' * (epochs != 1)}" if isinstance(epochs, int | float) else ""]
    sentences = " ".join(filter(None, [conclusion(run.results), scratch_sentence(run)]))
    return title, sentences, " · ".join(["run " + run.path.name, *filter(None, facts)])


def scratch_score(run: Run) -> Mapping[str, Any]:
    """The score of the run from scratch beside a fine-tuning run; {} if there is none, or its other options or data differ."""
    config = run.facts.get("config") or {}
    if run.facts.get("kind") != "finetune" or config.get("scratch") or not config.get("from"):
        return {}
    names = (f"{run.path.name}-scratch", f"{Path(str(config['from'])).name}-scratch")
    return next((score for name in names if (score := score_if_scratch_of(run, run.path.with_name(name)))), {})


def score_if_scratch_of(run: Run, path: Path) -> Mapping[str, Any]:
    """The score of the run in `path`, if it is `run` from scratch; else {}."""
    try:
        config, other = run.facts["config"], Run(path)
        data, other_data = run.facts["data"], other.facts["data"]
        same = {**other.facts["config"], "from": config["from"], "scratch": False} == config
        same = same and all(other_data.get(key) == data.get(key) for key in ("fingerprint", "test_fingerprint"))
        same = same and (other.facts.get("encoder") or {}).get("shape") == (run.facts.get("encoder") or {}).get("shape")
        score: Mapping[str, Any] = other.results.get("score") or {}
    except (UnveilError, KeyError):
        return {}
    return score if same else {}


def scratch_sentence(run: Run) -> str:
    """A sentence that compares a fine-tuning run with the run from scratch beside it; "" if there is none."""
    primary, score = primary_of(run.results), scratch_score(run)
    if primary is None or primary not in score:
        return ""
    own, count = run.results["score"], independent_count_of(run.results["score"])
    by_chance = primary == "top1" and bool(count) and within_chance([own[primary]], [score[primary]], count)
    place = position_of_score(run.results, score[primary], by_chance)
    return f"It is {place} the same model from scratch ({format_number(primary, score[primary])})."


def method_name(config: Mapping[str, Any]) -> str | None:
    """The class name of the method of a run; None for a run without a method."""
    method = str(config.get("method") or "")
    return str(config.get("class") or METHODS.builtin.get(method, method)).rpartition(":")[2] or None


def sample_noun(kind: object) -> str:
    """The noun for the samples of a kind of run, in plural."""
    return "sentence pairs" if kind == "translate" else "images"


def has_maps(run: Run) -> bool:
    """Whether the samples of a run have class maps."""
    try:
        samples = read_samples(run.path / "samples.npz")
    except UnveilError:  # told where the reconstructions would be
        return False
    return samples is not None and samples.maps is not None
