"""`unveil study information-density`: varies mask ratio and decoder depth for images and for text, with equal encoders and budgets.

docs/images-vs-words.md explains the comparison.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from unveil.errors import UnveilError
from unveil.experiments.paper_studies import INFORMATION_DENSITY
from unveil.experiments.study import SweepSpec, run_study
from unveil.reports.findings import Ahead, Judgement, Numbers, judge_all
from unveil.reports.study_page import Finding, Sweep

RATIOS, DEPTHS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9), (1, 2, 4)
SIZES = {"nano": ("vit-nano", "bert-nano"), "base": ("vit-base", "bert-base")}
"""Encoders of images and of text with the same width, depth and heads."""
TEXT_LENGTH = 64
"""Word pieces in a sequence: the number of patches of a small image."""
CURVES = {
    "ratio-images": "MAE on images",
    "ratio-words": "MAE on words",
    "tokens-images": "BERT on images",
    "tokens-words": "BERT on words",
}
"""The architecture and the data of the curves over the mask ratio, by the names of their folders."""
Cell = tuple[str, float]
"""A key of `CURVES` and a mask ratio."""
QUESTIONS: dict[str, tuple[tuple[Cell, Cell], ...]] = {
    "In MAE's architecture, is a mask ratio of 0.75 better for images, and one of 0.15 for words?": (
        (("ratio-images", 0.75), ("ratio-images", 0.15)),
        (("ratio-words", 0.15), ("ratio-words", 0.75)),
    ),
    "In BERT's architecture, is a mask ratio of 0.75 better for images, and one of 0.15 for words?": (
        (("tokens-images", 0.75), ("tokens-images", 0.15)),
        (("tokens-words", 0.15), ("tokens-words", 0.75)),
    ),
    "Is MAE's architecture better for images at its ratio of 0.75, and BERT's for words at 0.15?": (
        (("ratio-images", 0.75), ("tokens-images", 0.75)),
        (("tokens-words", 0.15), ("ratio-words", 0.15)),
    ),
}
"""What the page answers: each pair claims that the first cell has a higher accuracy than the second, on the same data."""


def images_vs_words(
    images: str | Path, texts: str | Path, *, size: str = "nano", out: str | Path | None = None, **options: Any
) -> list[Sweep]:
    """Varies the mask ratio and the decoder depth for images and for text, and draws the curves side by side.

    Args:
        images: Labelled images; see `unveil.data.sources.FORMS`.
        texts: Texts; see `unveil.text.files.open_texts`.
        size: A key of `SIZES`.
        out: The folder for all runs, `study.json` and `report.html`; `runs/images-vs-words` by default.
        **options: `labelled_data`, labelled texts for fine-tuning; other fields of `ComparisonConfig`, `TrainConfig`, `OptimConfig`
            and `HardwareConfig`, for all runs; under `mae`, `bert`, `wordmae` and `finetune`, a dictionary of options for these
            only, such as mae={"epochs": 10}.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM, SIGHUP or Ctrl-C, after saving.
    """
    if size not in SIZES:
        raise UnveilError(f"there is no size {size!r} for both images and text: use one of {', '.join(SIZES)}")
    image_model, text_model = SIZES[size]
    on_images: dict[str, Any] = {"method": "mae", "data": str(images), "title": "images"}
    on_texts: dict[str, Any] = {"data": str(texts), "labelled_data": options.pop("labelled_data", None)}
    mae, text = {"model": image_model}, {"model": text_model, "max_length": TEXT_LENGTH}
    mae_with_tokens = mae | {"mask_tokens_in_encoder": True, "decoder_depth": 0}
    ratio: dict[str, Any] = {"option": "mask_ratio", "values": RATIOS}
    depth: dict[str, Any] = {"option": "decoder_depth", "values": DEPTHS}
    wordmae: dict[str, Any] = on_texts | {"method": "wordmae", "title": "words"}
    bert: dict[str, Any] = on_texts | {"method": "bert", "title": "words (BERT)"}
    groups = {
        "Mask ratio, encoder without mask tokens": {
            "ratio-images": SweepSpec(fixed=mae | {"decoder_depth": 2}, **on_images, **ratio),
            "ratio-words": SweepSpec(fixed=text | {"decoder_depth": 2}, **wordmae, **ratio),
        },
        "Mask ratio, encoder with mask tokens": {
            "tokens-images": SweepSpec(fixed=mae_with_tokens, **on_images, **ratio),
            "tokens-words": SweepSpec(fixed=text, **bert, **ratio),
        },
        "Depth of the decoder": {
            "depth-images": SweepSpec(fixed=mae | {"mask_ratio": 0.75}, **on_images, **depth),
            "depth-words": SweepSpec(fixed=text | {"mask_ratio": 0.4}, **wordmae, **depth),
        },
    }
    subject = ("study", INFORMATION_DENSITY[0])
    return run_study(groups, Path(out) if out else default_folder(), "Masking images and masking words", subject, options, judge)


def judge(sweeps: Mapping[str, Sweep]) -> list[Finding]:
    """Answers `QUESTIONS`, each as soon as all of its curves have results.

    Args:
        sweeps: The curves, by the names of their folders.
    """
    cells = {
        cell_name((folder, value)): row.figures
        for folder, sweep in sweeps.items()
        if folder in CURVES
        for value, row in zip(sweep.values, sweep.rows, strict=True)
    }
    seeds = max((len(figures.get("finetune", ())) for figures in cells.values()), default=0)
    findings = []
    for question, pairs in QUESTIONS.items():
        if any(folder not in sweeps for pair in pairs for folder, _ in pair):
            continue
        claims = [(Ahead(cell_name(better), cell_name(worse), "finetune"), better[0]) for better, worse in pairs]
        judged = [unequal(claim, cells) or claim.judged(cells, sweeps[folder].test_counts) for claim, folder in claims]
        findings.append(Finding(question, judge_all(judged, seeds)))
    return findings


def unequal(claim: Ahead, cells: Numbers) -> Judgement | None:
    """That nothing can be said of cells that were trained on different numbers of samples; None if the numbers are the same."""
    counts = {name: mean(found) for name in (claim.better, claim.worse) if (found := cells.get(name, {}).get("samples"))}
    if len(counts) < 2 or max(counts.values()) <= 1.01 * min(counts.values()):
        return None
    first, second = (f'"{name}" was trained on {count:,.0f} samples' for name, count in counts.items())
    return Judgement("open", f"{first}, and {second}")


def cell_name(cell: Cell) -> str:
    """The name of a cell in an answer."""
    return f"{CURVES[cell[0]]}, ratio {cell[1]}"


def default_folder(runs: Path = Path("runs")) -> Path:
    """The folder of the study. A study that was started by `unveil why`, the earlier name of the command, keeps its folder."""
    earlier = runs / "why"
    return earlier if (earlier / "study.json").is_file() else runs / "images-vs-words"
