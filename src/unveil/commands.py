"""The verbs of the command line: what each calls, its inputs, and the configs whose knobs it turns. Without torch."""

from dataclasses import dataclass
from typing import Any, Literal

from unveil.methods import IMAGES, METHODS

SHARED = {
    "training": "unveil.train.loop:TrainConfig",
    "optimizer": "unveil.train.optim:OptimConfig",
    "hardware": "unveil.train.parallel:HardwareConfig",
}
AUGMENT = {"augmentation": "unveil.data.augment:AugmentConfig"}
DATA = "A folder, a .tar, .tar.gz or .zip of images, a pack, shards-{000..099}.tar, hf://name, a torchvision set, or digits."
PAIRS = "A folder or .tar.gz with train.<source> and train.<target>; val and test files where there are."
RUN = "A run folder, an exported file, a checkpoint laid out as the public MAE release, or a transformers ViTMAE folder."
REQUIRED = object()


@dataclass(frozen=True)
class Argument:
    """An input or an option of a verb that is no knob of a config."""

    type: Any
    help: str
    default: Any = REQUIRED
    positional: bool = False


@dataclass(frozen=True)
class Verb:
    """A command: the function it calls, its own arguments, its configs by the title of their group."""

    call: str
    says: str
    arguments: dict[str, Argument]
    configs: dict[str, str]
    defaults: str = ""
    """Defaults that differ from the configs', as "module:literal"."""
    digits: str = ""
    """Defaults that differ for the embedded digits."""
    of_texts: "Verb | None" = None
    """What it is for a method of texts, or for a run of one; as for images by default."""
    apart: bool = False
    """Whether `--NAME.OPTION` is an option of `pretrain` for the method NAME alone, and `--finetune.OPTION` one of `finetune`."""


