"""The ablations of the MAE paper (He et al., 2021) as a table, with the accuracies that it reports on ImageNet-1K.

The paper's encoder is ViT-L/16, trained for 800 epochs unless a study varies that.
"""

import textwrap

from unveil.experiments.paper_study import Cell, PaperStudy
from unveil.reports.findings import Ahead, BestAmong, Faster, RaisesMore

MASK_RATIO = PaperStudy(
    name="mask-ratio",
    source="Figure 5",
    question="Which share of the patches should be masked?",
    cells=tuple(
        Cell(
            label=f"{ratio / 100:g}",
            options={"mask_ratio": ratio / 100},
            at=ratio / 100,
            finetune=finetune,
            linear=linear,
            default=ratio == 75,
        )
        for ratio, finetune, linear in [
            (10, 83.2, 54.6),
            (20, 83.4, 58.9),
            (30, 83.4, 61.7),
            (40, 84.7, 67.0),
            (50, 84.9, 69.9),
            (60, 85.0, 71.8),
            (70, 84.9, 73.2),
            (75, 84.9, 73.5),
            (80, 84.5, 71.8),
            (90, 83.0, 66.1),
        ]
    ),
    finding="A high mask ratio works best: 0.6 or more.",
    claims=lambda labels: (BestAmong(("0.6", "0.7", "0.75", "0.8", "0.9"), "a mask ratio of 0.6 or more", tuple(labels)),),
    axis="linear",
    axis_title="mask ratio",
)
DECODER_DEPTH = PaperStudy(
    name="decoder-depth",
    source="Table 1a",
    question="How many blocks should the decoder have?",
    cells=tuple(
        Cell(label=f"{blocks}", at=blocks, finetune=finetune, linear=linear, default=blocks == 8)
        for blocks, finetune, linear in [(1, 84.8, 65.5), (2, 84.9, 70.0), (4, 84.9, 71.9), (8, 84.9, 73.5), (12, 84.4, 73.3)]
    ),
    finding="A deeper decoder raises the linear probe, and fine-tuning hardly at all.",
    claims=lambda labels: (RaisesMore(labels[0], labels[-1]),),
    axis="log",
    axis_title="blocks of the decoder",
    scaled="depth",
    note="Decoders that would be deeper than the encoder are left out.",
)
DECODER_WIDTH = PaperStudy(
    name="decoder-width",
    source="Table 1b",
    question="How wide should the decoder be?",
    cells=tuple(
        Cell(label=label, at=width, finetune=finetune, linear=linear, default=width == 512)
        for label, width, finetune, linear in [
            ("1/8 of the encoder", 128, 84.9, 69.1),
            ("1/4 of the encoder", 256, 84.8, 71.3),
            ("1/2 of the encoder", 512, 84.9, 73.5),
            ("3/4 of the encoder", 768, 84.4, 73.1),
            ("the encoder's width", 1024, 84.3, 73.1),
        ]
    ),
    finding="A wider decoder raises the linear probe up to half of the encoder's width, and fine-tuning hardly at all.",
    claims=lambda labels: (RaisesMore("1/8 of the encoder", "1/2 of the encoder"),),
    axis="log",
    axis_title="width of the decoder, as a share of the encoder's",
    scaled="width",
    note="The widths are the same shares of the encoder's width as in the paper, rounded to a multiple of 8.",
)
MASK_TOKEN = PaperStudy(
    name="mask-token",
    source="Table 1c",
    question="Should the encoder see mask tokens?",
    cells=(
        Cell(label="with tokens", options={"mask_tokens_in_encoder": True}, finetune=84.2, linear=59.6),
        Cell(label="without tokens", options={"mask_tokens_in_encoder": False}, finetune=84.9, linear=73.5, default=True),
    ),
    finding="An encoder that does not see mask tokens is better, and a step of it is faster.",
    claims=lambda labels: (Ahead("without tokens", "with tokens"), Faster("without tokens", "with tokens")),
    axis_title="the encoder",
)
TARGET = PaperStudy(
    name="target",
    source="Table 1d",
    question="What should the decoder predict?",
    cells=(
        Cell(label="pixel", options={"target": "pixel"}, finetune=84.9, linear=73.5, default=True),
        Cell(label="normalised pixel", options={"target": "normalised"}, finetune=85.4, linear=73.9),
        Cell(label="PCA", options={"target": "pca"}, finetune=84.6, linear=72.3),
        Cell(label="dVAE token", options={"target": "token", "visual_tokenizer": "dvae"}, finetune=85.3, linear=71.6),
    ),
    finding="Pixels that are normalised in each patch are a better target than raw pixels.",
    claims=lambda labels: (Ahead("normalised pixel", "pixel", "finetune"),),
    axis_title="target",
    first_stages=("dvae",),
    note="The tokens are those of a dVAE that was trained on the same images before. The paper's is that of DALL-E.",
)
AUGMENTATION = PaperStudy(
    name="augmentation",
    source="Table 1e",
    question="How much augmentation does pre-training need?",
    cells=(
        Cell(label="none", options={"crop": "none", "color_jitter": 0.0}, finetune=84.0, linear=65.7),
        Cell(label="fixed crop", options={"crop": "fixed", "color_jitter": 0.0}, finetune=84.7, linear=73.1),
        Cell(label="resized crop", options={"crop": "resized", "color_jitter": 0.0}, finetune=84.9, linear=73.5, default=True),
        Cell(label="resized crop, colour", options={"crop": "resized", "color_jitter": 0.4}, finetune=84.3, linear=71.9),
    ),
    finding="Random crops help, and colour jitter hurts.",
    claims=lambda labels: (Ahead("resized crop", "none"), Ahead("resized crop", "resized crop, colour")),
    axis_title="augmentation",
)
SAMPLING = PaperStudy(
    name="sampling",
    source="Table 1f",
    question="How should the masked patches be chosen?",
    cells=(
        Cell(label="random 75", options={"sampling": "random", "mask_ratio": 0.75}, finetune=84.9, linear=73.5, default=True),
        Cell(label="block 50", options={"sampling": "block", "mask_ratio": 0.5}, finetune=83.9, linear=72.3),
        Cell(label="block 75", options={"sampling": "block", "mask_ratio": 0.75}, finetune=82.8, linear=63.9),
        Cell(label="grid 75", options={"sampling": "grid", "mask_ratio": 0.75}, finetune=84.0, linear=66.0),
    ),
    finding="Random sampling is better than blocks and than a grid.",
    claims=lambda labels: (Ahead("random 75", "block 75"), Ahead("random 75", "grid 75")),
    axis_title="sampling, and share of masked patches in percent",
)
EPOCHS = PaperStudy(
    name="epochs",
    source="Figure 7",
    question="How long should pre-training be?",
    cells=tuple(
        Cell(label=label, at=epochs, finetune=finetune, linear=linear, default=epochs == 800)
        for label, epochs, finetune, linear in [
            ("1/8 of the epochs", 100, 82.3, 57.3),
            ("1/4 of the epochs", 200, 83.3, 64.4),
            ("1/2 of the epochs", 400, 84.3, 69.7),
            ("the epochs", 800, 84.9, 73.5),
            ("twice the epochs", 1600, 85.1, 75.1),
        ]
    ),
    finding="Longer training is better, and the linear probe still rises at the end.",
    claims=lambda labels: (Ahead("the epochs", "1/8 of the epochs"), Ahead("twice the epochs", "the epochs")),
    axis="log",
    axis_title="epochs, as a multiple of the epochs that are given",
    scaled="epochs",
    note="The epochs are the same multiples of the epochs of a run (--epochs) as in the paper of 800. Settings with equally many "
    "training steps are one.",
)
PARTIAL = PaperStudy(
    name="partial",
    source="Figure 9",
    question="How many blocks have to be fine-tuned?",
    cells=tuple(
        Cell(label="no block" if not blocks else f"{blocks} of 24 blocks", at=blocks, finetune=finetune, default=blocks == 24)
        for blocks, finetune in [(0, 73.5), (1, 81.0), (2, 83.1), (4, 84.2), (6, 84.4), (12, 84.6), (18, 84.7), (24, 84.9)]
    ),
    finding="Fine-tuning the last blocks is much better than the linear probe.",
    claims=lambda labels: (Ahead(labels[1], labels[0], "finetune"),),
    axis="linear",
    axis_title="share of the blocks that is fine-tuned",
    scaled="blocks",
    varies="partial",
    metrics=("finetune",),
    note="One encoder is pre-trained for each seed. The blocks are the same shares of its depth as in the paper, where those are "
    "whole blocks. All are fine-tuned by the same recipe, from a linear probe unless --finetune.recipe is paper. With no block, "
    "only the linear classifier is trained.",
)
MASKED_LOSS = PaperStudy(
    name="masked-loss",
    source="Section 4.1",
    question="Should the loss be computed on masked patches only?",
    cells=(
        Cell(label="all patches", options={"loss_on_all": True}, finetune=84.4),
        Cell(label="masked patches", options={"loss_on_all": False}, finetune=84.9, linear=73.5, default=True),
    ),
    finding="A loss on the masked patches only is better.",
    claims=lambda labels: (Ahead("masked patches", "all patches", "finetune"),),
    axis_title="the loss is that of",
    note="The paper gives the difference, about 0.5 points after fine-tuning.",
)
MODEL_SIZE = PaperStudy(
    name="model-size",
    source="Table 3",
    question="Do larger encoders learn more?",
    cells=(
        Cell(label="vit-nano", options={"model": "vit-nano"}, theirs="ViT-B", finetune=83.6, linear=68.0),
        Cell(label="vit-tiny", options={"model": "vit-tiny"}, theirs="ViT-L", finetune=85.9, linear=75.8, default=True),
        Cell(label="vit-small", options={"model": "vit-small"}, theirs="ViT-H", finetune=86.9, linear=76.6),
    ),
    finding="Larger encoders are better, with the same recipe.",
    claims=lambda labels: (Ahead("vit-tiny", "vit-nano", "finetune"), Ahead("vit-small", "vit-tiny", "finetune")),
    axis_title="encoder",
    note="The paper's encoders are larger, and were trained for 1600 epochs.",
)
LABEL_FRACTION = PaperStudy(
    name="label-fraction",
    source="Section 4",
    question="Is pre-training ahead of training from scratch, and with how many labels?",
    cells=(
        Cell(label="1 % of the labels", at=0.01),
        Cell(label="10 % of the labels", at=0.1),
        Cell(label="all labels", at=1.0, finetune=84.9, linear=73.5, scratch=82.5, default=True),
    ),
    finding="A pre-trained encoder is ahead of the same encoder from scratch.",
    claims=lambda labels: tuple(Ahead(label, label, "finetune", "scratch") for label in labels),
    axis="log",
    axis_title="share of the labels",
    scaled="labels",
    varies="labels",
    metrics=("linear", "finetune", "scratch"),
    note="The paper reports all labels only. One encoder is pre-trained for each seed, on all images.",
)
STUDIES = {
    study.name: study
    for study in (
        DECODER_DEPTH,
        DECODER_WIDTH,
        MASK_TOKEN,
        TARGET,
        AUGMENTATION,
        SAMPLING,
        MASK_RATIO,
        EPOCHS,
        PARTIAL,
        MASKED_LOSS,
        MODEL_SIZE,
        LABEL_FRACTION,
    )
}
"""The studies that run on images alone, by name."""
INFORMATION_DENSITY = ("information-density", "Section 1", "Why are images masked more than words, and does it take a decoder?")
"""The study of images and text, which has a command of its own."""


def list_studies() -> str:
    """A line for each study: its name, its source in the paper, and its question."""
    lines = [(study.name, study.source, study.question) for study in STUDIES.values()] + [INFORMATION_DENSITY]
    name_width, source_width = (max(len(line[i]) for line in lines) + 2 for i in (0, 1))
    shown = "\n".join(f"{name:<{name_width}}{source:<{source_width}}{question}" for name, source, question in lines)
    hint = textwrap.fill(
        "Run one with unveil study NAME DATA, and all but information-density with unveil study all DATA. "
        "unveil study option=value,value DATA varies any option.",
        100,
    )
    return f"{shown}\n\n{hint}"


def print_studies() -> None:
    """Prints the studies."""
    print(list_studies())
