"""Images in cells of equal size, under headings: the paper that reconstructions and attention maps are drawn on."""

import textwrap
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from unveil.blocks.patches import Size
from unveil.reports.html import clean
from unveil.reports.style import LIGHT, TYPE

GAP, GROUP_GAP, MARGIN = 0.05, 0.24, 0.06  # inches
LABEL, HEADING, LINE = 0.36, 0.3, 0.165  # labels of up to two lines


def displayable(images: Float[Tensor, "B C H W"], mean: Sequence[float], std: Sequence[float]) -> Float[np.ndarray, "B H W 3"]:
    """Normalised images as colours between 0 and 1; what lies outside is cut off.

    One or two channels are shown as grey (the first), more than three as the first three: `channel_note` says so.
    """
    shown = 3 if images.shape[1] >= 3 else 1
    scale, shift = (images.new_tensor(tuple(x))[:, None, None] for x in (std, mean))
    pixels = (images.float() * scale + shift)[:, :shown].clamp(0, 1).expand(-1, 3, -1, -1)
    pixels = pixels.nan_to_num(0.0)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def channel_note(channels: int) -> str | None:
    """Which channels `displayable` shows, where that is not all of them."""
    if channels in (1, 3):
        return None
    if channels == 2:
        return "The images have 2 channels: the first is shown, as grey."
    return f"The images have {channels} channels: the first three are shown, as red, green and blue."


def short(name: str, limit: int = 22) -> str:
    """A name on one line, with the middle left out where it is long."""
    name = clean(name).replace("\n", " ")
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-(limit - limit // 2) :]}"


class Sheet:
    """A figure of rows and columns of equal cells; some columns start a new group, with room before them.

    Args:
        rows: How many rows of cells.
        groups: How many columns each group has.
        image: Height and width of what the cells show.
        names: A name for each row, at its left.
        notes: Sentences below.
        headed: Whether the groups have headings.
        label_rows: The rows that have labels above them; the first by default.
        side: Of a square cell, in inches; labels must fit.
    """

    def __init__(
        self,
        rows: int,
        groups: Sequence[int],
        image: Size,
        *,
        names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        headed: bool = True,
        label_rows: Sequence[int] = (0,),
        side: float = 0.96,
    ) -> None:
        ratio = image[0] / image[1]
        self.width = side * min(max(ratio**-0.5, 1.0), 2.2)  # narrower, and labels would touch
        self.height = self.width * ratio
        self.enlarged = -(-160 // max(image)) if max(image) <= 96 else 1  # small images show their pixels
        gutter = MARGIN + (max(len(short(name)) for name in names) * 0.075 + 0.08 if names else 0.0)
        self.left = [
            gutter + column * (self.width + GAP) + group * (GROUP_GAP - GAP)
            for column, group in enumerate(np.repeat(np.arange(len(groups)), groups).tolist())
        ]
        total = self.left[-1] + self.width + MARGIN
        lines = [line for note in notes for line in textwrap.wrap(note, max(int(total / 0.073), 20))]
        above = np.cumsum([LABEL if row in label_rows else 0.0 for row in range(rows)])
        foot = MARGIN + (0.12 + LINE * len(lines) if lines else 0.0)
        head = MARGIN + (HEADING if headed else 0.0)
        self.tall = head + float(above[-1]) + rows * (self.height + GAP) - GAP + foot
        self.top = [self.tall - head - float(above[row]) - row * (self.height + GAP) for row in range(rows)]
        self.total = total
        with rc_context(TYPE):
            self.figure = Figure(figsize=(total, self.tall), facecolor=LIGHT["paper"])
        for row, name in enumerate(names or ()):
            middle = self.top[row] - self.height / 2
            self.text(gutter - 0.08, middle, short(name), ha="right", va="center", color="quiet")
        for i, line in enumerate(lines):
            self.text(gutter, foot - 0.12 - LINE * i, line, va="top", color="quiet")

    def show(self, row: int, column: int, image: np.ndarray, label: str = "") -> Axes:
        """Puts an image into a cell, with a label above it."""
        place = (self.left[column], self.top[row] - self.height, self.width, self.height)
        with rc_context(TYPE):
            axes = self.figure.add_axes(self.share(place))
        if self.enlarged > 1:  # by hand: viewers of PDF would smooth it
            image = image.repeat(self.enlarged, axis=0).repeat(self.enlarged, axis=1)
        axes.imshow(image, interpolation="none" if self.enlarged > 1 else "auto", aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, linewidth=0.5, color=LIGHT["rule"])  # white images have an edge too
        if label:
            self.text(place[0] + self.width / 2, self.top[row] + 0.07, label, ha="center", va="baseline", color="quiet")
        return axes

    def heading(self, first: int, last: int, text: str) -> None:
        """A heading over the columns `first` to `last`, with a line under it."""
        left, right = self.left[first], self.left[last] + self.width
        y = self.tall - MARGIN - HEADING + 0.08
        self.text((left + right) / 2, y + 0.08, text, ha="center", va="baseline", color="ink", weight="bold", size=10)
        with rc_context(TYPE):
            line = self.figure.add_axes(self.share((left, y, right - left, 0.012)))
        line.set_axis_off()
        line.axhspan(0, 1, color=LIGHT["rule"], linewidth=0)
        line.set_label("rule")

    def share(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box in inches as a share of the figure."""
        return box[0] / self.total, box[1] / self.tall, box[2] / self.total, box[3] / self.tall

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: str,
        ha: Literal["left", "center", "right"] = "left",
        va: Literal["top", "center", "baseline"] = "top",
        weight: str = "normal",
        size: float = 9,
    ) -> None:
        """Text at a place in inches; a dollar sign is a dollar sign."""
        with rc_context(TYPE):
            self.figure.text(
                x / self.total,
                y / self.tall,
                text,
                ha=ha,
                va=va,
                color=LIGHT[color],
                weight=weight,
                size=size,
                parse_math=False,
                linespacing=1.1,
            )
