"""Where the words of a translation looked."""

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from unveil.reports.style import TYPE

NOTE = "Attention to the source (across) as each word (down) was chosen: the mean over the heads of a block. Brightest: {most:.0%}."


def figure(source: Sequence[str], target: Sequence[str], weights: Float[Tensor, "depth T S"]) -> Figure:
    """A map for each block of the decoder: a row for each word of the translation, a column for each of the source."""
    depth, across = len(weights), min(len(weights), 3)
    down = -(-depth // across)
    side = 0.22
    with rc_context({**TYPE, "axes.grid": False}):
        drawn = Figure(
            figsize=(across * (side * len(source) + 1.3) + 0.3, down * (side * len(target) + 1.3) + 0.5), layout="constrained"
        )
        for i, looks in enumerate(weights):
            axes = drawn.add_subplot(down, across, i + 1)
            axes.imshow(looks.numpy(), cmap="magma", vmin=0.0, vmax=float(weights.max()), aspect="auto")
            axes.set_title(f"block {i + 1}", fontsize=9)
            axes.set_xticks(range(len(source)), source, rotation=90, fontsize=7)
            axes.set_yticks(range(len(target)), target, fontsize=7)
            axes.spines[:].set_visible(False)
        drawn.supxlabel(NOTE.format(most=float(weights.max())), fontsize=7, wrap=True)
    return drawn
