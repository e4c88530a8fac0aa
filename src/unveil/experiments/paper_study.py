"""What an ablation of the MAE paper consists of (He et al., 2021), and its settings for an encoder of another size.

A study is a list of cells: options, and the accuracies that the paper reports for them. Needs no torch, so that the list of
studies is printed at once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from unveil.errors import UnveilError
from unveil.reports.findings import Claim

PAPER_WIDTH, PAPER_DEPTH, PAPER_EPOCHS = 1024, 24, 800
"""The encoder of the paper's ablations, ViT-L, and how long it was trained."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of a study."""

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `pretrain`."""
    at: float = 0.0
    """The position on a numeric axis. In a study that is scaled, the value of the paper."""
    finetune: float | None = None
    """The paper's accuracy after fine-tuning, in percent; None if it is not published."""
    linear: float | None = None
    """The paper's accuracy of the linear probe."""
    scratch: float | None = None
    """The paper's accuracy of the same model without pre-training."""
    theirs: str = ""
    """What the paper calls the setting, if that is something else."""
    default: bool = False
    """Whether it is the paper's default."""

    @property
    def paper(self) -> dict[str, float]:
        """The paper's accuracies between 0 and 1, by metric."""
        values = {"linear": self.linear, "finetune": self.finetune, "scratch": self.scratch}
        return {metric: value / 100 for metric, value in values.items() if value is not None}


class Shape(NamedTuple):
    """What the settings of a scaled study follow from."""

    width: int
    """Width of the encoder."""
    depth: int
    """Blocks of the encoder."""
    epochs: float
    """Epochs of a run."""
    patches: int = 0
    """Patches of an image; 0 if no setting depends on them."""


class Setting(NamedTuple):
    """A cell for one encoder and one number of epochs."""

    cell: Cell
    ours: str
    """The setting here, in words."""
    theirs: str
    """The setting in the paper."""
    position: float
    """The position on a numeric axis."""
    options: Mapping[str, Any]
    """Options of `pretrain`; of a probe or of fine-tuning in a study that varies these."""

    @property
    def label(self) -> str:
        """The name of the setting in claims: that of the cell, or ours if the paper's would mislead."""
        return f"{self.ours} blocks" if "blocks" in self.options and self.cell.at else self.cell.label


@dataclass(frozen=True, kw_only=True)
class PaperStudy:
    """An ablation: what is varied, what the paper reports, and what it concludes."""

    name: str
    source: str
    """The table or figure of the paper."""
    question: str
    cells: tuple[Cell, ...]
    finding: str
    """What the paper concludes, as a sentence."""
    claims: Callable[[Sequence[str]], tuple[Claim, ...]]
    """The finding as comparisons of cells, given the labels of the cells that can be trained."""
    axis: Literal["names", "linear", "log"] = "names"
    """Whether the positions of the cells are numbers."""
    axis_title: str = ""
    scaled: Literal["", "width", "depth", "blocks", "epochs", "labels"] = ""
    """What a number of the paper becomes for a smaller encoder: see `settings`."""
    varies: Literal["pretraining", "partial", "labels"] = "pretraining"
    """What the cells differ in: the pre-training, or how one pre-trained encoder is evaluated."""
    first_stages: tuple[str, ...] = ()
    """Methods whose runs an option of a cell names, such as a visual tokenizer."""
    metrics: tuple[str, ...] = ("linear", "finetune")
    """The accuracies that are compared."""
    note: str = ""
    """What is different here from the paper."""

    def settings(self, shape: Shape) -> list[Setting]:
        """The settings for an encoder; those that it cannot have are left out.

        Args:
            shape: The encoder, and the epochs of a run.
        """
        found: dict[object, Setting] = {}
        for cell in self.cells:
            if setting := self.setting(cell, shape):
                same = self.visible(cell, shape) or setting.ours  # two ratios, or widths, of the paper may be the same one here
                if cell.default or same not in found:
                    found[same] = setting
        return list(found.values())

    def visible(self, cell: Cell, shape: Shape) -> int | None:
        """The number of visible patches, if the cells differ in it alone; 0 if none would be visible, else None."""
        if not (self.counts_patches and shape.patches):
            return None
        from unveil.blocks.masks import visible_count  # it imports torch, for which the list of studies need not wait

        try:
            return visible_count(shape.patches, cell.options["mask_ratio"])
        except UnveilError:
            return 0

    @property
    def counts_patches(self) -> bool:
        """Whether the cells differ in the number of masked patches alone."""
        return all(set(cell.options) == {"mask_ratio"} for cell in self.cells)

    def setting(self, cell: Cell, shape: Shape) -> Setting | None:
        """One cell for an encoder; None if it cannot be trained."""
        theirs = cell.theirs or cell.label
        if self.visible(cell, shape) == 0:
            return None
        if self.scaled == "width":  # a share of the width of the encoder, as a multiple of 8
            width = max(8, 8 * round(cell.at / PAPER_WIDTH * shape.width / 8))
            theirs = f"{cell.at:g} of {PAPER_WIDTH}"
            return Setting(cell, f"{width} of {shape.width}", theirs, cell.at / PAPER_WIDTH, {"decoder_width": width})
        if self.scaled == "depth":  # as many blocks as in the paper, but not more than the encoder has
            if cell.at > shape.depth:
                return None
            return Setting(cell, f"{cell.at:g}", theirs, cell.at, {"decoder_depth": int(cell.at)})
        if self.scaled == "blocks":  # a share of the blocks of the encoder, if that is a whole number
            blocks = Fraction(int(cell.at), PAPER_DEPTH) * shape.depth
            if blocks.denominator > 1:
                return None
            ours, theirs = f"{blocks} of {shape.depth}", f"{cell.at:g} of {PAPER_DEPTH}"
            return Setting(cell, ours, theirs, cell.at / PAPER_DEPTH, {"blocks": float(blocks)})
        if self.scaled == "epochs":  # a multiple of the epochs of a run
            share = cell.at / PAPER_EPOCHS
            return Setting(cell, f"{share * shape.epochs:.4g}", f"{cell.at:g}", share, {"epochs": share * shape.epochs})
        if self.scaled == "labels":  # a share of the labels
            return Setting(cell, cell.label, theirs, cell.at, {"share": cell.at})
        return Setting(cell, cell.label, theirs, cell.at, cell.options)

    def left_out(self, shape: Shape) -> list[str]:
        """The labels of the cells that an encoder cannot have."""
        kept = {setting.cell.label for setting in self.settings(shape)}
        return [cell.label for cell in self.cells if cell.label not in kept]


def folder_name(label: str) -> str:
    """A label as a part of the name of a folder, such as 1-2-of-the-encoder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")
