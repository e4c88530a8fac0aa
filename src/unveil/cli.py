"""The command line: a verb, its inputs, and the knobs of the configs that it turns.

Nothing here imports torch before a verb runs: options are read from the source of the files that they configure.
"""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from unveil.errors import UnveilError
from unveil.interop.reads import reads
from unveil.methods import METHODS, PICTURES, TEXTS, base_of, usual_of
from unveil.options import knobs, literal

SHARED = {
    "training": "unveil.train.loop:TrainConfig",
    "optimizer": "unveil.train.optim:OptimConfig",
    "hardware": "unveil.train.parallel:SpreadConfig",
}
AUGMENT = {"augmentation": "unveil.data.augment:AugmentConfig"}
DATA = "A folder, a .tar, .tar.gz or .zip of pictures, a pack, shards-{000..099}.tar, hf://name, a torchvision set, or digits."
PAIRS = "A folder or .tar.gz with train.<source> and train.<target>; val and test files where there are."
RUN = "A run folder, an exported file, a checkpoint laid out as the public MAE release, or a transformers ViTMAE folder."
REQUIRED = object()
WORDS: dict[Any, str] = {str: "TEXT", str | None: "TEXT", int | None: "INT", float | None: "FLOAT"}
"""What a type is called where its own name is none for a reader."""


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
    """What it is for a method of texts, or for a run of one; as for pictures by default."""
    apart: bool = False
    """Whether `--NAME.OPTION` is an option of `pretrain` for the method NAME alone, and `--finetune.OPTION` one of `finetune`."""


