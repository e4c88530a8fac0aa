"""Arrays of images in memory, with their labels, as sources."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unveil.data.label_values import LabelKind, Read
from unveil.data.labels import classes_sentence, number_array
from unveil.data.pixels import IGNORE, Unreadable, as_class_map, common_scale
from unveil.data.source import Source, version_2
from unveil.errors import UnveilError

FORM = "an array in memory"
USUAL_CHANNELS = (1, 3, 4)


def array_source(
    array: NDArray[Any],
    labels: NDArray[Any] | None = None,
    *,
    name: str = "array",
    form: str = FORM,
    known_axes: bool = False,
    kind: LabelKind | None = None,
) -> Source:
    """Images in memory as a source.

    Args:
        array: (N, H, W) or (N, H, W, C). For the scale of its values, see `common_scale`.
        labels: (N,) labels, numbers or strings, of which those that occur become classes, and NaN and "" mean no class; or
            (N, H, W) class maps, with 255 for pixels without a class.
        name: The name of the source, and the first part of the names of its images.
        form: See `Source.form`.
        kind: The kind of labels, if it is neither classes nor maps: (N, K) of 1 and 0, or (N,) numbers.
        known_axes: Whether the order of the axes is beyond doubt.

    Raises:
        UnveilError: If it holds no images, or its axes seem to be in another order; or if the labels do not fit.
    """
    scale = _checked_images(array, known_axes)
    dark = dark_note(array)
    if labels is not None and len(labels) != len(array):
        raise UnveilError(f"there are {len(labels)} labels for {len(array)} images: expected one for each")
    names = [f"{name}/{index:06d}" for index in range(len(array))]
    sizes = np.full(len(array), array[:1].nbytes)
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    if labels is not None and kind is not None:
        content = digest.hexdigest()
        read = partial(_read, array, scale)
        plain = Source(name, names, None, [], content, read, listing_fingerprint=content, form=form, sizes=sizes, notes=dark)
        return with_values(plain, kind, kind.read_array(labels))
    if labels is not None and labels.ndim != 1:
        maps = _checked_maps(np.asarray(labels), array)
        digest.update(np.ascontiguousarray(maps).view(np.uint8).data)
        classes = [str(number) for number in range(int(maps.max(initial=0, where=maps != IGNORE)) + 1)]
        content = digest.hexdigest()
        return Source(
            name,
            names,
            None,
            classes,
            content,
            lambda index: scale(array[index]),
            map_reader=lambda index: maps[index],
            listing_fingerprint=content,
            form=form,
            sizes=sizes,
            notes=dark,
        )
    content = digest.hexdigest()
    if labels is None:
        read = partial(_read, array, scale)
        return Source(name, names, None, [], content, read, listing_fingerprint=content, form=form, sizes=sizes, notes=dark)
    numbers, classes = number_array(np.asarray(labels))
    return Source(
        name,
        names,
        numbers if classes else None,
        classes,
        version_2(content, *map(str, labels.tolist())),
        lambda index: scale(array[index]),
        listing_fingerprint=content,
        notes=(*dark, *((classes_sentence("the labels", numbers, classes),) if classes else ())),
        form=form,
        sizes=sizes,
    )


def dark_note(array: NDArray[Any]) -> tuple[str, ...]:
    """A sentence about 16-bit images that are nearly black."""
    if array.dtype != np.uint16 or not array.size or (highest := int(array.max())) > 255:
        return ()
    return (
        f"the array is uint16 and its largest value is {highest}, of 65535, so its images are nearly black: convert it to uint8 if "
        f"255 is white",
    )


def with_values(source: Source, kind: LabelKind, read: Read, notes: Sequence[str] = ()) -> Source:
    """A source with labels that are not classes."""
    values = hashlib.sha256(np.ascontiguousarray(read.values).view(np.uint8).data).hexdigest()
    fingerprint = version_2(source.fingerprint, values)
    found = replace(source, fingerprint=fingerprint, values=read.values, classes=read.classes, absent=read.absent)
    return replace(found, notes=(*source.notes, *notes, kind.sentence("the labels", found))) if found.is_labelled else found


def _read(array: NDArray[Any], scale: Callable[[NDArray[Any]], NDArray[Any]], index: int) -> NDArray[Any]:
    return scale(array[index])


def _checked_images(array: NDArray[Any], known_axes: bool) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The scale of an array of images. Raises `UnveilError` if it holds none, or its axes seem to be in another order."""
    expected = "expected (N, H, W) or (N, H, W, C)"
    if array.ndim not in (3, 4) or not array.size:
        raise UnveilError(f"an array of shape {array.shape} holds no images: {expected}")
    if array.dtype.kind not in "biuf":
        raise UnveilError(f"an array of {array.dtype} values holds no images: expected numbers, and images of one size")
    _, *sides = array.shape
    if known_axes:
        return _scale_of(array)
    square = array.ndim == 4 and sides[0] < sides[1] == sides[2] >= 28  # the smallest usual images
    if array.ndim == 4 and (sides[0] <= 4 < min(sides[1:]) or square):
        raise UnveilError(
            f"an array of shape {array.shape} seems to have the axes (N, C, H, W), with channels first: {expected}, "
            "so use array.transpose(0, 2, 3, 1)"
        )
    if array.ndim == 3 and sides[1] in (3, 4) and min(len(array), sides[0]) > 4:
        raise UnveilError(f"an array of shape {array.shape} seems to be one image (H, W, C): {expected}, so use array[None]")
    return _scale_of(array)


def _scale_of(array: NDArray[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    try:
        return common_scale(array)
    except Unreadable as error:
        raise UnveilError(f"the array {error.reason}") from None


def _checked_maps(maps: NDArray[Any], array: NDArray[Any]) -> NDArray[np.uint8]:
    if maps.shape != array.shape[:3]:
        raise UnveilError(f"labels of shape {maps.shape} do not fit images of shape {array.shape}: expected (N,) or (N, H, W)")
    try:
        return as_class_map(maps.reshape(len(maps), -1)).reshape(maps.shape)
    except Unreadable as error:
        raise UnveilError(f"the labels cannot be used: {error.reason}") from None


def tensor_array(tensor: Any, what: str) -> NDArray[Any]:
    """A tensor (N, C, H, W) or (N, H, W) as an array (N, H, W, C) or (N, H, W), without a copy if it is on the CPU.

    Args:
        tensor: The tensor, of any type.
        what: Its name in messages.

    Raises:
        UnveilError: If it has another number of axes, or seems to have them in another order.
    """
    shape, expected = tuple(tensor.shape), "expected (N, C, H, W), or (N, H, W) for grey images"
    if tensor.ndim not in (3, 4) or 0 in shape:
        raise UnveilError(f"{what} of shape {shape} holds no images: {expected}")
    if tensor.ndim == 4 and shape[3] in USUAL_CHANNELS and shape[1] not in USUAL_CHANNELS:
        raise UnveilError(f"{what} of shape {shape} has the channels last, (N, H, W, C): {expected}, so use tensor.movedim(-1, 1)")
    if tensor.ndim == 3 and shape[0] in (3, 4) and min(shape[1:]) > 4:
        raise UnveilError(
            f"{what} of shape {shape} seems to be one image (C, H, W): {expected}, so use tensor[None], or tensor[:, None] for grey"
        )
    tensor = tensor.detach().cpu()
    tensor = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
    array: NDArray[Any] = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).numpy()
    return array
