"""Reads the class map of an image: upright and shrunk like the image, and of its size."""

import numpy as np

from unveil.data.from_pillow import upright_size
from unveil.data.images import image_frame, read_class_map, turned_with_image
from unveil.data.instance_map import InstanceMap
from unveil.data.pixels import IGNORE, ClassMap, ShrinkTo, Unreadable, shrink_class_map
from unveil.data.source import Raw, RawMap, Source


class MapReader:
    """Reads the class maps of a source.

    Args:
        source: The images and their maps.
        max_pixels: Files with more pixels than this are not decoded.
    """

    def __init__(self, source: Source, max_pixels: int) -> None:
        self.source, self.max_pixels = source, max_pixels
        self._fits: set[int] = set()  # images whose size was compared: for some formats, it is known only after decoding

    def read(self, index: int, image: Raw, shape: tuple[int, ...], side: ShrinkTo | None, *, retry: bool) -> ClassMap:
        """The class of each pixel of an image.

        Args:
            index: The image.
            image: Its file.
            shape: Height and width after shrinking.
            side: How far it was shrunk: see `unveil.data.images.read_image`.
            retry: Whether to try again if the disk fails.

        Raises:
            Unreadable: If the map cannot be used, or has another size than the image.
        """
        name = self.source.names[index]
        raw = self.source.read_map(index, retry=retry)
        try:
            classes = self._upright(raw, image)
            stored = classes.shape
            if side is not None and index not in self._fits:
                self._refuse_other_size(stored, self._size_of(image))
                self._fits.add(index)
            classes = shrink_class_map(classes, side)
            if classes.shape != shape[:2]:
                self._refuse_other_size(stored, self._size_of(image))
            largest = int(classes.max(initial=0, where=classes != IGNORE))
            if largest >= len(self.source.classes):
                raise Unreadable(f"mask with class {largest}, but there are {len(self.source.classes)} classes")
        except Unreadable as error:
            raise Unreadable(error.reason, name, lost=error.lost) from None
        return classes

    def _upright(self, raw: RawMap, image: Raw) -> ClassMap:
        if isinstance(raw, InstanceMap):
            return raw.drawn(image_frame(image, max_pixels=self.max_pixels))
        classes = read_class_map(raw, values=self.source.mask_values, max_pixels=self.max_pixels)
        return turned_with_image(classes, raw, image)

    def _size_of(self, image: Raw) -> tuple[int, int]:
        """Height and width of an upright image before shrinking."""
        if isinstance(image, np.ndarray):
            return image.shape[0], image.shape[1]
        frame = image_frame(image, max_pixels=self.max_pixels)
        return upright_size(frame.height, frame.width, frame.turn)

    @staticmethod
    def _refuse_other_size(mask: tuple[int, ...], image: tuple[int, int]) -> None:
        if mask != image:
            sizes = [f"{width} x {height}" for height, width in ((mask[0], mask[1]), image)]
            raise Unreadable(f"mask of {sizes[0]} pixels, which is not the size of its image, {sizes[1]}")
