"""Images given in Python one by one: paths, Pillow images, arrays and tensors."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unveil.data.images import read_image
from unveil.data.pixels import Pixels, Unreadable, match_channels
from unveil.data.regular_files import read_file
from unveil.data.source import Raw, Source, version_2
from unveil.errors import UnveilError

if TYPE_CHECKING:  # imports torch, which is not needed to list DATA
    from unveil.data.eval_transform import EvalTransform

USUAL_CHANNELS = (1, 3, 4)
TAKES = "expected a path, a Pillow image, an array (H, W, C) or a tensor (C, H, W), of uint8 or uint16"


def raw_image(image: Any, name: str, channels: int | None = None) -> Raw:
    """An image as `read_image` takes it. Nothing is decoded, and an array is not copied.

    Args:
        image: A path, a Pillow image, an array (H, W) or (H, W, C), or a tensor (C, H, W), of uint8 or uint16.
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
    if kind not in ("uint8", "uint16"):
        raise UnveilError(f"{name} has values of {kind}, whose white is unknown: {TAKES}")
    if not (image.ndim == 3 or (image.ndim == 2 and not is_tensor)) or 0 in shape:
        raise UnveilError(f"{name} has the shape {shape}: {TAKES}")
    if image.ndim == 2:
        return np.asarray(image)
    usual = {*USUAL_CHANNELS, channels or 1}
    first, last = shape[0] in usual, shape[2] in usual
    if is_tensor:
        if last and not first:
            raise UnveilError(f"{name} is a tensor of shape {shape}, with the channels last: use tensor.movedim(-1, 0)")
        pixels: NDArray[Any] = image.detach().cpu().permute(1, 2, 0).contiguous().numpy()
        return pixels
    if first and not last:
        raise UnveilError(f"{name} is an array of shape {shape}, with the channels first: use array.transpose(1, 2, 0)")
    array: NDArray[Any] = image
    return array


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


def list_source(images: Sequence[Any]) -> Source:
    """A list of images as a source. Paths keep their names; others are image-000000, image-000001, ... by their place in the list.

    Raises:
        UnveilError: If it is empty, or one of them is no image.
    """
    if not len(images):
        raise UnveilError(f"the list of images is empty: {TAKES}")
    names = [str(each) if isinstance(each, str | os.PathLike) else f"image-{number:06d}" for number, each in enumerate(images)]
    digest = hashlib.sha256()
    for name, image in zip(names, images, strict=True):
        digest.update(f"{name}\0{identity(image, name)}\n".encode("utf-8", "surrogateescape"))
    found = digest.hexdigest()

    def read(index: int) -> Raw:
        return raw_image(images[index], names[index])

    return Source("list", names, None, [], version_2(found), read, listing_fingerprint=found)


def identity(image: Any, name: str) -> str:
    """What changes with an image: size and time of a file, otherwise a checksum of its pixels."""
    if isinstance(image, str | os.PathLike):
        try:
            status = os.stat(Path(image).expanduser())
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"
    raw = raw_image(image, name)
    pixels = raw.tobytes() if isinstance(raw, Image.Image) else np.ascontiguousarray(raw).tobytes()
    return hashlib.sha256(pixels).hexdigest()
