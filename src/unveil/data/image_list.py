"""Images given in Python one by one: paths, Pillow images, arrays and tensors."""

import hashlib
import os
import stat
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.images import read_image
from unveil.data.pixels import Pixels, Unreadable, match_channels
from unveil.data.regular_files import read_file
from unveil.data.source import SAMPLED_BYTES, SAMPLED_FILES, Raw, Source, evenly_spaced, version_2
from unveil.errors import UnveilError
from unveil.plain_text import count_of

if TYPE_CHECKING:  # imports torch, which is not needed to list DATA
    from unveil.data.eval_transform import EvalTransform

USUAL_CHANNELS = (1, 3, 4)
TAKES = (
    "expected a path, a Pillow image, an array (H, W, C) or a tensor (C, H, W), of uint8, uint16, booleans, or floats from 0 to 1"
)
PATHS, IMAGES = "a list of paths", "a list of images"
EXACT = 1e-3
"""By how much 255 times a float may differ from a whole number, in an image that was one of 8 bits."""


def raw_image(image: Any, name: str, channels: int | None = None) -> Raw:
    """An image as `read_image` takes it. Nothing is decoded, and an array is not copied.

    Args:
        image: A path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8, uint16, booleans, or floats
            from 0 (black) to 1 (white). Floats that are whole steps of 8 bits, as those of torchvision's `ToTensor`, become uint8;
            others become uint16.
        name: The image in messages.
        channels: The number of channels that is expected, if it is an unusual one.

    Raises:
        UnveilError: If it is something else, or its axes seem to be in another order.
        Unreadable: If a file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        try:
            return read_file(Path(image).expanduser())
        except OSError as error:
            raise Unreadable(f"cannot be opened: {error.strerror}", name, lost=True) from None
    if isinstance(image, Image.Image):
        return image
    is_tensor = is_torch_tensor(image)
    if not isinstance(image, np.ndarray) and not is_tensor:
        raise UnveilError(f"{name} is a {type(image).__name__}: {TAKES}")
    shape, kind = tuple(image.shape), str(image.dtype).removeprefix("torch.")
    if kind not in ("uint8", "uint16", "bool") and not kind.startswith(("float", "bfloat")):
        raise UnveilError(f"{name} has values of {kind}, whose white is unknown: {TAKES}")
    if not (image.ndim == 3 or (image.ndim == 2 and not is_tensor)) or 0 in shape:
        raise UnveilError(f"{name} has the shape {shape}: {TAKES}")
    if image.ndim == 2:
        return whole_numbers(np.asarray(image), name)
    usual = {*USUAL_CHANNELS, channels or 1}
    first, last = shape[0] in usual, shape[2] in usual
    if is_tensor:
        if last and not first:
            raise UnveilError(f"{name} is a tensor of shape {shape}, with the channels last: use tensor.movedim(-1, 0)")
        image = image.float() if kind == "bfloat16" else image
        return whole_numbers(image.detach().cpu().permute(1, 2, 0).contiguous().numpy(), name)
    if first and not last:
        raise UnveilError(f"{name} is an array of shape {shape}, with the channels first: use array.transpose(1, 2, 0)")
    return whole_numbers(image, name)


def whole_numbers(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Floats from 0 to 1 as uint8 if all are whole steps of 8 bits, else as uint16; other values as they are.

    Raises:
        UnveilError: If a float is not from 0 to 1.
    """
    if values.dtype.kind != "f":
        return values
    low, high = float(values.min()), float(values.max())
    if not -0.5 / 65535 <= low <= high <= 1 + 0.5 / 65535:  # also if one of them is NaN
        raise UnveilError(
            f"{name} has floats from {low:g} to {high:g}, but they are read from 0 (black) to 1 (white): divide by the value of "
            "white, such as 255, and do not normalise"
        )
    scaled = values.astype(np.float64) * 255
    steps = np.rint(scaled)
    whole = bool(np.abs(scaled - steps).max() < EXACT)
    return steps.astype(np.uint8) if whole else np.rint(scaled * 257).astype(np.uint16)


def is_torch_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch, which is not imported to list DATA."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def for_model(raw: Raw, transform: "EvalTransform", channels: int, *, deep: bool, max_pixels: int, name: str = "") -> Pixels:
    """An image (S, T, C), resized and cropped for a model, but not normalised.

    Args:
        raw: See `raw_image`.
        transform: How to resize and crop.
        channels: Number of channels of the model.
        deep: Whether the model takes 16 bits; otherwise 8.
        max_pixels: An image with more pixels than this is not decoded.
        name: The image in messages.

    Raises:
        Unreadable: If it cannot be used.
    """
    wanted = None if channels == 3 else channels  # grey is repeated when it is small
    pixels = with_bits(read_image(raw, channels=wanted, max_pixels=max_pixels, name=name), deep)
    try:
        return match_channels(transform(pixels), channels)
    except Unreadable as error:
        raise Unreadable(error.reason, name) from None


