"""Checks of paths on the command line. They need no torch, so a wrong path is reported at once.

The functions that open these files later raise the same messages.
"""

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

from unveil.errors import UnveilError
from unveil.folder_lock import LOCK

DIGITS = ("digits", "digits-plain")
"""Names of the embedded data set: with strong distortions, and without."""
TORCHVISION_NAMES = (
    "cifar10",
    "cifar100",
    "country211",
    "dtd",
    "eurosat",
    "fashionmnist",
    "fgvcaircraft",
    "flowers102",
    "food101",
    "gtsrb",
    "imagenette",
    "kmnist",
    "mnist",
    "oxfordiiitpet",
    "stl10",
    "sun397",
    "svhn",
)
"""Keys of `unveil.data.named_datasets.TORCHVISION_SETS`."""
IMAGE_FORMS = (
    "a folder of images, a .tar, .tar.gz or .zip of one, a pack of `unveil pack`, shards-{000..099}.tar, hf://name, "
    f"or one of {', '.join((*DIGITS, *TORCHVISION_NAMES))}"
)
"""What DATA may be, for error messages and help."""
TEXT_FORMS = "a .txt, .csv or .tsv file, or a folder or archive of them"
MODEL_FORMS = (
    "a run folder, a file exported by unveil, a file of the public MAE release or with timm's names of a Vision Transformer "
    "(.safetensors, .pth or .bin), a folder of timm, a transformers folder of ViT, ViTMAE, DINOv2, BEiT or BERT, or a name in timm "
    "such as timm:vit_base_patch16_224.mae"
)
"""What RUN may be."""
TIMM_PREFIX = "timm:"


def refuse_missing_images(data: str) -> None:
    """Raises `UnveilError` if DATA is neither a name nor an existing file, folder or set of shards."""
    path = Path(data).expanduser()
    if data in (*DIGITS, *TORCHVISION_NAMES) or data.startswith("hf://") or path.is_dir() or path.is_file():
        return
    shards = [Path(each).expanduser() for each in expand_braces(data)]
    if len(shards) == 1:
        raise UnveilError(images_not_found(data))
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UnveilError(f"{data}: {len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}")


def refuse_missing_samples(data: str) -> None:
    """Raises `UnveilError` if IMAGES, which are texts for a text model, do not exist."""
    if not Path(data).expanduser().is_file():  # of any kind: the model decides
        refuse_missing_images(data)


def absolute_data(data: str) -> str | None:
    """The absolute path of DATA, by which it is found from another working directory; None for a name, or if it does not exist."""
    if data in (*DIGITS, *TORCHVISION_NAMES):
        return None
    scheme = "hf://" if data.startswith("hf://") else ""
    path = os.path.abspath(os.path.expanduser(data.removeprefix(scheme)))
    try:
        exists = os.path.exists(path) or (not scheme and os.path.exists(expand_braces(path)[0]))
    except (UnveilError, ValueError):
        return None
    return scheme + path if exists else None


def images_not_found(data: str) -> str:
    """The error message for DATA that does not exist, which suggests similar names, or that is a pipe or a device."""
    path = Path(data).expanduser()
    if path.exists():
        return f"{data!r} is neither a folder nor a file, but a pipe, a socket or a device. DATA is {IMAGE_FORMS}"
    near = [str(path.parent / name) for name in _similar(path)]
    near += difflib.get_close_matches(data.lower(), (*DIGITS, *TORCHVISION_NAMES), n=2)
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"no file or folder {data!r}{guess} DATA is {IMAGE_FORMS}"


def _similar(path: Path) -> list[str]:
    """Names in the folder of a missing file that are similar to it."""
    try:
        return difflib.get_close_matches(path.name, os.listdir(path.parent), n=3)
    except OSError:
        return []


