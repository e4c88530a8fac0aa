"""Tables of results, for a terminal, for a page and as Markdown."""

import math
from collections.abc import Callable, Mapping
from shutil import get_terminal_size
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unveil.plain_text import printable
from unveil.reports.html import Markup, element, join_markup, prose, table_element
from unveil.reports.run_summary import collapse_warning, comparisons, error_sentences, word_sentence
from unveil.reports.vocabulary import (
    CLASSIFIER_LABELS,
    ENCODER_LABELS,
    HELD_OUT_ERRORS,
    SPREAD,
    WORD_PREDICTORS,
    Results,
    format_number,
    is_behind,
    label_of,
    numbers_of,
    percent,
    primary_of,
    tests_of,
)

SPREAD_NOTE = (
    "The standard deviation is that of features scaled to unit length: 0 if all are the same, 1 if all directions are equally "
    "likely. RankMe is the effective number of dimensions."
)
COLUMN_GAP = 3
"""Number of spaces between columns in a terminal."""
OWN_ROWS = (ENCODER_LABELS["encoder"], HELD_OUT_ERRORS["held_out_error"])
"""Names of the rows of the evaluated model, which are highlighted."""


COMPARED_SCORES = {"probe": "linear probe", "scratch": "from scratch"}
"""Other scores of `results.json` on the same test set, with the headings of their columns."""