def with_bits(pixels: Pixels, deep: bool) -> Pixels:
    """An image with 16 bits if `deep`, else with 8."""
    if deep and pixels.dtype == np.uint8:
        return pixels.astype(np.uint16) * 257
    return (pixels >> 8).astype(np.uint8) if not deep and pixels.dtype == np.uint16 else pixels


def list_source(images: Sequence[Any], *, name: str = "list", form: str = "") -> Source:
    """A list of images as a source. Paths keep their names; others are image-000000, image-000001, ... by their place in the list.

    The order is that of the list. A path that is listed several times is one original: see `Source.groups`.

    Args:
        images: See `raw_image`. A file that does not exist is left out when images are read.
        name: The name of the source.
        form: See `Source.form`; by default "a list of paths" or "a list of images".

    Raises:
        UnveilError: If the list is empty, none of the files exists, or something is no image.
    """
    if not len(images):
        raise UnveilError(f"{form or 'the list of images'} is empty: {TAKES}")
    names = [str(each) if is_path(each) else f"image-{number:06d}" for number, each in enumerate(images)]
    paths = {number: os.path.abspath(os.path.expanduser(each)) for number, each in enumerate(images) if is_path(each)}
    sizes = {number: _size(path) for number, path in paths.items()}
    missing = [number for number, size in sizes.items() if size is None]
    if missing and len(missing) == len(images):
        raise UnveilError(
            f"none of the files of {name} exists; the first is {paths[0]}: relative paths begin in the working directory"
        )
    root = os.path.commonpath([os.path.dirname(path) for path in paths.values()]) if paths else ""
    digest = hashlib.sha256()
    for number, image in enumerate(images):
        if number in paths:
            known = f"{os.path.relpath(paths[number], root)}\0{sizes[number]}"
        else:
            raw = raw_image(image, names[number])
            known, sizes[number] = f"{names[number]}\0{checksum(raw)}", bytes_of(raw)
        digest.update(f"{known}\n".encode("utf-8", "surrogateescape"))
    listing = digest.hexdigest()
    sampled = [paths[number] for number in evenly_spaced(sorted(paths.keys() - set(missing)), SAMPLED_FILES)]
    originals = np.unique([paths.get(number, f"\0{number}") for number in range(len(images))], return_inverse=True)[1].reshape(-1)
    repeated = len(images) - len(np.unique(originals))
    notes = []
    if missing:
        verb = "do" if len(missing) > 1 else "does"
        notes.append(f"{count_of(len(missing), 'file')} of {name} {verb} not exist, such as {names[missing[0]]}")
    if repeated:
        verb = "repeat earlier ones" if repeated > 1 else "repeats an earlier one"
        notes.append(f"{count_of(repeated, 'path')} of {name} {verb}: copies of a file are held out together")
    return Source(
        name,
        names,
        None,
        [],
        version_2(listing, *map(_content, sampled)),
        partial(_read, images, names, paths, frozenset(missing)),
        listing_fingerprint=listing,
        notes=tuple(notes),
        groups=originals.astype(np.int64) if repeated else None,
        sizes=np.array([sizes[number] or 0 for number in range(len(images))]),
        form=form or (PATHS if len(paths) == len(images) else IMAGES),
    )


def is_path(image: Any) -> bool:
    """Whether an image is given by its path."""
    return isinstance(image, str | os.PathLike)


def bytes_of(raw: Raw) -> int:
    """The size of an image in memory."""
    if isinstance(raw, Image.Image):
        return raw.width * raw.height * len(raw.getbands())
    return len(raw) if isinstance(raw, bytes) else raw.nbytes


def checksum(raw: Raw) -> str:
    """A checksum of an image in memory: of its pixels, shape and type."""
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    kind = f"{raw.mode} {raw.size} {raw.getpalette()}" if isinstance(raw, Image.Image) else f"{raw.dtype} {raw.shape}"
    pixels = raw.tobytes() if isinstance(raw, Image.Image) else np.ascontiguousarray(raw).tobytes()
    return hashlib.sha256(kind.encode() + pixels).hexdigest()


def _read(images: Sequence[Any], names: Sequence[str], paths: dict[int, str], missing: frozenset[int], index: int) -> Raw:
    if index in missing:
        raise Unreadable("does not exist")
    return read_file(Path(paths[index])) if index in paths else raw_image(images[index], names[index])


def _size(path: str) -> int | None:
    """The size of a file; None if it does not exist. Raises `UnveilError` for a folder."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # a path that no file can have
        return None
    if stat.S_ISDIR(found.st_mode):
        raise UnveilError(f"{path} is a folder, in a list of images: give the folder itself as DATA, or a list of its files")
    return found.st_size


def _content(path: str) -> str:
    """A checksum of the first bytes of a file."""
    try:
        return hashlib.sha256(read_file(Path(path), SAMPLED_BYTES)).hexdigest()
    except (OSError, Unreadable):
        return "cannot be read"
