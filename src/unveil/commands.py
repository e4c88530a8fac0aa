"""The table of commands: for each, its function, its arguments, and the dataclasses that define its options. Needs no torch."""

from typing import Annotated, Literal, get_args

from unveil.methods import METHODS
from unveil.paths import TEXT_FORMS
from unveil.ranges import Count, Positive, Range
from unveil.text_commands import COMPARE_ON_TEXT, FINETUNE_ON_TEXT, PRETRAIN_ON_TEXT, STUDY_ON_TEXT
from unveil.verbs import (
    ALL_RUNS,
    AUGMENT,
    CLASSIFIER,
    CONFIG,
    DATA,
    DIGITS_PATH,
    EXPORT_FORMATS,
    EXTEND,
    FINETUNE_OUT,
    IMAGES_ARG,
    LABELLED_IMAGES,
    METHOD,
    METHOD_NAME,
    NO_SEED,
    NO_TRAINING,
    ONE_PROCESS,
    PRETRAIN,
    PRETRAIN_OUT,
    RARE_IN_TRAINING,
    RESUME_FROM,
    RESUMES,
    RUN,
    SHARED,
    TASK,
    TEST_IMAGES,
    TEXT_RUN,
    VIT_MODEL,
    VIT_NAMES,
    WHOLE_MODEL,
    Argument,
    Verb,
    task_argument,
)

