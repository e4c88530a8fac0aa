"""The model card of an exported model: Markdown with the metadata that the Hugging Face Hub reads, from what its run has recorded.

It holds no path of this machine and no name of a file of the data: folders appear with their last name only.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from unveil.errors import UnveilError
from unveil.interop.encoder_only import has_vit, vit_of
from unveil.interop.heads import keeps_head
from unveil.learner import Learner
from unveil.models.vit_config import ViTConfig
from unveil.plain_text import count_of, printable
from unveil.protocols import Classifies
from unveil.reports.page import headline_parts
from unveil.reports.run_info import held_out_from_train
from unveil.reports.run_summary import collapse_warning
from unveil.reports.snippets import snippet
from unveil.reports.table import ResultTable, result_tables, to_markdown
from unveil.reports.vocabulary import Results, percent
from unveil.train.run_cost import spell_time
from unveil.train.run_folder import Run

DATA_FACTS = {
    "trained_on": "training images",
    "count": "images listed",
    "texts": "training texts",
    "test_count": "test images",
    "test_texts": "test texts",
    "size": "size, px",
    "channels": "channels",
    "fingerprint": "fingerprint of the training data",
    "test_fingerprint": "fingerprint of the test data",
}
"""What a card says about data, with its labels."""
MAX_CLASSES = 100
"""Maximum number of class names on a card."""
MAX_ANCESTORS = 5
"""Maximum number of earlier runs, each of which the next one started from."""
ABSOLUTE = re.compile(r"^((?:--[\w-]+=)?(?:hf://)?)((?:/|~|\.\.|[A-Za-z]:\\).*?)[/\\]*$", re.DOTALL)
"""A word of a command that is an absolute path, perhaps after an option and a scheme: what stands before it, and the path."""
FOLDERS = re.compile(r"(?<!\S)(?:/|~|\.\.|[A-Za-z]:\\)[^\s,]*[/\\]")
"""The folders at the beginning of an absolute path in a sentence."""
FEW_TESTS = 100
"""With fewer test images, the limits say that accuracies are uncertain."""


class CardInputs(NamedTuple):
    """What a card says besides what the model and its run tell."""

    to: str
    """The format, as in `unveil export --to`."""
    licence: str | None
    """An identifier such as "apache-2.0"; None if the user gave none."""
    checked: str
    """How the export was compared with the original."""
    repository: str | None = None
    """Where it is uploaded on the Hub, as "user/name"."""


def model_card(
    learner: Learner, runs: Sequence[Run], written: Path, *, source: str, inputs: CardInputs, commands: Sequence[str] = ()
) -> str:
    """The model card, as Markdown that begins with metadata.

    Args:
        learner: The model, in eval mode.
        runs: Its run, then the runs that each of them started from; empty for a file, which records less.
        written: The exported file or folder.
        source: The name of what was exported.
        inputs: The format, the licence and more.
        commands: The commands that make the model again, in their order.
    """
    run = runs[0] if runs else None
    has_head = keeps_head(learner, inputs.to) if has_vit(learner) else isinstance(learner, Classifies)
    title = headline_parts(run)[0] if run else f"{type(learner).__name__} of {source}"
    code = snippet(
        inputs.to, written, repository=inputs.repository, channels=vit_of(learner).config.channels if has_vit(learner) else 3
    )
    sections: list[tuple[str, Sequence[str]]] = [
        ("How to use it", [code, f"On export: {in_text(inputs.checked)}."]),
        ("Images", image_lines(learner)),
        ("Classes", class_lines(learner) if has_head else []),
        ("Results", result_lines(run)),
        ("Training data", list(data_lines(runs))),
        ("Recipe", list(recipe_lines(runs, commands))),
        ("Limits", bullets(limits(learner, run, has_head))),
        ("Licence", licence_lines(inputs.licence, runs, source)),
    ]
    parts = [metadata(learner, inputs, has_head), f"# {in_text(title)}", headline(run, learner)]
    parts += [part for name, lines in sections if lines for part in (f"## {name}", *lines)]
    return "\n\n".join(parts) + "\n"


def ancestors(run: Run) -> Iterator[Run]:
    """The runs that a run started from, as far as their folders are still there."""
    for _ in range(MAX_ANCESTORS):
        config = run.facts.get("config") or {}
        source = None if config.get("scratch") else config.get("from") or config.get("init") or config.get("resume_from")
        try:
            run = Run(str(source))
        except UnveilError:  # weights of a file, or a run that was moved
            return
        yield run


def metadata(learner: Learner, inputs: CardInputs, has_head: bool) -> str:
    """The block that the Hub reads. JSON strings are YAML strings."""
    libraries = {"timm": "timm", "transformers": "transformers", "onnx": "onnx"}
    tags = ["unveil", *([] if inputs.to == "safetensors" else [inputs.to])]
    lines = [f"license: {inputs.licence or 'unknown'}", f"library_name: {libraries.get(inputs.to, 'unveil')}"]
    if learner.modality == "images":
        lines.append(f"pipeline_tag: image-{'classification' if has_head else 'feature-extraction'}")
    return "\n".join(["---", *lines, "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---"])


def headline(run: Run | None, learner: Learner) -> str:
    """What the model is, in one paragraph."""
    text = f"A {type(learner).__name__} with {count_parameters(learner):,} parameters"
    if has_vit(learner):
        vit = vit_of(learner).config
        patch, (height, width) = "x".join(map(str, vit.patch_size)), vit.image_size
        text = (
            f"A Vision Transformer of {vit.depth} blocks, {vit.width} dimensions and {vit.heads} heads, with patches of {patch} "
            f"pixels, for images of {height} x {width} pixels; its encoder has {count_parameters(vit_of(learner)):,} parameters"
        )
    return f"{text}. {in_text(headline_parts(run)[1])}" if run and run.results else f"{text}."


def count_parameters(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(each.numel() for each in module.parameters())


def image_lines(learner: Learner) -> list[str]:
    """How images are prepared, and which features the model has."""
    if not has_vit(learner):
        return []
    vit: ViTConfig = vit_of(learner).config
    height, width = vit.image_size
    crop = f"the short side is resized so that a centre crop of {height} x {width} keeps {vit.crop_pct:.4g} of it"
    if vit.crop_mode == "squash":
        crop = f"both sides are resized to {height} x {width}, which does not keep the shape"
    pooled = "the class token" if learner.pool == "class" else "the mean of the patch tokens"
    rows = [
        ["channels", f"{vit.channels}, {vit.bit_depth} bits"],
        ["size", f"{crop} ({vit.interpolation})"],
        ["mean", ", ".join(f"{value:.6g}" for value in vit.mean)],
        ["standard deviation", ", ".join(f"{value:.6g}" for value in vit.std)],
        ["features", f"{vit.width} dimensions: {pooled}"],
    ]
    return [markdown_table(["", "images of this model"], rows)]


def class_lines(learner: Learner) -> list[str]:
    """The names of the classes, in the order of the scores."""
    classes: Sequence[str] = getattr(learner, "classes", ())
    if not classes:
        return []
    shown = ", ".join(f"`{printable(name).replace('`', chr(39))}`" for name in classes[:MAX_CLASSES])
    more = f", and {len(classes) - MAX_CLASSES:,} more" if len(classes) > MAX_CLASSES else ""
    return [f"{count_of(len(classes), 'output')}, in this order: {shown}{more}."]


def result_lines(run: Run | None) -> list[str]:
    """The tables of the report, with their sentences."""
    tables = result_tables(run.results) if run else []
    if not tables:
        return ["Nothing was measured, or the file does not record it."]
    return [part for table in tables for part in (f"### {table.title}", to_markdown(escaped(table)))]


def escaped(table: ResultTable) -> ResultTable:
    """A table whose names of classes and test sets are safe in Markdown, and whose sentences name runs without their folders."""
    return table._replace(
        rows=[[in_text(cell) for cell in row] for row in table.rows],
        heads=[in_text(head) for head in table.heads],
        sentences=[in_text(FOLDERS.sub("", sentence)) for sentence in table.sentences],
    )


def data_lines(runs: Sequence[Run]) -> Iterator[str]:
    """A table about the data of each run. Fingerprints are checksums of every file: of its name and size, or of its pixels."""
    if not runs:
        yield "The file does not record it."
    for i, run in enumerate(runs):
        data = run.facts.get("data") or {}
        trained_on = run.results.get("trained_on") or run.results.get("images")
        key = "texts" if "texts" in data else "trained_on"
        data = data | ({key: trained_on} if isinstance(trained_on, int) else {})
        hidden = "test" if held_out_from_train(data) else "-"
        facts = {key: label for key, label in DATA_FACTS.items() if data.get(key) is not None and not key.startswith(hidden)}
        rows = [[label, shown_value(data[key])] for key, label in facts.items()]
        name = in_text(Path(str(data.get("name", "unnamed data"))).name)
        yield f"**{name}**{', of the run that it started from' if i else ''}:"
        if rows:
            yield markdown_table(["", "recorded"], rows)


def shown_value(value: object) -> str:
    """A fact about data as text."""
    if isinstance(value, list | tuple):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"`{value}`" if isinstance(value, str) else str(value)


def recipe_lines(runs: Sequence[Run], commands: Sequence[str]) -> Iterator[str]:
    """The commands, and where and when they ran."""
    if commands:
        yield "\n".join(["```sh", *(without_folders(command) for command in commands), "```"])
    for run in runs[:1]:
        versions, hardware = run.facts.get("versions") or {}, run.facts.get("hardware") or {}
        devices = ", ".join(hardware.get("gpus") or []) or count_of(int(hardware.get("cores") or 1), "CPU core")
        seconds, seed = run.results.get("seconds"), (run.facts.get("config") or {}).get("seed")
        facts = [
            f"unveil {versions['unveil']}" if versions.get("unveil") else "",
            f"commit {run.facts['commit']}" if run.facts.get("commit") else "",
            f"torch {versions['torch']}" if versions.get("torch") else "",
            f"seed {seed}" if seed is not None else "",
            f"{spell_time(seconds)} of training on {devices}" if seconds is not None else "",
            f"{run.results['images_seen']:,} images seen" if run.results.get("images_seen") else "",
            f"started on {str(run.facts['started'])[:10]}" if run.facts.get("started") else "",
        ]
        yield "; ".join(filter(None, facts)) + "."


def without_folders(command: str) -> str:
    """A command whose absolute paths are reduced to their last names."""
    words = (ABSOLUTE.sub(lambda found: found[1] + re.split(r"[/\\]", found[2])[-1], word) for word in shlex.split(command))
    return shlex.join(words)


def limits(learner: Learner, run: Run | None, has_head: bool) -> Iterator[str]:
    """What a user of the model should not assume, from what was and was not measured."""
    results: Results = run.results if run else {}
    score, judged = results.get("score") or {}, results.get("judged_on") or {}
    tested = score.get("count") or judged.get("test")
    samples = "texts" if learner.modality == "text" else "images"
    if tested:
        yield f"It was tested on {tested:,} {samples} of the data above, and on no others."
        if tested < FEW_TESTS:
            yield f"These are few: an accuracy on {tested:,} {samples} is uncertain by about {100 / tested**0.5:.0f} points."
    else:
        yield f"It was not tested on labelled {samples}."
    if results.get("kept_aside"):
        yield f"The test {samples} were kept aside at random from the same folder, so they may resemble those of training."
    warning = collapse_warning(results) if run else None
    if warning:
        yield warning
    yield from weak_classes(results)
    if has_vit(learner):
        height, width = vit_of(learner).config.image_size
        yield f"It sees {height} x {width} pixels of an image; smaller details, and what is outside of the crop, have no influence."
    if has_head and isinstance(learner, Classifies):
        yield "It gives one of its classes to every image, also to one of something else."
    yield "Robustness, bias and fairness were not examined."


def weak_classes(results: Results) -> Iterator[str]:
    """The class that is recognised least, if there are counts."""
    confusion, classes = (results.get("score") or {}).get("confusion"), results.get("classes") or []
    if not confusion or len(confusion) != len(classes) or len(classes) < 2:
        return
    found = [(row[i] / sum(row), sum(row), str(classes[i])) for i, row in enumerate(confusion) if sum(row)]
    if found:
        share, count, name = min(found)
        yield f"Of {count_of(count, 'tested image')} of the class {name!r}, {percent(share)} are recognised, fewest of all."
    untested = len(classes) - len(found)
    if untested:
        yield f"{count_of(untested, 'class', 'classes')} had no test image."


def licence_lines(licence: str | None, runs: Sequence[Run], source: str) -> list[str]:
    """The licence, and weights of others whose licence may apply as well."""
    others = [source] if not runs else []
    for run in runs:
        config = run.facts.get("config") or {}
        weights = [config.get(key) for key in ("from", "init", "teacher") if not (key == "from" and config.get("scratch"))]
        others += [str(path) for path in weights if path and not is_run(path)]
    lines = [f"{licence}." if licence else "No licence was given, so this card grants no rights."]
    if others:
        names = ", ".join(f"`{Path(name).name}`" for name in dict.fromkeys(others))
        lines.append(f"The licence of {names}, which it was made from, applies as well.")
    return lines


def is_run(path: object) -> bool:
    """Whether a path is a run folder."""
    return (Path(str(path)) / "run.json").is_file()


def bullets(lines: Iterator[str]) -> list[str]:
    """One Markdown list of lines."""
    return ["\n".join(f"- {in_text(line)}" for line in lines)]


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_text(text: str) -> str:
    """Text of a user in Markdown, on one line: neither tags, links and table columns, nor control characters."""
    return re.sub(r"([\\|<>\[\]*_#])", r"\\\1", printable(text).replace("\n", " "))