MODEL = Literal["vit-nano", "vit-tiny", "vit-small", "vit-base", "vit-large", "vit-huge"] | None
TRANSLATORS = Literal["nano", "tiny", "small", "base", "big"]
TEST = Argument(str | None, "Labelled pictures to judge on; the test split of DATA by default, or a tenth of it.", None)
TEXT_DATA = "A .txt, .csv or .tsv file, or a folder, .tar, .tar.gz or .zip of them."
TEXT_RUN = "A run folder of texts, or a folder of transformers' BERT."
TEXT_MODEL = Literal["bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"] | None
PRETRAIN_ON_TEXTS = Verb(
    "unveil.recipes.corpus:pretrain_on_texts",
    "Train an encoder on texts without labels; the same command again goes on.",
    {
        "data": Argument(str, TEXT_DATA, positional=True),
        "method": Argument(Literal[*METHODS], "How to learn.", "bert"),
        "model": Argument(TEXT_MODEL, "The encoder: bert-mini by default.", None),
        "out": Argument(str | None, "The run folder; runs/<data>-<method>-<model> by default.", None),
    },
    {"run": "unveil.recipes.corpus:CorpusConfig", "method": "METHOD", **SHARED},
)
FINETUNE_ON_TEXTS = Verb(
    "unveil.recipes.classify:finetune_on_texts",
    "Tune a whole encoder of texts on labelled ones; --scratch for the same without pre-training.",
    {
        "run": Argument(str, TEXT_RUN, positional=True),
        "data": Argument(str | None, "Labelled texts; those of the run by default. " + TEXT_DATA, None, True),
        "test": Argument(str | None, "Labelled texts to judge on; the test part of DATA by default, or a tenth of it.", None),
        "out": Argument(str | None, "The run folder; <run>-finetune or <run>-scratch by default.", None),
    },
    {"settings": "unveil.recipes.classify:ClassifyRunConfig", "recipe": "unveil.tasks.classify:ClassifyConfig", **SHARED},
    "unveil.recipes.classify:DEFAULTS",
)
VERBS = {
    "pretrain": Verb(
        "unveil.recipes.pretrain:pretrain",
        "Train an encoder on pictures without labels; the same command again goes on.",
        {
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*METHODS], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder: vit-base, or vit-nano for the embedded digits.", None),
            "out": Argument(str | None, "The run folder; runs/<data>-<method>-<model> by default.", None),
        },
        {"run": "unveil.recipes.setting:PretrainConfig", "method": "METHOD", **AUGMENT, **SHARED},
        digits="unveil.recipes.setting:DIGITS",
        of_texts=PRETRAIN_ON_TEXTS,
    ),
    "plan": Verb(
        "unveil.recipes.plan:plan",
        "Choose what to train on DATA with this hardware, try it for a moment, and predict time and memory.",
        {
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*PICTURES], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder; chosen where not given, as are sizes, decoder, batch, rate and epochs.", None),
            "out": Argument(str | None, "The run folder of the printed command; runs/<data>-<method>-<model> by default.", None),
            "hours": Argument(float | None, "The time that the run may take; 1 on a CPU and 8 on a GPU by default.", None),
            "seconds": Argument(float, "About how long the trial takes.", 30.0),
        },
        {"run": "unveil.recipes.setting:PretrainConfig", "method": "METHOD", **AUGMENT, **SHARED},
        digits="unveil.recipes.setting:DIGITS",
    ),
    "compare": Verb(
        "unveil.recipes.compare:compare",
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
            "comparison": "unveil.recipes.contest:ContestConfig",
            "table": "unveil.recipes.compare:CompareConfig",
            "run": "unveil.recipes.setting:PretrainConfig",
            **AUGMENT,
            **SHARED,
        },
        digits="unveil.recipes.setting:DIGITS",
        apart=True,
    ),
    "finetune": Verb(
        "unveil.recipes.finetune:finetune",
        "Tune a whole encoder on labelled pictures, with the paper's recipe; --scratch for the same without pre-training.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str | None, "Labelled pictures; those of the run by default. " + DATA, None, True),
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
        "unveil.recipes.fill:fill",
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
            "data": Argument(str | None, "Labelled pictures; those of the run by default. " + DATA, None, True),
            "test": TEST,
            "out": Argument(str | None, "A folder for the results; a new <run>/probe-<kind> by default.", None),
        },
        {"settings": "unveil.recipes.probe:ProbeConfig", **SHARED},
        "unveil.recipes.probe:DEFAULTS",
    ),
    "embed": Verb(
        "unveil.recipes.embed:embed",
        "Write the features of every picture, one row each, as NPZ or Parquet.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str, DATA, positional=True),
            "out": Argument(str | None, "A new .npz or .parquet file; embeddings.npz by default.", None),
        },
        {"settings": "unveil.recipes.embed:EmbedConfig", "hardware": SHARED["hardware"]},
    ),
    "reconstruct": Verb(
        "unveil.recipes.look:reconstruct",
        "Draw pictures masked and rebuilt.",
        {
            "run": Argument(str, RUN, positional=True),
            "data": Argument(str | None, "Pictures to draw; those of the run by default. " + DATA, None, True),
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
        "Decode and shrink every picture once, into a few large files that train faster.",
        {
            "data": Argument(str, DATA, positional=True),
            "out": Argument(str | None, "A new folder; the same command again goes on.", None, True),
            "verify": Argument(bool, "Read every byte of OUT again; without OUT, of DATA, which then is a pack.", False),
        },
        {"settings": "unveil.recipes.packing:PackConfig"},
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
        "unveil.recipes.study:study",
        "Train a method with a knob at several values, several seeds each, and draw the curve.",
        {
            "what": Argument(str, "A knob and its values: mask_ratio=0.25,0.5,0.75.", positional=True),
            "data": Argument(str, DATA, "digits", True),
            "method": Argument(Literal[*PICTURES], "How to learn.", "mae"),
            "model": Argument(MODEL, "The encoder: vit-base, or vit-nano for the embedded digits.", None),
            "out": Argument(str | None, "The folder for all runs; runs/<data>-<method>-<knob> by default.", None),
        },
        {
            "comparison": "unveil.recipes.contest:ContestConfig",
            "run": "unveil.recipes.setting:PretrainConfig",
            "method": "METHOD",
            **AUGMENT,
            **SHARED,
        },
        digits="unveil.recipes.setting:DIGITS",
        apart=True,
    ),
    "why": Verb(
        "unveil.recipes.why:why",
        "Hide more and more of pictures and of words, with the same blocks and budget, and draw the curves beside each other.",
        {
            "pictures": Argument(str, "Labelled pictures: " + DATA, positional=True),
            "texts": Argument(str, "A corpus: a folder or an archive of text files.", positional=True),
            "size": Argument(Literal["nano", "base"], "The encoders: vit-nano and bert-nano, or vit-base and bert-base.", "nano"),
            "out": Argument(str | None, "The folder for all runs; runs/why by default.", None),
        },
        {"comparison": "unveil.recipes.contest:ContestConfig", **SHARED},
        apart=True,
    ),
    "report": Verb(
        "unveil.recipes.look:report",
        "Write the page of a run anew.",
        {"run": Argument(str, "A run folder.", positional=True)},
        {},
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point. Exits with 0 (done), 1 (failed, one sentence on stderr) or 2 (usage)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        sys.exit(0 if argv else 2)
    if argv[0] in ("-V", "--version"):
        from unveil import __version__

        print(f"unveil {__version__}")
        sys.exit(0)
    name = next((name for name in (argv[0], " ".join(argv[:2])) if name in VERBS), None)     # some are two words
    if name is None:
        near = [verb for verb in VERBS if verb.startswith(f"{argv[0]} ")] or difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f"did you mean {' or '.join(near)}?" if near else "see unveil --help"
        print(f"unveil: there is no command {argv[0]!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    verb = VERBS[name]
    if verb.of_texts and (method_of(argv) in TEXTS or any(reads(part) == "texts" for part in argv[1:])):
        verb = verb.of_texts
    options = parse(name, verb, argv[len(name.split()) :])
    sys.exit(run(verb, options))


def overview() -> str:
    """The help of the command itself."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.says}" for name, verb in VERBS.items())
    return (
        "usage: unveil COMMAND ...\n\n"
        "Learns vision models from unlabelled pictures by masked autoencoding, and shows whether it worked.\n\n"
        f"{verbs}\n\nunveil COMMAND --help shows its options. Start with: unveil pretrain"
    )


def parse(name: str, verb: Verb, argv: list[str]) -> dict[str, Any]:
    """The options that were given, by name. Exits with 2 and a hint where they make no sense."""
    import tyro

    argv, apart = set_apart(argv) if verb.apart else (argv, {})
    fields = [field(key, argument.type, argument.help, argument.default, positional=argument.positional)
              for key, argument in verb.arguments.items()]  # fmt: skip
    defaults, digits = literals(verb.defaults), literals(verb.digits)
    if "METHOD" in verb.configs.values():
        defaults |= usual_of(method_of(argv))
    for title, place in verb.configs.items():
        own = []
        for knob in knobs(f"{METHODS[method_of(argv)]}Config" if place == "METHOD" else place):
            special = f"; {plainly(digits[knob.name])} for the digits" if knob.name in digits.keys() - defaults.keys() else ""
            own.append(field(knob.name, knob.type, knob.help, defaults.get(knob.name, knob.default), special))
        group = dataclasses.make_dataclass(title, own, frozen=True)
        fields.append((f"{title}_", Annotated[group, tyro.conf.arg(name=title)], dataclasses.field(default_factory=group)))
    shape = dataclasses.make_dataclass(name.replace(" ", "_"), fields)
    parsed: Any = tyro.cli(shape, prog=f"unveil {name}", description=verb.says, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    given = {part[2:].split("=")[0].replace("-", "_") for part in argv if part.startswith("--")}
    options = {key: getattr(parsed, key) for key in verb.arguments}
    for title in verb.configs:
        values = dataclasses.asdict(getattr(parsed, f"{title}_"))
        options |= {key: value for key, value in values.items() if key in given or f"no_{key}" in given}
    return options | {name: parse_apart(name, words) for name, words in apart.items()}


def set_apart(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """What is said to all, and what to one alone, by its name: `--dino.base-lr 1e-3` is `--base-lr 1e-3` for dino."""
    shared: list[str] = []
    apart: dict[str, list[str]] = {}
    into = shared
    for word in argv:
        if word.startswith("--"):
            name, dot, option = word[2:].partition(".")
            into = apart.setdefault(name, []) if dot and "=" not in name else shared
            word = word if into is shared else f"--{option}"
        into.append(word)
    return shared, apart


def parse_apart(name: str, words: list[str]) -> dict[str, Any]:
    """Options for one alone, read as `pretrain` or `finetune` would."""
    called, start = ("finetune", ["RUN"]) if name == "finetune" else ("pretrain", ["DATA", "--method", base_of(name)])
    verb = VERBS[called]
    verb = verb.of_texts if verb.of_texts and base_of(name) in TEXTS else verb
    options = parse(called, verb, [*start, *words])
    return {key: value for key, value in options.items() if key not in verb.arguments or (key == "model" and value)}


def literals(place: str) -> dict[str, Any]:
    """The dictionary at "module:name"; an empty one for no place."""
    module, _, name = place.partition(":")
    return dict(literal(module, name)) if module else {}


def field(name: str, kind: Any, says: str, default: Any, special: str = "", *, positional: bool = False) -> tuple[str, Any, Any]:
    """A field of a dataclass that is made on the fly, with what `--help` says of it."""
    import tyro

    marks: list[Any] = [tyro.conf.Positional] if positional else []
    told = "" if default in (None, (), "") else f"(default: {plainly(default)}{special})"
    if default is REQUIRED:
        told = "(required)"
    metavar = name.upper() if positional else WORDS.get(kind)
    if metavar is None and get_origin(kind) in (Union, UnionType):             # of one of these names, or none
        metavar = "{" + ",".join(name for part in get_args(kind) for name in get_args(part)) + "}"
    marks.append(tyro.conf.arg(help=says, metavar=metavar, help_behavior_hint=told))
    return (name, Annotated[kind, *marks], dataclasses.field() if default is REQUIRED else dataclasses.field(default=default))


def plainly(value: Any) -> str:
    """A default as one would type it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def method_of(argv: list[str]) -> str:
    """The method that is asked for; mae where there is no such one, which is refused later."""
    named = [b for a, b in pairwise(argv) if a == "--method"]
    named += [part.removeprefix("--method=") for part in argv if part.startswith("--method=")]
    return named[0] if named and named[0] in METHODS else "mae"


def run(verb: Verb, options: dict[str, Any]) -> int:
    """Calls the function of a verb; the exit code."""
    module, _, name = verb.call.partition(":")
    try:
        getattr(importlib.import_module(module), name)(**options)
    except KeyboardInterrupt:
        return complain("stopped at once: the same command goes on from what it saved last")
    except Exception as error:
        if os.environ.get("UNVEIL_TRACEBACK"):
            raise
        sentence = plain(error)
        if sentence is None:
            raise
        return complain(sentence)
    return 0


def plain(error: Exception) -> str | None:
    """The sentence that the user should read; None for a fault of our own, which deserves its traceback."""
    if isinstance(error, UnveilError) or type(error).__name__ == "Interrupted":
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return "the device has too little memory: try --accumulate 2 (or 4, 8), --recompute, or a smaller --batch-size"
    if "by peer" in str(error) or type(error).__name__ == "DistBackendError":
        cause = str(error).splitlines()[0].split("] ", 1)[-1].split(". This")[0]
        return f"lost touch with another process of this run ({cause}): torchrun starts all again where --max-restarts allows"
    return None


def complain(sentence: str) -> int:
    """Says what went wrong; the exit code."""
    print(f"unveil: {sentence}", file=sys.stderr)
    return 1