MODEL = Literal["vit-nano", "vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge"] | None
TRANSLATORS = Literal["nano", "tiny", "small", "base", "big"]
TEST = Argument(str | None, "Labelled images to judge on; the test split of DATA by default, or a tenth of it.", None)
TEXT_DATA = "A .txt, .csv or .tsv file, or a folder, .tar, .tar.gz or .zip of them."
TEXT_RUN = "A run folder of texts, or a folder of transformers' BERT."
TEXT_MODEL = Literal["bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"] | None
PRETRAIN_ON_TEXTS = Verb(
    "unveil.recipes.pretrain_text:pretrain_on_texts",
    "Train an encoder on texts without labels; the same command again goes on.",
    {
        "data": Argument(str, TEXT_DATA, positional=True),
        "method": Argument(Literal[*METHODS], "How to learn.", "bert"),
        "model": Argument(TEXT_MODEL, "The encoder: bert-mini by default.", None),
        "out": Argument(str | None, "The run folder; runs/<data>-<method>-<model> by default.", None),
    },
    {"run": "unveil.recipes.pretrain_text:CorpusConfig", "method": "METHOD", **SHARED},
)
FINETUNE_ON_TEXTS = Verb(
    "unveil.recipes.finetune_text:finetune_on_texts",
    "Tune a whole encoder of texts on labelled ones; --scratch for the same without pre-training.",
    {
        "run": Argument(str, TEXT_RUN, positional=True),
        "data": Argument(str | None, "Labelled texts; those of the run by default. " + TEXT_DATA, None, True),
        "test": Argument(str | None, "Labelled texts to judge on; the test part of DATA by default, or a tenth of it.", None),
        "out": Argument(str | None, "The run folder; <run>-finetune or <run>-scratch by default.", None),
    },
    {"settings": "unveil.runs.finetune_common:TuningConfig", "recipe": "unveil.tasks.text_classification:ClassifyConfig", **SHARED},
    "unveil.recipes.finetune_text:DEFAULTS",
)
VERBS = {
    "pretrain": Verb(
        "unveil.recipes.pretrain:pretrain",
        "Train an encoder on images without labels; the same command again goes on.",
        {
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*METHODS], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder: vit-base, or vit-nano for the embedded digits.", None),
            "out": Argument(str | None, "The run folder; runs/<data>-<method>-<model> by default.", None),
        },
        {"run": "unveil.runs.pretrain_setup:PretrainConfig", "method": "METHOD", **AUGMENT, **SHARED},
        digits="unveil.runs.pretrain_setup:DIGITS",
        of_texts=PRETRAIN_ON_TEXTS,
    ),
    "plan": Verb(
        "unveil.recipes.plan:plan",
        "Choose what to train on DATA with this hardware, try it for a moment, and predict time and memory.",
        {
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*IMAGES], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder; chosen where not given, as are sizes, decoder, batch, rate and epochs.", None),
            "out": Argument(str | None, "The run folder of the printed command; runs/<data>-<method>-<model> by default.", None),
            "hours": Argument(float | None, "The time that the run may take; 1 on a CPU and 8 on a GPU by default.", None),
            "seconds": Argument(float, "About how long the trial takes.", 30.0),
        },
        {"run": "unveil.runs.pretrain_setup:PretrainConfig", "method": "METHOD", **AUGMENT, **SHARED},
        digits="unveil.runs.pretrain_setup:DIGITS",
    ),
    "compare": Verb(
        "unveil.experiments.compare:compare",
        "Train several methods under one budget, judge them alike, and write one table.",
        {
            "methods": Argument(
                str,
                f"Some of {', '.join(METHODS)}, with commas. mae-pixel is mae under another name; --mae-pixel.target pixel is an "
                "option of `pretrain` for it alone; --beit.tokenizer dvae names another one as its first stage.",
                positional=True,
            ),
            "data": Argument(str, DATA, "digits", True),
            "model": Argument(MODEL, "The encoder: vit-base, or vit-nano for the embedded digits.", None),
            "out": Argument(str | None, "The folder for all runs; runs/<data>-compare by default.", None),
        },
        {
            "comparison": "unveil.experiments.runner:ComparisonConfig",
            "table": "unveil.experiments.compare:CompareConfig",
            "run": "unveil.runs.pretrain_setup:PretrainConfig",
            **AUGMENT,
            **SHARED,
        },
        digits="unveil.runs.pretrain_setup:DIGITS",
        apart=True,
    ),
    "finetune": Verb(
        "unveil.recipes.finetune:finetune",
        "Tune a whole encoder on labelled images, with the paper's recipe; --scratch for the same without pre-training.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str | None, "Labelled images; those of the run by default. " + DATA, None, True),
            "test": TEST,
            "out": Argument(str | None, "The run folder; <run>-finetune or <run>-scratch by default.", None),
        },
        {
            "settings": "unveil.recipes.finetune:FinetuneRunConfig",
            "recipe": "unveil.tasks.finetune:FinetuneConfig",
            **AUGMENT,
            **SHARED,
        },
        "unveil.recipes.finetune:DEFAULTS",
        of_texts=FINETUNE_ON_TEXTS,
    ),
    "fill": Verb(
        "unveil.recipes.fill_mask:fill",
        "Name the likeliest words for each [MASK] of a sentence.",
        {
            "run": Argument(str, TEXT_RUN, positional=True),
            "sentence": Argument(str, 'A text with one [MASK] or more: "the film was [MASK] ."', positional=True),
            "count": Argument(int, "Words that are named for each.", 5),
        },
        {},
    ),
    "probe": Verb(
        "unveil.recipes.probe:probe",
        "Judge an encoder with labels: linear, k-NN, or partial fine-tuning.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str | None, "Labelled images; those of the run by default. " + DATA, None, True),
            "test": TEST,
            "out": Argument(str | None, "A folder for the results; a new <run>/probe-<kind> by default.", None),
        },
        {"settings": "unveil.recipes.probe:ProbeConfig", **SHARED},
        "unveil.recipes.probe:DEFAULTS",
    ),
    "embed": Verb(
        "unveil.recipes.embed:embed",
        "Write the features of every image, one row each, as NPZ or Parquet.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str, DATA, positional=True),
            "out": Argument(str | None, "A new .npz or .parquet file; embeddings.npz by default.", None),
        },
        {"settings": "unveil.recipes.embed:EmbedConfig", "hardware": SHARED["hardware"]},
    ),
    "reconstruct": Verb(
        "unveil.recipes.look:reconstruct",
        "Draw images masked and rebuilt.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str | None, "Images to draw; those of the run by default. " + DATA, None, True),
            "out": Argument(str | None, "A new .png, .pdf or .svg; <run>/reconstruction.png by default.", None),
        },
        {"settings": "unveil.recipes.look:ReconstructConfig"},
    ),
    "export": Verb(
        "unveil.recipes.export:export",
        "Write the model in the format of another library, and check that it agrees there.",
        {
            "run": Argument(str, RUN, positional=True),
            "to": Argument(Literal["timm", "transformers", "mae", "safetensors", "onnx"], "The format."),
            "out": Argument(str | None, "A new file or folder; <run>/export/... by default.", None),
        },
        {},
    ),
    "pack": Verb(
        "unveil.recipes.pack:pack",
        "Decode and shrink every image once, into a few large files that train faster.",
        {
            "data": Argument(str, DATA, positional=True),
            "out": Argument(str | None, "A new folder; the same command again goes on.", None, True),
            "verify": Argument(bool, "Read every byte of OUT again; without OUT, of DATA, which then is a pack.", False),
        },
        {"settings": "unveil.data.pack_writer:PackConfig"},
    ),
    "translate train": Verb(
        "unveil.recipes.translate:train_translator",
        "Train the Transformer of 2017 on sentence pairs, and judge it by BLEU.",
        {
            "data": Argument(str, PAIRS, positional=True),
            "model": Argument(TRANSLATORS, "The size: tiny for tens of thousands of pairs.", "tiny"),
            "out": Argument(str | None, "The run folder; runs/<data>-<model>-<source>-<target> by default.", None),
        },
        {
            "settings": "unveil.recipes.translate:TranslateRunConfig",
            "learning": "unveil.tasks.translate:TranslateConfig",
            "search": "unveil.recipes.translate:SearchConfig",
            **SHARED,
        },
        "unveil.recipes.translate:DEFAULTS",
    ),
    "translate run": Verb(
        "unveil.recipes.translate:translate_aloud",
        "Translate sentences, a file of lines, or the standard input.",
        {
            "run": Argument(str, "A run folder of unveil translate train.", positional=True),
            "sentences": Argument(tuple[str, ...], "Sentences, or one file of lines; the standard input by default.", (), True),
            "attention": Argument(str | None, "A new .png, .pdf or .svg that shows where the words of one sentence looked.", None),
            "device": Argument(Literal["auto", "cpu", "cuda", "mps"], "Where to compute: a GPU where there is one.", "auto"),
        },
        {"search": "unveil.recipes.translate:SearchConfig"},
    ),
    "study": Verb(
        "unveil.experiments.study:study",
        "Train a method with a knob at several values, several seeds each, and draw the curve.",
        {
            "what": Argument(str, "A knob and its values: mask_ratio=0.25,0.5,0.75.", positional=True),
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*IMAGES], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder: vit-base, or vit-nano for the embedded digits.", None),
            "out": Argument(str | None, "The folder for all runs; runs/<data>-<method>-<knob> by default.", None),
        },
        {
            "comparison": "unveil.experiments.runner:ComparisonConfig",
            "run": "unveil.runs.pretrain_setup:PretrainConfig",
            "method": "METHOD",
            **AUGMENT,
            **SHARED,
        },
        digits="unveil.runs.pretrain_setup:DIGITS",
        apart=True,
    ),
    "why": Verb(
        "unveil.experiments.images_vs_words:why",
        "Hide more and more of images and of words, with the same blocks and budget, and draw the curves beside each other.",
        {
            "images": Argument(str, "Labelled images: " + DATA, positional=True),
            "texts": Argument(str, "A corpus: a folder or an archive of text files.", positional=True),
            "size": Argument(Literal["nano", "base"], "The encoders: vit-nano and bert-nano, or vit-base and bert-base.", "nano"),
            "out": Argument(str | None, "The folder for all runs; runs/why by default.", None),
        },
        {"comparison": "unveil.experiments.runner:ComparisonConfig", **SHARED},
        apart=True,
    ),
    "report": Verb(
        "unveil.recipes.look:report", "Write the page of a run anew.", {"run": Argument(str, "A run folder.", positional=True)}, {}
    ),
}
