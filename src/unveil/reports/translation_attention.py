"""A figure of the attention of a translation to its source."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from unveil.reports.style import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Attention of each predicted token (rows) to the source tokens (columns): the mean over the heads of a block. "
    "The brightest value is {most:.0%}."
)


def translation_figure(source: Sequence[str], target: Sequence[str], weights: Float[Tensor, "depth T S"]) -> "Figure":
    """Draws a map for each decoder block, with a row for each token of the translation and a column for each source token."""
    depth, columns = len(weights), min(len(weights), 3)
    rows = -(-depth // columns)
    side = 0.22
    width, height = columns * (side * len(source) + 1.3) + 0.3, rows * (side * len(target) + 1.3) + 0.5
    figure = new_figure(width, height, layout="constrained")
    with styled({"axes.grid": False}):
        for i, block in enumerate(weights):
            axes = figure.add_subplot(rows, columns, i + 1)
            axes.imshow(block.numpy(), cmap="magma", vmin=0.0, vmax=float(weights.max()), aspect="auto")
            axes.set_title(f"block {i + 1}", fontsize=9)
            axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7)
            axes.set_yticks(range(len(target)), target, fontsize=7)
            axes.spines[:].set_visible(False)
        figure.supxlabel(CAPTION.format(most=float(weights.max())), fontsize=7, wrap=True)
    return figure
