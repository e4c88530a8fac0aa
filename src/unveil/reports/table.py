"""The table of results, for a terminal and for a page."""

import math
from collections.abc import Callable
from shutil import get_terminal_size
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unveil.reports.html import Markup, element, join, table
from unveil.reports.verdict import (
    COLUMNS,
    ERRORS,
    NUMBERS,
    ROWS,
    SPREAD,
    SPREAD_MEANS,
    WORDS,
    Results,
    collapsed,
    comparisons,
    held_out,
    named_words,
    percent,
)


class Grid(NamedTuple):
    """A table, and what it says."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    sentences: list[str]


def terminal_table(results: Results) -> RenderableType:
    """The results as tables for a terminal, each with what it says in sentences below."""
    parts: list[RenderableType] = [part for grid in grids(results) for part in (terminal_grid(grid), Text(""))]
    if not parts:
        return Text("Nothing was kept aside, so nothing could be judged." if results else "There are no results yet.")
    return Group(*parts[:-1])


def terminal_grid(grid: Grid) -> RenderableType:
    """One table for a terminal, in several pieces where its columns do not fit beside each other."""
    pieces = []
    for columns in fitting(grid, get_terminal_size().columns):
        shown = Table(header_style="dim", box=None, padding=(0, GAP, 0, 0))
        for i in columns:
            shown.add_column(grid.heads[i], justify="right" if i else "left", no_wrap=i == 0)
        for row in grid.rows:
            shown.add_row(*(Text(row[i]) for i in columns), style="bold" if row[0] in OURS else None)
        pieces.append(shown)
    return Group(Text(grid.title, style="bold"), *pieces, *(Text(sentence) for sentence in grid.sentences))


def fitting(grid: Grid, width: int) -> list[list[int]]:
    """The columns that stand beside each other in so many characters, the first one in each piece: no number is broken."""
    words = [head.split() for head in grid.heads]  # a heading may be broken between its words
    cells = zip(*grid.rows, strict=True)
    widths = [max(map(len, [*column, *head])) + GAP for column, head in zip(cells, words, strict=True)]
    pieces: list[list[int]] = [[0]]
    for i in range(1, len(widths)):
        if len(pieces[-1]) > 1 and sum(widths[j] for j in pieces[-1]) + widths[i] > width:
            pieces.append([0])
        pieces[-1].append(i)
    return pieces


def html_table(results: Results) -> Markup:
    """The same as HTML."""
    return join(html_grid(grid) for grid in grids(results))


def html_grid(grid: Grid) -> Markup:
    """One table as HTML."""
    cells = [[row[0], *(cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in row[1:])] for row in grid.rows]
    class_ = "numbers ours" if grid.rows[0][0] in OURS else "numbers"
    made = table(grid.heads, cells, title=grid.title, class_=class_)
    return join([made, *(element("p", sentence) for sentence in grid.sentences)])


def markdown_grid(grid: Grid) -> str:
    """One table as Markdown, with its sentences below."""
    lines = [grid.heads, ["---", *("---:" for _ in grid.heads[1:])], *grid.rows]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *(f"\n{sentence}" for sentence in grid.sentences)])


def grids(results: Results) -> list[Grid]:
    """The tables that the results have the numbers for."""
    makers: tuple[Callable[[Results], Grid | None], ...] = (
        score_grid,
        feature_grid,
        spread_grid,
        error_grid,
        number_grid,
        word_grid,
    )
    return [grid for make in makers if (grid := make(results))]


def score_grid(results: Results) -> Grid | None:
    """Accuracies of a classifier."""
    score = results.get("score")
    if not score:
        return None
    rows = [["first guess", percent(score["top1"])]]
    if len(score["per_class"]) > 5:
        rows.append(["within five guesses", percent(score["top5"])])
    known = [x for x in score["per_class"] if x is not None]
    if known:
        rows.append(["first guess, mean over classes", percent(sum(known) / len(known))])
    return Grid(f"Accuracy on {score['count']:,} test {results.get('samples', 'images')}", ["right by", "share"], rows, [])


def feature_grid(results: Results) -> Grid | None:
    """What the features are worth, beside those of an untrained encoder and the pixels themselves."""
    features = results.get("features")
    if not features:
        return None
    columns = list(dict.fromkeys(column for values in features.values() for column in values))
    rows = [
        [ROWS.get(row, row), *(percent(values[column]) if column in values else "" for column in columns)]
        for row, values in features.items()
    ]
    on, title = results.get("judged_on"), "Accuracy of features"
    if on:
        title += f": {on['train']:,} training and {on['test']:,} test images of {on['classes']:,} classes"
    heads = ["features of", *(COLUMNS.get(column, column) for column in columns)]
    return Grid(title, heads, rows, comparisons(results))


def spread_grid(results: Results) -> Grid | None:
    """How far the features spread, beside those of an untrained encoder."""
    spread = results.get("spread")
    if not spread:
        return None
    rows = [[ROWS.get(row, row), *(f"{values[key]:.3g}" for key in SPREAD)] for row, values in spread.items()]
    warning = collapsed(results)
    title = f"Spread of features, of {results['width']} dimensions"
    return Grid(title, ["features of", *SPREAD.values()], rows, [SPREAD_MEANS, *([warning] if warning else [])])


def error_grid(results: Results) -> Grid | None:
    """Squared errors on hidden patches, where a method measures them."""
    errors = {key: value for key, value in (results.get("held_out") or {}).items() if key in ERRORS}
    if not errors:
        return None
    rows = [[ERRORS[key], f"{value:.4g}"] for key, value in errors.items()]
    title = "Squared error on hidden patches of held-out images, in normalised pixels"
    return Grid(title, ["painted with", "error"], rows, held_out(errors))


def word_grid(results: Results) -> Grid | None:
    """How well hidden words are named, where a method of texts measures it."""
    words = results.get("words")
    if not words:
        return None
    rows = [
        [says, f"{words[f'{key}_loss']:.3f}", f"{math.exp(words[f'{key}_loss']):,.0f}", percent(words[f"{key}_accuracy"])]
        for key, says in WORDS.items()
    ]
    heads = ["named by", "cross-entropy, nats", "perplexity", "right at the first guess"]
    return Grid("Hidden words of held-out texts", heads, rows, [named_words(words)])


def number_grid(results: Results) -> Grid | None:
    """What else a method says of images that were kept aside."""
    rows = [[NUMBERS.get(key, key), f"{value:.4g}"] for key, value in (results.get("held_out") or {}).items() if key not in ERRORS]
    return Grid("On held-out images", ["number", "value"], rows, []) if rows else None


GAP = 3
"""Blanks between columns in a terminal."""
OURS = (ROWS["encoder"], ERRORS["held_out_error"])
"""The rows of the model itself, which stand out."""
