"""The style of figures and pages: a light and a dark palette, one font size, and figures as inline SVG.

Figures are drawn in the light palette. On a page, each of its colours becomes a CSS variable of the same name, so figures follow
the page into dark mode, and are printed in the light palette. Matplotlib is only imported inside functions, since its import is
slow and most processes draw nothing.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from unveil.atomic_files import replacing
from unveil.reports.html import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LIGHT = {
    "background": "#ffffff",
    "text": "#1f2733",
    "muted": "#5d6878",
    "border": "#d9dee7",
    "surface": "#f4f6f9",
    "primary": "#1f6fb2",
    "secondary": "#b8530a",
    "tertiary": "#76808f",
}
DARK = {
    "background": "#14181f",
    "text": "#e6e9ef",
    "muted": "#a3adbb",
    "border": "#343d4b",
    "surface": "#1c222b",
    "primary": "#74b3ea",
    "secondary": "#f0a05f",
    "tertiary": "#98a2b1",
}
MASK_GREY = 0.6
"""The grey of masked patches: lighter than most parts of a photo."""
RC_PARAMS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "unveil",
    "text.color": LIGHT["text"],
    "axes.edgecolor": LIGHT["border"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["border"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["border"],
    "ytick.color": LIGHT["border"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # names from data may contain dollar signs
}
"""Matplotlib's settings for every figure."""


def styled(settings: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """A context in which figures and axes are created with `RC_PARAMS`, overridden by `settings`."""
    from matplotlib import rc_context

    params: dict[Any, Any] = {**RC_PARAMS, **(settings or {})}
    return rc_context(params)


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """An empty figure of this size in inches."""
    with styled():
        return shown_figure()(figsize=(width, height), facecolor=LIGHT["background"], **options)


@cache
def shown_figure() -> "type[Figure]":
    """A class of figures that a notebook shows, whether or not it has imported pyplot."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            stream = io.BytesIO()
            with quiet_about_letters():
                self.savefig(stream, format="png", dpi=110, bbox_inches="tight")
            return stream.getvalue()

    return ShownFigure


def limit_ticks(axis: "Axis", count: int, steps: list[float] | None = None) -> None:
    """Limits an axis to `count` intervals between ticks, at multiples of `steps` times a power of ten."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=steps))


def apply_colormap(name: str, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 3"]:
    """Maps values between 0 and 1 to colours, with one of matplotlib's colour maps."""
    from matplotlib import colormaps

    return np.asarray(colormaps[name](values))[..., :3]


def style_sheet() -> str:
    """The CSS of a page."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in palette.items()) for palette in (LIGHT, DARK))
    rest = files("unveil.reports").joinpath("page.css").read_text(encoding="utf-8")
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{rest}"


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Writes a figure to a file, atomically. The format follows from the suffix. `options` are those of matplotlib."""
    with replacing(path) as fresh, fresh.open("wb") as file, quiet_about_letters():
        figure.savefig(file, format=path.suffix.removeprefix("."), **options)


@contextmanager
def quiet_about_letters() -> Iterator[None]:
    """A context without matplotlib's warnings about letters of names that its font does not have."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def inline_svg(figure: "Figure", name: str, alt: str) -> Markup:
    """Converts a figure to inline SVG: text stays text, colours follow the page, and there are no references to other files.

    Args:
        figure: Drawn with `RC_PARAMS` and the light palette.
        name: A unique name on the page, which becomes a prefix of the identifiers in the figure.
        alt: A description for screen readers.
    """
    stream = io.StringIO()
    with styled(), quiet_about_letters():
        figure.savefig(stream, format="svg", transparent=True, dpi=130, metadata={"Date": None})
    svg = stream.getvalue()
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    pixels = f'width="{width / 0.75:g}" height="{height / 0.75:g}"'  # 72 points are 96 pixels
    head = f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}" {pixels}>'
    return Markup(head + body.strip())