def expand_braces(pattern: str) -> list[str]:
    """Expands braces as a shell does: `a-{08..10}.tar` to a-08.tar, a-09.tar, a-10.tar, and `{a,b}.tar` to a.tar, b.tar."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, listed = found.groups()
    if listed is not None:
        middles = listed.split(",")
    elif abs(int(last) - int(first)) > 100_000:
        raise UnveilError(f"{pattern} has more than 100,000 shards: give a smaller range")
    else:
        middles = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    rest = expand_braces(pattern[found.end() :])
    return [pattern[: found.start()] + middle + end for middle in middles for end in rest]


def refuse_missing_texts(data: str) -> None:
    """Raises `UnveilError` if a corpus does not exist."""
    _refuse_missing(data, TEXT_FORMS)


def refuse_missing_pairs(data: str) -> None:
    """Raises `UnveilError` if a parallel corpus does not exist."""
    _refuse_missing(data, "a folder or a .tar.gz with train.<source> and train.<target>")


def is_timm_name(run: object) -> bool:
    """Whether RUN is the name of public weights in timm, such as "timm:vit_base_patch16_224.mae"."""
    return str(run).startswith(TIMM_PREFIX)


def refuse_missing_model(run: str) -> None:
    """Raises `UnveilError` if RUN does not exist, and is no name in timm."""
    if not is_timm_name(run):
        _refuse_missing(run, MODEL_FORMS)


def _refuse_missing(text: str, forms: str) -> None:
    path = Path(text).expanduser()
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise UnveilError(f"{text} is neither a folder nor a file, but a pipe, a socket or a device: expected {forms}")
    if not path.exists():
        near = [str(path.parent / name) for name in _similar(path)]
        guess = f"; did you mean {' or '.join(near)}? Expected" if near else ": expected"
        raise UnveilError(f"{text} does not exist{guess} {forms}")


def refuse_missing_image(image: str) -> None:
    """Raises `UnveilError` if an image file does not exist."""
    path = Path(image).expanduser()
    if path.is_dir():
        raise UnveilError(f"{image} is a folder: expected an image file")
    _refuse_missing(image, "an image file")


def refuse_missing_run(run: str) -> None:
    """Raises `UnveilError` if a path is not a run folder."""
    if not (Path(run) / "run.json").is_file():
        raise UnveilError(f"{run} is not a run folder: it has no run.json")


def refuse_foreign_folder(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` exists, unless it is a run folder or has only a plan or leftovers of a killed start."""
    path = Path(out)
    if (path / "run.json").is_file() or not path.exists():
        return
    if not path.is_dir() or any(not each.name.startswith(("plan.json", LOCK, ".run.json-")) for each in path.iterdir()):
        raise UnveilError(f"{out} exists and is not a run folder: choose another --out")


def refuse_file(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` should be a folder, but is a file."""
    if Path(out).is_file():
        raise UnveilError(f"{out} is a file: choose a folder as --out")


def refuse_existing(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` exists."""
    if Path(out).exists() or Path(out).is_symlink():
        raise UnveilError(f"{out} exists, and is not overwritten: choose another --out, or remove it")


def refuse_unless_new_table(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` cannot be a new table of features."""
    _refuse_suffix(out, (".npz", ".parquet"))
    refuse_existing(out)


def refuse_unless_new_labels(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` cannot be a new table of predictions."""
    _refuse_suffix(out, (".csv", ".parquet", ".jsonl"))
    refuse_existing(out)


def refuse_unless_new_predictions(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` can be neither a new table of predictions nor a new folder of class maps."""
    if Path(out).suffix:
        _refuse_suffix(out, (".csv", ".parquet", ".jsonl"))
    refuse_existing(out)


def refuse_unless_new_figure(out: str | Path) -> None:
    """Raises `UnveilError` if `--out` cannot be a new figure."""
    _refuse_suffix(out, (".png", ".pdf", ".svg"))
    refuse_existing(out)


def _refuse_suffix(out: str | Path, suffixes: tuple[str, ...]) -> None:
    suffix = Path(out).suffix
    if suffix not in suffixes:
        listed = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise UnveilError(f"{out} {f'ends in {suffix}' if suffix else 'has no ending'}: use {listed}")


CHECKS: dict[str, Callable[[str], None]] = {
    "images": refuse_missing_images,
    "text": refuse_missing_texts,
    "pairs": refuse_missing_pairs,
    "model": refuse_missing_model,
    "image": refuse_missing_image,
    "run": refuse_missing_run,
    "samples": refuse_missing_samples,
    "run folder": refuse_foreign_folder,
    "folder": refuse_file,
    "new": refuse_existing,
    "new table": refuse_unless_new_table,
    "new labels": refuse_unless_new_predictions,
    "new figure": refuse_unless_new_figure,
}
"""The check of each kind of path, which the command line runs before it imports torch."""