VERBS = {
    "pretrain": Verb(
        "unveil.recipes.pretrain:pretrain",
        f"Train an encoder on images without labels.{RESUMES}",
        {
            "data": IMAGES_ARG,
            "method": Argument(str, METHOD_NAME, "mae"),
            "model": VIT_MODEL,
            "out": PRETRAIN_OUT,
            "resume_from": RESUME_FROM,
            "extend": EXTEND,
            "config": CONFIG,
        },
        {**PRETRAIN, "method": METHOD, **AUGMENT, **SHARED},
        digits=DIGITS_PATH,
        hides=RARE_IN_TRAINING,
        forms={"text": PRETRAIN_ON_TEXT},
        resumes=True,
    ),
    "plan": Verb(
        "unveil.recipes.plan:plan",
        "Choose settings for pre-training on this hardware, and predict time and memory.",
        {
            "data": IMAGES_ARG,
            "method": Argument(str, METHOD_NAME, "mae"),
            "model": Argument(
                VIT_NAMES, "The encoder. If not given, it is chosen, as are sizes, decoder, batch size, rate and epochs.", None
            ),
            "out": Argument(
                str | None,
                "The run folder for the printed command; by default runs/<data>-<method>-<model>.",
                None,
                path="run folder",
            ),
            "hours": Argument(
                Positive | None, "The longest time that the run may take; by default 1 hour on a CPU and 8 hours on a GPU.", None
            ),
            "seconds": Argument(Annotated[float, Range(1, 3600)], "The approximate duration of the trial run.", 30.0),
        },
        {**PRETRAIN, "method": METHOD, **AUGMENT, **SHARED},
        digits=DIGITS_PATH,
        hides=RARE_IN_TRAINING | {"warmup_ratio", "warmup_epochs"},
    ),
    "compare": Verb(
        "unveil.experiments.compare:compare",
        "Train several methods with equal budgets, and compare them in one table.",
        {
            "methods": Argument(
                str,
                f"Some of {', '.join(METHODS.names)}, separated by commas. A method may occur twice under two names, such as mae "
                "and mae-pixel. --mae-pixel.target pixel is an option of `pretrain` for that entry only. "
                "--beit.visual-tokenizer dvae uses the run of an earlier entry, dvae, as the tokenizer of beit.",
                positional=True,
            ),
            "data": IMAGES_ARG,
            "model": VIT_MODEL,
            "out": Argument(str | None, ALL_RUNS + "runs/<data>-compare.", None, path="folder"),
        },
        {
            "comparison": "unveil.experiments.runner:ComparisonConfig",
            "table": "unveil.experiments.compare:CompareConfig",
            **PRETRAIN,
            **AUGMENT,
            **SHARED,
        },
        digits=DIGITS_PATH,
        hides=RARE_IN_TRAINING,
        ignores=NO_SEED,
        per_method=True,
        forms={"text": COMPARE_ON_TEXT},
        resumes=True,
    ),
    "finetune": Verb(
        "unveil.recipes.finetune:finetune",
        f"Fine-tune an encoder on labelled images, or train it from scratch (--scratch).{RESUMES}",
        {
            "run": RUN,
            "data": LABELLED_IMAGES,
            "task": task_argument("finetune"),
            "test": TEST_IMAGES,
            "out": FINETUNE_OUT,
            "resume_from": RESUME_FROM,
            "extend": EXTEND,
            "config": CONFIG,
        },
        {"run": "unveil.runs.images:ImageFinetuneConfig", "task": TASK, **AUGMENT, **SHARED},
        task="finetune",
        hides=RARE_IN_TRAINING - {"layer_decay"} | {"accum_steps", "clip_grad", "crop", "crop_scale", "flip", "warmup_ratio"},
        forms={"text": FINETUNE_ON_TEXT},
        resumes=True,
    ),
    "fill-mask": Verb(
        "unveil.recipes.fill_mask:fill_mask",
        "Predict the most likely words for each [MASK] in a sentence.",
        {
            "run": TEXT_RUN,
            "sentence": Argument(str, 'A text with at least one [MASK], such as "the film was [MASK] ."', positional=True),
            "count": Argument(Count, "Words to print for each [MASK].", 5),
        },
    ),
    "probe": Verb(
        "unveil.recipes.probe:probe",
        "Evaluate an encoder with labels: linear probe, k-NN, or partial fine-tuning.",
        {
            "run": RUN,
            "data": LABELLED_IMAGES,
            "test": TEST_IMAGES,
            "out": Argument(str | None, "A folder for the results; by default a new <run>/probe-<kind>.", None, path="folder"),
        },
        {"probe": "unveil.runs.probing:ProbeConfig", **SHARED},
        task="linear",
        task_option="--kind",
        hides=frozenset({"schedule", "beta2", "layer_decay", "clip_grad", "log_every", "accum_steps", "warmup_epochs"}),
        ignores={
            "save_seconds": "a probe saves no checkpoints",
            "keep_checkpoints": "a probe saves no checkpoints",
            "num_evals": "a probe is evaluated once, at its end",
            "parallel": ONE_PROCESS,
        },
    ),
    "predict": Verb(
        "unveil.recipes.predict:predict_to_file",
        f"Label new images with a trained model: a table, or a folder of class maps.{RESUMES}",
        {
            "run": CLASSIFIER,
            "images": Argument(str, f"Images: {DATA} For a text classifier, {TEXT_FORMS}.", positional=True, path="samples"),
            "out": Argument(
                str | None,
                "A new .csv, .parquet or .jsonl file with one row per image, or a new folder of class maps; by default "
                "predictions.csv, or predictions.",
                None,
                path="new labels",
            ),
        },
        {"predictions": "unveil.recipes.predict:PredictConfig", "hardware": SHARED["hardware"]},
        ignores={"compile": NO_TRAINING, "compile_mode": NO_TRAINING, "parallel": WHOLE_MODEL},
        resumes=True,
    ),
    "doctor": Verb(
        "unveil.recipes.doctor:doctor_and_judge",
        "Find broken, blank and duplicated images, leaks between splits, and odd labels.",
        {
            "data": Argument(str, "Images: " + DATA, positional=True, path="data"),
            "run": Argument(str | None, "A trained encoder (see embed), by whose features labels are checked.", None, path="model"),
            "out": Argument(str | None, "A new folder; by default runs/<data>-doctor.", None, path="new"),
        },
        {"search": "unveil.recipes.doctor:DoctorConfig", "hardware": SHARED["hardware"]},
        ignores={"compile": NO_TRAINING, "compile_mode": NO_TRAINING, "parallel": ONE_PROCESS},
    ),
    "similar": Verb(
        "unveil.recipes.similar:similar",
        "Find the images that are nearest to an image, by the features of an encoder.",
        {
            "run": RUN,
            "image": Argument(str, "An image file.", positional=True, path="image"),
            "data": Argument(str, "Images to search: " + DATA, positional=True, path="data"),
            "out": Argument(str | None, "A new folder; by default <image>-similar.", None, path="new"),
        },
        {"neighbours": "unveil.recipes.similar:SimilarConfig", "hardware": SHARED["hardware"]},
        ignores={"compile": NO_TRAINING, "compile_mode": NO_TRAINING, "parallel": ONE_PROCESS},
    ),
    "embed": Verb(
        "unveil.recipes.embed:embed",
        f"Write the features of every image, one row per image, as NPZ or Parquet.{RESUMES}",
        {
            "run": RUN,
            "data": Argument(str, "Images: " + DATA, positional=True, path="data"),
            "out": Argument(str | None, "A new .npz or .parquet file; by default embeddings.npz.", None, path="new table"),
        },
        {"features": "unveil.recipes.embed:EmbedConfig", "hardware": SHARED["hardware"]},
        ignores={"compile": NO_TRAINING, "compile_mode": NO_TRAINING, "parallel": WHOLE_MODEL},
        resumes=True,
    ),
    "reconstruct": Verb(
        "unveil.recipes.reconstruct:reconstruct",
        "Draw images, the images with masked patches, and their reconstructions.",
        {
            "run": RUN,
            "data": Argument(str | None, "Images to draw; by default those of the run. Otherwise " + DATA, None, True, "data"),
            "out": Argument(
                str | None, "A new .png, .pdf or .svg file; by default <run>/reconstruction.png.", None, path="new figure"
            ),
        },
        {"figure": "unveil.recipes.reconstruct:ReconstructConfig"},
    ),
    "export": Verb(
        "unveil.recipes.export:export",
        "Write the model in another library's format, and verify that its outputs agree.",
        {
            "run": RUN,
            "to": Argument(EXPORT_FORMATS, f"The format: {', '.join(get_args(EXPORT_FORMATS))}.", metavar="FORMAT"),
            "out": Argument(str | None, "A new file or folder; by default <run>/export/<name>.", None, path="new"),
            "licence": Argument(str | None, "Licence of the weights for the model card, such as apache-2.0.", None),
            "push": Argument(
                str | None, "Also upload it, with its model card: hf://user/name, on the Hugging Face Hub.", None, metavar="HF"
            ),
            "public": Argument(bool, "Make a repository that --push creates visible to everybody.", False),
        },
    ),
    "pack": Verb(
        "unveil.recipes.pack:pack",
        f"Decode and shrink every image once, into a few large files that load faster.{RESUMES}",
        {
            "data": Argument(str, "Images: " + DATA, positional=True, path="data"),
            "out": Argument(str | None, "A new folder.", None, True),
            "verify": Argument(bool, "Read OUT again and check every byte; without OUT, check the pack DATA.", False),
        },
        {"pack": "unveil.data.pack_writer:PackConfig"},
        resumes=True,
    ),
    "translate train": Verb(
        "unveil.recipes.translate:train_translator",
        f"Train a Transformer (Vaswani et al., 2017) to translate; evaluate it by BLEU.{RESUMES}",
        {
            "data": Argument(
                str,
                "A folder or .tar.gz with train.<source> and train.<target>, and optionally val and test files.",
                positional=True,
                path="pairs",
            ),
            "model": Argument(
                Literal["nano", "tiny", "small", "base", "big"], "The size: tiny suits tens of thousands of pairs.", "tiny"
            ),
            "out": Argument(
                str | None, "The run folder; by default runs/<data>-<model>-<source>-<target>.", None, path="run folder"
            ),
            "resume_from": RESUME_FROM,
            "config": CONFIG,
        },
        {
            "translation": "unveil.recipes.translate:TranslateRunConfig",
            "task": TASK,
            "search": "unveil.recipes.translate:SearchConfig",
            **SHARED,
        },
        task="translation",
        hides=RARE_IN_TRAINING,
        ignores={"layer_decay": "all layers learn at the same rate"},
        resumes=True,
    ),
    "translate run": Verb(
        "unveil.recipes.translate:translate_and_print",
        "Translate sentences, the lines of a file, or the lines of standard input.",
        {
            "run": Argument(str, "A run folder of unveil translate train.", positional=True, path="run"),
            "sentences": Argument(tuple[str, ...], "Sentences, or one text file; by default standard input.", (), True),
            "attention": Argument(
                str | None, "A new .png, .pdf or .svg figure of the attention in one sentence.", None, path="new figure"
            ),
            "device": Argument(Literal["auto", "cpu", "cuda", "mps"], "The device; auto uses a GPU if there is one.", "auto"),
        },
        {"search": "unveil.recipes.translate:SearchConfig"},
        may_import=False,
    ),
    "study": Verb(
        "unveil.experiments.study:study",
        "Repeat an ablation of the MAE paper, or vary any option, and plot the curve.",
        {
            "what": Argument(
                str,
                "The name of a study, such as mask-ratio (see unveil study --list); all; or an option and its values, such as "
                "mask_ratio=0.25,0.5,0.75.",
                positional=True,
            ),
            "data": IMAGES_ARG,
            "method": Argument(str, METHOD_NAME, "mae"),
            "model": VIT_MODEL,
            "out": Argument(
                str | None,
                ALL_RUNS + "runs/<data>-study-<name>, runs/<data>-studies for all, or runs/<data>-<method>-<option>.",
                None,
                path="folder",
            ),
        },
        {"comparison": "unveil.experiments.runner:ComparisonConfig", **PRETRAIN, "method": METHOD, **AUGMENT, **SHARED},
        digits=DIGITS_PATH,
        hides=RARE_IN_TRAINING | {"accum_steps", "warmup_epochs", "clip_grad", "compile"},
        ignores=NO_SEED,
        forms={"text": STUDY_ON_TEXT},
        per_method=True,
        resumes=True,
    ),
    "study --list": Verb(
        "unveil.experiments.paper_studies:print_studies", "List the ablations of the MAE paper that unveil can repeat.", {}
    ),
    "study information-density": Verb(
        "unveil.experiments.images_vs_words:images_vs_words",
        "Vary mask ratio and decoder depth for images and for text, with equal budgets.",
        {
            "images": Argument(str, "Labelled images: " + DATA, positional=True, path="images"),
            "texts": Argument(str, f"Texts: {TEXT_FORMS}.", positional=True, path="text"),
            "size": Argument(Literal["nano", "base"], "The encoders: vit-nano and bert-nano, or vit-base and bert-base.", "nano"),
            "out": Argument(str | None, ALL_RUNS + "runs/images-vs-words.", None, path="folder"),
        },
        {"comparison": "unveil.experiments.runner:ComparisonConfig", **SHARED},
        hides=RARE_IN_TRAINING,
        ignores=NO_SEED | {"seconds": "the time of a step is measured for images only: give --epochs"},
        per_method=True,
        resumes=True,
    ),
    "verdict": Verb(
        "unveil.experiments.verdict:verdict",
        f"Tell whether pre-training paid off on your images, with few and with all labels.{RESUMES}",
        {
            "run": RUN,
            "data": LABELLED_IMAGES,
            "test": TEST_IMAGES,
            "out": Argument(str | None, ALL_RUNS + "<run>-verdict.", None, path="folder"),
        },
        {"verdict": "unveil.experiments.verdict_runs:VerdictConfig", "hardware": SHARED["hardware"]},
        ignores={"parallel": ONE_PROCESS},
        per_method=True,
        resumes=True,
    ),
    "options": Verb(
        "unveil.recipes.options:print_command",
        "Print the shortest command that makes a run again.\n\nIt has the options that differ from the defaults of this version.",
        {
            "run": Argument(str, "A run folder.", positional=True, path="run"),
            "toml": Argument(bool, "Print the options as a TOML file for --config, with the command as a comment.", False),
        },
    ),
    "report": Verb(
        "unveil.recipes.report:report",
        "Rebuild the HTML report of a run.",
        {"run": Argument(str, "A run folder.", positional=True, path="run")},
    ),
}
ALIASES = {"study images-vs-words": "study information-density"}
"""Earlier names of commands, which still work."""
OLD_VERBS = {
    "fill": "fill-mask",
    "why": "study information-density",
    "train": "pretrain",
    "evaluate": "probe",
    "eval": "probe",
    "linprobe": "probe",
    "knn": "probe",
    "features": "embed",
    "extract": "embed",
    "convert": "export",
    "visualize": "reconstruct",
}
"""Names of commands in earlier versions and in other libraries, for hints."""
