"""`unveil why`: what hiding more, and a deeper decoder, do to images and to words, with the same blocks and the same budget.

docs/why.md says what is compared with what, and why.
"""

from pathlib import Path
from typing import Any

from unveil.errors import UnveilError
from unveil.experiments.study import Line, draw
from unveil.reports.study_page import Sweep

RATIOS, DEPTHS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9), (1, 2, 4)
SIZES = {"nano": ("vit-nano", "bert-nano"), "base": ("vit-base", "bert-base")}
"""Encoders of images and of words with the same width, depth and heads."""
PIECES = 64
"""In a text: as many as an encoder of small images has patches."""


def why(
    dataset: str | Path, texts: str | Path, *, size: str = "nano", out: str | Path | None = None, **options: Any
) -> list[Sweep]:
    """Sweeps the mask ratio and the decoder's depth for images and for words, and draws the curves beside each other.

    Args:
        images: Labelled images; see `unveil.data.sources.FORMS`.
        texts: A corpus; see `unveil.text.files.open_texts`.
        size: A key of `SIZES`.
        out: The folder for all runs, `study.json` and `report.html`; `runs/why` by default.
        **options: `labelled`, for the texts alone; other fields of `ComparisonConfig`, `TrainConfig`, `OptimConfig`, `HardwareConfig`,
            for all runs; under `mae`, `bert`, `wordmae` and `finetune` a dictionary of options for these alone, such as the epochs:
            {"mae": {"epochs": 10}}.

    Raises:
        UnveilError: On input that cannot be used.
        Interrupted: On SIGTERM or Ctrl-C, after saving.
    """
    if size not in SIZES:
        raise UnveilError(f"there is no size {size!r} that both have: use one of {', '.join(SIZES)}")
    image_model, text_model = SIZES[size]
    painted: dict[str, Any] = {"method": "mae", "data": str(dataset)}
    written: dict[str, Any] = {"data": str(texts), "labelled": options.pop("labelled", None)}
    of_images, of_words = {"model": image_model}, {"model": text_model, "length": PIECES}
    tokens = of_images | {"mask_tokens_in_encoder": True, "decoder_depth": 0}
    ratio: dict[str, Any] = {"knob": "mask_ratio", "values": RATIOS}
    depth: dict[str, Any] = {"knob": "decoder_depth", "values": DEPTHS}
    groups = {
        "Mask ratio, hidden ones left out": {
            "ratio-images": Line(title="images", fixed=of_images | {"decoder_depth": 2}, **painted, **ratio),
            "ratio-words": Line(title="words", method="wordmae", fixed=of_words | {"decoder_depth": 2}, **written, **ratio),
        },
        "Mask ratio, mask tokens in the encoder": {
            "tokens-images": Line(title="images", fixed=tokens, **painted, **ratio),
            "tokens-words": Line(title="words (BERT)", method="bert", fixed=of_words, **written, **ratio),
        },
        "Depth of the decoder": {
            "depth-images": Line(title="images", fixed=of_images | {"mask_ratio": 0.75}, **painted, **depth),
            "depth-words": Line(title="words", method="wordmae", fixed=of_words | {"mask_ratio": 0.4}, **written, **depth),
        },
    }
    return draw(groups, Path(out) if out else Path("runs") / "why", "Hiding images, and hiding words", options)
