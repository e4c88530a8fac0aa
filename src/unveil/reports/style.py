"""The look of every figure and page: two palettes, one size of type, and figures as parts of a page.

Figures are drawn in the light palette. In a page, each of its colours becomes a CSS variable of the same name, so that a
figure follows the page into the dark and back onto white paper.
"""

import io
import re
from importlib.resources import files
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from unveil.reports.html import Markup, escape

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1f2733",
    "quiet": "#5d6878",
    "rule": "#d9dee7",
    "wash": "#f4f6f9",
    "model": "#1f6fb2",
    "rival": "#b8530a",
    "other": "#76808f",
}
DARK = {
    "paper": "#14181f",
    "ink": "#e6e9ef",
    "quiet": "#a3adbb",
    "rule": "#343d4b",
    "wash": "#1c222b",
    "model": "#74b3ea",
    "rival": "#f0a05f",
    "other": "#98a2b1",
}
HIDDEN = 0.6
"""The grey of a hidden patch, between black and white: lighter than most of a photo, and without a hue."""
TYPE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "unveil",
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": LIGHT["rule"],
    "ytick.color": LIGHT["rule"],
    "xtick.labelcolor": LIGHT["quiet"],
    "ytick.labelcolor": LIGHT["quiet"],
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
"""Matplotlib's settings for every figure."""


def style_sheet() -> str:
    """The CSS of a page."""
    light, dark = ("".join(f"--{name}:{value};" for name, value in palette.items()) for palette in (LIGHT, DARK))
    rest = files("unveil.reports").joinpath("page.css").read_text(encoding="utf-8")
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{dark}}}}}\n{rest}"


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """A figure as SVG inside a page: text stays text, colours follow the page, nothing refers to another file.

    Args:
        figure: Drawn with `TYPE` and the light palette.
        name: Unlike that of any other figure of the page; what the figure refers to inside itself is named after it.
        alt: What a reader who cannot see it needs to know.
    """
    stream = io.StringIO()
    with rc_context(TYPE):
        figure.savefig(stream, format="svg", transparent=True, dpi=130, metadata={"Date": None})
    svg = stream.getvalue()
    width, height = (float(x) for x in re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2])
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", body)
    for variable, colour in LIGHT.items():
        body = body.replace(colour, f"var(--{variable})")
    pixels = f'width="{width / 0.75:g}" height="{height / 0.75:g}"'  # 72 points are 96 pixels
    head = f'<svg class="plot" role="img" aria-label="{escape(alt)}" viewBox="0 0 {width:g} {height:g}" {pixels}>'
    return Markup(head + body.strip())
