"""Reads the class map of an image: upright and shrunk like the image, and of its size."""

from unveil.data.from_pillow import upright_size
from unveil.data.images import image_frame, read_class_map, turned_with_image
from unveil.data.instance_map import InstanceMap
from unveil.data.pixels import IGNORE, ClassMap, ShrinkTo, Unreadable, shrink_class_map
from unveil.data.source import Raw, Source


def read_map_of(
    source: Source, index: int, image: Raw, shape: tuple[int, ...], side: ShrinkTo | None, *, max_pixels: int, retry: bool
) -> ClassMap:
    """The class of each pixel of an image.

    Args:
        source: The images and their maps.
        index: The image.
        image: Its file.
        shape: Its height and width as it was read.
        side: How far it was shrunk: see `unveil.data.images.read_image`.
        max_pixels: Files with more pixels than this are not decoded.
        retry: Whether to try again if the disk fails.

    Raises:
        Unreadable: If the map cannot be used, or has another size than the image.
    """
    raw = source.read_map(index, retry=retry)
    try:
        if isinstance(raw, InstanceMap):
            classes = raw.drawn(image_frame(image, max_pixels=max_pixels))
        else:
            classes = turned_with_image(read_class_map(raw, values=source.mask_values, max_pixels=max_pixels), raw, image)
        height, width = shape[:2] if side is None else _upright_size(image, max_pixels)  # another size may shrink to the same
        if classes.shape != (height, width):
            found = f"{classes.shape[1]} x {classes.shape[0]}"
            raise Unreadable(f"mask of {found} pixels, which is not the size of its image, {width} x {height}")
        largest = int(classes.max(initial=0, where=classes != IGNORE))
        if largest >= len(source.classes):
            raise Unreadable(f"mask with class {largest}, but there are {len(source.classes)} classes")
    except Unreadable as error:
        raise Unreadable(error.reason, source.names[index], lost=error.lost) from None
    return shrink_class_map(classes, side)


def _upright_size(image: Raw, max_pixels: int) -> tuple[int, int]:
    frame = image_frame(image, max_pixels=max_pixels)
    return upright_size(frame.height, frame.width, frame.turn)
