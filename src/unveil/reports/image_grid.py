"""A figure of images in cells of equal size, for reconstructions, attention maps and class maps."""

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.plain_text import printable
from unveil.reports.style import LIGHT, new_figure, styled

GAP, GROUP_GAP, MARGIN = 0.05, 0.24, 0.06
"""Inches between cells, between groups of cells, and around the figure."""
LABEL_HEIGHT, HEADING_HEIGHT, LINE_HEIGHT = 0.36, 0.3, 0.165
"""Heights in inches of a label of up to two lines, of a heading, and of a line of notes."""


def to_rgb(images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]) -> Float[np.ndarray, "B H W 3"]:
    """Converts normalised images to colours between 0 and 1. Other values are clipped.

    With one or two channels, the first is shown as grey. With more, the first three are red, green and blue: see `channel_note`.
    """
    channels = 3 if images.shape[1] >= 3 else 1
    scale, shift = (images.new_tensor(tuple(x))[:, None, None] for x in (std, mean))
    pixels = (images.float() * scale + shift)[:, :channels].clamp(0, 1).expand(-1, 3, -1, -1)
    pixels = pixels.nan_to_num(0.0)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def channel_note(channels: int) -> str | None:
    """A note on the channels that `to_rgb` shows, if it does not show all of them."""
    if channels in (1, 3):
        return None
    if channels == 2:
        return "The images have 2 channels: the first is shown, as grey."
    return f"The images have {channels} channels: the first three are shown, as red, green and blue."


def shorten_name(name: str, limit: int = 22) -> str:
    """A name on one line. A long name is shortened in the middle."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit - limit // 2) :]}"


class ImageGrid:
    """A figure of rows and columns of equal cells. Columns form groups, with a gap before each group.

    Args:
        rows: Number of rows.
        groups: Number of columns of each group.
        image_size: Height and width of the images in the cells.
        names: A name for each row, to its left.
        notes: Sentences below the cells.
        headings: Whether to leave room for headings above the groups.
        label_rows: The rows that have labels above their cells.
        side: Side of a square cell, in inches; labels must fit.
    """

    def __init__(
        self,
        rows: int,
        groups: Sequence[int],
        image_size: Size,
        *,
        names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        headings: bool = True,
        label_rows: Sequence[int] = (0,),
        side: float = 0.96,
    ) -> None:
        ratio = image_size[0] / image_size[1]
        self.cell_width = side * min(max(ratio**-0.5, 1.0), 2.2)  # the labels of narrower cells would overlap
        self.cell_height = self.cell_width * ratio
        self.zoom = -(-160 // max(image_size)) if max(image_size) <= 96 else 1  # enlarges small images, with visible pixels
        gutter = MARGIN + (max(len(shorten_name(name)) for name in names) * 0.075 + 0.08 if names else 0.0)
        self.left = [
            gutter + column * (self.cell_width + GAP) + group * (GROUP_GAP - GAP)
            for column, group in enumerate(np.repeat(np.arange(len(groups)), groups).tolist())
        ]
        self.width = self.left[-1] + self.cell_width + MARGIN
        lines = [line for note in notes for line in textwrap.wrap(note, max(int(self.width / 0.073), 20))]
        labels = np.cumsum([LABEL_HEIGHT if row in label_rows else 0.0 for row in range(rows)])
        foot = MARGIN + (0.12 + LINE_HEIGHT * len(lines) if lines else 0.0)
        head = MARGIN + (HEADING_HEIGHT if headings else 0.0)
        self.height = head + float(labels[-1]) + rows * (self.cell_height + GAP) - GAP + foot
        self.top = [self.height - head - float(labels[row]) - row * (self.cell_height + GAP) for row in range(rows)]
        self.figure = new_figure(self.width, self.height)
        self.figure.suppressComposite = True  # each image stays a picture of its own in SVG and PDF
        with styled():  # one pair of axes, in inches, for all cells: each costs as much as ten images
            self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(0, self.height))
        self.axes.set_axis_off()
        for row, name in enumerate(names or ()):
            middle = self.top[row] - self.cell_height / 2
            self.add_text(gutter - 0.08, middle, shorten_name(name), ha="right", va="center", color="muted")
        for i, line in enumerate(lines):
            self.add_text(gutter, foot - 0.12 - LINE_HEIGHT * i, line, va="top", color="muted")

    def add_image(self, row: int, column: int, image: np.ndarray, label: str = "") -> None:
        """Draws an image in a cell, with a label above it."""
        left, top = self.left[column], self.top[row]
        right, bottom = left + self.cell_width, top - self.cell_height
        if self.zoom > 1:  # not done by matplotlib, since PDF viewers would smooth the pixels
            image = image.repeat(self.zoom, axis=0).repeat(self.zoom, axis=1)
        smoothing = "none" if self.zoom > 1 else "auto"
        self.axes.imshow(image, interpolation=smoothing, aspect="auto", extent=(left, right, bottom, top))
        self.add_rectangle(left, bottom, right - left, top - bottom, fill=False, linewidth=0.5)  # also for white images
        if label:
            self.add_text((left + right) / 2, top + 0.07, label, ha="center", va="baseline", color="muted")

    def add_heading(self, first: int, last: int, text: str) -> None:
        """Writes a heading over the columns `first` to `last`, with a line under it."""
        left, right = self.left[first], self.left[last] + self.cell_width
        y = self.height - MARGIN - HEADING_HEIGHT + 0.08
        self.add_text((left + right) / 2, y + 0.08, text, ha="center", va="baseline", color="text", weight="bold", size=10)
        self.add_rectangle(left, y, right - left, 0.012, facecolor=LIGHT["border"], linewidth=0)

    def add_rectangle(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        """Draws a rectangle in the colour of borders, at a position in inches."""
        from matplotlib.patches import Rectangle

        self.axes.add_artist(Rectangle((x, y), width, height, edgecolor=LIGHT["border"], **options))

    def add_text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: str,
        ha: Literal["left", "center", "right"] = "left",
        va: Literal["top", "center", "baseline"] = "top",
        **options: Any,
    ) -> None:
        """Writes text at a position in inches. Dollar signs are printed, not parsed as formulas."""
        style: dict[str, Any] = {"size": 9, "weight": "normal", "linespacing": 1.1} | options
        with styled():
            self.figure.text(x / self.width, y / self.height, text, ha=ha, va=va, color=LIGHT[color], **style)