class ResultTable(NamedTuple):
    """A table with a title and notes."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    sentences: list[str]


def with_warning(table: ResultTable, warning: str) -> ResultTable:
    """The table with a warning as its first note, for where it is shown on its own; pages have theirs at the top."""
    return table._replace(sentences=[warning, *table.sentences]) if warning else table


def terminal_table(results: Results) -> RenderableType:
    """The results as tables for a terminal, with notes below each table."""
    parts: list[RenderableType] = [part for table in result_tables(results) for part in (to_terminal(table), Text(""))]
    if not parts:
        if results.get("score"):
            return Text("The test samples have nothing to score, such as objects.")
        return Text("No samples were held out, so nothing was evaluated." if results else "There are no results yet.")
    return Group(*parts[:-1])


def to_terminal(table: ResultTable) -> RenderableType:
    """A table for a terminal, split into several tables if its columns do not fit side by side."""
    pieces, screen = [], get_terminal_size().columns
    widest = [max(map(len, column)) for column in zip(table.heads, *table.rows, strict=True)]
    for columns in split_columns(table, screen):
        fits = sum(widest[i] + COLUMN_GAP for i in columns) <= screen
        piece = Table(header_style="dim", box=None, padding=(0, COLUMN_GAP, 0, 0))
        for i in columns:
            width = None if fits else narrowest(table)[i]  # rich would cut words of some headings rather than wrap others
            piece.add_column(printable(table.heads[i]), justify="right" if i else "left", no_wrap=i == 0, width=width)
        for row in table.rows:
            piece.add_row(*(Text(printable(row[i])) for i in columns), style="bold" if row[0] in OWN_ROWS else None)
        pieces.append(piece)
    return Group(Text(printable(table.title), style="bold"), *pieces, *(Text(printable(sentence)) for sentence in table.sentences))


def split_columns(table: ResultTable, width: int) -> list[list[int]]:
    """The columns of each table when a table is split to fit `width` characters. Each of them begins with the first column."""
    widths = [each + COLUMN_GAP for each in narrowest(table)]
    pieces: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(pieces[-1]) > 1 and sum(widths[j] for j in pieces[-1]) + widths[i] > width:
            pieces.append([0])
        pieces[-1].append(i)
    return pieces


def narrowest(table: ResultTable) -> list[int]:
    """The smallest width of each column: a heading may be wrapped between words, but a number may not."""
    return [max([*(len(row[i]) for row in table.rows), *map(len, head.split())], default=0) for i, head in enumerate(table.heads)]


def html_table(results: Results) -> Markup:
    """The results as HTML tables."""
    return join_markup(to_html(table) for table in result_tables(results))


def to_html(table: ResultTable) -> Markup:
    """A table as HTML."""
    cells = [[row[0], *(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row[1:])] for row in table.rows]
    class_ = "numbers ours" if table.rows[0][0] in OWN_ROWS else "numbers"
    markup = table_element(table.heads, cells, title=table.title, class_=class_)
    return join_markup([markup, *(element("p", prose(sentence)) for sentence in table.sentences)])


def to_markdown(table: ResultTable) -> str:
    """A table as Markdown, with notes below."""
    lines = [table.heads, ["---", *("---:" for _ in table.heads[1:])], *table.rows]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *(f"\n{sentence}" for sentence in table.sentences)])


def result_tables(results: Results) -> list[ResultTable]:
    """All tables for which the results have numbers."""
    builders: tuple[Callable[[Results], ResultTable | None], ...] = (
        metric_table,
        translation_table,
        feature_table,
        spread_table,
        error_table,
        validation_table,
        word_table,
    )
    return [table for build in builders if (table := build(results))]


def metric_table(results: Results) -> ResultTable | None:
    """The metrics of a task."""
    metric = results.get("score")
    if not metric:
        return None
    per_class = metric.get("per_class") or []
    numbers = numbers_of(metric)
    if "top5" in numbers and 0 < len(per_class) <= 5:
        del numbers["top5"]  # always 100 %
    count, samples = metric.get("count"), results.get("samples", "images")
    title = f"Results on {tests_of(count, samples)}" if count is not None else "Results on the test set"
    others = {name: results[key] for key, name in COMPARED_SCORES.items() if results.get(key)}
    rows = []
    for key, value in numbers.items():
        compared = (format_number(key, other[key]) if key in other else "" for other in others.values())
        rows.append([label_of(key), format_number(key, value), *compared])
    unseen = results.get("unseen_classes")
    sentences = cautions(results) + ([unseen_sentence(unseen, count or 0, samples)] if unseen else [])
    sentences += [sentence for sentence in (chosen_sentence(results), probe_warning(results)) if sentence]
    own = "fine-tuned" if others else "value"
    return ResultTable(title, ["metric", own, *others], rows, sentences) if rows else None


def cautions(results: Results) -> list[str]:
    """Sentences on test samples that were trained on."""
    return [f"Warning: {clause}." for clause in results.get("cautions") or []]


def chosen_sentence(results: Results) -> str:
    """Which checkpoint the validation set has chosen; "" without one."""
    chosen = results.get("validation") or {}
    if not chosen.get("steps_planned"):
        return ""
    step, done, planned, key = (chosen[name] for name in ("step", "steps_done", "steps_planned", "metric"))
    count, samples = results.get("validated_on", 0), results.get("samples", "images")
    value = f"{label_of(key)} {format_number(key, chosen['value'])} on {count:,} validation {samples}"
    early = f" Training was stopped early, at step {done:,}." if done < planned else ""
    if not step:
        return f"No step was better than the linear probe from which training started ({value}), so that is kept.{early}"
    return f"The weights are those of step {step:,} of {planned:,}, the best ones by validation ({value}).{early}"


def probe_warning(results: Results) -> str:
    """A warning if fine-tuning is behind the linear probe of the same encoder on the same labels; "" otherwise."""
    primary, probe, score = primary_of(results), results.get("probe") or {}, results.get("score") or {}
    if primary is None or primary not in probe or primary not in score or not is_behind(results, probe[primary]):
        return ""
    return (
        f"Warning: fine-tuning is behind the linear probe of the same encoder on the same labels "
        f"({format_number(primary, probe[primary])}). Use `unveil probe`, more --epochs or another --base-lr."
    )


def unseen_sentence(unseen: Mapping[str, int], tested: int, samples: str = "images") -> str:
    """A sentence about test images of classes that training lacks, with their counts."""
    shown = ", ".join(f"{name}: {count:,}" for name, count in list(unseen.items())[:5])
    more = f", ... ({len(unseen):,} classes)" if len(unseen) > 5 else ""
    return (
        f"{sum(unseen.values()):,} of {tested:,} test {samples} have a class that no training sample has ({shown}{more}): "
        f"they count as wrong"
    )


def translation_table(results: Results) -> ResultTable | None:
    """BLEU of a translation run on each test set."""
    bleu = results.get("bleu")
    if not bleu:
        return None
    rows = [[name, f"{row['greedy']:.2f}", f"{row['beam']:.2f}"] for name, row in bleu.items()]
    return ResultTable("BLEU (sacrebleu, detokenised)", ["test set", "greedy", f"beam of {results['beams']}"], rows, [])


def feature_table(results: Results) -> ResultTable | None:
    """Accuracy of frozen features, compared with an untrained encoder and raw pixels."""
    features = results.get("features")
    if not features:
        return None
    columns = list(dict.fromkeys(column for values in features.values() for column in values))
    rows = [
        [ENCODER_LABELS.get(row, row), *(percent(values[column]) if column in values else "" for column in columns)]
        for row, values in features.items()
    ]
    counts, title = results.get("judged_on"), "Accuracy of frozen features"
    if counts:
        title += f": {counts['train']:,} training and {counts['test']:,} test images of {counts['classes']:,} classes"
    heads = ["features", *(CLASSIFIER_LABELS.get(column, column) for column in columns)]
    unseen = (counts or {}).get("unseen_classes")
    sentences = [unseen_sentence(unseen, counts["test"])] if counts and unseen else []
    return ResultTable(title, heads, rows, cautions(results) + comparisons(results) + sentences)


def spread_table(results: Results) -> ResultTable | None:
    """The spread of the features, compared with an untrained encoder."""
    spread = results.get("spread")
    if not spread:
        return None
    rows = [[ENCODER_LABELS.get(row, row), *(f"{values[key]:.3g}" for key in SPREAD)] for row, values in spread.items()]
    warning = collapse_warning(results)
    title = f"Spread of the features in {results['width']} dimensions"
    return ResultTable(title, ["features", *SPREAD.values()], rows, [SPREAD_NOTE, *([warning] if warning else [])])


def error_table(results: Results) -> ResultTable | None:
    """Squared errors on masked patches, if the method has them."""
    errors = {key: value for key, value in (results.get("held_out") or {}).items() if key in HELD_OUT_ERRORS}
    if not errors:
        return None
    rows = [[HELD_OUT_ERRORS[key], f"{value:.4g}"] for key, value in errors.items()]
    title = "Mean squared error on masked patches of held-out images, in normalised pixels"
    return ResultTable(title, ["prediction", "error"], rows, error_sentences(errors))


def validation_table(results: Results) -> ResultTable | None:
    """All other metrics of the method on held-out images."""
    numbers = {key: value for key, value in (results.get("held_out") or {}).items() if key not in HELD_OUT_ERRORS}
    rows = [[label_of(key), format_number(key, value)] for key, value in numbers.items()]
    return ResultTable("On held-out images", ["metric", "value"], rows, []) if rows else None


def word_table(results: Results) -> ResultTable | None:
    """Metrics of predicted masked words, if the method has them."""
    words = results.get("words")
    if not words:
        return None
    rows = [
        [name, f"{words[f'{key}_loss']:.3f}", f"{math.exp(words[f'{key}_loss']):,.0f}", percent(words[f"{key}_accuracy"])]
        for key, name in WORD_PREDICTORS.items()
    ]
    heads = ["prediction", "cross-entropy, nats", "perplexity", "top-1 accuracy"]
    return ResultTable("Masked words of held-out texts", heads, rows, [word_sentence(words)])
