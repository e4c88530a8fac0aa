"""Class maps of images given in Python: a list with a mask for each, as a path, a Pillow image, or an array (H, W) of values."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from unveil.data.image_list import is_path, is_torch_tensor
from unveil.data.mask_meaning import meaning_like, meaning_of
from unveil.data.mask_survey import survey_of
from unveil.data.mask_values import KnownMasks, MaskConfig, MaskNames
from unveil.data.pixels import Unreadable, as_class_map
from unveil.data.regular_files import read_file
from unveil.data.source import Source, version_2
from unveil.errors import UnveilError
from unveil.plain_text import count_of

TAKES = "expected a path, a Pillow image, or an array (H, W) of whole numbers from 0 to 255"
MODES = ("1", "L", "P", "I", "I;16", "RGB", "RGBA")
"""Modes of Pillow images that a PNG can hold."""


class MapRequest(NamedTuple):
    """How class maps are read."""

    config: MaskConfig = MaskConfig()
    known: KnownMasks | None = None
    """The masks of the train set, for a test set."""


def with_list_of_maps(source: Source, masks: Any, request: MapRequest) -> Source:
    """A source with a mask for each image. Masks in memory are kept as PNG, and so are read like files in every respect.

    Args:
        source: The images.
        masks: A list, or an array (N, H, W).
        request: What the values of masks mean.

    Raises:
        UnveilError: If there are more or fewer masks than images, or one of them is something else.
    """
    listed = list(masks) if hasattr(masks, "__iter__") and not isinstance(masks, str | bytes | dict) else None
    if listed is None or len(listed) != len(source):
        given = f"a {type(masks).__name__}" if listed is None else f"{count_of(len(listed), 'mask')}"
        raise UnveilError(f"there is {given} for {count_of(len(source), 'image')}: expected a list with one mask for each image")
    names = [str(each) if is_path(each) else f"the mask of {name}" for each, name in zip(listed, source.names, strict=True)]
    files = [os.path.abspath(os.path.expanduser(each)) if is_path(each) else _png(each, names[i]) for i, each in enumerate(listed)]
    read = partial(_read, files)
    survey = survey_of(read, names, range(len(files)), source.name)
    if request.known is None:
        meaning = meaning_of(survey, MaskNames(), request.config, source.name)
    else:
        meaning = meaning_like(request.known, survey, MaskNames(), request.config, source.name)
    digest = hashlib.sha256()
    for each in files:
        digest.update(hashlib.sha256(each if isinstance(each, bytes) else _content(each)).digest())
    return replace(
        source,
        classes=meaning.classes,
        map_reader=read,
        mask_values=meaning.values,
        fingerprint=version_2(source.fingerprint, digest.hexdigest(), repr(meaning.values.stored)),
        notes=(*source.notes, *meaning.notes),
    )


def _png(mask: Any, name: str) -> bytes:
    """A mask in memory as a PNG file."""
    if isinstance(mask, Image.Image):
        if mask.mode not in MODES:
            raise UnveilError(f"{name} is a Pillow image of the mode {mask.mode}: expected one of {', '.join(MODES)}")
        picture = mask
    else:
        values = np.asarray(mask.detach().cpu().numpy() if is_torch_tensor(mask) else mask)
        if values.dtype.kind not in "biu" or values.ndim not in (2, 3) or not values.size:
            raise UnveilError(f"{name} is {_described(mask, values)}: {TAKES}")
        is_colour = values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8
        try:
            picture = Image.fromarray(values if is_colour else as_class_map(values))
        except Unreadable as error:
            raise UnveilError(f"{name}: {error.reason}") from None
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _described(mask: Any, values: "np.ndarray[Any, Any]") -> str:
    kind = type(mask).__name__
    return f"a {kind}" if values.dtype == object or not values.ndim else f"a {kind} of {values.dtype} {values.shape}"


def _read(files: Sequence[bytes | str], index: int) -> bytes:
    file = files[index]
    return file if isinstance(file, bytes) else read_file(Path(file))


def _content(path: str) -> bytes:
    """The content of a file; that of one that cannot be read is told when it is needed."""
    try:
        return read_file(Path(path))
    except (OSError, Unreadable):
        return b"cannot be read"
