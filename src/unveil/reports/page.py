"""The report of a run: one page in the run folder that needs no other file, no network, and no script."""

from collections.abc import Callable, Sequence
from pathlib import Path

from unveil.learner import Learner
from unveil.methods import METHODS
from unveil.reports.html import Markup, element, join
from unveil.reports.run_info import data_section, receipt_section, settings_section, skipped_section
from unveil.reports.sections import attention_section, class_results, curve_section, drawn, reconstruction_section
from unveil.reports.style import style_sheet
from unveil.reports.table import html_table
from unveil.reports.verdict import verdict
from unveil.train.checkpoint import write_whole
from unveil.train.run_folder import Run

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
KINDS = {"pretrain": "pretrained on", "finetune": "fine-tuned on", "probe": "judged on"}


def write_page(run: Run, learner: Learner | None) -> Path:
    """Writes `report.html` into a run folder; what the run does not have is left out, or said to be missing.

    Args:
        run: The run.
        learner: Its trained model, in eval mode, to draw reconstructions and attention with; None leaves them out.
    """
    makers: list[tuple[str, Callable[[], Markup | None]]] = [
        ("Results", lambda: html_table(run.results) or None),
        ("Curves", lambda: curve_section(run)),
        ("Reconstructions", lambda: drawn(run, learner, reconstruction_section)),
        ("Attention", lambda: drawn(run, learner, attention_section)),
        ("Classes", lambda: class_results(run)),
        ("Data", lambda: data_section(data) if (data := run.facts.get("data")) else None),
        ("Skipped", lambda: skipped_section(run.path / "skipped.txt")),
        ("Settings", lambda: settings_section(config) if (config := run.facts.get("config")) else None),
        ("Receipt", lambda: receipt_section(run.facts, run.results)),
    ]
    made = [(name, body) for name, make in makers if (body := make())]
    version = (run.facts.get("versions") or {}).get("unveil")
    made_by = f", trained with unveil {version}" if version else ""
    return write_document(run.path, *headline(run), made, f"Written from the run folder {run.path.name}{made_by}.")


def write_document(folder: Path, heading: Markup, title: str, made: Sequence[tuple[str, Markup]], foot: str) -> Path:
    """Writes `report.html` into a folder: a heading, sections by name, and a last line."""
    path = folder / "report.html"
    text = "<!DOCTYPE html>\n" + document(heading, title, made, foot) + "\n"
    write_whole(path, text.encode("ascii", "xmlcharrefreplace").decode())  # whatever the system's encoding is
    return path


def document(heading: Markup, title: str, made: Sequence[tuple[str, Markup]], foot: str) -> Markup:
    """The whole document."""
    links = element("nav", *(element("a", name, href=f"#{name.lower()}") for name, _ in made), aria_label="Sections")
    sections = [element("section", element("h2", name), body, id=name.lower()) for name, body in made]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(style_sheet())),
    )
    body = element("body", element("header", heading, links), element("main", *sections), element("footer", foot))
    return element("html", head, body, lang="en")


def headline(run: Run) -> tuple[Markup, str]:
    """What was trained on what, and a sentence on how it went; and the title of the page."""
    config, data = run.facts.get("config") or {}, run.facts.get("data") or {}
    called = {key: place.rpartition(":")[2] for key, place in METHODS.items()}
    kind = str(run.facts.get("kind", "run"))
    names = [called.get(str(config.get("method")), config.get("method")), config.get("model")]
    what = " with ".join(str(each) for each in names if each) or "a model"
    name = str(data.get("name", "unnamed data"))
    title = f"{what}, {KINDS.get(kind, f'({kind}) on')} {Path(name).name or name}"
    counts = ((data.get("count"), "images"), (data.get("texts"), "texts"))
    count = next((f"{number:,} {what}" for number, what in counts if isinstance(number, int)), "")
    epochs = config.get("epochs")
    facts = [count, f"{epochs:g} epoch{'s' * (epochs != 1)}" if isinstance(epochs, int | float) else ""]
    below = element("p", " · ".join(["run " + run.path.name, *filter(None, facts)]), class_="quiet")
    return join([element("h1", title), element("p", verdict(run.results), class_="verdict"), below]), title
